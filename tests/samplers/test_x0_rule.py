"""Where the noise does not tell the data (alpha = 0, or next to nothing beside sigma), the network is asked for x0."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from tables import EVERY
from torch import Tensor

from time_tuner import (
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    make_plan,
    model_wrapper,
    named_betas,
    rescale_zero_terminal_snr,
    sample,
    trajectory,
    tune,
)
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.samplers import Evaluation, Noise, Sampler
from time_tuner.sampling import coefficients
from time_tuner.schedules import NoiseSchedule, Point

FLOW = NoiseScheduleFlow(shift=3.0)
ZERO = NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear")))
COSINE = NoiseScheduleVP(betas=named_betas("squaredcos_cap_v2"))  # alpha is 5e-5 at its end
VIDEO = NoiseScheduleVE(0.002, 700.0, 1.0)
KINDS = {"flow": FLOW, "zero": ZERO, "cosine": COSINE, "video": VIDEO}
RUN_PLAN = str(Path(__file__).parents[2] / "examples" / "run_plan.py")
MIXTURE = Mixture([[-1.0, 0.5], [1.5, 1.0], [-0.2, -1.2]], 0.3)

every = pytest.mark.parametrize("sampler", EVERY, ids=repr)
kinds = pytest.mark.parametrize("schedule", KINDS.values(), ids=KINDS)


def ends_of(schedule: NoiseSchedule) -> list[float]:
    inner = schedule.inverse_lambda(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.5], dtype=torch.float64))
    return [schedule.T, *inner.tolist(), 0.0]


def plan_of(sampler: Any, schedule: NoiseSchedule) -> Plan:
    plan = make_plan(sampler, schedule, times=ends_of(schedule))
    return plan.with_corrections(0.1 * seeded(len(plan), len(plan)).tril(-1))


def network(schedule: NoiseSchedule, model_type: str) -> Callable[..., Tensor]:
    """A network of this type, exact at the time it is told, in the precision of what it is shown."""

    def predict(x: Tensor, told: Tensor) -> Tensor:
        p = schedule.at(schedule.from_network_time(told[0]))
        d = schedule.sigma_data or 0.5
        deviation = torch.sqrt(d**2 + p.sigma**2)
        if model_type.startswith("edm"):
            x = x * deviation
        x0, eps = MIXTURE.data(x, p.alpha, p.sigma), MIXTURE.noise(x, p.alpha, p.sigma)
        if model_type.startswith("edm"):  # x0 = c_skip x + c_out F; x = x0 + sigma eps keeps the rounding small
            sign = -1 if model_type == "edm_v" else 1
            return sign * (p.sigma * x0 / (d * deviation) - d * eps / deviation)
        return {"x_start": x0, "v": p.alpha * eps - p.sigma * x0, "flow": eps - x0, "noise": eps, "score": -eps}[
            model_type
        ]

    return predict


CASES = [
    *((FLOW, "flow"), (FLOW, "x_start"), (FLOW, "v"), (ZERO, "v"), (ZERO, "x_start"), (ZERO, "flow")),
    *((COSINE, "v"), (VIDEO, "edm"), (VIDEO, "edm_v"), (VIDEO, "x_start"), (NoiseScheduleVE(), "edm")),
]
cases = pytest.mark.parametrize(("schedule", "model_type"), CASES, ids=lambda v: v if isinstance(v, str) else repr(v))


@cases
def test_a_network_of_any_type_is_its_closed_form(schedule: NoiseSchedule, model_type: str) -> None:
    model = model_wrapper(network(schedule, model_type), schedule, model_type)
    x, exact = seeded(8, 2), MIXTURE.eps(schedule)
    for t in [schedule.T, *schedule.inverse_lambda(torch.tensor([-2.0, 0.0, 3.0])).tolist()]:
        state = float(schedule.at(t).scale) * x
        # What is told is told in float32.
        torch.testing.assert_close(model(state, t), exact(state, t), rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(model.x0(state, t), exact.x0(state, t), rtol=2e-4, atol=2e-5)
        p = schedule.at(t)
        together = p.alpha * model.x0(state, t) + p.sigma * model(state, t)
        torch.testing.assert_close(together, state, rtol=1e-9, atol=1e-9)


@cases
def test_the_conversion_is_at_t_and_only_the_network_hears_tau(schedule: NoiseSchedule, model_type: str) -> None:
    told, shown = [], []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        told.append(float(t[0]))
        shown.append(x)
        return torch.tanh(x)

    model = model_wrapper(predict, schedule, model_type).bind()
    t, tau = schedule.inverse_lambda(torch.tensor([-0.5, -0.1], dtype=torch.float64)).double()
    x = seeded(4, 2)
    same, other = model.x0(x, t), model.x0(x, t, tau)
    assert torch.equal(same, other) and torch.equal(*shown)
    assert told == pytest.approx([float(schedule.network_time(t)), float(schedule.network_time(tau))], rel=1e-6)
    assert told[0] != told[1]


@cases
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "unipc"])
def test_float32_is_as_good_as_float64(schedule: NoiseSchedule, model_type: str, sampler: str) -> None:
    """By design: the same run with the data found by way of the noise loses it all where alpha is next to nothing."""
    plan, x = make_plan(sampler, schedule, times=ends_of(schedule)), seeded(64, 2)
    wrapped = model_wrapper(network(schedule, model_type), schedule, model_type).bind()
    exact = sample(MIXTURE.eps(schedule), plan, plan.initial_state(x))
    got = sample(wrapped, plan, plan.initial_state(x).float())
    assert got.dtype == torch.float32
    assert float((got.double() - exact).abs().max()) < 2e-5


def test_computed_from_the_noise_the_data_would_be_lost() -> None:
    """What the rule is for: v at sigma / alpha = 2e4, read as noise first."""
    plan, x = make_plan("ddim", COSINE, times=ends_of(COSINE)), seeded(64, 2)
    wrapped = model_wrapper(network(COSINE, "v"), COSINE, "v").bind()
    exact = sample(MIXTURE.eps(COSINE), plan, x)

    def error(eps: Callable[..., Tensor]) -> float:
        return float((sample(eps, plan, x.float()).double() - exact).abs().max())

    assert 50 * error(wrapped) < error(lambda x, t, tau: wrapped(x, t, tau))


# --- plans whose rows have x0 ---


@kinds
def test_rows_name_the_calls_that_predict_data(schedule: NoiseSchedule) -> None:
    plan, asked = make_plan("dpmpp", schedule, times=ends_of(schedule)), []
    exact = MIXTURE.eps(schedule)

    class Noting:
        def __call__(self, *args: Any) -> Tensor:
            asked.append("eps")
            return exact(*args)

        def x0(self, *args: Any) -> Tensor:
            asked.append("x0")
            return exact.x0(*args)

    sample(Noting(), plan, plan.initial_state(seeded(2, 2)))
    assert asked == [row.predicts for row in plan.rows] == ["x0"] + ["eps"] * 5


def by_hand(plan: Plan, x: Tensor, exact: Any, noise: Noise) -> Tensor:
    """The run with tensors through the sampler itself; a step from alpha = 0 is `first_step`, and in no past."""
    past: list[Evaluation] = []
    said: list[Tensor] = []
    saw = k = 0
    for step, calls in enumerate(plan.steps):
        first = k
        for stage in range(calls):
            p, q = plan.point(k), plan.point(k + 1)
            x0 = exact.x0(x, plan.t[k], plan.tau[k])
            eps = (x - p.alpha * x0) / p.sigma
            said.append(eps)
            past.append(Evaluation(x, eps, p, x0, k - first))
            if saw and (better := plan.sampler.correct(tuple(past[-saw - 1 :]))) is not None:
                past[-1] = Evaluation(better, (better - p.alpha * x0) / p.sigma, p, x0, k - first)
            saw = min(plan.sampler.look_back(step, stage, len(plan.steps)), len(past))
            if q.sigma == 0:
                x = x0
            elif p.alpha == 0:
                x, past, saw, first = plan.sampler.first_step(past[-1], q, noise), [], 0, k + 1
            else:
                x = plan.sampler.step(tuple(past[-saw:]), q, noise)
            if plan.corrections is not None and k:
                b = plan.point(first)
                gamma = q.sigma - q.alpha / b.alpha * b.sigma
                for j in range(k):
                    x = x + gamma * plan.corrections[k, j] * (said[j] - said[k])
            k += 1
    return x


@every
@kinds
def test_rows_are_the_sampler_itself(sampler: Sampler, schedule: NoiseSchedule) -> None:
    plan, x = plan_of(sampler, schedule), seeded(5, 2)
    for each in (plan, plan.with_corrections(None)):
        got = sample(MIXTURE.eps(schedule), each, plan.initial_state(x), SeededNoise(5))
        expected = by_hand(each, plan.initial_state(x), MIXTURE.eps(schedule), SeededNoise(5))
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@every
@kinds
def test_table_and_file_reproduce_the_loop(sampler: Sampler, schedule: NoiseSchedule) -> None:
    plan, said, drawn, source = plan_of(sampler, schedule), [], {}, SeededNoise(5)
    exact = MIXTURE.eps(schedule)

    class Noting:
        def __call__(self, *args: Any) -> Tensor:
            said.append(exact(*args))
            return said[-1]

        def x0(self, *args: Any) -> Tensor:
            said.append(exact.x0(*args))
            return said[-1]

    def noise(x: Tensor) -> Tensor:
        drawn[len(said) - 1] = source(x)
        return drawn[len(said) - 1]

    x = plan.initial_state(seeded(6, 2))
    states = torch.stack(list(trajectory(Noting(), plan, x, noise)))
    draws = [drawn.get(k, torch.full_like(x, 1e6)) for k in range(len(plan))]
    table = coefficients(plan)
    got = torch.einsum("kj,jbc->kbc", table, torch.stack([x, *said, *draws]))
    torch.testing.assert_close(got, states, rtol=1e-9, atol=1e-9)

    values = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(values) == plan
    replay = iter([drawn[k].numpy() for k in sorted(drawn)])

    def asked(predict: Callable[..., Tensor]) -> Callable[..., np.ndarray]:
        return lambda x, t, tau: predict(torch.from_numpy(x), t, tau).numpy()

    end = runpy.run_path(RUN_PLAN)["run"](values, asked(exact), x.numpy(), lambda shape: next(replay), asked(exact.x0))
    np.testing.assert_allclose(end, states[-1].numpy(), rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("schedule", [FLOW, ZERO], ids=["flow", "zero"])
def test_gradients_are_finite_from_alpha_0(sampler: Sampler, schedule: NoiseSchedule) -> None:
    plan = plan_of(sampler, schedule)
    tau, inner, corrections = plan.tau.clone(), plan.step_times[1:-1].clone(), plan.corrections.clone()
    for value in (tau, inner, corrections):
        value.requires_grad_()
    moved = plan.with_times(torch.cat([plan.step_times[:1], inner, plan.step_times[-1:]])).with_tau(tau)
    moved = moved.with_corrections(corrections)
    *_, end = trajectory(MIXTURE.eps(schedule), moved, seeded(4, 2), SeededNoise(0))
    for gradient in torch.autograd.grad(end.square().sum(), (tau, inner, corrections)):
        assert gradient.isfinite().all() and gradient.any()


# --- who may not ---


def test_a_bare_eps_is_refused_at_alpha_0_and_taken_elsewhere() -> None:
    exact = MIXTURE.eps(FLOW)
    plan = make_plan("ddim", FLOW, times=[1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"eps has no .x0, which is needed at t = 1: alpha is 0 .*model_wrapper"):
        sample(lambda x, t, tau: exact(x, t, tau), plan, seeded(2, 2))
    for schedule, later in ((FLOW, [0.999, 0.5, 0.0]), (COSINE, [1.0, 0.5, 0.0])):
        plan, exact = make_plan("ddim", schedule, times=later), MIXTURE.eps(schedule)
        got = sample(lambda x, t, tau, exact=exact: exact(x, t, tau), plan, seeded(2, 2))
        assert plan.rows[0].predicts == "x0"
        torch.testing.assert_close(got, sample(exact, plan, seeded(2, 2)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model_type", ["noise", "score"])
def test_a_prediction_of_noise_does_not_determine_data_at_alpha_0(model_type: str) -> None:
    model = model_wrapper(lambda x, t: x, ZERO, model_type).bind()
    with pytest.raises(ValueError, match=rf"the {model_type} does not determine the data at alpha = 0 \(t = 1\)"):
        sample(model, make_plan("ddim", ZERO, times=[1.0, 0.5, 0.0]), seeded(2, 2))
    later = make_plan("ddim", ZERO, times=[0.998, 0.5, 0.0])
    assert sample(model, later, seeded(2, 2)).isfinite().all()


def test_guidance_goes_through_the_data_as_through_the_noise() -> None:
    def predict(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(x) + c[:, None] * 0.1

    def log_p(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return -(x - c[:, None]).square().sum(1)

    p, x, c = FLOW.at(0.6), seeded(3, 2), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    for guidance, options in (("classifier-free", {}), ("classifier", {"classifier_fn": log_p})):
        model = model_wrapper(predict, FLOW, "flow", guidance_type=guidance, guidance_scale=2.0, **options)
        bound = model.bind(c, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(p.alpha * bound.x0(x, 0.6) + p.sigma * bound(x, 0.6), x, rtol=1e-12, atol=1e-12)
        if guidance == "classifier":
            with pytest.raises(ValueError, match="guidance by a classifier does not determine the data at alpha = 0"):
                bound.x0(x, 1.0)


def test_calls_inside_a_step_from_alpha_0_are_placed_in_t() -> None:
    """Where lam is infinite, there is no middle in lam."""
    plan = make_plan("dpm", FLOW, times=[1.0, 0.5, 0.2])
    assert plan.t[:3].tolist() == [1.0, 0.75, 0.5]
    lam = FLOW.at(plan.t[2:]).lam
    torch.testing.assert_close(lam[1], (lam[0] + lam[2]) / 2)


@pytest.mark.parametrize("option", ["s_churn", "churn"])
def test_churn_is_refused(option: str) -> None:
    from time_tuner.samplers import sampler_from_dict

    with pytest.raises(ValueError, match="sampler 'heun' has no churn"):
        sampler_from_dict({"name": "heun", option: 40})


def test_tuning_works_from_alpha_0() -> None:
    model = Gaussian([2.0, -1.0], [0.3, 1.5])
    for schedule in (FLOW, NoiseScheduleVE()):
        plan = make_plan("dpmpp", schedule, times=ends_of(schedule))
        for method in ("sequential", "parallel"):
            got = tune(model.eps(schedule), plan, method, samples=64)
            assert got.provenance["distance"]["tuned"] <= got.provenance["distance"]["untuned"]


def test_a_point_with_no_data_has_no_lam() -> None:
    zero, one = torch.zeros(()).double().requires_grad_(), torch.ones(()).double()
    lam = Point(one, zero, one).lam
    assert lam == -torch.inf
    assert torch.autograd.grad(lam, zero)[0] == 0
