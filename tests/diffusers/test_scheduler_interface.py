"""The interface of the scheduler that runs plans, and of the one that pauses pipelines: all that pipelines read, calls
found by their timesteps, and what is refused."""

import ast
import copy
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from helpers import seeded
from torch import Tensor

from time_tuner import make_plan, model_wrapper, sample, schedule_from
from time_tuner.diffusers import TimeTunerScheduler, to_sigmas
from time_tuner.diffusers.paused import PausingScheduler
from time_tuner.diffusers.refusals import REFUSED_PIPELINES
from time_tuner.models.thresholding import dynamically_thresholded

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
PIPELINES = Path(diffusers.__file__).parent / "pipelines"
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


def ddim(**changes: Any) -> Any:
    return DDIMScheduler(**BETAS | {"set_alpha_to_one": False, "steps_offset": 1} | changes)


def ours(own: Any = None, calls: int = 10, sampler: str = "ddim", **options: Any) -> TimeTunerScheduler:
    return TimeTunerScheduler.from_config(own or ddim(), calls=calls, sampler=sampler, **options)  # type: ignore[no-any-return]


def gaussian(own: Any) -> Any:
    """The exact noise predictor of data N(0, 0.5^2) at diffusers' levels."""
    kept = own.alphas_cumprod.double()

    def eps(x: Tensor, t: Any) -> Tensor:
        a = kept[int(t)]
        return (1 - a).sqrt() * x / (0.25 * a + 1 - a)

    return eps


# --- what pipelines read ---


def accesses(path: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """The names that a file reads of `self.scheduler`, and the (method, keyword) pairs that it calls them with."""
    names, keywords = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if is_of_the_scheduler(node):
            names.add(node.attr)
        if isinstance(node, ast.Call) and is_of_the_scheduler(node.func):
            keywords |= {(node.func.attr, word.arg) for word in node.keywords if word.arg}
    return names, keywords


def is_of_the_scheduler(node: Any) -> bool:
    """Whether it is `self.scheduler.NAME`."""
    of = node.value if isinstance(node, ast.Attribute) else None
    return isinstance(of, ast.Attribute) and of.attr == "scheduler" and getattr(of.value, "id", None) == "self"


def takes(method: Any, keyword: str) -> bool:
    parameters = inspect.signature(method).parameters
    return keyword in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


@cache
def classes(path: Path) -> list[str]:
    """The pipelines in a file."""
    return re.findall(r"^class (\w+)\([^)]*\bDiffusionPipeline\b", path.read_text(), re.M)


def test_whatever_a_pipeline_reads_of_its_scheduler_is_offered_or_the_pipeline_is_refused() -> None:
    pausing: Any = PausingScheduler(type("Pipe", (), {"scheduler": ddim()})())
    pausing.loop = type("Loop", (), {})()
    pausing.set_timesteps(4)
    running = ours()
    files = [path for path in sorted(PIPELINES.rglob("pipeline_*.py")) if "flax" not in path.name]  # of older versions
    lacking = {}
    for path in files:
        names, keywords = accesses(path)
        lacks = [name for name in names for one in (running, pausing) if not hasattr(one, name)]
        for one in (running, pausing):
            for method, word in keywords:
                if hasattr(one, method) and not takes(getattr(one, method), word):
                    lacks.append(f"{method}({word}=)")
        if lacks and not (classes(path) and set(classes(path)) <= REFUSED_PIPELINES.keys()):
            lacking[path.stem] = lacks
    assert len(files) > 200
    assert lacking == {}


def test_refused_pipelines_are_refused_by_name_with_the_reason() -> None:
    known = {name for path in PIPELINES.rglob("pipeline_*.py") for name in classes(path)}
    assert {name for name in REFUSED_PIPELINES if hasattr(diffusers, name)} <= known
    pipe = type("LTXConditionPipeline", (), {"scheduler": FLOW})()
    with pytest.raises(ValueError, match="LTXConditionPipeline cannot be driven by a plan: parts of its"):
        TimeTunerScheduler.from_config(pipe, calls=4)


@pytest.mark.parametrize("own", [ddim(), EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)])
def test_numbers_of_the_schedule_are_those_of_the_stock_scheduler(own: Any) -> None:
    made = ours(own, calls=6)
    torch.testing.assert_close(made.alphas_cumprod, own.alphas_cumprod, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.betas, own.betas, rtol=1e-3, atol=1e-6)
    assert len(made) == len(own) and made.order == 1
    if hasattr(own, "sigmas"):
        own.set_timesteps(6)
        torch.testing.assert_close(made.sigmas, own.sigmas, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", [True, False])
def test_the_ends_of_the_noise_are_those_of_the_stock_scheduler(end: bool) -> None:
    own = ddim(set_alpha_to_one=end)
    made = ours(own)
    torch.testing.assert_close(made.final_alpha_cumprod, own.final_alpha_cumprod.float(), rtol=1e-5, atol=1e-6)
    flow = ours(FLOW)
    assert (flow.sigma_min, flow.sigma_max) == pytest.approx((FLOW.sigma_min, FLOW.sigma_max), rel=1e-5)
    with pytest.raises(AttributeError, match="final_alpha_cumprod"):
        _ = flow.final_alpha_cumprod


def test_the_previous_timestep_is_that_of_the_stock_scheduler() -> None:
    own = DDPMScheduler(**BETAS)
    made = ours(own)
    own.set_timesteps(10)
    for t in own.timesteps:
        assert float(made.previous_timestep(t)) == float(own.previous_timestep(t))
    with pytest.raises(ValueError, match="timestep 3 is none of"):
        made.previous_timestep(3)


def test_sigmas_of_a_flow_are_its_sigmas() -> None:
    made = ours(FLOW, calls=4)
    own = copy.deepcopy(FLOW)
    own.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    torch.testing.assert_close(made.sigmas, own.sigmas)
    torch.testing.assert_close(made.timesteps, own.timesteps)
    assert not hasattr(made, "alphas_cumprod")


def test_scale_noise_of_a_flow_is_that_of_the_stock_scheduler() -> None:
    made, own = ours(FLOW, calls=4), copy.deepcopy(FLOW)
    own.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    x, noise = seeded(2, 3, dtype=torch.float32), seeded(2, 3, seed=1, dtype=torch.float32)
    for t in own.timesteps:
        expected = own.scale_noise(x, t.expand(2), noise)
        torch.testing.assert_close(made.scale_noise(x, t.expand(2), noise), expected, rtol=1e-5, atol=1e-6)


def test_velocity_is_that_of_the_stock_scheduler() -> None:
    own = DDPMScheduler(**BETAS)
    x, noise, t = seeded(3, 2), seeded(3, 2, seed=1), torch.tensor([10, 500, 900])
    torch.testing.assert_close(ours().get_velocity(x, noise, t), own.get_velocity(x, noise, t), rtol=1e-5, atol=1e-6)


def test_a_copy_runs_on_its_own() -> None:
    """As in panorama and in pipelines with two modalities."""
    first = ours(sampler="dpmpp", calls=4)
    x = seeded(2, 3)
    second = copy.deepcopy(first)
    status = [copy.deepcopy(first.__dict__) for _ in range(2)]
    for t in first.timesteps:
        expected = first.step(x / 2, t, x).prev_sample
        assert torch.equal(second.step(x / 2, t, x).prev_sample, expected)
    for one in status:  # the views of a panorama
        first.__dict__.update(one)
        assert first.step_index is None
        first.step(x / 2, first.timesteps[0], x)


def test_shift_and_lists_of_a_plan_are_accepted_and_others_refused() -> None:
    made = ours(FLOW, calls=4, spacing="trailing")
    made.set_shift(3.0)
    made.set_timesteps(sigmas=made.sigmas[:-1].tolist(), mu=0.3)
    made.set_timesteps(timesteps=made.timesteps)
    made.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    with pytest.raises(ValueError, match="shift is part of the noise schedule"):
        made.set_shift(1.0)
    with pytest.raises(ValueError, match="timesteps= cannot be chosen: a plan has its own grid"):
        made.set_timesteps(timesteps=[900.0, 600, 300, 10])


# --- calls are found by their timesteps ---


def test_a_loop_that_begins_in_the_middle_is_that_of_the_stock_scheduler() -> None:
    own = ddim()
    eps, x0, z = gaussian(own), seeded(1, 4, 8, 8) / 2, seeded(1, 4, 8, 8, seed=1)
    ends = []
    for scheduler in (own, ours(own)):
        scheduler.set_timesteps(10)
        timesteps = scheduler.timesteps[5:]
        x = scheduler.add_noise(x0, z, timesteps[:1])
        for t in timesteps:
            x = scheduler.step(eps(x, t), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["dpmpp", "unipc", "heun"])
def test_a_loop_without_a_begin_index_is_the_one_with_it(sampler: str) -> None:
    made = ours(sampler=sampler, calls=9, spacing="trailing")
    ends = []
    for with_index in (True, False):
        made.set_timesteps(9)
        if with_index:
            made.set_begin_index(4)
        x = seeded(2, 3)
        for t in made.timesteps[4:]:
            x = made.step(x / 2, t, x).prev_sample
        ends.append(x)
        assert made.step_index == 9
    assert torch.equal(*ends)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp", "unipc", "heun"])
def test_skipped_calls_and_other_timesteps_are_refused(sampler: str) -> None:
    made, x = ours(sampler=sampler, calls=9, spacing="trailing"), seeded(1, 2)
    made.step(x, made.timesteps[0], x)
    with pytest.raises(ValueError, match="was to come: a plan makes every call"):
        made.step(x, made.timesteps[5], x)
    with pytest.raises(ValueError, match="is that of no call of the plan"):
        made.step(x, 123.4, x)


def test_tiles_are_those_of_the_stock_scheduler() -> None:
    own, ends = ddim(), []
    for scheduler in (own, ours(own)):
        scheduler.set_timesteps(10)
        tiles = [torch.ones(1, 4), -2 * torch.ones(1, 4)]
        for t in scheduler.timesteps:
            tiles = [scheduler.step(x / 2, t, x).prev_sample for x in tiles]
        ends.append(torch.cat(tiles))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["dpmpp", "unipc", "pndm"])
def test_tiles_under_a_sampler_with_memory_are_refused_with_a_remedy(sampler: str) -> None:
    made, x = ours(sampler=sampler), seeded(1, 2)
    made.step(x, made.timesteps[0], x)
    with pytest.raises(ValueError, match=r"was made already, and .* remembers its calls: .*such as 'ddim'"):
        made.step(x, made.timesteps[0], x)


def test_a_run_after_the_last_call_needs_set_timesteps_where_calls_are_remembered() -> None:
    made = ours(sampler="dpmpp", calls=4)
    with pytest.raises(ValueError, match="after the last of 4 calls: call set_timesteps first"):  # noqa: PT012
        for batch in (torch.ones(2, 5), torch.ones(2, 9)):
            x = batch
            for t in made.timesteps:
                x = made.step(x / 2, t, x).prev_sample
    made.set_timesteps(4)
    x = torch.ones(2, 9)
    for t in made.timesteps:
        x = made.step(x / 2, t, x).prev_sample


def test_noise_of_the_users_own_times_is_added_before_during_and_after_a_run() -> None:
    own, made = ddim(), ours()
    x, z, t = torch.ones(3, 4, 8, 8), seeded(3, 4, 8, 8, dtype=torch.float32), torch.tensor([10, 500, 900])
    expected = own.add_noise(x, z, t)
    torch.testing.assert_close(made.add_noise(x, z, t), expected, rtol=1e-5, atol=1e-5)
    for u in made.timesteps:
        made.step(z, u, x)
        torch.testing.assert_close(made.add_noise(x, z, t), expected, rtol=1e-5, atol=1e-5)


def test_predicted_data_is_computed_only_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = ours(ddim(prediction_type="epsilon")), seeded(2, 3)
    output = made.step(x / 2, made.timesteps[0], x)
    assert "pred_original_sample" not in output.__dict__
    p = made.plan.point(0)
    torch.testing.assert_close(output.pred_original_sample, (x - p.sigma * x / 2) / p.alpha)
    previous, data = output
    assert previous is output[0] is output["prev_sample"] and data is output[1] is output.pred_original_sample


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.ones(1, 4, 8), "shape (1, 4, 8)"),
        (torch.ones(4, 4, 8), "shape (4, 4, 8)"),
        (torch.ones(2, 12, 8), "shape (2, 12, 8)"),
        ((torch.ones(2, 4, 8),), "tuple"),
    ],
    ids=["one sample", "without guidance", "too many channels", "tuple"],
)
@pytest.mark.parametrize("clip", [True, False])
def test_an_output_of_another_shape_is_refused(output: Any, got: str, clip: bool) -> None:
    made = ours(ddim(clip_sample=clip))
    with pytest.raises(ValueError, match=re.escape(f"the shape of the state, (2, 4, 8), got {got}")):
        made.step(output, made.timesteps[0], torch.ones(2, 4, 8))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_a_state_that_became_infinite_is_named_at_the_end(sampler: str) -> None:
    made, x = ours(sampler=sampler, calls=3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="the state is NaN or infinite after the last call"):  # noqa: PT012
        for t in made.timesteps:
            x = made.step(x * float("nan"), t, x).prev_sample


def test_states_of_whole_numbers_are_refused() -> None:
    made = ours()
    with pytest.raises(ValueError, match=r"sample must hold real or complex numbers, got torch.int64"):
        made.step(torch.ones(2, 3), made.timesteps[0], torch.ones(2, 3).long())


@pytest.mark.parametrize("own", [ddim(), FLOW], ids=lambda own: type(own).__name__)
@pytest.mark.parametrize("time", [-1.0, 1000.5, 5000.0])
@pytest.mark.parametrize("method", ["add_noise", "get_velocity", "scale_noise"])
def test_noise_at_times_that_the_network_does_not_know_is_refused(own: Any, time: float, method: str) -> None:
    made, x, t = ours(own), torch.ones(2, 3), torch.tensor([10.0, time])
    with pytest.raises(ValueError, match=rf"timesteps must be those of the network, 0 to (999|1000), got {time:g}"):
        getattr(made, method)(*((x, t, x) if method == "scale_noise" else (x, x, t)))


def test_a_plan_for_images_does_not_begin_with_noise_alone() -> None:
    plan = make_plan("ddim", schedule_from(ddim()), times=[0.3, 0.2, 0.1, 0])
    made = TimeTunerScheduler.from_plan(plan, ddim())
    x, z = torch.ones(1, 3), torch.zeros(1, 3)
    assert made.add_noise(x, z, made.timesteps[:1]).isfinite().all()
    with pytest.raises(ValueError, match=r"the plan is for runs from an image, not from noise alone: .*t = 0.3"):
        made.init_noise_sigma  # noqa: B018


@pytest.mark.parametrize("calls", [0, 8.0, "8", True, [4, 2.5]])
def test_numbers_of_calls_that_are_none_are_refused(calls: Any) -> None:
    with pytest.raises(ValueError, match="calls must be a whole number of at least 1, got"):
        TimeTunerScheduler.from_config(ddim(), calls=calls)


@pytest.mark.parametrize("plans", [5, {"t": [1, 0]}, ddim(), [1, 2]], ids=lambda value: type(value).__name__)
def test_what_is_no_plan_is_refused(plans: Any) -> None:
    with pytest.raises(ValueError, match="plans must be a Plan, several, or the path of a plan file, got"):
        TimeTunerScheduler.from_plan(plans)


# --- the configuration ---


def test_prediction_of_noise_at_alpha_0_is_refused() -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match="prediction of the noise does not determine the data at alpha = 0"):
        ours(ddim(**zero), calls=3)
    plan = ours(ddim(**zero, prediction_type="v_prediction"), calls=3).plan.with_provenance(prediction_type="epsilon")
    with pytest.raises(ValueError, match="prediction of the noise does not determine the data at alpha = 0"):
        TimeTunerScheduler.from_plan(plan)


def test_thresholding_is_that_of_the_stock_scheduler() -> None:
    betas = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    how = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}
    own = DDIMScheduler(**betas, **how, timestep_spacing="trailing")
    made = ours(own)
    own.set_timesteps(10)
    a = b = 2 * seeded(2, 3, 8, 8)
    for t, u in zip(own.timesteps, made.timesteps, strict=True):
        a = own.step((2 * a).tanh(), t, a, use_clipped_model_output=True).prev_sample
        b = made.step((2 * b).tanh(), u, b).prev_sample
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    eps = dynamically_thresholded(
        model_wrapper(lambda x, n: (2 * x).tanh(), schedule_from(own)).bind(), ratio=0.95, maximum=1.5
    )
    torch.testing.assert_close(b, sample(eps, made.plan, 2 * seeded(2, 3, 8, 8)), rtol=1e-4, atol=1e-5)
    saved = TimeTunerScheduler.from_config(made.config)
    assert saved.prediction == made.prediction and made.prediction.thresholding == (0.95, 1.5)


@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler", "FlowMapEulerDiscreteScheduler"])
def test_a_distilled_model_is_warned_of(kind: str) -> None:
    if not hasattr(diffusers, kind):
        pytest.skip("this version of diffusers does not have it")
    own = getattr(diffusers, kind)()
    with pytest.warns(UserWarning, match=f"{kind} is for .*solvers of an ODE"):
        ours(own, calls=4, spacing="trailing")


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": False, "num_train_timesteps": 1000},
        {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000},
        {"_class_name": "UnCLIPScheduler", "prediction_type": "sample", "clip_sample_range": 10.0},
        {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0, "timestep_spacing": "trailing"},
        {"_class_name": "DDPMScheduler", "thresholding": True, "sample_max_value": 1.5},
    ],
    ids=lambda config: config["_class_name"],
)
def test_a_configuration_gives_what_its_scheduler_gives(config: dict[str, Any]) -> None:
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    plans = [ours(one, calls=5) for one in (config, own, own.config | {"_class_name": config["_class_name"]})]
    for one in plans:
        assert one.plan.to_dict() == plans[0].plan.to_dict()
        assert one.prediction == plans[0].prediction


def test_unknown_classes_are_refused_by_name() -> None:
    for name in ("AmusedScheduler", "SCMScheduler", "HeliosScheduler", "CMStochasticIterativeScheduler"):
        with pytest.raises(ValueError, match=name):
            TimeTunerScheduler.from_config({"_class_name": name}, calls=4)
    with pytest.raises(ValueError, match="NoSuchScheduler"):
        TimeTunerScheduler.from_config({"_class_name": "NoSuchScheduler", "beta_start": 1e-4}, calls=4)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (ddim(), DPMSolverMultistepScheduler),
        (DDIMScheduler(), DDPMScheduler),
        (DDIMScheduler(), DPMSolverMultistepScheduler),
        (EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"), UniPCMultistepScheduler),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True, prediction_type="v_prediction"), EulerDiscreteScheduler),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_round_trip_gives_what_two_stock_classes_give(source: Any, target: Any) -> None:
    def entries(config: Any) -> dict[str, Any]:
        known = inspect.signature(target).parameters
        return {key: value for key, value in config.items() if key in known}

    expected = entries(target.from_config(source.config).config)
    assert entries(target.from_config(ours(source, calls=5).config).config) == expected


# --- export ---


RECEIVERS = [
    FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchLCMScheduler(),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    EulerDiscreteScheduler(beta_schedule="scaled_linear"),
]


@pytest.mark.parametrize("own", RECEIVERS, ids=lambda own: type(own).__name__)
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_exported_sigmas_give_the_receiver_the_calls_of_the_plan(
    own: Any, end: float, recwarn: pytest.WarningsRecorder
) -> None:
    schedule = schedule_from(own)
    plan = make_plan("ddim", schedule, times=[1.0, 0.7, 0.4, 0.2, end])
    own = copy.deepcopy(own)
    own.set_timesteps(sigmas=np.array(to_sigmas(plan, own)))
    assert any("ends at sigma = 0" in str(one.message) for one in recwarn) == bool(end and schedule.shift)
    received = schedule.network_time(plan.tau)
    whole = not own.timesteps.is_floating_point()  # UniPC cuts fractions off
    torch.testing.assert_close(own.timesteps.double(), received, rtol=1e-5, atol=1.01 if whole else 1e-3)
    torch.testing.assert_close(own.sigmas[:4].double(), schedule.sigma_ratio(plan.t[:4]), rtol=1e-4, atol=1e-5)
