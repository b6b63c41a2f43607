"""Pipelines of every family, as they come from diffusers: they run plans as our own loop does, and as the stock
scheduler does where that one has the same rule; saved and loaded, they do it again."""

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

pytest.importorskip("transformers", reason="the text encoders of most pipelines; in the dev extra")

from pipelines import FAMILIES, Family, inpaint, random

from time_tuner import load_model, make_plan, sample
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler, tune_pipeline
from time_tuner.diffusers.loading import read_pipeline
from time_tuner.plans.build import rest
from time_tuner.samplers import sampler_of
from time_tuner.testing import check_model

CALLS = 5


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    made = FAMILIES[request.param]()
    made.pipe.set_progress_bar_config(disable=True)
    return made


def model(family: Family, **changes: Any) -> PipelineModel:
    inputs = family.inputs | changes
    skip = ("prompt", "class_labels", "output_type", "batch_size")
    given = {name: value for name, value in inputs.items() if name not in skip}
    return PipelineModel(family.pipe, inputs.get("prompt"), inputs.get("class_labels"), **given)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def run(family: Family, calls: int = CALLS, **inputs: Any) -> tuple[Tensor, Tensor, list[float]]:
    """The states in which a run of the pipeline begins and ends, two of each, and the network times."""
    scheduler, states, received = family.pipe.scheduler, [], []
    step = scheduler.step

    def watched(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        states.append(sample[:2])
        received.append(float(timestep))
        result = step(model_output, timestep, sample, **options)
        states.append(result[0][:2])
        return result

    scheduler.step = watched
    watched.__signature__ = signature(step)  # type: ignore[attr-defined]
    x = None if family.latents is None else random(2, *family.shape)
    if "generator" in signature(type(family.pipe).__call__).parameters:
        inputs = {"generator": seeded()} | inputs
    torch.manual_seed(3)  # DiT draws from it
    try:
        family.run(calls, x, **inputs)
    finally:
        del scheduler.step
    return states[0], states[-1], received


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * float(b.abs().max()))


KINDS = ("dpmpp", "heun", "unipc")  # of samplers: several steps, several calls in a step, a corrector


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        *((name, KINDS[i % 3]) for i, name in enumerate(FAMILIES)),
        *(
            (name, kind)
            for name in ("sd", "img2img", "sd3")
            for kind in KINDS
            if kind != KINDS[list(FAMILIES).index(name) % 3]
        ),
    ],
)
def test_a_pipeline_runs_a_plan_as_our_own_loop_does(name: str, sampler: str) -> None:
    """Every family runs one kind of sampler, and one family of each kind of loop every kind."""
    family, calls = FAMILIES[name](), 5
    family.pipe.set_progress_bar_config(disable=True)
    with model(family) as eps:
        plan = make_plan(sampler, eps.schedule, calls=calls, spacing="trailing")
        # Other conditioning times than those of the grid, as a tuned plan has them.
        plan = plan.with_tau(plan.t[:-1] * torch.linspace(0.99, 0.9, calls))
    own = family.pipe.scheduler
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    strength = {"strength": 0.6} if "strength" in family.inputs and family.latents is None else {}
    first, last, received = run(family, **strength)
    expected = plan
    if strength:  # image to image: what is left of the plan; 3 of 5 calls, a whole number of Heun's steps
        expected = rest(plan, 2)
    torch.testing.assert_close(torch.tensor(received), expected.schedule.network_time(expected.tau).float())
    family.pipe.scheduler = own
    with model(family) as eps, torch.no_grad():
        close(last, sample(eps, expected, first))


STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {"variance": "small"}),
    "ddim": ("ddim", {}),
    "sd": ("ddim", {}),
    "sd-v": ("ddim", {}),
    "sd-zero-snr": ("ddim", {}),
    "sdxl": ("ddim", {}),  # Euler's method in sigma / alpha is DDIM
    "sd3": ("ddim", {}),
    "flux": ("ddim", {}),
    "ldm": ("ddim", {}),
    "img2img": ("ddim", {}),
    "inpaint": ("ddim", {}),
    "controlnet": ("ddim", {}),
    "dit": ("ddim", {}),
    "pixart": ("dpmpp", {"order": 2}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_untuned_it_draws_what_the_stock_scheduler_draws(name: str) -> None:
    family = FAMILIES[name]()
    family.pipe.set_progress_bar_config(disable=True)
    sampler, options = STOCK[name]
    first, last, received = run(family)
    with model(family) as eps:  # which has the grid that the pipeline passes
        plan = make_plan(sampler_of(sampler, **options), eps.schedule, CALLS, eps.spacing)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, family.pipe)
    again, ours, received_ours = run(family)
    if name == "sdxl":  # its state is of variance 1 + sigma^2 there
        first, last = again, last
    close(again, first)
    assert received_ours == pytest.approx(received, abs=1e-3)
    close(ours, last)


def test_a_saved_pipeline_runs_its_plans_again(family: Family, tmp_path: Path) -> None:
    own = family.pipe.scheduler
    tokens = {"tokens": 16} if own.config.get("use_dynamic_shifting") else {}
    made = TimeTunerScheduler.from_config(own, sampler="unipc", calls=[3, CALLS], **tokens)
    tuned = [
        plan.with_ratios([0.97] * len(plan)).with_corrections(torch.ones(len(plan), len(plan)).tril(-1) / 10)
        for plan in made.plans.values()
    ]
    family.pipe.scheduler = TimeTunerScheduler.from_plan(tuned, made)
    family.pipe.save_pretrained(tmp_path)
    first, last, received = run(family)
    nothing = {name: None for name, part in family.pipe.components.items() if part is None}
    family.pipe = DiffusionPipeline.from_pretrained(tmp_path, **nothing)
    family.pipe.set_progress_bar_config(disable=True)
    if type(family.pipe).__name__ == "DDIMPipeline":  # puts a DDIMScheduler in the place of any other
        assert type(family.pipe.scheduler).__name__ == "DDIMScheduler"
        family.pipe.scheduler = TimeTunerScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert family.pipe.scheduler.plans == {len(plan): plan for plan in tuned}
    again = run(family)
    assert torch.equal(again[0], first)
    assert torch.equal(again[1], last)
    assert again[2] == received


def test_gradients_reach_the_conditioning_time_through_the_pipeline(family: Family) -> None:
    with model(family) as eps:
        plan = make_plan("ddim", eps.schedule, calls=3, spacing="trailing")
        x = random(2, *family.shape)
        ratio = torch.ones((), dtype=torch.float64, requires_grad=True)
        p = plan.point(1)
        noise = eps(x, p.t, ratio * p.t)
        slope = torch.autograd.grad((noise.double() ** 2).sum(), ratio)[0]
        with torch.no_grad():
            h = 4e-4
            up, down = ((eps(x, p.t, (1 + s) * p.t).double() ** 2).sum() for s in (h, -h))
            assert not eps(x, p.t, p.t).requires_grad
    assert float(slope) == pytest.approx(float((up - down) / (2 * h)), rel=0.1)
    assert slope != 0


def test_a_closed_model_restores_the_pipeline(family: Family) -> None:
    own, bar = family.pipe.scheduler, dict(family.pipe._progress_bar_config)
    with model(family) as eps:
        assert family.pipe.scheduler is not own
        assert eps.shape == family.shape
    assert family.pipe.scheduler is own
    assert family.pipe._progress_bar_config == bar


def test_a_pipeline_that_changes_states_between_calls_is_refused_with_a_remedy() -> None:
    family = inpaint(4)
    family.pipe.set_progress_bar_config(disable=True)
    with (
        pytest.raises(ValueError, match=r"changes the state between two calls.*run the plan here"),
        model(family) as eps,
        torch.no_grad(),
    ):
        eps(random(2, *family.shape), 0.5, 0.5)
    assert type(family.pipe.scheduler).__name__ == "DDIMScheduler"


@pytest.mark.usefixtures("usual_loops")
def test_guidance_that_depends_on_the_number_of_the_call_is_refused() -> None:
    family = FAMILIES["controlnet"]()
    family.pipe.set_progress_bar_config(disable=True)
    for start, end in ((0.0, 0.6), (0.0, 0.4), (0.0, 0.95), (0.6, 1.0), (0.05, 1.0), (0.4, 0.6)):
        with pytest.raises(ValueError, match="depend on how many calls"):
            model(family, control_guidance_start=start, control_guidance_end=end)


def test_sample_i_has_condition_i_modulo_their_number_whatever_the_batch() -> None:
    family = FAMILIES["sd"]()
    prompts = ["a", "bcd", "efg"]
    x = random(7, *family.shape)
    predictions = []
    for batch in (1, 2, 7):
        with (
            PipelineModel(family.pipe, prompts, batch=batch, guidance_scale=3.0, height=16, width=16) as eps,
            torch.no_grad(),
        ):
            predictions.append(eps(x, 0.5, 0.4))
    for other in predictions[1:]:
        torch.testing.assert_close(other, predictions[0], rtol=1e-4, atol=1e-4)
    with PipelineModel(family.pipe, prompts[1:2], guidance_scale=3.0, height=16, width=16) as eps, torch.no_grad():
        torch.testing.assert_close(eps(x[[1, 4]], 0.5, 0.4), predictions[0][[1, 4]], rtol=1e-4, atol=1e-4)
        assert (eps(x[[0]], 0.5, 0.4) - predictions[0][[0]]).abs().max() > 1e-3  # another prompt


def test_a_part_of_a_batch_keeps_its_conditions_however_many_are_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    from time_tuner.diffusers import model as module

    family = FAMILIES["sd"]()
    family.pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(module, "MOST_PAUSED", 2)
    x, given = random(6, *family.shape), {"guidance_scale": 3.0, "height": 16, "width": 16}
    with PipelineModel(family.pipe, ["a", "bcd", "efg"], batch=2, **given) as eps, torch.no_grad():
        whole = eps(x, 0.5, 0.4)
        for rows in ([4, 0], [5], [1, 2, 3], [4, 0]):
            part = eps.select(torch.tensor(rows))
            torch.testing.assert_close(part(x[rows], 0.5, 0.4), whole[rows], rtol=1e-4, atol=1e-4)
        again = eps.select(torch.tensor([3, 4, 5])).select(torch.tensor([2, 0]))
        torch.testing.assert_close(again(x[[5, 3]], 0.5, 0.4), whole[[5, 3]], rtol=1e-4, atol=1e-4)
        assert len(eps._paused) == 2


def test_predictions_continue_after_one_run_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from time_tuner.diffusers import paused as paused

    family = FAMILIES["sd"]()
    x = random(1, *family.shape)
    with model(family) as eps, torch.no_grad():
        expected = [eps(x, t, t) for t in (0.9, 0.7, 0.5, 0.3, 0.1)]
    monkeypatch.setattr(paused, "ITERATIONS", 3)
    with model(family) as eps, torch.no_grad():
        predictions = [eps(x, t, t) for t in (0.9, 0.7, 0.5, 0.3, 0.1)]
    torch.testing.assert_close(predictions, expected)


def test_rounded_times_are_those_that_a_network_in_half_precision_receives() -> None:
    family = FAMILIES["flux"]()
    family.pipe.set_progress_bar_config(disable=True)
    family.pipe.transformer.to(torch.bfloat16)  # the decoder is shared, and not used
    halves = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in family.inputs.items()}
    family.inputs = halves
    with model(family) as eps:
        assert eps.dtype == torch.bfloat16
        label = eps.schedule.network_time(eps.rounded_times(eps.schedule.from_network_time([937.5, 833.3])))
        torch.testing.assert_close(label, torch.tensor([936.0, 832.0], dtype=torch.float64))  # steps of 4 there
        rounded = eps.rounded_times(eps.schedule.from_network_time([937.5, 833.3]))
        torch.testing.assert_close(eps.rounded_times(rounded), rounded)
        with torch.no_grad():
            x = random(2, *family.shape)
            tau = float(eps.schedule.from_network_time(937.5))
            assert torch.equal(eps(x, tau, tau), eps(x, tau, float(eps.rounded_times(tau))))
    with model(FAMILIES["flux"]()) as eps:
        assert torch.equal(eps.rounded_times([0.3]), torch.tensor([0.3], dtype=torch.float64))


@pytest.mark.parametrize("guard", [True, False])
def test_a_tuned_plan_holds_the_times_that_a_pipeline_in_half_precision_receives(guard: bool) -> None:
    family = FAMILIES["flux"]()
    family.pipe.set_progress_bar_config(disable=True)
    family.pipe.transformer.to(torch.bfloat16)
    family.inputs = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in family.inputs.items()}
    skip = ("prompt", "output_type", "batch_size")
    inputs = {name: value for name, value in family.inputs.items() if name not in skip}
    prompts = family.inputs.get("prompt")
    plan = tune_pipeline(family.pipe, 3, "sequential", prompts=prompts, samples=2, batch=2, guard=guard, **inputs)
    with model(family) as eps:
        assert torch.equal(eps.rounded_times(plan.tau), plan.tau)
        assert not torch.equal(eps.rounded_times(plan.t[:-1]), plan.t[:-1]), "the network rounds some of the times"


def test_heun_begins_an_image_to_image_run_with_a_whole_step() -> None:
    family = FAMILIES["img2img"]()
    family.pipe.set_progress_bar_config(disable=True)
    family.pipe.scheduler = TimeTunerScheduler.from_config(
        family.pipe.scheduler, sampler="heun", calls=9, spacing="trailing"
    )
    run(family, calls=9, strength=0.8)  # 7 calls, from the third on
    with pytest.raises(ValueError, match=r"may begin at call 0, 2, 4, 6, 8, .*another strength"):
        run(family, calls=9, strength=0.7)


def test_one_negative_prompt_is_for_all_prompts() -> None:
    family = FAMILIES["sd"]()
    family.pipe.set_progress_bar_config(disable=True)
    given = {"guidance_scale": 3.0, "height": 16, "width": 16}
    x = random(3, *family.shape)
    predictions = []
    for negative in ("x", ["x", "x"], "yes"):
        with PipelineModel(family.pipe, ["a", "bcd"], negative_prompt=negative, **given) as eps, torch.no_grad():
            predictions.append(eps(x, 0.5, 0.4))
    torch.testing.assert_close(predictions[1], predictions[0])
    assert (predictions[2] - predictions[0]).abs().max() > 1e-3


def test_pictures_are_decoded_by_the_pipeline_itself(family: Family) -> None:
    """The same as its own run has them at its end, whatever the family."""
    if family.inputs.get("output_type") != "latent":
        pytest.skip("its own run returns pictures alone")
    x = random(3, *family.shape)
    with model(family, batch=2) as eps:
        pictures = eps.decode(x)
        again = eps.decode(x[2:])
    assert pictures.shape[:2] == (3, 3) and pictures.abs().max() <= 1
    torch.testing.assert_close(pictures[2:], again, rtol=1e-4, atol=1e-4)  # its condition is no part of the decoder
    if type(family.pipe).__name__ == "StableDiffusionPipeline":
        with torch.no_grad():
            expected = family.pipe.vae.decode(x / family.pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-4)


def test_a_strength_that_leaves_no_call_is_refused_with_the_least_that_does() -> None:
    family = FAMILIES["img2img"]()
    family.pipe.set_progress_bar_config(disable=True)
    family.pipe.scheduler = TimeTunerScheduler.from_config(family.pipe, sampler="ddim", calls=4)
    with pytest.raises(ValueError, match=r"leaves none of the plan's 4 calls: .*at least 0\.25"):
        run(family, calls=4, strength=0.1)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_saved_pipelines_are_read_whatever_parts_they_lack(name: str, tmp_path: Path) -> None:
    FAMILIES[name]().pipe.save_pretrained(tmp_path)
    assert type(read_pipeline(str(tmp_path))).__name__ == type(FAMILIES[name]().pipe).__name__


def test_a_saved_pipeline_is_a_model_under_prompts(tmp_path: Path) -> None:
    FAMILIES["sd"]().pipe.save_pretrained(tmp_path)
    how: dict[str, Any] = {"prompts": ("a", "bcd"), "height": 16, "width": 16}
    with load_model(str(tmp_path), guidance_scale=1.0, negative_prompt="x", **how) as eps:
        assert eps.shape == (4, 8, 8) and eps.num_conditions == 2 and eps.facts()["guidance_scale"] == 1.0
        check_model(eps, random(4, 4, 8, 8), precision=1e-4)
    with load_model(str(tmp_path), **how) as eps:
        assert eps.facts()["guidance_scale"] == 7.5, "the pipeline's own"
    with load_model(str(tmp_path), dtype="bfloat16", **how) as eps:
        assert eps.dtype == torch.bfloat16


@pytest.mark.usefixtures("usual_loops")
def test_a_window_that_one_call_of_a_run_lies_in_is_noticed_however_narrow() -> None:
    """In every number of calls up to 12, a window of the width of one call."""
    family = FAMILIES["controlnet"]()
    family.pipe.set_progress_bar_config(disable=True)
    family.inputs = family.inputs | {"prompt": ["a"]}
    for calls, k in ((12, 0), (12, 5), (11, 6), (8, 4), (7, 6)):
        with pytest.raises(ValueError, match="depend on how many calls"):
            model(family, control_guidance_start=k / calls, control_guidance_end=(k + 1) / calls, batch=1)


def test_predictions_are_the_same_in_every_run_of_the_loop() -> None:
    """Also where the pipeline draws noise for its picture before the loop."""
    family = FAMILIES["inpaint"]()
    family.inputs = {name: value for name, value in family.inputs.items() if name != "masked_image_latents"}
    x = random(1, *family.shape)
    with model(family, batch=1) as eps, torch.no_grad():
        first = eps(x, 0.5)
        for _ in range(60):
            assert torch.equal(eps(x, 0.5), first)


@pytest.mark.usefixtures("usual_loops")
def test_guidance_that_depends_on_the_timesteps_of_the_run_is_refused() -> None:
    """Z-Image reads all of them before its loop."""
    from flow_pipelines import FLOWS

    family = FLOWS["z-image"]()
    with pytest.raises(ValueError, match="depend on how many calls"):
        PipelineModel(family.pipe, **family.inputs, cfg_truncation=0.5)
