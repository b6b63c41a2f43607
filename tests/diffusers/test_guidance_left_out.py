"""Plans that leave guidance out of some calls, in pipelines: what is evaluated, what is drawn, what is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="the text encoders of most pipelines; in the dev extra")

from beta_pipelines import BETAS_FAMILIES
from edm_pipelines import EDM_FAMILIES
from flow_pipelines import FLOWS, WAN, network, one, wan
from pipelines import FAMILIES, Family, random

from time_tuner import Joint, Plan, make_plan, sample
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler, tune_pipeline
from time_tuner.diffusers.hook import DenoiserHook

pytestmark = pytest.mark.filterwarnings(
    "ignore:In CPU autocast",  # Mochi
    "ignore:.FluxPosEmbed. is deprecated",  # Chroma
    "ignore:.*weight_norm",  # Stable Audio
)
CALLS, GUIDED, BATCH = 5, 3, 2
EVERY = FLOWS | BETAS_FAMILIES | EDM_FAMILIES | {f"{name}, two prompts": made for name, made in FAMILIES.items()}

ONE_PREDICTION = "makes one prediction for each state"
REFUSED = {
    **dict.fromkeys(("flux", "flux-img2img", "flux-inpaint", "schnell", "flux2", "hunyuan-video"), ONE_PREDICTION),
    **dict.fromkeys(("ddpm, two prompts", "ddim, two prompts", "flux, two prompts"), ONE_PREDICTION),
    **dict.fromkeys(("cosmos2", "cosmos2-video"), "something else than u"),
    **dict.fromkeys(("cosmos1", "cosmos1-video"), "guidance cannot be left out"),
    "ltx2": "copies its scheduler",
}
"""Families whose guidance cannot be left out, or that have none, and why."""

NOT_A_MODEL = ("sd3-inpaint", "qwen-inpaint", "free-init", "inpaint, two prompts")
"""Families that change states between calls, or make several runs."""


def made(name: str) -> Family:
    family = EVERY[name]()
    family.pipe.set_progress_bar_config(disable=True)
    return family


def run(family: Family, x: Tensor | None = None, calls: int = CALLS, **inputs: Any) -> Tensor:
    return family.run(calls, x, generator=torch.Generator().manual_seed(0), **inputs)


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The numbers of states for which the networks of a pipeline are evaluated."""
    rows: list[int] = []
    parts = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    parts = [part for part in parts if isinstance(part, nn.Module)]

    def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            states = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
            rows.append(len(states))
            return forward(*args, **kwargs)

        return call

    for part in parts:
        part.forward = watched(part.forward)
    yield rows
    for part in parts:
        del part.forward


def with_some_guidance(plan: Plan, guided: int = GUIDED, reuse: bool = True) -> Plan:
    """Guidance at the first calls alone, which the others reuse with random weights."""
    weights = 0.5 * random(len(plan), len(plan), seed=3).double().tril(-1)
    weights[:guided], weights[:, guided:] = 0, 0
    return plan.with_guidance(guided, weights if reuse else None)


def on_own_grid(family: Family, calls: int = CALLS, sampler: str = "ddim") -> tuple[Plan, Any]:
    """The untuned plan of a pipeline, and its own scheduler."""
    own = family.pipe.scheduler
    family.pipe.scheduler = TimeTunerScheduler.from_config(family.pipe, calls=calls, sampler=sampler)
    run(family, calls=calls)
    return family.pipe.scheduler.plan, own


def arguments(family: Family) -> dict[str, Any]:
    """What `PipelineModel` takes for the inputs of the pipeline's call."""
    return {"prompts" if name == "prompt" else name: value for name, value in family.inputs.items()}


@pytest.mark.parametrize("name", [name for name in EVERY if name not in REFUSED])
def test_the_network_is_evaluated_as_often_as_the_plan_says(name: str) -> None:
    family = made(name)
    plan, own = on_own_grid(family)
    plan = with_some_guidance(plan)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    with family.pipe.scheduler.attach(family.pipe), counted(family.pipe) as rows:
        assert run(family).isfinite().all()
    begin = CALLS - int(CALLS * family.inputs.get("strength", 1.0))  # that of an image
    states = 2 if "two prompts" in name else 1
    runs = 2 if name == "free-init" else 1
    assert sum(rows) == runs * states * (plan.evaluations - 2 * begin)


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_without_guidance_that_can_be_left_out_is_refused_by_name(name: str) -> None:
    family = made(name)
    plan, own = on_own_grid(family)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
    with pytest.raises(ValueError, match=REFUSED[name]), family.pipe.scheduler.attach(family.pipe):
        run(family, strength=1.0) if "img2img" in name or "inpaint" in name else run(family)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in (*REFUSED, *NOT_A_MODEL)])
def test_a_model_of_a_pipeline_tells_its_guidance_apart(name: str) -> None:
    family = made(name)
    with torch.no_grad(), PipelineModel(family.pipe, **arguments(family)) as model:
        x, t = random(model.num_conditions or 1, *model.shape), 0.6 * model.schedule.T
        whole = model(x, t)
        conditional, added = model.parts("eps", x, t)
        alone, nothing = model.parts("eps", x, t, guided=False)
        assert model.evaluations == 2 and nothing is None and added is not None
        torch.testing.assert_close(conditional + added, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone, conditional, rtol=1e-4, atol=1e-5)
        assert (added.norm() > 1e-6 * whole.norm()).all()
        torch.testing.assert_close(model(x, t), whole, rtol=1e-5, atol=1e-5)


RUNS = (
    "sd, two prompts",
    "sd-zero-snr, two prompts",
    "sdxl, two prompts",
    "sd3, two prompts",
    "controlnet, two prompts",
)


@pytest.mark.parametrize("name", [*RUNS, "wan", "qwen", "z-image", "lumina2", "animatediff", "pixart, two prompts"])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_pipeline_draws_what_the_loop_draws(name: str, reuse: bool) -> None:
    family = made(name)
    own, count = family.pipe.scheduler, 2 if "two prompts" in name else 1
    x = random(count, *family.shape, seed=1)
    with PipelineModel(family.pipe, **arguments(family)) as model:
        plan = with_some_guidance(make_plan("dpmpp", model.schedule, CALLS), GUIDED if reuse else 1, reuse)
        expected = sample(model, plan, plan.initial_state(x))
        other = sample(model, plan.with_guidance(CALLS), plan.initial_state(x))
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    with family.pipe.scheduler.attach(family.pipe):
        drawn = run(family, x)
    torch.testing.assert_close(drawn, expected.reshape(drawn.shape), rtol=1e-4, atol=2e-4)
    assert (expected - other).norm() > 1e-4 * other.norm()


def test_a_run_is_that_of_the_formula() -> None:
    family = made("sd, two prompts")
    pipe, x, scale = family.pipe, random(BATCH, 4, 8, 8, seed=1), family.inputs["guidance_scale"]
    with PipelineModel(pipe, **arguments(family)) as model:
        plan = with_some_guidance(make_plan("ddim", model.schedule, CALLS))
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(family.inputs["prompt"], "cpu", 1, True)
        state, added = plan.initial_state(x), dict[int, Tensor]()
        for k in range(CALLS):
            time = plan.schedule.network_time(plan.tau[k]).float()
            eps = pipe.unet(state.float(), time, positive).sample
            if plan.guided[k]:
                added[k] = (scale - 1) * (eps - pipe.unet(state.float(), time, negative).sample)
                eps = eps + added[k]
            else:
                assert plan.reuse is not None
                eps = eps + sum(float(plan.reuse[k, j]) * g for j, g in added.items())
            p, q = plan.point(k), plan.point(k + 1)
            state = q.alpha * (state - p.sigma * eps) / p.alpha + q.sigma * eps
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)
    with pipe.scheduler.attach(pipe):
        torch.testing.assert_close(run(family, x), state.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd, two prompts", "wan"])
def test_the_hook_leaves_nothing_behind(name: str) -> None:
    family = made(name)
    plan, own = on_own_grid(family)
    part = getattr(family.pipe, "unet", None) or family.pipe.transformer
    expected, attributes = run(family), set(part.__dict__)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
    hook = family.pipe.scheduler.attach(family.pipe)
    run(family)
    hook.remove()
    assert set(part.__dict__) == attributes and not part._forward_hooks and not part._forward_pre_hooks
    with pytest.raises(ValueError, match=r"call pipe\.scheduler\.attach\(pipe\) first"):
        run(family)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    assert torch.equal(run(family), expected)


@pytest.mark.parametrize("name", ["sd, two prompts", "sd3, two prompts", "wan"])
def test_a_plan_with_guidance_at_every_call_draws_the_same_with_the_hook(name: str) -> None:
    family = made(name)
    plan, own = on_own_grid(family)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    expected = run(family)
    with family.pipe.scheduler.attach(family.pipe):
        assert torch.equal(run(family), expected)


def test_the_hook_does_nothing_under_another_scheduler() -> None:
    for name in ("sd, two prompts", "wan"):
        family = made(name)
        plan, own = on_own_grid(family)
        family.pipe.scheduler = own
        expected = run(family)
        family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan, 0), own)
        with family.pipe.scheduler.attach(family.pipe):
            run(family)
            family.pipe.scheduler = own
            assert torch.equal(run(family), expected)


def test_without_the_hook_a_plan_that_leaves_guidance_out_is_refused() -> None:
    family = made("sd, two prompts")
    plan, own = on_own_grid(family)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
    with pytest.raises(ValueError, match=r"leaves guidance out of call 3, 4, .* call pipe\.scheduler\.attach\(pipe\)"):
        run(family)
    scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
    x = random(1, 4, 8, 8)
    with pytest.raises(ValueError, match="attach"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match=r"set pipe\.scheduler to it first"):
        scheduler.attach(family.pipe)


@pytest.mark.parametrize("name", ["sd, two prompts", "sd3, two prompts", "wan", "z-image"])
@pytest.mark.parametrize("guided", [(False, True, False, True, False), (True, False, True, False, False)])
def test_any_calls_may_be_guided(name: str, guided: tuple[bool, ...]) -> None:
    family = made(name)
    own, count = family.pipe.scheduler, 2 if "two prompts" in name else 1
    x = random(count, *family.shape, seed=1)
    reuse = torch.zeros(CALLS, CALLS, dtype=torch.float64)
    reuse[2, 1], reuse[4, 1] = (0.7, 0.2) if guided[1] else (0.0, 0.0)
    with PipelineModel(family.pipe, **arguments(family)) as model:
        plan = make_plan("dpmpp", model.schedule, CALLS).with_guidance(guided, reuse)
        expected = sample(model, plan, plan.initial_state(x))
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    with family.pipe.scheduler.attach(family.pipe), counted(family.pipe) as rows:
        first = run(family, x)
        assert sum(rows) == count * (plan.evaluations + (not guided[0]))  # how it guides is found once
        rows.clear()
        again = run(family, x)
        assert sum(rows) == count * plan.evaluations
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [0.6, 0.4])
def test_a_run_from_an_image_makes_the_last_calls_of_the_plan(strength: float) -> None:
    family = made("img2img, two prompts")
    plan, own = on_own_grid(family)
    plan = with_some_guidance(plan)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    begin, starts = CALLS - int(strength * CALLS), list[Tensor]()
    with family.pipe.scheduler.attach(family.pipe), counted(family.pipe) as rows:
        step = family.pipe.scheduler.step
        family.pipe.scheduler.step = lambda output, t, x, **more: (starts.append(x), step(output, t, x))[1]
        drawn = run(family, strength=strength)
    at_most = BATCH * sum(1 + guided for guided in plan.guided[begin:])
    assert sum(rows) == at_most + BATCH * (not plan.guided[begin])
    family.pipe.scheduler = own
    rest = replace(
        plan,
        **{name: getattr(plan, name)[begin:] for name in ("t", "alpha", "sigma", "tau", "guided")},
        reuse=None if plan.reuse is None else plan.reuse[begin:, begin:],
    )
    with PipelineModel(family.pipe, **arguments(family)) as model:
        torch.testing.assert_close(drawn, sample(model, rest, starts[0]), rtol=1e-4, atol=1e-4)


def test_a_modular_pipeline_draws_what_the_loop_draws() -> None:
    from diffusers.guiders import ClassifierFreeGuidance
    from diffusers.modular_pipelines.stable_diffusion_3 import modular_blocks_stable_diffusion_3 as blocks

    family, x = made("sd3, two prompts"), random(BATCH, 4, 8, 8, seed=1)
    own, scale = family.pipe.scheduler, family.inputs["guidance_scale"]
    with PipelineModel(family.pipe, **family.inputs) as model:
        plan = with_some_guidance(make_plan("dpmpp", model.schedule, CALLS))
        expected = sample(model, plan, plan.initial_state(x))
    pipe = blocks.StableDiffusion3T2ICoreDenoiseStep().init_pipeline()
    pipe.update_components(
        transformer=family.pipe.transformer,
        scheduler=TimeTunerScheduler.from_plan(plan, own),
        guider=ClassifierFreeGuidance(guidance_scale=scale),
    )
    given = {name: value for name, value in family.inputs.items() if name not in ("guidance_scale", "output_type")}
    with pipe.scheduler.attach(pipe), counted(pipe) as rows:
        drawn = pipe(**given, latents=x, num_inference_steps=CALLS, output="latents")
    assert sum(rows) == BATCH * plan.evaluations
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)


def test_a_second_transformer_leaves_guidance_out_too() -> None:
    family = wan()
    family.pipe.set_progress_bar_config(disable=True)
    second = network(diffusers.WanTransformer3DModel, **WAN | {"ffn_dim": 24})
    pipe = diffusers.WanPipeline(
        None, None, family.pipe.vae, family.pipe.scheduler, family.pipe.transformer, second, boundary_ratio=0.9
    )
    family.pipe = pipe
    pipe.set_progress_bar_config(disable=True)
    plan, own = on_own_grid(family)
    pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
    with pipe.scheduler.attach(pipe), counted(pipe) as rows:
        run(family)
    assert sum(rows) == plan.with_guidance(GUIDED).evaluations
    assert float(pipe.scheduler.timesteps[GUIDED - 1]) < 900 < float(pipe.scheduler.timesteps[0])


def test_a_controlnet_is_evaluated_as_often_as_the_network() -> None:
    for guess in (False, True):
        family = made("controlnet, two prompts")
        plan, own = on_own_grid(family)
        family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
        rows: list[int] = []
        forward = family.pipe.controlnet.forward

        def watched(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            rows.append(len(states))  # noqa: B023
            return forward(states, *args, **kwargs)  # noqa: B023

        family.pipe.controlnet.forward = watched
        with family.pipe.scheduler.attach(family.pipe):
            run(family, guess_mode=guess)
        assert rows == ([BATCH] * CALLS if guess else [2 * BATCH] * GUIDED + [BATCH] * (CALLS - GUIDED))


def test_guidance_that_is_switched_off_is_missed_and_not_invented() -> None:
    for name in ("sd, two prompts", "wan"):
        family = made(name)
        plan, own = on_own_grid(family)
        family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan), own)
        with family.pipe.scheduler.attach(family.pipe):
            run(family)
            with pytest.raises(ValueError, match=ONE_PREDICTION):
                run(family, guidance_scale=1.0)


def test_a_batch_as_large_as_the_doubled_one_of_before_is_not_halved() -> None:
    family = one(FAMILIES["sd3"]())
    family.pipe.set_progress_bar_config(disable=True)
    plan, own = on_own_grid(family)
    family.pipe.scheduler = TimeTunerScheduler.from_plan(with_some_guidance(plan, 0, reuse=False), own)
    two = Family(family.pipe, FAMILIES["sd3"]().inputs | {"guidance_scale": 1.0}, family.shape)
    with family.pipe.scheduler.attach(family.pipe):
        run(family)  # one state, which the network receives twice
        with pytest.raises(ValueError, match="half of them were left out: attach the hook again"):
            run(two)


def test_a_network_with_a_cache_and_perturbed_attention_are_refused() -> None:
    family = made("sd, two prompts")
    pag = diffusers.AutoPipelineForText2Image.from_pipe(family.pipe, enable_pag=True)
    with pytest.raises(ValueError, match="StableDiffusionPAGPipeline: under perturbed attention guidance"):
        DenoiserHook(pag, lambda: None)
    cached = network(diffusers.WanTransformer3DModel, **WAN | {"num_layers": 2})
    cached.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    family = wan()
    family.pipe.transformer = cached
    with pytest.raises(ValueError, match="a cache of its network's activations"):
        DenoiserHook(family.pipe, lambda: None)


# --- tuned in a pipeline ---


def test_a_pipeline_is_tuned_by_evaluations() -> None:
    family = made("sd3, two prompts")
    pipe, own = family.pipe, family.pipe.scheduler
    tuner = Joint(
        teacher=make_plan("ddim", TimeTunerScheduler.from_config(own, calls=1).schedule, 8, end=0.0), pairs=16
    )
    options: dict[str, Any] = {"samples": 4, "batch": 4, "guard": False, "budget": "60calls"}
    plan = tune_pipeline(pipe, tuner=tuner, evaluations=4, **options, **family.inputs)
    assert plan.evaluations <= 4 and pipe.scheduler is own
    assert not pipe.transformer._forward_hooks and not pipe.transformer._forward_pre_hooks
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)
    with pipe.scheduler.attach(pipe), counted(pipe) as rows:
        assert run(family, calls=len(plan)).isfinite().all()
    assert sum(rows) == BATCH * plan.evaluations


def test_evaluations_are_refused_where_there_is_no_guidance() -> None:
    family = made("sd3, two prompts")
    own = family.pipe.scheduler
    off = family.inputs | {"guidance_scale": 1.0}
    with pytest.raises(
        ValueError, match=r"evaluations=6 needs guidance that can be left out: StableDiffusion3Pipeline"
    ):
        tune_pipeline(family.pipe, evaluations=6, **off)
    with pytest.raises(ValueError, match="give one of plan=, calls= and evaluations="):
        tune_pipeline(family.pipe, 4, evaluations=6, **family.inputs)
    with pytest.raises(ValueError, match="needs joint tuning"):
        tune_pipeline(family.pipe, tuner="sequential", evaluations=6, **family.inputs)
    assert family.pipe.scheduler is own
