"""Every pipeline that people use, on a tiny network: the untuned scheduler draws what the pipeline draws as it came, in
any number of calls; the pipeline is tuned, and the untuned distance is its own; a saved scheduler runs it again.

Where the pipeline's own scheduler is not of first order, or draws noise, its place is taken by diffusers' first-order
class with the same configuration: see `first_order`.
"""

from contextlib import nullcontext
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the text encoders of most pipelines; in the dev extra")

from beta_pipelines import BETAS_FAMILIES
from edm_pipelines import EDM_FAMILIES
from flow_pipelines import FLOWS
from pipelines import Family

from time_tuner import NoiseScheduleFlow, Plan, make_plan
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler, tune_pipeline
from time_tuner.diffusers.native_grid import keeps_timesteps
from time_tuner.plans.build import reference_plan
from time_tuner.tuners.ranking import Rounds

pytestmark = pytest.mark.filterwarnings(
    "ignore:In CPU autocast",  # Mochi
    "ignore:.FluxPosEmbed. is deprecated",  # Chroma
    "ignore:.*weight_norm",  # Stable Audio
)
tuning = import_module("time_tuner.tuners.tune")

EVERY = FLOWS | BETAS_FAMILIES | EDM_FAMILIES
CALLS = (1, 4, 5)

NO_SINGLE_CALL = {
    **dict.fromkeys(
        ("ltx", "qwen", "qwen-edit", "qwen-img2img", "qwen-inpaint"), "shift_terminal stretches the sigmas"
    ),
    **dict.fromkeys(
        (
            "sd15",
            "sdxl",
            "sdxl-img2img",
            "animatediff",
            "free-init",
            "kandinsky2.2",
            "latte",
            "deepfloyd",
            "stable-audio",
        ),
        "the state is data rather than noise",
    ),
}
"""Families whose own grid of one call is refused, and why: they end in NaN or in the noise as they came."""

FAILS_AT_ONE = ("mochi", "wan-video")
"""Pipelines that divide by zero at one call as they came."""

ONE_MORE = ("cosmos1", "cosmos1-video", "cosmos2", "cosmos2-video")
"""Pipelines whose last call leads nowhere as they came: they have our run of n calls as theirs of n + 1."""

NEAR = {
    "cosmos2.5": 3e-4,  # its network receives sigmas, and UniPC rounds the timesteps alone
    "animatediff": 2e-3,  # Euler with "linspace" begins with noise of deviation sigma, and not sqrt(1 + sigma^2)
}
"""How near states are, as a share of their norm, where that is not 1e-4."""

NOT_TUNED = {
    "ltx2": "denoises a second state with a copy of its scheduler",
    **dict.fromkeys(("sd3-inpaint", "flux-inpaint", "qwen-inpaint"), "changes the state between two calls"),
}
"""Families that run plans and are not tuned, and why."""


def made(name: str) -> Family:
    family = EVERY[name]()
    family.pipe.set_progress_bar_config(disable=True)
    return family


def run(family: Family, calls: int, **inputs: Any) -> Tensor:
    return family.run(calls, **{"generator": torch.Generator().manual_seed(0)} | inputs)


def first_order(own: Any) -> Any:
    """A pipeline's scheduler, or diffusers' scheduler of first order with its configuration.

    DPM-Solver++ and UniPC of first order are their own classes with that option; the grid is theirs. PNDM, DDPM and
    CogVideoX-DPM become DDIM, and EDM's DPM-Solver++ EDM's Euler, whose grids are the same. The noise of DDIM
    follows from the bounded data, as in our samplers. DDIM with "linspace" goes from level n to n - N / steps and then
    on from the next level of its grid, another one; Euler goes to that level.
    """
    name, config = type(own).__name__, dict(own.config)
    learned = config.pop("variance_type", None)
    if name == "UniPCMultistepScheduler":
        return type(own).from_config(config, solver_order=1, disable_corrector=list(range(1000)))
    if name == "DPMSolverMultistepScheduler":
        return type(own).from_config(config, solver_order=1)
    if name == "CogVideoXDPMScheduler":
        return diffusers.CogVideoXDDIMScheduler.from_config(config)
    if name == "CosineDPMSolverMultistepScheduler":
        return type(own).from_config(config, solver_order=1)
    if name == "EDMDPMSolverMultistepScheduler":
        return diffusers.EDMEulerScheduler.from_config(config)
    if name == "DDIMScheduler" and config["timestep_spacing"] == "linspace":
        return diffusers.EulerDiscreteScheduler.from_config(config)
    if name not in ("PNDMScheduler", "DDPMScheduler"):
        return own
    bounds = {"clip_sample": False} if name == "PNDMScheduler" else {}
    scheduler = diffusers.DDIMScheduler.from_config(config, **bounds)
    if learned:  # the pipeline then passes the prediction alone
        scheduler.register_to_config(variance_type="fixed_small")
    step = scheduler.step

    def bounded(*args: Any, **options: Any) -> Any:
        return step(*args, **options | {"use_clipped_model_output": True})

    bounded.__signature__ = signature(step)  # type: ignore[attr-defined]
    scheduler.step = bounded
    return scheduler


def close(a: Tensor, b: Tensor, near: float = 1e-4) -> None:
    """Within this share of the norm."""
    assert b.isfinite().all() and float((a - b).norm() / b.norm()) < near


@pytest.mark.parametrize("name", EVERY)
def test_untuned_it_draws_what_the_pipeline_draws_as_it_came(name: str, tmp_path: Path) -> None:
    family = made(name)
    own = family.pipe.scheduler
    calls = [n for n in CALLS if n > 1 or name not in (*NO_SINGLE_CALL, *FAILS_AT_ONE)]
    family.pipe.scheduler = first_order(own)
    expected = {n: run(family, n + (name in ONE_MORE)) for n in calls}
    family.pipe.scheduler = own
    family.pipe.scheduler = TimeTunerScheduler.from_config(family.pipe, calls=calls, sampler="ddim")
    near = NEAR.get(name, 1e-4)
    for n in calls:
        close(run(family, n), expected[n], near)
    family.pipe.scheduler.save_pretrained(tmp_path)
    family.pipe.scheduler = TimeTunerScheduler.from_pretrained(tmp_path)
    close(run(family, 4), expected[4], near)


@pytest.mark.parametrize("name", NO_SINGLE_CALL)
def test_a_grid_of_one_call_that_leads_nowhere_is_refused_with_its_reason(name: str) -> None:
    family = made(name)
    with pytest.raises(ValueError, match=NO_SINGLE_CALL[name]):
        TimeTunerScheduler.from_config(family.pipe, calls=1, sampler="ddim")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "free-init" else name  # whose runs are two
        for name in EVERY
        if name not in NOT_TUNED
    ],
)
@pytest.mark.usefixtures("usual_loops")
def test_tuned_the_untuned_distance_is_that_of_the_pipeline_as_it_came(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_runs: int
) -> None:
    judges: list[Any] = []

    class Watched(tuning.ReferenceDistance):
        def __init__(self, *args: Any) -> None:
            judges.append(self)
            super().__init__(*args)

    monkeypatch.setattr(tuning, "ReferenceDistance", Watched)
    monkeypatch.setattr(tuning, "MOST_NOISE", 1)
    # The untuned plans are ranked in other tests, by calls of the same model.
    monkeypatch.setattr(Rounds, "within", lambda evaluations, calls, pairs: Rounds(0, ()))
    family = made(name)
    own = family.pipe.scheduler
    batch = 1 if name == "svd" else 2  # which adds noise to its pictures, other noise to each of a batch
    tuner = "least_squares" if name == "svd" else "sequential"  # the time means nothing to the tiny network of SVD
    options: dict[str, Any] = {"tuner": tuner, "sampler": "ddim", "samples": 2, "batch": batch}
    plan = tune_pipeline(family.pipe, 4, budget="20calls", **options, **family.inputs)
    distance = plan.provenance["distance"]
    assert 0 < distance["tuned"] <= distance["untuned"] < float("inf")
    assert family.pipe.scheduler is own

    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    strength = {"strength": 1.0} if "strength" in signature(type(family.pipe).__call__).parameters else {}
    ran = run(family, 4, **strength)
    family.pipe.scheduler.save_pretrained(tmp_path)
    family.pipe.scheduler = TimeTunerScheduler.from_pretrained(tmp_path)
    assert family.pipe.scheduler.plan == plan
    close(run(family, 4, **strength), ran, 1e-6)

    if strength or family.latents is None:  # such a pipeline starts from noise of its own
        return
    family.pipe.scheduler = own
    with PipelineModel(family.pipe, **family.inputs) as model:
        reference = reference_plan(model.schedule, 0.0 if plan.t[-1] == 0 else float(plan.t[-1]), short_runs)
    measured = []
    for x in judges[0].x[:, None]:
        ends = []
        for scheduler in (first_order(own), TimeTunerScheduler.from_plan(reference, own)):
            family.pipe.scheduler = scheduler
            ends.append(last_state(family, len(reference) if ends else 4 + (name in ONE_MORE), x))
        measured.append(float((ends[0] - ends[1]).norm()))
    # Euler with "linspace" starts from a little less noise, see `NEAR`.
    assert distance["untuned"] == pytest.approx(sum(measured) / len(measured), rel=2e-3)


def test_a_pipeline_is_tuned_on_noise_under_a_constraint(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[Tensor] = []

    class Watched(tuning.ReferenceDistance):
        def __init__(self, model: Any, schedule: Any, end: float, x: Tensor, *rest: Any) -> None:
            states.append(x)
            super().__init__(model, schedule, end, x, *rest)

    def centred(z: Tensor) -> Tensor:
        return z - z.mean(1, keepdim=True)

    monkeypatch.setattr(tuning, "ReferenceDistance", Watched)
    family = made("schnell")
    options: dict[str, Any] = {"samples": 2, "batch": 2, "budget": "4calls", "noise": centred}
    tune_pipeline(family.pipe, 4, "sequential", sampler="ddim", **options, **family.inputs)
    torch.testing.assert_close(states[0], centred(states[0]))


def last_state(family: Family, calls: int, x: Tensor) -> Tensor:
    """The state at the end of a run of the pipeline from standard normal noise x (1, ...)."""
    if type(family.pipe).__name__.startswith("Cosmos"):  # some of which make every step twice
        return run(family, calls, latents=x.to(torch.float32)).double()
    states: list[Tensor] = []
    scheduler = family.pipe.scheduler
    step = scheduler.step

    def watched(*args: Any, **options: Any) -> Any:
        result = step(*args, **options)
        states.append(result[0])
        return result

    watched.__signature__ = signature(step)  # type: ignore[attr-defined]
    scheduler.step = watched
    if type(family.pipe).__name__ == "Flux2Pipeline":  # which packs the latents that it is given
        x = x.mT.reshape(1, 4, 4, 4)
    run(family, calls, **{str(family.latents): x.to(torch.float32)})
    return states[calls - 1].double()  # FreeInit makes several such runs


@pytest.mark.parametrize("name", NOT_TUNED)
def test_a_pipeline_that_cannot_be_tuned_is_refused_with_its_reason(name: str) -> None:
    family = made(name)
    own = family.pipe.scheduler
    with pytest.raises(ValueError, match=NOT_TUNED[name]):
        tune_pipeline(family.pipe, 4, "sequential", sampler="ddim", samples=2, batch=1, guard=False, **family.inputs)
    assert family.pipe.scheduler is own


def test_a_tuned_plan_runs_in_a_pipeline_that_passes_a_grid_of_its_own() -> None:
    for name in ("cogview4", "glm-image", "mochi"):
        family = made(name)
        own = family.pipe.scheduler
        with PipelineModel(family.pipe, **family.inputs) as model:
            plan = make_plan("ddim", model.schedule, 4, "quadratic")
        family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
        assert run(family, 4).isfinite().all()
        assert family.pipe.scheduler.plan == plan


@pytest.mark.parametrize("name", ["mochi", "playground", "sd3"])
def test_a_plan_alone_makes_the_scheduler_of_its_noise_schedule(name: str) -> None:
    family = made(name)
    own = family.pipe.scheduler
    with PipelineModel(family.pipe, **family.inputs) as model:
        plan = make_plan("ddim", model.schedule, 4, "trailing" if name != "playground" else "karras")
    ends = []
    for config in (None, own):
        family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, config)
        ends.append(run(family, 4))
    close(ends[0], ends[1], 1e-6)


def test_a_plan_of_a_network_with_another_input_is_refused() -> None:
    own = made("mochi").pipe.scheduler
    plan = Plan.from_dict(make_plan("ddim", TimeTunerScheduler.from_config(own, calls=4).schedule, 4).to_dict())
    TimeTunerScheduler.from_plan(plan, own)
    with pytest.raises(ValueError, match="network that receives 1 - sigma, the pipeline's network receives sigma"):
        TimeTunerScheduler.from_plan(plan, diffusers.FlowMatchEulerDiscreteScheduler())
    cogview4 = made("cogview4")
    on_sigma = make_plan("ddim", NoiseScheduleFlow(), 4)
    cogview4.pipe.scheduler = TimeTunerScheduler.from_plan(on_sigma, cogview4.pipe)
    refused = pytest.raises(ValueError, match="its network receives the time before the shift")
    with refused if keeps_timesteps() else nullcontext():  # in older versions of diffusers it receives sigma
        run(cogview4, 4)
