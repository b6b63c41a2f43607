"""Plans with guidance at some calls only, beside plans with guidance at all of them, for as many evaluations.

    python benchmarks/guided_plans.py [--problems digits network] [--evaluations 8 10 12 16] [--seeds 3] [--json FILE]
    python benchmarks/guided_plans.py --patterns [--problems digits] [--evaluations 12] [--seeds 2] [--json FILE]
    python benchmarks/guided_plans.py --left-out [--problems digits] [--json FILE]

The problems: exact class-conditional digits under guidance of scale 3 ("digits"), and the bundled network at scale 2
and 4 ("network", "network-4"). For each number of evaluations: the best untuned plan with guidance at all calls, and
with guidance left out of the last ones (five samplers on five spacings, also one step late, ranked on noise of their
own); `tune(calls=evaluations / 2)`, with guidance at all calls; and `tune(evaluations=...)`, which searches for the
pattern.
Both tune in the same budget of network calls, in which a call with guidance counts as one without: the search evaluates
the network less often. With `--patterns` each pattern is tuned alone, without and with reuse. With `--left-out` an
untuned plan, UniPC(3) on "quadratic", leaves guidance out of its last calls.

The distance is the mean to the end of a 100-call run with guidance at all calls, from the same noise; with the standard
error of its mean. Noise and labels are those of no tuning and no ranking. A file that exists is continued.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from problems import JUDGED_ON, RANKED_ON, exact_classes, linear_schedule
from record import of_guidance, of_left_out, of_patterns, read, write

from time_tuner import Joint, Model, Plan, SeededNoise, load_model, make_plan, tune
from time_tuner.schedules import NoiseSchedule
from time_tuner.spacings import SPACINGS
from time_tuner.tuners import ReferenceDistance
from time_tuner.tuners.joint.candidates import patterns

SAMPLERS = ("ddim", "dpmpp", "unipc(order=3)", "ipndm(order=2)", "deis")
GRIDS = ("leading", "quadratic", "uniform", "logsnr", "trailing")
FULL = "guidance at all calls"
KINDS = (f"untuned, {FULL}", "untuned, pattern", f"tuned, {FULL}", "tuned, searched")


@dataclass(frozen=True)
class Problem:
    """A model under guidance, by its labels; the samples that plans are ranked and measured on; the budget."""

    name: str
    model: Callable[[Sequence[int]], Model]
    shape: tuple[int, ...]
    judged: int
    ranked: int
    budget: str

    @cache  # noqa: B019 - there is one of each problem
    def judge(self, count: int, seed: int) -> ReferenceDistance:
        labels = torch.randint(10, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
        noise = SeededNoise(seed)(torch.empty(count, *self.shape))
        model = self.model(labels)
        return ReferenceDistance(model, model.schedule, model.schedule.t_min, noise)

    def measured(self, plan: Plan) -> dict[str, float]:
        each = self.judge(self.judged, JUDGED_ON).per_sample(plan)
        return {"distance": float(each.mean()), "error": float(each.std() / len(each) ** 0.5)}


def digits() -> Problem:
    mixture = exact_classes()

    def model(labels: Sequence[int]) -> Model:
        return mixture.guided(linear_schedule(), labels, 3.0)

    return Problem("exact digits, w = 3", model, (64,), 500, 64, "20000calls")


def network(scale: float) -> Problem:
    name = f"bundled network, w = {scale:g}"
    return Problem(name, lambda labels: load_model("digits", list(labels), scale), (1, 28, 28), 100, 16, "2000calls")


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits,
    "network": lambda: network(2.0),
    "network-4": lambda: network(4.0),
}


def untuned(schedule: NoiseSchedule, calls: int, guided: int) -> list[tuple[str, Plan]]:
    found = []
    for sampler, grid, late in product(SAMPLERS, GRIDS, (0, 1)):
        times = SPACINGS[grid](schedule, calls + late)[late:]
        end = torch.cat([times[:-1], torch.tensor([schedule.t_min], dtype=torch.float64)])
        if end[-2] > schedule.t_min * 1.02:
            name = f"{sampler}@{grid}" + (", 1 late" if late else "")
            found.append((name, make_plan(sampler, schedule, times=end, guided=guided)))
    return found


def row(problem: Problem, evaluations: int, seed: int, kind: str) -> dict[str, Any]:
    model, began = problem.model([i % 10 for i in range(100 if "digits" in problem.name else 60)]), time.monotonic()
    schedule, how = model.schedule, {"samples": model.num_conditions, "seed": seed, "guard": False}
    at = [(len(one), sum(one.guided)) for one in patterns(make_plan("dpmpp", schedule, evaluations // 2), evaluations)]
    if kind.startswith("untuned"):
        rank = problem.judge(problem.ranked, RANKED_ON + seed)
        chosen = at[:1] if kind.endswith(FULL) else at[1:]
        every = [one for calls, guided in chosen for one in untuned(schedule, calls, guided)]
        name, found = min(every, key=lambda one: rank(one[1]))
    elif kind == "tuned, " + FULL:
        name, found = "", tune(model, calls=evaluations // 2, budget=problem.budget, **how)
    elif kind == "tuned, searched":
        name, found = "", tune(model, evaluations=evaluations, budget=problem.budget, **how)
    else:
        guided, reuse = int(kind.split()[1].strip(",")), "reuse" in kind
        parts = ("times", "tau", "corrections", "reuse") if reuse else ("times", "tau", "corrections")
        start = make_plan("dpmpp", schedule, evaluations - guided, guided=guided)
        name, found = "", tune(model, start, Joint(parts=parts), any_start=True, budget=problem.budget, **how)
    return {
        "problem": problem.name,
        "evaluations": evaluations,
        "seed": seed,
        "kind": kind,
        "calls": len(found),
        "guided": sum(found.guided),
        "made": found.evaluations,
        "plan": name,
        "spent": found.provenance.get("cost", {}).get("tuning", {}).get("evaluations", 0),
        "seconds": round(time.monotonic() - began),
        **problem.measured(found),
    }


def left_out(problem: Problem, out: Path | None) -> None:
    rows = []
    for calls in (6, 8, 12):
        for guided in range(calls, calls // 3 - 1, -1):
            plan = make_plan("unipc(order=3)", problem.model([0]).schedule, calls, "quadratic", guided=guided)
            key = {"problem": problem.name, "calls": calls, "guided": guided, "evaluations": plan.evaluations}
            rows.append({**key, **problem.measured(plan)})
    write(out, rows)
    print(of_left_out(rows))


def main(
    problems: list[str], evaluations: list[int], seeds: int, by_pattern: bool, leave_out: bool, out: Path | None
) -> None:
    if leave_out:
        left_out(PROBLEMS[problems[0]](), out)
        return
    rows = read(out)
    for seed, name, count in product(range(seeds), problems, evaluations):
        problem, kinds = PROBLEMS[name](), KINDS
        if by_pattern:
            found = patterns(make_plan("dpmpp", linear_schedule(), count // 2), count)
            kinds = tuple(f"guided {sum(one.guided)}{more}" for one in found for more in ("", ", reuse"))
        for kind in kinds:
            key = {"problem": problem.name, "evaluations": count, "seed": seed, "kind": kind}
            if any(key.items() <= one.items() for one in rows) or kind == f"guided {count // 2}, reuse":
                continue
            rows.append(row(problem, count, seed, kind))
            print(rows[-1], flush=True)
            write(out, rows)
    print(of_patterns(rows) if by_pattern else of_guidance(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["digits", "network"])
    parser.add_argument("--evaluations", nargs="+", type=int, default=[8, 10, 12, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patterns", dest="by_pattern", action="store_true")
    parser.add_argument("--left-out", dest="leave_out", action="store_true")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
