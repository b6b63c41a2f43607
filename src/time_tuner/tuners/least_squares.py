r"""Corrections by least squares along the run, with forward calls only.

1. *Teacher.* Many steps of a good solver take noise x_T to an end; its states at the points of the plan are the targets
   y_k; no data are needed.
2. *Rows.* The runs of the plan go on from the same noise, all at once. Call k leads to a state that is linear in row k
   of the corrections,

       x_{k+1} = f_k + gamma_k sum_{j < k} C[k, j] (eps_j - eps_k),

   where f_k is the state after the call without corrections. The row is the solution of the least-squares problem
   min sum_i |x_{k+1} - y_{k+1}|^2 over all pairs i, of k unknowns, and the runs continue from the corrected states: so
   each row also corrects what the rows before it left. The last row minimises the loss of joint tuning,
   sum_i sqrt(|x_K - y_K|^2 + delta), by least squares with weights that are found in turn (Weiszfeld, 1937).
3. *Validation.* The corrections are kept if they are better on pairs that they were not found on.

It costs a forward pass for each call and pair, next to the teacher's, and a network needs no gradient: it may be
compiled, quantised or remote. The ends are not as near to the teacher's as those of joint tuning, which see the effect
of a row on all calls that follow.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_int
from .._distributed import gathered, num_processes, own_rows
from ..data import check_writable
from ..models.base import for_rows
from ..models.batching import BatchedModel
from ..models.counting import Cost
from ..plans.plan import Plan
from ..plans.rows import Call
from ..sampling import advance, evaluate
from .base import Tuner, TuningRun
from .budget import Budget, Speed, forward, measure_speed
from .joint.loss import DELTA, TeacherLoss, robust
from .joint.teacher import (
    AT_ONCE,
    FEWEST,
    Pairs,
    described,
    group_size,
    kept_pairs,
    teach,
    teacher_cost,
    teacher_of,
    try_teacher,
)

PAIRS = 256
MOST_BYTES = 2**31  # of the states and predictions of all pairs, which stay in the memory of the CPU
SHARE = 0.8  # of a budget of seconds that is planned for: a machine that becomes slower is in time
REWEIGHTINGS = 30
RIDGE = 1e-6
"""Of the mean square of the differences, added to the square of each: differences of neighbouring predictions are
nearly parallel. On exact digits at 20 calls the largest correction is 35, and 16,000 with 1e-12, for ends as near."""

logger = logging.getLogger("time_tuner")


@dataclass(frozen=True)
class LeastSquares(Tuner):
    """A tuner of the corrections of a deterministic plan, without gradients.

    Step times and conditioning times stay as they are.

    Attributes:
        pairs: runs of the teacher, of which a quarter are for validation. By default 256, or as many as the budget and
            2 GiB of memory are enough for.
        teacher: a many-step plan; by default 40 calls of UniPC(3), or as many as the plan has.
        teacher_cache: a .safetensors file that keeps the teacher's runs, to continue from there or to use them again.
    """

    uses_data: ClassVar[bool] = False

    pairs: int | None = None
    teacher: Plan | None = None
    teacher_cache: str | Path | None = None

    def __post_init__(self) -> None:
        check_int("pairs", FEWEST if self.pairs is None else self.pairs, FEWEST)
        for name, valid, kind in (
            ("teacher", isinstance(self.teacher, Plan | None), "a Plan"),
            ("teacher_cache", isinstance(self.teacher_cache, str | PathLike | None), "a path"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {kind}, got {getattr(self, name)!r}")

    @property
    def tunes(self) -> Sequence[str]:
        return ("corrections",)

    @property
    def sized(self) -> bool:
        return self.pairs is not None

    def check(self, plan: Plan, own_samples: bool) -> None:
        if not own_samples:
            raise ValueError("data must be left out for least squares, which use the runs of a teacher")
        if plan.stochastic:
            raise ValueError(
                f"least squares need a plan without noise, whose runs have one end, got {plan.sampler!r}: take a "
                "deterministic sampler, such as ddim(eta=0), dpmpp or unipc, or the tuner 'sequential'"
            )
        if len(plan) < 2:
            raise ValueError("a plan for 1 call has no corrections to tune: take the tuner 'joint' or 'sequential'")
        teacher = teacher_of(plan, self.teacher)
        if teacher.t[0] < plan.t[1]:
            raise ValueError(
                f"teacher must begin no later than the plan's second call, at t = {float(plan.t[1]):.6g}, got "
                f"{teacher!r} which begins at t = {float(teacher.t[0]):.6g}"
            )
        if self.teacher_cache is not None:
            check_writable(Path(self.teacher_cache))

    def try_out(self, model: BatchedModel, plan: Plan, run: TuningRun) -> None:
        """The runs of the teacher can begin, and those in the cache are of this teacher."""
        cache = None if self.teacher_cache is None else Path(self.teacher_cache)
        try_teacher(model, teacher_of(plan, self.teacher), run.calibration, cache, plan.t[1:-1].tolist())

    def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
        teacher, calls = teacher_of(plan, self.teacher), len(plan)
        # 1. The teacher's runs, as many as there is time and memory for.
        count, speed = kept_pairs(run, self.pairs) or self.pairs, None
        if count is None:
            if run.budget.seconds is not None:
                with run.cost_log.purpose("sizing"):
                    speed = measure_speed(model, plan, run.calibration.shape, AT_ONCE, run.calibration.device)
            memory = MOST_BYTES // (4 * math.prod(run.calibration.shape) * 4 * calls)
            count = min(_num_pairs(calls, len(teacher), run.budget, model.batch, speed), max(FEWEST, memory))
        pairs = self._pairs(model, plan, teacher, run, count) if count >= FEWEST else None
        notes = {"teacher": repr(teacher), "pairs": 0 if pairs is None else len(pairs)}
        if pairs is None or len(pairs) < FEWEST:
            run.stop("is not enough for the runs of the teacher: give a larger one")
            return plan.with_provenance(**notes)
        # 2. The rows.
        corrections = _rows(model, plan, pairs, run)
        if corrections is None:
            return plan.with_provenance(**notes)
        # 3. The validation.
        validation = torch.arange(_split(len(pairs))[0], len(pairs))
        loss = TeacherLoss(model, pairs, robust, run.cost_log)
        found = plan.with_corrections(corrections)
        losses = {"untuned": loss.mean(plan, validation), "tuned": loss.mean(found, validation)}
        loss.check_finite(plan, losses["untuned"], validation)
        if not losses["tuned"] < losses["untuned"]:
            logger.info("least squares found no better corrections: those of the plan stay")
            found, losses["tuned"] = plan, losses["untuned"]
        return found.with_provenance(**{**plan.provenance, **notes, "validation_loss": losses})

    def _pairs(self, model: BatchedModel, plan: Plan, teacher: Plan, run: TuningRun, count: int) -> Pairs:
        """So many pairs, or as many as there is time for; a calibration may have them already."""
        times = plan.t[1:-1].tolist()
        kept, key = run.calibration.teacher_runs, f"{described(teacher)}, the path at {times}"
        if key not in kept or len(kept[key]) < count:
            cache = None if self.teacher_cache is None else Path(self.teacher_cache)
            ours = len(teacher) / (len(teacher) + 1.25 * len(plan))  # of the evaluations, the share of the teacher
            kept[key] = teach(model, teacher, run, count, cache, times, SHARE * ours)
        found: Pairs = kept[key][:count]
        return found

    def exchanged(self, plan: Plan, tuning: Cost, numbers: int) -> int:
        """The least-squares problem of each pair at each call, and the states of the teacher's runs at the calls."""
        calls, runs = len(plan), tuning.evaluations // len(plan)  # of pairs, and of those for validation twice
        problems = 8 * sum((k + 1) ** 2 + 1 for k in range(calls)) * runs
        return problems + 4 * numbers * (calls - 1) * int(runs / 1.25)

    def cost(
        self, plan: Plan, samples: int, batch: int | None, budget: Budget, speed: Speed | None
    ) -> dict[str, tuple[Cost, Cost]]:
        """It is exact, but for what the memory or an unknown speed leaves of the pairs; of runs in a cache one is made
        again."""
        calls = len(teacher_of(plan, self.teacher))
        count = self.pairs or max(FEWEST, _num_pairs(len(plan), calls, budget, batch, speed))
        teacher = again = teacher_cost(count, calls, batch)
        if self.teacher_cache is not None and Path(self.teacher_cache).exists():
            again = Cost(calls, calls)
        return {"teacher": (again, teacher), "tuning": (_cost(count, len(plan), batch),) * 2}


def _split(pairs: int) -> tuple[int, int]:
    """How many pairs are tuned on, and a quarter for validation."""
    return pairs - pairs // 4, pairs // 4


def _cost(pairs: int, calls: int, batch: int | None) -> Cost:
    """The cost of all rows, and of the validation of two plans."""
    train, held = _split(pairs)
    return (forward(train, min(AT_ONCE, batch or AT_ONCE)) + forward(held, batch) * 2) * calls


def _num_pairs(calls: int, teacher: int, budget: Budget, batch: int | None, speed: Speed | None) -> int:
    """The most pairs, up to 256, that fit into a budget; 0 where no 8 do. The runs of the teacher are part of a budget
    of seconds alone."""

    def fits(pairs: int) -> bool:
        cost = _cost(pairs, calls, batch)
        if budget.calls is not None and cost.calls > budget.calls:
            return False
        whole = cost + teacher_cost(pairs, teacher, batch)
        return budget.seconds is None or speed is None or speed.seconds(whole) <= SHARE * budget.seconds

    return next((pairs for pairs in range(PAIRS, FEWEST - 1, -1) if fits(pairs)), 0)


@torch.no_grad()
def _rows(model: BatchedModel, plan: Plan, pairs: Pairs, run: TuningRun) -> Tensor | None:
    """The corrections (K, K) by the pairs that are not for validation; None where the budget ends before.

    The state has the rows found so far: an interrupted run repeats their calls, and finds the others.
    """
    calls, (train, held) = len(plan), _split(len(pairs))
    once, after = forward(train, min(AT_ONCE, model.batch or AT_ONCE)), forward(held, model.batch) * (2 * calls)
    assert pairs.path is not None
    known = run.state.get("corrections", [])
    own = own_rows(torch.arange(train))
    found = rows_in_turn(model, plan, pairs.x[:train], [*pairs.path[own].unbind(1), pairs.y[own]], known)
    corrections = torch.zeros(calls, calls, dtype=torch.float64)
    for k in range(calls):
        if new := k >= len(known):
            run.resume()
            if not run.can_afford(once.calls * (calls - k) + after.calls):
                run.stop(f"was spent before call {k + 1} of {calls}: give a larger one, or fewer pairs")
                return None
        corrections[k, :k], distances = next(found)
        if new:
            spent = sum(run.cost_log.of(purpose).evaluations for purpose in ("teacher", "tuning"))
            share = spent / (spent + train * (calls - 1 - k) + after.evaluations)
            known = [corrections[i, :i].tolist() for i in range(k + 1)]
            run.save_step(k + 1, share, distances, {"pairs": len(pairs), "corrections": known})
    run.resume()
    return corrections


@torch.no_grad()
def rows_in_turn(
    model: BatchedModel, plan: Plan, noise: Tensor, targets: Sequence[Tensor], known: Sequence[Sequence[float]] = ()
) -> Iterator[tuple[Tensor, tuple[float, float]]]:
    """The rows of corrections of a plan in its runs from noise (n, ...), call after call: row k (k,), and the mean
    distances to the target after the call, without and with it. Row i of `known` is taken as it is. The targets are of
    the samples of this process, (m, ...), of those of several that share work."""
    # 1. The runs; everything but the network's own work is on the CPU.
    calls, device, base = len(plan), noise.device, plan.with_corrections(None)
    count, numbers = len(noise), own_rows(torch.arange(len(noise)))
    groups = torch.arange(len(numbers)).split(-(-group_size(model.batch) // num_processes()))
    noise = noise[numbers]
    x, past, noises = plan.initial_state(noise).cpu(), tuple[Call, ...](), list[Tensor]()
    for k, row in enumerate(base.rows):
        # 2. The predictions in the states at point k, and the states that the plan alone leads to.
        parts = [
            evaluate(for_rows(model, numbers[at]), base, k, x[at].to(device), tuple(one.of(at, device) for one in past))
            for at in groups
        ]
        prediction, p = torch.cat([one.cpu() for one, _ in parts]).to(x.dtype), plan.point(k)
        added = [one.cpu() for _, one in parts if one is not None]
        noises.append((x - p.alpha * prediction) / p.sigma if row.predicts == "x0" else prediction)
        x, past = advance(base, k, past, x, prediction, torch.randn_like, torch.cat(added) if added else None)
        # 3. The row, and the states that it leads to.
        problem = _Problem.of([row.gamma * (noise - noises[k]) for noise in noises[:k]], targets[k].cpu() - x, count)
        if k < len(known):
            c = torch.tensor(known[k], dtype=torch.float64)
        else:
            c = problem.solve(robustly=k == calls - 1)
        for number, noise in zip(c.tolist(), noises[:k], strict=False):
            x = x + number * row.gamma * (noise - noises[k])
        yield c, (float(problem.distances(0 * c).mean()), float(problem.distances(c).mean()))


@dataclass(frozen=True)
class _Problem:
    """The least-squares problems of all pairs, min |D_i^T c - r_i|^2 with D_i (k, F) and r_i (F,): their numbers D_i
    D_i^T (n, k, k), D_i r_i (n, k) and |r_i|^2 (n,) in float64."""

    gram: Tensor
    moment: Tensor
    square: Tensor

    @classmethod
    def of(cls, differences: Sequence[Tensor], residual: Tensor, count: int) -> "_Problem":
        """The problems of so many differences and of one residual, (n, ...) each, or of the share of this process among
        `count`."""
        each = list[Tensor]()
        for i in range(len(residual)):  # float64 of one pair at a time is no burden on the memory
            d = torch.stack([residual[i], *(one[i] for one in differences)]).flatten(1).double()
            each.append(d @ d.T)
        whole = gathered(torch.stack(each), count)
        return cls(whole[:, 1:, 1:], whole[:, 1:, 0], whole[:, 0, 0])

    def distances(self, c: Tensor) -> Tensor:
        """sqrt(|D_i^T c - r_i|^2 + delta) of every pair, (n,)."""
        squares = self.square - 2 * self.moment @ c + torch.einsum("nij,i,j->n", self.gram, c, c)
        return (squares.clamp(min=0) + DELTA).sqrt()

    def solve(self, robustly: bool) -> Tensor:
        """The minimum (k,) of the sum of the squares; robustly, of the distances."""
        c = self._minimum(torch.ones_like(self.square))
        for _ in range(REWEIGHTINGS if robustly else 0):
            c = self._minimum(1 / self.distances(c))
        return c

    def _minimum(self, weights: Tensor) -> Tensor:
        gram, moment = torch.einsum("n,nij->ij", weights, self.gram), weights @ self.moment
        size = gram.diagonal().mean() if len(gram) else 0.0
        # There are no differences where all predictions are the same, or gamma is 0; broken runs are found later.
        if not (0 < size < math.inf and moment.isfinite().all()):
            return torch.zeros_like(moment)
        minimum: Tensor = torch.linalg.solve(gram + RIDGE * size * torch.eye(len(gram)), moment)
        return minimum
