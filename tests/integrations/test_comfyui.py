"""The ComfyUI node runs plans as the library's own loop does, and refuses what it cannot run right."""

import asyncio
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_stand_in import (
    BaseModel as ComfyModel,
)
from comfy_stand_in import (
    CFGGuider,
    EDMSampling,
    FlowSampling,
    Patcher,
    Sampling,
    load_package,
    modules,
)
from helpers import seeded
from peers import k_diffusion_sampling
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    make_plan,
    model_wrapper,
    rescale_zero_terminal_snr,
    sample,
)
from time_tuner.plans.build import rest
from time_tuner.schedules import NoiseSchedule

NODE = Path(__file__).parents[2] / "integrations" / "comfyui"
SHAPE = (3, 2, 4, 4)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
VP, VE, FLOW = NoiseScheduleVP(betas=BETAS), NoiseScheduleVE(), NoiseScheduleFlow(shift=3.0)
KINDS: dict[str, tuple[NoiseSchedule, str, Callable[[], Sampling]]] = {
    "eps": (VP, "noise", lambda: Sampling(BETAS)),
    "v": (VP, "v", lambda: Sampling(BETAS, "v")),
    "flow": (FLOW, "flow", lambda: FlowSampling(shift=3.0)),
    "edm": (VE, "edm", lambda: EDMSampling()),
}


def network(x: Tensor, time: Tensor, cond: Any = 0.0) -> Tensor:
    """Smooth in state and time; bounded, as a trained network's output is."""
    t = time.reshape(-1, *[1] * (x.dim() - 1)).to(x) / 1000
    return torch.tanh(0.9 * x + torch.cos(9 * t) + cond) + 0.2 * torch.sin(3 * x - 5 * t)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    return load(monkeypatch, tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, folder: Path, v3: bool = True) -> Any:
    (folder / "time_tuner").mkdir(exist_ok=True)
    for name, module in modules(folder, v3).items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    module = load_package(monkeypatch, NODE, "comfyui_time_tuner")
    module.folder = folder / "time_tuner"
    module.nodes = sys.modules["comfyui_time_tuner.nodes"]
    return module


def changed(plan: Plan) -> Plan:
    """The plan with conditioning times and corrections of its own, as a tuned one has."""
    calls = len(plan)
    ratios = 1 + 0.03 * torch.sin(torch.arange(calls, dtype=torch.float64))
    ratios[0] = 0.97
    return plan.with_ratios(ratios).with_corrections((0.1 * seeded(calls, calls, seed=1)).tril(-1))


def made(sampler: str, kind: str) -> Plan:
    """An untuned plan; Heun's to noise 0 has an odd number of calls."""
    spacing = "karras" if kind == "edm" else "uniform"
    return make_plan(sampler, KINDS[kind][0], 6 + (sampler == "heun" and kind == "edm"), spacing)


def save(node: Any, plans: Plan | list[Plan], name: str = "plan.json") -> str:
    Plan.save_several([plans] if isinstance(plans, Plan) else plans, node.folder / name)
    return name


def comfy_run(
    node: Any,
    model: Patcher,
    plan: str,
    noise: Tensor,
    calls: int = 0,
    latent: Tensor | None = None,
    sigmas: Callable[[Tensor], Tensor] = lambda s: s,
    **options: Any,
) -> Tensor:
    """A run of SamplerCustomAdvanced: all outputs of the node connected."""
    patched, sampler, own = node.nodes.run(model, plan, calls)
    sampler.extra_options = options
    guider = CFGGuider(patched)
    return guider.sample(noise, torch.zeros_like(noise) if latent is None else latent, sampler, sigmas(own).to(noise))


def patcher(kind: str) -> Patcher:
    return Patcher(ComfyModel(network, KINDS[kind][2]()))


def own_run(kind: str, plan: Plan, z: Tensor, x: Tensor | None = None, **options: Any) -> Tensor:
    model_type = KINDS[kind][1]
    if kind == "edm":  # in ComfyUI and here the network receives log(sigma) / 4
        assert plan.schedule.to_dict()["network_input"] == "log"
    model = model_wrapper(network, plan.schedule, model_type=model_type)
    return sample(model, plan, plan.initial_state(z) if x is None else x, **options)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((got - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_node_runs_plans_as_the_loop_does(node: Any, sampler: str, kind: str) -> None:
    """With corrections and conditioning times, and the same draws of noise."""
    plan = changed(made(sampler, kind))
    noise, draws = seeded(*SHAPE), [seeded(*SHAPE, seed=10 + k) for k in range(7)]
    theirs, ours = iter(draws), iter(draws)
    got = comfy_run(node, patcher(kind), save(node, plan), noise, noise_sampler=lambda x: next(theirs))
    expected = own_run(kind, plan, noise, noise=lambda x: next(ours))
    last = 1.0 if kind == "flow" else float(plan.alpha[-1])  # ComfyUI's state is x / alpha
    if kind == "flow":
        expected = expected / (1 - plan.sigma[-1])
    assert close(got, expected / last)


@pytest.mark.parametrize("kind", KINDS)
def test_node_runs_in_single_precision_and_reports_every_call(node: Any, kind: str) -> None:
    plan = changed(make_plan("dpmpp", KINDS[kind][0], 5))
    noise, seen = seeded(*SHAPE), list[int]()
    patched, sampler, sigmas = node.nodes.run(patcher(kind), save(node, plan), 0)
    assert sigmas.dtype is torch.float32 and len(sigmas) == 6 and (sigmas.diff() <= 0).all()
    got = CFGGuider(patched).sample(
        noise.float(), torch.zeros(SHAPE), sampler, sigmas, callback=lambda i, x0, x, total: seen.append((i, total))
    )
    assert seen == [(i, 5) for i in range(5)]
    assert got.dtype is torch.float32
    last = 1 - plan.sigma[-1] if kind == "flow" else plan.alpha[-1]
    assert close(got.double(), own_run(kind, plan, noise) / last, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_network_receives_the_conditioning_times(node: Any, kind: str) -> None:
    plan = changed(made("heun", kind))
    model = patcher(kind)
    comfy_run(node, model, save(node, plan), seeded(*SHAPE))
    received = torch.stack([time[0] for time in model.model.times]).double()
    assert torch.allclose(received, plan.schedule.network_time(plan.tau), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(received, plan.schedule.network_time(plan.t[:-1]), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_patched_model_keeps_its_times_elsewhere_and_the_given_model_is_left_alone(node: Any, kind: str) -> None:
    plan, model = changed(make_plan("ddim", KINDS[kind][0], 4)), patcher(kind)
    own = model.get_model_object("model_sampling")
    patched, _, sigmas = node.nodes.run(model, save(node, plan), 0)
    other = sigmas[:-1].mul(0.9)
    sampling = patched.get_model_object("model_sampling")
    assert torch.equal(sampling.timestep(other), own.timestep(other))
    assert not torch.equal(sampling.timestep(sigmas[:-1]).float(), own.timestep(sigmas[:-1]).float())
    mixed = sampling.timestep(torch.stack([sigmas[1], other[1]]))
    assert torch.equal(mixed, torch.stack([sampling.timestep(sigmas[1:2])[0], own.timestep(other[1:2])[0].float()]))
    assert model.get_model_object("model_sampling") is own and not model.object_patches


def test_a_plan_set_twice_counts_once(node: Any) -> None:
    first, second = (changed(make_plan("ddim", VP, calls)) for calls in (4, 5))
    model = patcher("eps")
    once, _, _ = node.nodes.run(model, save(node, first, "first.json"), 0)
    twice = comfy_run(node, once, save(node, second, "second.json"), seeded(*SHAPE))
    assert torch.equal(twice, comfy_run(node, model, "second.json", seeded(*SHAPE)))


def test_plans_that_start_without_data_run(node: Any) -> None:
    """Zero terminal SNR: sigma / alpha is infinite at the first call."""
    schedule, noise = NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(BETAS)), seeded(*SHAPE)
    plan = changed(make_plan("ddim", schedule, 5, "trailing"))
    assert plan.alpha[0] == 0
    kept = torch.tensor(schedule.to_dict()["alphas_cumprod"], dtype=torch.float64).clamp(min=4.9e-8)
    sampling = Sampling(predicts="v")
    sampling.set_sigmas(((1 - kept) / kept).sqrt())
    got = comfy_run(node, Patcher(ComfyModel(network, sampling)), save(node, plan), noise)
    expected = own_run("v", plan, noise)
    assert torch.isfinite(got).all()
    assert close(got, expected / plan.alpha[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_plans_that_start_below_the_greatest_noise_start_from_noise(node: Any, kind: str) -> None:
    schedule = KINDS[kind][0]
    times = schedule.T * torch.tensor([0.95, 0.6, 0.3, 0.05], dtype=torch.float64)
    plan, noise = make_plan("ddim", schedule, times=times), seeded(*SHAPE)
    got = comfy_run(node, patcher(kind), save(node, plan), noise)
    last = 1 - plan.sigma[-1] if kind == "flow" else plan.alpha[-1]
    assert close(got, own_run(kind, plan, noise) / last)


# --- strength below 1, and other sigmas ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp(order=3)", "unipc", "heun"])
def test_a_run_from_an_image_is_that_of_the_library(node: Any, sampler: str, kind: str) -> None:
    """It begins at a later sigma of the plan, in the image with noise."""
    plan = changed(made(sampler, kind))
    firsts = [sum(plan.steps[:i]) for i in range(len(plan.steps))]
    begin = firsts[len(firsts) // 2]
    tails = [rest(plan, first) for first in firsts[1:]]
    noise, image = seeded(*SHAPE), seeded(*SHAPE, seed=3)
    got = comfy_run(node, patcher(kind), save(node, [plan, *tails]), noise, latent=image, sigmas=lambda s: s[begin:])
    p = plan.point(begin)
    expected = own_run(kind, rest(plan, begin), noise, x=p.alpha * image + p.sigma * noise)
    last = 1 - plan.sigma[-1] if kind == "flow" else plan.alpha[-1]
    assert close(got, expected / last)


def test_a_later_start_is_refused_where_the_plan_looks_back(node: Any) -> None:
    plan = changed(make_plan("dpmpp", VP, 6))
    with pytest.raises(ValueError, match="save_with_tails"):
        comfy_run(node, patcher("eps"), save(node, plan), seeded(*SHAPE), sigmas=lambda s: s[2:])
    start, ddim = 2, make_plan("ddim", VP, 6).with_ratios(torch.full((6,), 0.97))  # looks back on no call
    noise, image, p = seeded(*SHAPE), seeded(*SHAPE, seed=3), ddim.point(2)
    got = comfy_run(node, patcher("eps"), save(node, ddim), noise, latent=image, sigmas=lambda s: s[start:])
    expected = own_run("eps", rest(ddim, start), noise, x=p.alpha * image + p.sigma * noise)
    assert close(got, expected / ddim.alpha[-1])


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_two_parts_of_a_plan_in_a_row_are_the_plan(node: Any, kind: str) -> None:
    """The sigmas are split, as for two networks, and the second part begins in the latent of the first."""
    plan, noise = make_plan("ddim", KINDS[kind][0], 6).with_ratios(torch.full((6,), 0.98)), seeded(*SHAPE)
    name = save(node, plan)
    whole = comfy_run(node, patcher(kind), name, noise)
    half = comfy_run(node, patcher(kind), name, noise, sigmas=lambda s: s[:4])
    both = comfy_run(node, patcher(kind), name, torch.zeros(SHAPE).double(), latent=half, sigmas=lambda s: s[3:])
    assert close(both, whole)


@pytest.mark.parametrize(
    "other",
    [
        lambda s: torch.linspace(float(s[0]), 0, len(s)),
        lambda s: torch.cat([s[:2], s[3:]]),
        lambda s: torch.cat([s, s[-1:] * 0]),
        lambda s: s.flip(0),
        lambda s: s[:1],
    ],
    ids=["another spacing", "one left out", "one more", "reversed", "no step"],
)
def test_foreign_sigmas_are_refused(node: Any, other: Callable[[Tensor], Tensor]) -> None:
    plan = make_plan("ddim", VP, 4)
    with pytest.raises(ValueError, match="sigmas must be those of the plan"):
        comfy_run(node, patcher("eps"), save(node, plan), seeded(*SHAPE), sigmas=other)


def test_a_model_without_the_times_of_the_plan_is_refused(node: Any) -> None:
    plan, model = changed(make_plan("ddim", VP, 4)), patcher("eps")
    patched, sampler, sigmas = node.nodes.run(model, save(node, plan), 0)
    noise, empty = seeded(*SHAPE), torch.zeros(SHAPE).double()
    with pytest.raises(ValueError, match="MODEL must be the one that the plan's node returns"):
        CFGGuider(model).sample(noise, empty, sampler, sigmas.to(noise))
    patched.add_object_patch("model_sampling", Sampling(BETAS))  # a node after it
    with pytest.raises(ValueError, match="MODEL must be the one"):
        CFGGuider(patched).sample(noise, empty, sampler, sigmas.to(noise))
    other, _, _ = node.nodes.run(model, save(node, make_plan("ddim", VP, 5), "other.json"), 0)
    with pytest.raises(ValueError, match="MODEL must be the one"):
        CFGGuider(other).sample(noise, empty, sampler, sigmas.to(noise))


# --- another model, another file ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made_for", KINDS)
def test_a_plan_for_another_kind_of_model_is_refused(node: Any, made_for: str, kind: str) -> None:
    same = KINDS[made_for][0] is KINDS[kind][0]
    name = save(node, make_plan("ddim", KINDS[made_for][0], 4))
    if same:
        node.nodes.run(patcher(kind), name, 0)
    else:
        with pytest.raises(ValueError, match="choose a plan for this model"):
            node.nodes.run(patcher(kind), name, 0)


@pytest.mark.parametrize(
    "betas",
    [torch.linspace(1e-4, 0.02, 1000).double(), BETAS[:500], 1.1 * BETAS],
    ids=["linear", "fewer levels", "a tenth larger"],
)
def test_a_plan_for_other_noise_levels_is_refused(node: Any, betas: Tensor) -> None:
    name = save(node, make_plan("ddim", NoiseScheduleVP(betas=betas), 4))
    with pytest.raises(ValueError, match="choose a plan for this model"):
        node.nodes.run(patcher("eps"), name, 0)


def test_plans_of_continuous_time_and_other_data_deviations_are_refused(node: Any) -> None:
    with pytest.raises(ValueError, match="no discrete levels"):
        node.nodes.run(patcher("eps"), save(node, make_plan("ddim", NoiseScheduleVP("linear"), 4)), 0)
    with pytest.raises(ValueError, match=r"sigma_data=1\.0"):
        node.nodes.run(patcher("edm"), save(node, make_plan("ddim", NoiseScheduleVE(sigma_data=1.0), 4)), 0)


def test_a_plan_for_another_size_is_noticed(node: Any, caplog: pytest.LogCaptureFixture) -> None:
    for shape, count in (([2, 4, 4], 0), ([2, 8, 8], 1)):
        caplog.clear()
        plan = make_plan("ddim", VP, 3).with_provenance(made_for={"shape": shape})
        comfy_run(node, patcher("eps"), save(node, plan), seeded(*SHAPE))
        assert (
            len([one for one in caplog.messages if "tuned for samples of shape [2, 8, 8], got [2, 4, 4]" in one])
            == count
        )


def test_a_file_of_several_plans_needs_calls(node: Any) -> None:
    plans = [make_plan("dpmpp", VP, calls) for calls in (4, 6)]
    name = save(node, plans)
    with pytest.raises(ValueError, match=r"calls must be one of \[4, 6\]"):
        node.nodes.run(patcher("eps"), name, 0)
    assert len(node.nodes.run(patcher("eps"), name, 6)[2]) == 7
    tails = save(node, [plans[1], *(rest(plans[1], k) for k in range(1, 6))], "tails.json")
    assert len(node.nodes.run(patcher("eps"), tails, 0)[2]) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "is not a plan file"),
        (lambda text: text.replace("time-tuner plan", "plan"), "format"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "update them"),
        (lambda text: text.replace('"calls": 4', '"calls": 5'), "finite numbers"),
        (lambda text: text.replace('["eps", 0', '["y", 0'), "update them"),
        (lambda text: text.replace('["eps", 0', '["g", 0'), "uses guidance of call 0, which has none"),
        (lambda text: text.replace('["eps", 0', '["eps", 9'), "not .tensor, calls ago"),
        (lambda text: text.replace('["eps", 0', '["c", 0'), "which has none"),
    ],
)
def test_other_files_are_refused_by_name(node: Any, change: Callable[[str], str], message: str) -> None:
    name = save(node, make_plan("ddim", VP, 4))
    file = node.folder / name
    file.write_text(change(file.read_text()))
    with pytest.raises(
        ValueError, match=rf"plan\.json is not a plan file.*{message}" if message != "is not a plan file" else message
    ):
        node.nodes.run(patcher("eps"), name, 0)


def test_a_missing_file_is_refused(node: Any) -> None:
    with pytest.raises(ValueError, match=r"no plan file 'mine\.json'"):
        node.nodes.run(patcher("eps"), "mine.json", 0)


def test_noise_of_stochastic_plans_follows_the_seed(node: Any) -> None:
    plan, noise = make_plan("ddpm", VP, 4), seeded(*SHAPE)
    patched, sampler, sigmas = node.nodes.run(patcher("eps"), save(node, plan), 0)
    empty = torch.zeros_like(noise)
    ends = [CFGGuider(patched).sample(noise, empty, sampler, sigmas.to(noise), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1]) and not close(ends[0], ends[2])


def test_guidance_is_that_of_the_guider(node: Any) -> None:
    plan, noise = changed(make_plan("dpmpp", VP, 5)), seeded(*SHAPE)
    patched, sampler, sigmas = node.nodes.run(patcher("eps"), save(node, plan), 0)
    guider = CFGGuider(patched)
    guider.set_conds(0.5, -0.25)
    guider.set_cfg(4.0)
    got = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas.to(noise))

    def guided(x: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(network(x, t, -0.25), network(x, t, 0.5), 4.0)

    expected = sample(model_wrapper(guided, VP), plan, plan.initial_state(noise))
    assert close(got, expected / plan.alpha[-1])


def conditioned(x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
    """The network under a condition for each sample, as `model_wrapper` calls it."""
    return network(x, time, condition.reshape(-1, *[1] * (x.dim() - 1)))


def guided_plan(sampler: str, kind: str, reuse: bool) -> Plan:
    """A plan with guidance at its calls 0, 1 and 3, which the others reuse."""
    plan = changed(made(sampler, kind))
    calls, guided = len(plan), [k in (0, 1, 3) for k in range(len(plan))]
    weights = torch.zeros(calls, calls, dtype=torch.float64)
    for k in range(calls):
        weights[k, :k] = torch.tensor([0.4 * guided[j] * (not guided[k]) for j in range(k)], dtype=torch.float64)
    return plan.with_guidance(guided, weights if reuse else None)


def guided_run(node: Any, kind: str, plan: Plan, noise: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The end of a run in the stand-in under a scale of 4, and the times at which the network was evaluated."""
    base = patcher(kind)
    model, sampler, sigmas = node.nodes.run(base, save(node, plan), 0)
    guider = node.nodes.run_guider(model, 0.5, -0.25, 4.0)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas.to(noise)), base.model.times


@pytest.mark.parametrize("reuse", [False, True], ids=["left out", "reused"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("ddpm", "sde_dpmpp", "lcm")])
def test_guider_leaves_guidance_out_as_the_loop_does(node: Any, sampler: str, kind: str, reuse: bool) -> None:
    plan, noise = guided_plan(sampler, kind, reuse), seeded(*SHAPE)
    got, times = guided_run(node, kind, plan, noise)
    wrapped = model_wrapper(
        conditioned, plan.schedule, KINDS[kind][1], guidance_type="classifier-free", guidance_scale=4.0
    )
    model = wrapped.bind(torch.tensor([0.5]), torch.tensor([-0.25]))
    last = 1 - plan.sigma[-1] if kind == "flow" else plan.alpha[-1]
    assert close(got, sample(model, plan, plan.initial_state(noise)) / last)
    assert len(times) == plan.evaluations == len(plan) + 3
    everywhere = plan.with_guidance(len(plan))
    assert not close(got, sample(model, everywhere, plan.initial_state(noise)) / last)


def test_guider_runs_a_second_time_and_with_other_samplers_as_a_cfg_guider(node: Any) -> None:
    plan, noise = guided_plan("dpmpp", "eps", True), seeded(*SHAPE)
    model, sampler, sigmas = node.nodes.run(patcher("eps"), save(node, plan), 0)
    guider, own = node.nodes.run_guider(model, 0.5, -0.25, 4.0), CFGGuider(model)
    own.set_conds(0.5, -0.25)
    own.set_cfg(4.0)
    ends = [guider.sample(noise, torch.zeros_like(noise), sampler, sigmas.to(noise)) for _ in range(2)]
    assert torch.equal(*ends)
    everywhere = node.nodes.run(patcher("eps"), save(node, plan.with_guidance(len(plan)), "all.json"), 0)
    guider.model_patcher = own.model_patcher = everywhere[0]
    both = [one.sample(noise, torch.zeros_like(noise), everywhere[1], sigmas.to(noise)) for one in (guider, own)]
    assert close(*both, 1e-12) and not close(both[0], ends[0])


def test_guidance_that_is_changed_there_is_reused_as_changed(node: Any) -> None:
    """A function that halves what guidance adds halves what is reused, too: the run is that of another scale."""
    plan, noise = guided_plan("ddim", "eps", True), seeded(*SHAPE)
    expected, _ = guided_run(node, "eps", plan, noise)

    def halved(args: dict[str, Any]) -> Tensor:
        return torch.lerp(args["cond_denoised"], args["denoised"], 0.5)

    model, sampler, sigmas = node.nodes.run(patcher("eps"), save(node, plan), 0)
    guider = node.nodes.run_guider(model, 0.5, -0.25, 7.0)  # adds 6 in place of 3
    predict = guider.predict_noise
    guider.predict_noise = lambda x, t, options=None, seed=None: predict(
        x, t, {**(options or {}), "sampler_post_cfg_function": [halved]}, seed
    )
    assert close(guider.sample(noise, torch.zeros_like(noise), sampler, sigmas.to(noise)), expected, 1e-9)


def test_other_guiders_are_refused_where_guidance_is_left_out(node: Any) -> None:
    plan, noise = guided_plan("ddim", "eps", False), seeded(*SHAPE)
    with pytest.raises(ValueError, match="connect the GUIDER of the node 'Time Tuner guider'"):
        comfy_run(node, patcher("eps"), save(node, plan), noise)


def test_a_later_start_that_reuses_earlier_guidance_needs_its_own_plan(node: Any) -> None:
    plan = make_plan("ddim", VP, 4).with_ratios([0.98] * 4)
    reuse = torch.zeros(4, 4, dtype=torch.float64)
    reuse[3, 0] = 0.5
    name = save(node, plan.with_guidance([True, True, True, False], reuse))
    model, sampler, sigmas = node.nodes.run(patcher("eps"), name, 0)
    guider, noise = node.nodes.run_guider(model, 0.5, -0.25, 4.0), seeded(*SHAPE)
    with pytest.raises(ValueError, match="save_with_tails"):
        guider.sample(noise, noise, sampler, sigmas[1:].to(noise))


# --- the package ---


def test_both_interfaces_of_nodes_describe_one_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = load(monkeypatch, tmp_path)
    assert not hasattr(node, "NODE_CLASS_MAPPINGS")  # ComfyUI would take them instead of the schema
    v3, guider = asyncio.run(asyncio.run(node.comfy_entrypoint()).get_node_list())
    name = save(node, changed(make_plan("ddim", VP, 4)))
    schema, output = v3.define_schema(), v3.execute(patcher("eps"), plan=name, calls=4)
    classic = load(monkeypatch, tmp_path, v3=False)
    assert list(classic.NODE_CLASS_MAPPINGS) == list(classic.NODE_DISPLAY_NAME_MAPPINGS)
    assert list(classic.NODE_CLASS_MAPPINGS) == [schema.node_id, guider.define_schema().node_id]
    kind = classic.NODE_CLASS_MAPPINGS[schema.node_id]
    required = kind.INPUT_TYPES()["required"]
    assert [one.id for one in schema.inputs] == list(required) == ["model", "plan", "calls"]
    assert required["plan"][0] == schema.inputs[1].options == [name]
    assert tuple(one.kind for one in schema.outputs) == kind.RETURN_TYPES
    made = getattr(kind(), kind.FUNCTION)(model=patcher("eps"), plan=name, calls=4)
    assert torch.equal(made[2], output.result[2])
    kind, schema = classic.NODE_CLASS_MAPPINGS["TimeTunerGuider"], guider.define_schema()
    required = kind.INPUT_TYPES()["required"]
    assert [(one.id, one.kind) for one in schema.inputs] == [(name, entry[0]) for name, entry in required.items()]
    assert tuple(one.kind for one in schema.outputs) == kind.RETURN_TYPES
    options = {"model": patcher("eps"), "positive": 1, "negative": 2, "cfg": 3.0}
    for one in (getattr(kind(), kind.FUNCTION)(**options)[0], guider.execute(**options).result[0]):
        assert one.cfg == 3.0 and one.conds == {"positive": 1, "negative": 2}


def test_registry_file_names_the_node() -> None:
    project = tomllib.loads((NODE / "pyproject.toml").read_text())
    assert {"PublisherId", "DisplayName"} <= project["tool"]["comfy"].keys()
    assert [one["id"] for one in project["tool"]["comfy"]["nodelist"]] == ["TimeTunerPlan", "TimeTunerGuider"]


def test_node_imports_neither_the_library_nor_more_than_torch() -> None:
    text = "".join(file.read_text() for file in NODE.glob("*.py"))
    imported = {
        line.split()[1].split(".")[0] for line in text.splitlines() if line.strip().startswith(("import ", "from "))
    }
    allowed = {"", "comfy", "comfy_api", "folder_paths", "torch"}
    assert imported - set(sys.stdlib_module_names) <= allowed


# --- k-diffusion ---


@pytest.mark.parametrize("kind", ["eps", "v", "edm"])
@pytest.mark.parametrize(
    ("sampler", "theirs"), [("ddim", "sample_euler"), ("dpmpp", "sample_dpmpp_2m"), ("ipndm(order=1)", "sample_euler")]
)
def test_sampler_function_runs_plans_as_k_diffusion_does(
    node: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, theirs: str, kind: str
) -> None:
    k_diffusion = k_diffusion_sampling(monkeypatch)
    plan = make_plan(sampler, KINDS[kind][0], 6, "logsnr", end=0.0)
    base = patcher(kind)
    patched, function, _ = node.nodes.run(base, save(node, plan), 0)
    sampling = patched.get_model_object("model_sampling")
    base.model.model_sampling = sampling

    def model(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        return base.model.apply_model(x, sigma)

    sigmas = (plan.sigma / plan.alpha).double()
    x = seeded(*SHAPE) * float(torch.hypot(sigmas[0], torch.tensor(1.0)))
    seen: list[dict[str, Any]] = []
    expected_seen: list[dict[str, Any]] = []
    got = function.sampler_function(model, x, sigmas, callback=seen.append)
    expected = getattr(k_diffusion, theirs)(model, x, sigmas, callback=expected_seen.append, disable=True)
    assert close(got, expected)
    assert len(seen) == len(expected_seen)
    for ours, other in zip(seen, expected_seen, strict=True):
        assert ours.keys() == other.keys() and ours["i"] == other["i"]
        assert close(ours["x"], other["x"]) and close(ours["denoised"], other["denoised"])
