"""The untuned table, its ranking, and the best plan of a number of calls."""

from typing import Any

import pytest
import torch
from helpers import tune_by
from mixture_runs import EPS, SCHEDULE, Counted, Interrupt, quadratic

from time_tuner import SAMPLERS, NoiseScheduleFlow, NoiseScheduleVE, Plan, make_plan, tune, tune_several
from time_tuner.samplers import sampler_of, sampler_text
from time_tuner.sampling import coefficients
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import Joint, ReferenceDistance, estimate
from time_tuner.tuners.base import Tuner, TuningRun
from time_tuner.tuners.ranking import Rounds, differs_only_in, num_kept, untuned_plans

MODEL: dict[str, Any] = {"shape": (2,), "samples": 64}
SMALL = Joint(pairs=32, iterations=30)


def judge(plan: Plan, count: int = 400) -> ReferenceDistance:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(99))
    return ReferenceDistance(EPS, SCHEDULE, float(plan.t[-1]), x)


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseScheduleVE(), NoiseScheduleFlow(shift=3.0)])
def test_the_table_has_every_deterministic_sampler_once_on_every_grid(schedule: NoiseSchedule) -> None:
    plan = make_plan("dpmpp", schedule, 4)
    table = untuned_plans(plan)
    names = {name.partition(":")[0].partition("(")[0] for name in table}
    assert names >= {"ipndm", "unipc", "dpmpp", "deis", "ddim", "dpm"} and not names & {"ddpm", "lcm", "sde_dpmpp"}
    assert all(len(one) == 4 and one.t[-1] == plan.t[-1] and not one.stochastic for one in table.values())
    runs = [coefficients(one) for one in table.values()]
    same_grid = [torch.equal(one.t, plan.t) for one in table.values()]
    here = [run for run, same in zip(runs, same_grid, strict=True) if same]
    assert len(here) > 5
    assert not any(torch.allclose(run, other) for i, run in enumerate(here) for other in here[:i])


def test_a_name_of_the_table_makes_its_plan() -> None:
    plan = make_plan("dpmpp", SCHEDULE, 5, "quadratic")
    for name, one in untuned_plans(plan).items():
        text, _, spacing = name.partition(":5@")
        grid, _, late = spacing.partition(", ")
        assert sampler_of(text) == one.sampler
        if not late:
            same = make_plan(text, SCHEDULE, 5, grid)
            assert torch.allclose(one.t[:-1], same.t[:-1]) and torch.equal(one.tau, one.t[:-1])
        else:
            assert late in ("1 late", "2 late") and one.t[0] < plan.t[0]


@pytest.mark.parametrize("text", ["ddim(eta=0.5)", "ddim", "unipc(order=3)", "dpm(order=3)", *SAMPLERS])
def test_the_text_of_a_sampler_makes_it(text: str) -> None:
    assert sampler_of(sampler_text(sampler_of(text))) == sampler_of(text)


def test_a_fixed_start_is_that_of_every_plan() -> None:
    plan = make_plan("ddim", SCHEDULE, 4, "quadratic")
    table = untuned_plans(plan, fixed_start=True)
    assert len(table) > 20 and all(float(one.t[0] / plan.t[0]) > 0.999 for one in table.values())


@pytest.mark.parametrize(("evaluations", "pairs"), [(None, 256), (10**6, 256), (5000, 256), (600, 20), (50, 8), (7, 8)])
def test_rounds_cost_what_is_allowed(evaluations: int | None, pairs: int) -> None:
    rounds = Rounds.within(evaluations, 5, pairs)
    assert list(rounds.pairs) == sorted(set(rounds.pairs)) and max(rounds.pairs, default=0) <= pairs
    left, cost = rounds.plans, 0
    for size in rounds.pairs:
        cost, left = cost + size * left * 5, num_kept(left)
    assert evaluations is None or cost <= evaluations
    assert bool(rounds.plans) == (evaluations != 7)


def test_without_a_plan_tuning_starts_from_the_best_untuned_one() -> None:
    found = tune(EPS, calls=4, tuner=SMALL, **MODEL)
    measure, table = judge(found), untuned_plans(make_plan("dpmpp", SCHEDULE, 4))
    distances = {name: measure(one) for name, one in table.items()}
    names = found.provenance["untuned_plans"]
    assert names["ranked"] > 20 and names["best"] in table
    best = min(distances.values())
    assert distances[names["best"]] < 1.6 * best
    assert measure(found) < 0.7 * best


def test_the_result_is_no_worse_than_the_best_untuned_plan_where_tuning_finds_nothing() -> None:
    class Nothing(Tuner):
        def tune(self, model: Any, plan: Plan, run: TuningRun) -> Plan:
            return plan.with_tau(0.5 * plan.tau + 0.5 * plan.t[1:].clamp(min=SCHEDULE.t_min))

    start = make_plan("ddim", SCHEDULE, 5, times=[1.0, 0.9, 0.8, 0.7, 0.6, 0.001])
    found = tune(EPS, start, Nothing(), **MODEL)
    distance, names = found.provenance["distance"], found.provenance["untuned_plans"]
    assert distance["best untuned"] < 0.7 * distance["untuned"]
    assert distance["tuned"] == distance["best untuned"] and found.t[0] == untuned_plans(start)[names["best"]].t[0]


@pytest.mark.parametrize("method", ["sequential", "parallel", "least_squares"])
def test_what_is_not_tuned_stays_that_of_the_given_plan(method: str) -> None:
    start = make_plan("ddim", SCHEDULE, 4, times=[1.0, 0.9, 0.8, 0.7, 0.001])
    found = tune_by(EPS, start, method, **MODEL)
    assert torch.equal(found.t, start.t)
    assert method == "least_squares" or found.sampler == start.sampler
    distance = found.provenance["distance"]
    assert distance["best untuned"] < distance["tuned"], "the report names what is better all the same"


def test_a_tuner_of_conditioning_times_starts_from_the_best_untuned_plan_without_a_plan() -> None:
    found = tune(EPS, calls=4, tuner="sequential", **MODEL)
    distance, names = found.provenance["distance"], found.provenance["untuned_plans"]
    assert min(distance["untuned"], distance["best untuned"]) >= distance["tuned"]
    table = untuned_plans(make_plan("dpmpp", SCHEDULE, 4))
    assert torch.equal(found.t, table[f"{sampler_text(found.sampler)}:4@{found.provenance['spacing']}"].t)
    assert names["ranked"] > 1


def test_parts_that_are_not_tuned_keep_grid_or_sampler() -> None:
    plan = make_plan("ddim", SCHEDULE, 4, "quadratic")
    for one in untuned_plans(plan).values():
        for parts, same in ((("times",), one.sampler == plan.sampler), (("corrections",), torch.equal(one.t, plan.t))):
            assert differs_only_in(parts, one, plan) == same


def test_several_numbers_of_calls_need_no_plans() -> None:
    found = tune_several(EPS, calls=[4, 2], tuner=SMALL, **MODEL)
    assert [len(plan) for plan in found] == [2, 4]
    for plan in found:
        distance = plan.provenance["distance"]
        assert distance["tuned"] <= min(distance["untuned"], distance["best untuned"])


@pytest.mark.parametrize("given", [{}, {"plan": quadratic(), "calls": 5}])
@pytest.mark.parametrize("function", [tune, estimate])
def test_either_a_plan_or_calls_are_given(function: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give either plan=, to start from, or calls=, for the best plan of so many"):
        function(EPS, **given, **MODEL)


def test_the_cost_of_ranking_is_the_estimated_one() -> None:
    model = Counted()
    found = tune(model, calls=4, tuner=SMALL, samples=64)
    cost, costs = found.provenance["cost"], estimate(model, calls=4, tuner=SMALL, samples=64).costs
    assert cost["ranking"]["evaluations"] == costs["ranking"][0].evaluations
    assert cost["ranking"]["evaluations"] <= 0.2 * costs["tuning"][0].evaluations
    assert cost["teacher"]["evaluations"] == costs["teacher"][0].evaluations


def test_an_interrupted_run_keeps_its_ranking(tmp_path: Any) -> None:
    def stop(progress: Any) -> None:
        if progress.phase == "tuning" and progress.step > 5:
            raise Interrupt

    path = tmp_path / "partial.json"
    how = {"tuner": Joint(pairs=32, iterations=60), "checkpoint": path, **MODEL}
    with pytest.raises(Interrupt):
        tune(EPS, calls=3, progress=stop, **how)
    continued = tune(EPS, calls=3, **how)
    whole = tune(EPS, calls=3, **{**how, "checkpoint": None})
    assert torch.equal(continued.t, whole.t)
    assert continued.provenance["untuned_plans"] == whole.provenance["untuned_plans"]
    costs = [one.provenance["cost"]["ranking"] for one in (continued, whole)]
    assert costs[0] == costs[1], "it is not done again"
