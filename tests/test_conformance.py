"""What every sampler of the table has to do. A new entry is covered with nothing edited: with its default options, and
with those that `OPTIONS` names for it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers import moments, seeded
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

from time_tuner import SAMPLERS, NoiseScheduleFlow, NoiseScheduleVP, Plan, SeededNoise, make_plan, sample, trajectory
from time_tuner.cli.app import app
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.samplers import Evaluation, Noise, Sampler
from time_tuner.sampling import coefficients

OPTIONS = {
    "ddpm": [{"variance": "small"}],
    "ddim": [{"eta": 0.5}, {"eta": 1.0}],
    "dpm": [{"order": 1}, {"order": 3}],
    "dpmpp": [
        {"order": 1},
        {"order": 3},
        {"lower_order_final": True},
        {"order": 3, "lower_order_final": False},
        {"order": 3, "third_order_weight": "taylor"},
        {"algorithm_type": "dpmsolver"},
        {"order": 3, "algorithm_type": "dpmsolver"},
        {"order": 3, "algorithm_type": "dpmsolver", "third_order_weight": "taylor"},
    ],
    "dpmpp_single": [{"order": 1}, {"order": 3}],
    "sde_dpmpp": [{"order": 1}],
    "unipc": [
        {"order": 1},
        {"order": 3},
        {"solver_type": "bh1"},
        {"order": 1, "solver_type": "bh1"},
        {"order": 3, "solver_type": "bh1"},
        {"corrector": False},
        {"order": 3, "corrector": False},
    ],
    "deis": [{"order": 1}, {"order": 3}],
    "ipndm": [{"order": 1}, {"order": 2}, {"order": 3}],
    "pndm": [{"skip_prk_steps": False}],
}
EVERY = [kind(**options) for name, kind in SAMPLERS.items() for options in ({}, *OPTIONS.get(name, []))]

GUIDE = Path(__file__).parents[1] / "docs" / "adding-a-sampler.md"
EXAMPLE = GUIDE.read_text().partition("```python\n")[2].partition("```")[0]
exec(compile(EXAMPLE, GUIDE, "exec"), {"__name__": "guide"})  # which enters its sampler into the table
DOCUMENTED = SAMPLERS.pop("ab2")


@pytest.fixture(autouse=True)
def documented_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler of the guide is in the table, here alone."""
    monkeypatch.setitem(SAMPLERS, "ab2", DOCUMENTED)


def test_the_documented_sampler_is_short() -> None:
    assert len(EXAMPLE.strip().splitlines()) <= 30


def test_the_documented_sampler_is_on_the_command_line(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    for command in (
        ["tune", "--sampler", "ab2", "--calls", "3", "--samples", "8", "--budget", "50calls", "--out", str(plan)],
        ["sample", "--plan", str(plan), "-n", "2", "--out", str(tmp_path / "plan.npz")],
        ["sample", "--sampler", "ab2()", "--calls", "3", "-n", "2", "--out", str(tmp_path / "untuned.npz")],
        ["compare", "ab2:3@quadratic", "-n", "8", "--out", str(tmp_path / "runs.png")],
    ):
        result = CliRunner().invoke(app, [*command, "--model", "gaussian"])
        assert result.exit_code == 0, result.output
    assert Plan.load(plan).sampler == DOCUMENTED()


TO_ZERO, ABOVE_ZERO = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0], [0.95, 0.7, 0.5, 0.3, 0.12, 0.04]

every = pytest.mark.parametrize("sampler", [*EVERY, DOCUMENTED()], ids=repr)
every_grid = pytest.mark.parametrize("times", [TO_ZERO, ABOVE_ZERO], ids=["to_zero", "above_zero"])
SMOOTH = NoiseScheduleVP("linear")
MIXTURE = Mixture([-1.0, 0.5, 1.5], 0.4, [0.3, 0.3, 0.4])


def tuned(sampler: Sampler, times: Sequence[float]) -> Plan:
    """A plan with other times to tell, and with corrections."""
    plan = make_plan(sampler, SMOOTH, times=times)
    ratios = torch.linspace(0.93, 1.04, len(plan), dtype=torch.float64)
    corrections = 0.5 / len(plan) * seeded(len(plan), len(plan)).tril(-1)  # of a size that many calls bear, too
    return plan.with_tau(plan.tau * ratios).with_corrections(corrections)


def run(plan: Plan, x: Tensor, eps: Callable[..., Tensor] | None = None) -> Tensor:
    return torch.stack(list(trajectory(eps or MIXTURE.eps(SMOOTH), plan, x, SeededNoise(5))))


READERS = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__", "nonzero", "equal")


class Reads(TorchFunctionMode):
    """Fails at whatever brings a number of a tensor from its device to Python, or waits for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        mask = name == "__getitem__" and isinstance(args[1], Tensor)
        to_cpu = name == "to" and any(str(a) == "cpu" for a in (*args[1:], *(kwargs or {}).values()))
        assert not (name in READERS or mask or to_cpu), f"a tensor was read, by {name}"
        return func(*args, **(kwargs or {}))


def refuse(x: Tensor) -> Tensor:
    raise AssertionError("noise was drawn")


# --- order of convergence ---

COUNTS = [96, 128, 160, 192, 256]  # long enough for the highest order to show alone


def graded(steps: int) -> Tensor:
    """From t = 0.8 to 0.2, with steps in lam that grow from short ones and shrink to short ones again.

    On even steps the first and the last, at which samplers lower their order, would hide that of all others.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    first, last = SMOOTH.at([0.8, 0.2]).lam
    times = SMOOTH.inverse_lambda(first + (last - first) * u**2 * (3 - 2 * u))
    times[0], times[-1] = 0.8, 0.2
    return times


def cumulative(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The distribution function of the diffused mixture, of x (B, 1)."""
    deviation = (alpha**2 * MIXTURE.std**2 + sigma**2).sqrt()
    parts = torch.special.ndtr((x - alpha * MIXTURE.means[:, 0]) / deviation)
    return (MIXTURE.weights * parts).sum(1, keepdim=True)


def exact_flow(x: Tensor, plan: Plan) -> Tensor:
    """Where the probability-flow ODE takes x: in one dimension it keeps every quantile."""
    p, q = plan.point(0), plan.point(len(plan))
    quantile, low, high = cumulative(x, p.alpha, p.sigma), torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(60):
        middle = (low + high) / 2
        below = cumulative(middle, q.alpha, q.sigma) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def error_of_states(plan: Plan) -> float:
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    return float((sample(MIXTURE.eps(SMOOTH), plan, x, refuse) - exact_flow(x, plan)).square().mean().sqrt())


def error_of_moments(plan: Plan) -> float:
    mean, std = 1.5, 0.5
    (start, start_std), (end, end_std) = (
        (float(p.alpha * mean), float((p.alpha**2 * std**2 + p.sigma**2).sqrt()))
        for p in map(plan.point, (0, len(plan)))
    )
    got, got_std = moments(plan, mean, std, start, start_std)
    return math.hypot(got - end, got_std - end_std)


@every
def test_order_of_convergence_is_the_declared_one(sampler: Sampler) -> None:
    plans = [make_plan(sampler, SMOOTH, times=graded(steps)) for steps in COUNTS]
    error = error_of_moments if plans[0].stochastic else error_of_states
    steps, errors = torch.tensor(COUNTS).double().log(), torch.tensor([error(plan) for plan in plans]).double().log()
    steps, errors = steps - steps.mean(), errors - errors.mean()
    assert float(-(steps @ errors) / (steps @ steps)) == pytest.approx(sampler.convergence, abs=0.3)


# --- the loop ---


def by_hand(plan: Plan, x: Tensor, eps: Callable[..., Tensor], noise: Noise) -> Tensor:
    """The run as the papers write it: tensors go through `step` and `correct`, and everything is kept."""
    past: list[Evaluation] = []
    said: list[Tensor] = []
    states: list[Tensor] = []
    saw = k = 0
    for step, calls in enumerate(plan.steps):
        for stage in range(calls):
            p, q, b = plan.point(k), plan.point(k + 1), plan.point(k - stage)
            e = Evaluation(x, eps(x, plan.t[k], plan.tau[k]), p, stage=stage)
            said.append(e.eps)
            past.append(e)
            if k and (better := plan.sampler.correct(tuple(past[-saw - 1 :]))) is not None:
                past[-1] = Evaluation(better, (better - p.alpha * e.x0) / p.sigma, p, stage=stage)  # x0 stays
            saw = plan.sampler.look_back(step, stage, len(plan.steps))
            x = past[-1].x0 if q.sigma == 0 else plan.sampler.step(tuple(past[-saw:]), q, noise)
            if plan.corrections is not None:
                gamma = q.sigma - q.alpha / b.alpha * b.sigma
                for j in range(k):
                    x = x + gamma * plan.corrections[k, j] * (said[j] - said[k])
            states.append(x)
            k += 1
    return torch.stack(states)


@every
@every_grid
def test_rows_are_the_sampler_itself(sampler: Sampler, times: list[float]) -> None:
    plan, x = tuned(sampler, times), seeded(5, 1)
    for each in (plan, plan.with_corrections(None)):
        got = run(each, x)
        assert got.isfinite().all()
        torch.testing.assert_close(got, by_hand(each, x, MIXTURE.eps(SMOOTH), SeededNoise(5)), rtol=1e-9, atol=1e-10)


@every
def test_a_run_may_start_where_there_is_no_data(sampler: Sampler) -> None:
    """At alpha = 0, where lam is infinite: with short steps it ends where the exact flow does."""
    flow = NoiseScheduleFlow()
    plan = make_plan(sampler, flow, times=torch.linspace(1, 0.1, 41, dtype=torch.float64))
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    end = sample(MIXTURE.eps(flow), plan, x, SeededNoise(5))
    assert end.isfinite().all() and end.abs().max() < 4
    if not plan.stochastic:
        torch.testing.assert_close(end, exact_flow(x, plan), rtol=0, atol=0.06)


@every
@every_grid
def test_the_network_is_called_as_the_plan_says(sampler: Sampler, times: list[float]) -> None:
    plan, calls = tuned(sampler, times), []

    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        calls.append((float(t), float(tau), float(SMOOTH.at(t).sigma)))
        return torch.tanh(x)

    run(plan, seeded(2, 1), eps)
    assert [tau for _, tau, _ in calls] == plan.tau.tolist()
    assert [t for t, _, _ in calls] == plan.t[:-1].tolist()
    assert sum(plan.steps) == len(plan) == len(calls)
    assert plan.step_times.tolist() == pytest.approx(times)
    assert all(sigma > 0 for _, _, sigma in calls)


@every
def test_a_network_that_ignores_time_is_unmoved_by_tau(sampler: Sampler) -> None:
    plan, x = make_plan(sampler, SMOOTH, times=TO_ZERO), seeded(4, 1)
    other = plan.with_tau(plan.tau * 0.8)
    assert torch.equal(run(plan, x, lambda x, t, tau: torch.tanh(x)), run(other, x, lambda x, t, tau: torch.tanh(x)))
    assert not torch.allclose(run(plan, x), run(other, x))


@every
@every_grid
def test_the_coefficient_table_reproduces_the_loop(sampler: Sampler, times: list[float]) -> None:
    plan, x, said, drawn, source = tuned(sampler, times), seeded(6, 1), [], {}, SeededNoise(5)

    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        said.append(MIXTURE.eps(SMOOTH)(x, t, tau))
        return said[-1]

    def noise(x: Tensor) -> Tensor:
        assert len(said) - 1 not in drawn, "drew twice in a call"
        drawn[len(said) - 1] = source(x)
        return drawn[len(said) - 1]

    states = torch.stack(list(trajectory(eps, plan, x, noise)))
    draws = [drawn.get(k, torch.full_like(x, 1e6)) for k in range(len(plan))]
    table = coefficients(plan)
    torch.testing.assert_close(torch.einsum("kj,jbc->kbc", table, torch.stack([x, *said, *draws])), states)
    torch.testing.assert_close(table[:, 0], plan.alpha[1:] / plan.alpha[0], rtol=1e-12, atol=0)
    assert not table[:, 1:].triu(1)[:, : len(plan)].any()  # nothing comes from what was not said yet
    # Noise is drawn at the calls where it is used, and at no others.
    used = table[:, 1 + len(plan) :].any(0)
    assert used.nonzero().flatten().tolist() == sorted(drawn)
    assert plan.stochastic == bool(drawn)
    if not drawn:
        sample(MIXTURE.eps(SMOOTH), plan, x, refuse)


@every
def test_corrections_of_zero_change_nothing(sampler: Sampler) -> None:
    plan, x = make_plan(sampler, SMOOTH, times=TO_ZERO), seeded(4, 1)
    zero = plan.with_corrections(torch.zeros(len(plan), len(plan)))
    torch.testing.assert_close(run(zero, x), run(plan, x), rtol=1e-13, atol=1e-13)
    one = torch.zeros(len(plan), len(plan)).index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(0.1))
    assert not torch.allclose(run(plan.with_corrections(one), x), run(plan, x))


# --- tensors ---


@every
def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    plan, eps = tuned(sampler, TO_ZERO), Gaussian(1.0, 0.5).eps(SMOOTH)
    x = seeded(8, 3)
    together = sample(eps, plan, x, SeededNoise(range(8)))
    alone = [sample(eps, plan, x[i : i + 1], SeededNoise([i])) for i in range(8)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-13, atol=1e-13)


@every
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_the_dtype_of_the_state_is_kept(sampler: Sampler, dtype: torch.dtype, precision: float) -> None:
    plan, eps, dtypes = tuned(sampler, ABOVE_ZERO), Gaussian(1.0, 0.5).eps(SMOOTH), []

    def watched(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        dtypes.append(x.dtype)
        return eps(x, t, tau)

    x = seeded(16, 3, dtype=torch.float32).to(dtype)  # float64 has draws of its own
    got = sample(watched, plan, x, SeededNoise(5))
    assert {got.dtype, *dtypes} == {dtype}
    single = SeededNoise(5)
    exact = sample(eps, plan, x.double(), lambda x: single(x.float()).double())
    torch.testing.assert_close(got.double(), exact, rtol=precision, atol=precision)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_runs_with_states_of_single(sampler: Sampler, dtype: torch.dtype) -> None:
    """What it says is used as it is: nothing else of the run is in half precision."""
    plan, x, heard = tuned(sampler, TO_ZERO), seeded(16, 3, dtype=torch.float32), []

    def network(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        heard.append(x.dtype)
        return torch.tanh(x.to(dtype)) * tau.to(dtype)

    got = run(plan, x, network)
    assert got.dtype == torch.float32 and set(heard) == {torch.float32}
    assert torch.equal(got, run(plan, x, lambda *told: network(*told).float()))


@every
def test_the_loop_never_waits_for_the_state(sampler: Sampler) -> None:
    """Which is what a CUDA graph asks for, and what keeps a device busy: no number of a tensor is read."""
    plan, x = tuned(sampler, TO_ZERO), seeded(4, 2, dtype=torch.float32)

    def end() -> Tensor:
        *_, last = trajectory(lambda x, t, tau: torch.tanh(x), plan, x, lambda x: torch.full_like(x, 0.1))
        return last

    before = end()  # the plan's own numbers, on the CPU, are read in its first run
    with Reads():
        again = end()
    assert torch.equal(again, before)


@pytest.mark.parametrize(
    "read",
    [
        *(float, bool, int, Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, torch.nonzero),
        *(lambda x: x.to("cpu"), lambda x: x[x > 0], lambda x: torch.equal(x, x), lambda x: 1 if x > 0 else 0),
    ],
)
def test_reading_a_state_is_noticed(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="a tensor was read"), Reads():
        read(torch.ones(()))


@every
@every_grid
def test_gradients_reach_what_is_told_where_steps_end_and_corrections(sampler: Sampler, times: list[float]) -> None:
    plan, x = tuned(sampler, times), seeded(4, 1)
    tau, ends, corrections = plan.tau.clone(), plan.step_times.clone(), plan.corrections.clone()
    for value in (tau, ends, corrections):
        value.requires_grad_()

    def loss(tau: Tensor, ends: Tensor, corrections: Tensor) -> Tensor:
        moved = plan.with_times(ends).with_tau(tau).with_corrections(corrections)
        return run(moved, x)[-1].square().sum()

    to_tau, to_ends, to_corrections = torch.autograd.grad(loss(tau, ends, corrections), (tau, ends, corrections))
    assert to_tau.isfinite().all() and (to_tau != 0).all()
    assert to_ends.isfinite().all() and (to_ends[:-1] != 0).all()
    lower = torch.ones_like(corrections).tril(-1).bool()
    assert to_corrections.isfinite().all() and (to_corrections[lower] != 0).all()
    # They are the slopes.
    for i, gradient in enumerate((to_tau, to_ends)):
        up, down = [tau.detach(), ends.detach()], [tau.detach(), ends.detach()]
        up[i], down[i] = up[i].clone(), down[i].clone()
        up[i][2] += 1e-5
        down[i][2] -= 1e-5
        slope = (loss(*up, corrections) - loss(*down, corrections)) / 2e-5
        torch.testing.assert_close(gradient[2], slope, rtol=1e-4, atol=1e-6)


@every
@every_grid
def test_json_round_trip_is_exact(sampler: Sampler, times: list[float]) -> None:
    plan = tuned(sampler, times).with_provenance(scale=1 / 3)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and again.sampler == sampler
    assert torch.equal(coefficients(again), coefficients(plan))
