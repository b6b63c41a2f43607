"""The teacher: a many-step run of the same model, whose ends and path the plan's runs are to reach."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..._checks import check_int
from ..._distributed import from_first, gathered, own_rows, rank
from ..._files import one_line, read_tensors, write_tensors
from ...models.base import Model, for_rows
from ...models.batching import BatchedModel
from ...models.counting import Cost
from ...noise import TEACHER, first_seed
from ...plans.build import reference_plan
from ...plans.plan import Plan
from ...plans.rows import Call
from ...samplers.unipc import UniPC
from ...sampling import advance, evaluate, finite, sample
from ...schedules import Point
from ..base import TuningRun
from ..budget import forward
from ..calibration import Calibration
from ..units import Units

CALLS, ORDER = 40, 3  # on digits these end nearer than 60 of DPM-Solver++(2M), and tuning sees every error of an end
AT_ONCE = 64  # runs
FEWEST, MOST = 8, 2048  # pairs; long tuning on few pairs fits them alone, more than so many gain little
LONGEST = 2**20  # runs in a file
WORDS = {"teacher": "teacher", "times": "grid of the plan", "first": "seed", "shape": "shape of samples"}
SHARE = 0.25  # of a budget of seconds that the teacher takes at most


@dataclass(frozen=True)
class Pairs:
    """Noise x and the ends y of the teacher's runs from it, both (N, ...); and the states of these runs at P given
    times, (N, P, ...) on the CPU, where a tuner needs them."""

    x: Tensor
    y: Tensor
    path: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> "Pairs":
        return Pairs(self.x[rows], self.y[rows], None if self.path is None else self.path[rows])


def usual_teacher(plan: Plan) -> Plan:
    """The teacher of a plan by default: 40 calls of UniPC(3), or as many as the plan has."""
    return reference_plan(plan.schedule, float(plan.t[-1]), max(CALLS, len(plan)), UniPC(ORDER))


def teacher_of(plan: Plan, teacher: Plan | None) -> Plan:
    """The given teacher of a plan, or the usual one; a ValueError if it does not fit."""
    teacher = usual_teacher(plan) if teacher is None else teacher
    if teacher.schedule != plan.schedule:
        raise ValueError(f"teacher must be on the plan's schedule, {plan.schedule!r}, got {teacher.schedule!r}")
    if abs(float(teacher.t[-1] - plan.t[-1])) > 1e-9 or teacher.stochastic:
        raise ValueError(
            f"teacher must be a deterministic plan that ends where the plan does, at t = {float(plan.t[-1]):.6g}, "
            f"got {teacher!r} which ends at t = {float(teacher.t[-1]):.6g}"
        )
    if len(teacher) < len(plan):
        raise ValueError(f"teacher must make no fewer calls than the plan, {len(plan)}, got {teacher!r}: give another")
    return teacher


def teacher_cost(pairs: int, calls: int, batch: int | None) -> Cost:
    """The cost of so many pairs of a teacher of so many calls."""
    return forward(pairs, min(AT_ONCE, batch or AT_ONCE)) * calls


def kept_pairs(run: TuningRun, pairs: int | None) -> int | None:
    """How many pairs the state of an earlier run has; None for a new run. It may come from a file of a stranger."""
    count = run.state.get("pairs")
    if count is not None and not FEWEST <= check_int("pairs of the state", count) <= max(pairs or 0, MOST):
        raise ValueError(f"pairs of the state must be {FEWEST} to {max(pairs or 0, MOST)}, got {count}")
    return count


def group_size(batch: int | None) -> int:
    """How many runs are made at a time: 64, or fewer, so that they fill network calls of `batch` samples."""
    return AT_ONCE // batch * batch if batch and batch < AT_ONCE else AT_ONCE


@torch.no_grad()
def teach(
    model: BatchedModel,
    teacher: Plan,
    run: TuningRun,
    pairs: int | None = None,
    cache: Path | None = None,
    times: Sequence[float] = (),
    share: float = SHARE,
    found: Pairs | None = None,
) -> Pairs:
    """Pairs of a teacher. Pair i is from the i-th seed of the calibration, and under condition i modulo the number of
    conditions of the model.

    There are at most `pairs`, 2048 by default. In a budget of seconds no run begins that is not expected to end within
    a `share` of them, by the pace so far. The cache is a .safetensors file that keeps the ends, and the path at falling
    `times` if there are any: an interrupted run continues from there, and a finished one makes a single run again, to
    check that the model is the same; a ValueError if it was made by another teacher, for other times, from another
    seed, or with another model. Runs that were `found` before are not made again.
    """
    calibration, first = run.calibration, first_seed(run.calibration.seed, TEACHER)
    made = _made(teacher, calibration, times)

    def states(begin: int, stop: int) -> Tensor:
        rows = own_rows(torch.arange(begin, stop))
        x = calibration.states((first + rows).tolist())
        return gathered(states_at(for_rows(model, rows), teacher, teacher.initial_state(x), times).cpu(), stop - begin)

    most, at_once = MOST if pairs is None else pairs, group_size(model.batch)
    limit = None if run.state else run.budget.seconds  # a continued run makes the pairs that it had
    ends = torch.empty(0, 1 + len(times), *calibration.shape)
    if found is not None:
        ends = torch.cat([*([] if found.path is None else [found.path]), found.y[:, None].cpu()], 1)
    with run.cost_log.purpose("teacher"):
        held = None
        if cache is not None and not rank() and cache.exists():
            held = _read(cache, made, calibration.shape, times)
        if (held := from_first(held)) is not None:
            kept = held.to(ends)[:most]
            if not torch.allclose(states(0, 1), kept[:1], rtol=1e-2, atol=1e-2):
                raise ValueError(f"{cache} was made with another model, or under other conditions: name another file")
            ends = max(ends, kept, key=len)

        def kept_states(units: Units, begin: int, stop: int) -> Tensor:
            name = f"teacher {made}, {begin} on, {at_once} at a time"
            return units.tensor(name, (1 + len(times), *calibration.shape), lambda: states(begin, stop))

        units = calibration.units if cache is None else None
        done, seconds, count = len(ends), run.seconds, at_once
        while len(ends) < most:
            if limit is not None:
                new, before, seconds = len(ends) - done, seconds, run.seconds
                done, pace = len(ends), (seconds - before) / max(new, 1)  # of the runs just made
                if not new or done < FEWEST:
                    count = FEWEST if seconds < limit else 0
                else:
                    left = int((share * limit - seconds) / max(pace, 1e-9))
                    # A quarter of what is left at a time: a machine that becomes four times as slow is in time.
                    count = max(0, min(at_once, left, max(FEWEST, left // 4)))
            if not count:
                break
            begin, stop = len(ends), min(len(ends) + count, most)
            ends = torch.cat([ends, states(begin, stop) if units is None else kept_states(units, begin, stop)])
            if cache is not None:
                write_tensors(cache, {"states": ends}, made)
    x = calibration.states(range(first, first + len(ends)))
    return Pairs(x, ends[:, -1].to(x.device), ends[:, :-1] if len(times) else None)


def try_teacher(
    model: BatchedModel, teacher: Plan, calibration: Calibration, cache: Path | None, times: Sequence[float] = ()
) -> None:
    """Raise a ValueError if the runs of a teacher cannot begin, or its cache holds others; by one network call."""
    if cache is not None and not rank() and cache.exists():
        _read(cache, _made(teacher, calibration, times), calibration.shape, times)
    calibration.try_run("teacher", model, teacher)


def _made(teacher: Plan, calibration: Calibration, times: Sequence[float]) -> dict[str, str]:
    """What the runs in a cache are made of."""
    first = first_seed(calibration.seed, TEACHER)
    made = {"teacher": described(teacher), "first": str(first), "shape": str(calibration.shape)}
    return made | {"times": str([round(float(t), 9) for t in times])}


def states_at(model: Model, teacher: Plan, x: Tensor, times: Sequence[float]) -> Tensor:
    """The states of a deterministic run from x (n, ...) at P falling times and at its end, (n, P + 1, ...).

    Between the points where steps begin, the state u = x / sqrt(alpha^2 + sigma^2) is a cubic of the angle phi =
    arctan(sigma / alpha) (Hermite), by its slope du/dphi = cos(phi) eps - sin(phi) x0, which is the equation dX/ds =
    eps of X = x / alpha in s = sigma / alpha, and is finite also where alpha or sigma is 0. There is no prediction at
    the end: the last piece is a parabola.
    """
    if not times:
        return sample(model, teacher, x)[:, None]
    wanted, found, left, end = [teacher.schedule.at(t) for t in times], list[Tensor](), cast("_Node | None", None), x
    for node, end in _nodes(model, teacher, x):  # noqa: B007 - the last state is wanted
        while len(found) < len(wanted) and float(wanted[len(found)].angle) >= node.angle:
            found.append(_between(left or node, node, wanted[len(found)]))
        left = node
    return torch.stack([*found, end], 1)


class TeacherPath:
    """Deterministic runs of a teacher from x (n, ...), whose states can be found at any time, see `states_at`. In the
    memory of the CPU there are two states for each step."""

    @torch.no_grad()
    def __init__(self, model: Model, teacher: Plan, x: Tensor) -> None:
        self.schedule = teacher.schedule
        nodes = [node for node, _ in _nodes(model, teacher, x)]
        self.nodes = [_Node(n.angle, n.u.cpu(), None if n.slope is None else n.slope.cpu()) for n in nodes]

    def at(self, t: Tensor) -> Tensor:
        """The states (n, ...) at a time between the first and the last of the runs."""
        p, left = self.schedule.at(t), self.nodes[0]
        right = left
        for right in self.nodes:
            if right.angle <= float(p.angle):
                break
            left = right
        return _between(left, right, p)


def _nodes(model: Model, teacher: Plan, start: Tensor) -> Iterator[tuple["_Node", Tensor]]:
    """The nodes where steps of a run begin, and its end; and the states there."""
    begins, x, past = {sum(teacher.steps[:i]) for i in range(len(teacher.steps))}, start, tuple[Call, ...]()
    for k in range(len(teacher)):
        prediction, added = evaluate(model, teacher, k, x, past)
        if k in begins:
            yield _Node.of(teacher, k, x, prediction), x
        x, past = advance(teacher, k, past, x, prediction, torch.randn_like, added)
    if not finite(x):
        sample(model, teacher, start)  # names the call
    end = teacher.point(len(teacher))
    yield _Node(float(end.angle), x / float(end.scale), None), x


@dataclass(frozen=True)
class _Node:
    """The state u of a run at an angle, and its slope du/dphi, None where it is not known."""

    angle: float
    u: Tensor
    slope: Tensor | None

    @classmethod
    def of(cls, plan: Plan, k: int, x: Tensor, prediction: Tensor) -> "_Node":
        """The state x and the prediction at call k."""
        p = plan.point(k)
        u, sin, cos = x / float(p.scale), math.sin(float(p.angle)), math.cos(float(p.angle))
        x0 = plan.rows[k].predicts == "x0"
        return cls(float(p.angle), u, (cos * u - prediction) / sin if x0 else (prediction - sin * u) / cos)


def _between(left: _Node, right: _Node, p: Point) -> Tensor:
    """The state at a point between two nodes, by Hermite's cubic."""
    width = right.angle - left.angle
    if not width or left.slope is None:
        return left.u * float(p.scale)
    z, rise = (float(p.angle) - left.angle) / width, right.u - left.u
    first = width * left.slope
    second = 2 * rise - first if right.slope is None else width * right.slope
    bend = (1 - z) * (first - rise) + z * (rise - second)
    return (left.u + z * rise + z * (1 - z) * bend) * float(p.scale)


def described(plan: Plan) -> str:
    """A text by which a plan is recognised."""
    return f"{plan.sampler!r} at {[round(float(t), 9) for t in plan.t]}"


def _read(path: Path, made: dict[str, str], shape: Sequence[int], times: Sequence[float]) -> Tensor:
    """The states in a teacher file, (n, P + 1, ...); a ValueError if it holds anything else."""

    def check(shapes: dict[str, tuple[int, ...]], held: dict[str, str]) -> None:
        if other := [word for name, word in WORDS.items() if held.get(name) != made[name]]:
            raise ValueError(f"it holds runs with another {', another '.join(other)}")
        (count, *rest) = shapes.get("states") or (0,)
        if len(shapes) > 1 or not 0 < count <= LONGEST or tuple(rest) != (1 + len(times), *shape):
            raise ValueError(f"its states have the shape {shapes.get('states')}")

    try:
        states = read_tensors(path, check)[0]["states"]
        if not states.is_floating_point() or not finite(states):
            raise ValueError("its states are no finite numbers")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no teacher file for this run, {one_line(error)}: name another, or remove it"
        ) from None
    return states
