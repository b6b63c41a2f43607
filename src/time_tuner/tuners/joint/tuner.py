r"""Joint tuning: step times, conditioning times and the combination of predictions, all at once.

1. *Teacher.* Many steps of a good solver take noise x_T to an end y; no data are needed.
2. *Loss.* E d(x_K, y) over the parameters of the plan, where x_K is the end of the plan's run from the same noise and
   d(x, y) = sqrt(|x - y|^2 + delta), or a distance of the user's.
3. *Candidates.* The plan itself, and the best grids with corrections by least squares; by successive halving one
   remains.
4. *Gauss-Newton.* Each is improved in steps on 16 pairs; what counts is the mean of iterates, on validation pairs.

Of a network that takes whole levels alone, the conditioning times are no part of these steps. They are rounded, and
moved by coordinate steps to neighbouring levels on 32 pairs, which count if the validation pairs agree.

LD3 (Tong et al., 2024, https://arxiv.org/abs/2405.15506) tunes the step times in this way, TimeTuner (Xia et al., 2024)
the conditioning times, S4S (Frankel et al., 2025, https://arxiv.org/abs/2502.17423) and GAS (Oganov et al., 2025,
https://arxiv.org/abs/2510.17699) the coefficients too.

The gradient and the curvature are found by backward passes through the network, or by differences between runs, with
forward calls only, see `forward_only`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..._checks import accepts, check_int
from ..._distributed import decided
from ...data import check_writable
from ...models.base import HookedModel
from ...models.batching import BatchedModel
from ...models.counting import Cost
from ...plans.plan import Plan
from ...sampling import predict
from ..base import PARTS, Tuner, TuningRun
from ..budget import Budget, Speed, measure_speed
from ..calibration import Calibration
from ..network_times import ignores_time
from .candidates import CorrectedPlans, candidate_plans, patterns, warm_starts
from .loss import Distance, TeacherLoss, TimeGradients, robust
from .parameters import Parameters, check_parts
from .search import JointSearch
from .sizing import BATCH, MOST_ITERATIONS, RANKING, Runs, affordable_others, joint_cost, num_iterations, num_pairs
from .successive_halving import max_candidates
from .teacher import FEWEST, Pairs, described, kept_pairs, teach, teacher_cost, teacher_of, try_teacher

logger = logging.getLogger("time_tuner")


@dataclass(frozen=True)
class Joint(Tuner):
    """A tuner of all that a deterministic plan holds.

    Attributes:
        parts: which of "times", "tau" and "corrections".
        teacher: a many-step plan; by default 40 calls of UniPC(3), or as many as the plan has.
        teacher_cache: a .safetensors file that keeps the teacher's runs, to continue from there or to use them again.
        pairs: runs of the teacher, of which a quarter are for validation. By default as many as a quarter of the time
            allows, or beside a budget of calls those that cost a third of it, 16 to 2048.
        iterations: each on 16 pairs; by default as many as the budget allows, 800 at most where none is given.
        distance: `distance(x, y)` of two batches of ends (B, ...): (B,), or their mean.
        candidates: how many take part at most, fewer in a small budget: the plan, the warm starts, and plans on the
            grids that are best after corrections by least squares, which differ from the plan in what is tuned. Where
            the budget is enough for one, it is the best of these by the validation pairs.
        warm_starts: plans that take part in any case, such as tuned ones for other numbers of calls.
        gradients: whether derivatives are those of the network and of the distance, by backward passes; False for
            differences between runs, with forward calls only, which any network and distance allow, at the memory of
            one call. By default differences where the network has no gradient, which a log message reports.
        evaluations: of the network in a run under classifier-free guidance, at most: the number of calls is searched
            for, and that of the first ones that have guidance, see `patterns`. The plan itself is the first candidate,
            and the best on each pattern is another one.
        checkpoint_steps: whether the activations of each call are computed again in the backward pass, for a third more
            work; by default where memory is short.
    """

    uses_data: ClassVar[bool] = False
    ranks_on_its_pairs: ClassVar[bool] = True

    parts: str | Sequence[str] = PARTS
    teacher: Plan | None = None
    teacher_cache: str | Path | None = None
    pairs: int | None = None
    iterations: int | None = None
    distance: Distance = robust
    candidates: int = 4
    warm_starts: Sequence[Plan] = ()
    gradients: bool | None = None
    evaluations: int | None = None
    checkpoint_steps: bool | None = None

    def __post_init__(self) -> None:
        check_parts(self.parts)
        check_int("candidates", self.candidates, 1)
        check_int("pairs", FEWEST if self.pairs is None else self.pairs, FEWEST)
        check_int("iterations", 1 if self.iterations is None else self.iterations, 1)
        check_int("evaluations", 2 if self.evaluations is None else self.evaluations, 2)
        plans = self.warm_starts
        for name, valid, kind in (
            ("teacher", isinstance(self.teacher, Plan | None), "a Plan"),
            ("teacher_cache", isinstance(self.teacher_cache, str | PathLike | None), "a path"),
            ("distance", accepts(self.distance, 2), "a function (x, y)"),
            ("warm_starts", isinstance(plans, Sequence) and all(isinstance(p, Plan) for p in plans), "a list of plans"),
            ("gradients", isinstance(self.gradients, bool | None), "True, False or None"),
            ("checkpoint_steps", isinstance(self.checkpoint_steps, bool | None), "True, False or None"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {kind}, got {getattr(self, name)!r}")
        if self.gradients is False and self.checkpoint_steps is not None:
            raise ValueError(
                f"checkpoint_steps must be None with gradients=False, which keeps no activations, got "
                f"{self.checkpoint_steps}: leave one of the two out"
            )

    @property
    def tunes(self) -> Sequence[str]:
        return check_parts(self.parts)

    @property
    def max_starts(self) -> int:
        return self.candidates

    def starts(self, plan: Plan) -> Sequence[Plan]:
        if self.evaluations is None:
            return (plan,)
        others = patterns(plan, self.evaluations)
        return (plan, *(other for other in others if (len(other), other.guided) != (len(plan), plan.guided)))

    @property
    def sized(self) -> bool:
        return self.pairs is not None and self.iterations is not None

    def check(self, plan: Plan, own_samples: bool) -> None:
        if not own_samples:
            raise ValueError("data must be left out for joint tuning, which uses the ends of a teacher's runs")
        if self.gradients and torch.is_inference_mode_enabled():
            raise ValueError(
                "gradients=True needs gradients: call it outside of torch.inference_mode, or leave gradients out"
            )
        if plan.stochastic:
            raise ValueError(
                f"joint tuning needs a plan without noise, whose runs have one end, got {plan.sampler!r}: take a "
                "deterministic sampler, such as ddim(eta=0), dpmpp or unipc"
            )
        parameters = Parameters(plan, self.parts)
        if not len(parameters):
            raise ValueError(f"a plan for {len(plan)} calls has no {' or '.join(parameters.parts)} to tune: add 'tau'")
        if self.evaluations is not None and plan.evaluations > self.evaluations:
            raise ValueError(
                f"evaluations={self.evaluations} are fewer than the {plan.evaluations} of the plan, whose calls with "
                f"guidance make two each: give a plan for at most {self.evaluations // 2} calls, or more evaluations"
            )
        for start in self.starts(plan):
            teacher_of(start, self.teacher)
        warm_starts(plan, self.warm_starts)
        if self.teacher_cache is not None:
            check_writable(Path(self.teacher_cache))

    def for_model(self, model: BatchedModel, plan: Plan, calibration: Calibration) -> "Joint":
        """With `gradients` as the model decides, where they are not given; a network without any is logged."""
        if self.evaluations is not None and model.evaluations == 1:
            raise ValueError(
                f"evaluations={self.evaluations} needs a model under classifier-free guidance, whose calls make two, "
                "this one makes one: leave evaluations out, and give the number of calls"
            )
        if self.gradients is not None:
            return self
        if not (reason := decided(without_gradient(model, plan, calibration))):
            return replace(self, gradients=True)
        logger.info("joint tuning uses differences between runs, because the network has no gradient: %s", reason)
        return replace(self, gradients=False, checkpoint_steps=None)

    def try_out(self, model: BatchedModel, plan: Plan, run: TuningRun) -> None:
        """The network and the distance can be called, and have a gradient where one is needed."""
        cache = None if self.teacher_cache is None else Path(self.teacher_cache)
        try_teacher(model, teacher_of(plan, self.teacher), run.calibration, cache)
        parts, rows = self._parts(model, plan, run), torch.arange(2)
        rounded = model.rounded_times if model.whole_levels else None
        parameters = Parameters(plan, parts, rounded)
        x, v = run.calibration.trial(model).noise, torch.zeros(len(parameters)).double()
        loss = TeacherLoss(model, Pairs(x, x), self.distance, run.cost_log)
        if self.gradients is False or not len(parameters):  # by forward calls, also of levels alone
            loss.check_finite(plan, loss.mean(plan, rows), rows)
            return
        checkpoint = self.checkpoint_steps is not False
        loss.gradients(parameters, v, rows, TimeGradients(), checkpoint=checkpoint)

    def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
        teacher, parts, budget = teacher_of(plan, self.teacher), self._parts(model, plan, run), run.budget
        tuned = [part for part in parts if part != "reuse" or self.evaluations or not all(plan.guided)]
        notes: dict[str, object] = {"parts": tuned, "teacher": repr(teacher), "pairs": 0, "iterations": 0}
        notes["gradients"] = self.gradients is not False
        if left_out := [part for part in check_parts(self.parts) if part not in parts]:
            logger.info("the network predicts the same at every conditioning time: tau is not tuned")
            notes["left_out"] = left_out
        # 1. The teacher's runs, as many as there is time for.
        speed, pairs = None, None
        if budget.seconds is not None and not self.sized and not run.state:
            with run.cost_log.purpose("sizing"):
                speed = measure_speed(model, plan, run.calibration.shape, BATCH, run.calibration.device)
        least = teacher_cost(FEWEST, len(teacher), model.batch)
        if speed is None or budget.seconds is None or speed.seconds(least) <= budget.seconds:
            pairs = self._pairs(model, teacher, run)
            notes["pairs"] = len(pairs)
        if pairs is None or len(pairs) < FEWEST:
            run.stop("is not enough for the runs of the teacher: give a larger one")
            return plan.with_provenance(**notes)
        # 2. The candidates, as many as have a long enough trial.
        plans = [plan, *warm_starts(plan, self.warm_starts)]
        left = None if budget.seconds is None else budget.seconds - run.seconds
        runs = Runs.of(self, plan).usual
        expected = self.iterations or num_iterations(plan, budget, model.batch, speed, left, runs)
        loss, most = TeacherLoss(model, pairs, self.distance, run.cost_log), max_candidates(expected)
        if run.state:  # it has the candidates that it began with
            plans = [Plan.from_dict(values) for values in run.state["plans"]]
        else:
            starts, share = self.starts(plan), RANKING * expected * runs
            count = affordable_others(self, plan, most, len(pairs), len(teacher), model.batch, speed, left)
            plans += self._others(loss, teacher, starts, parts, run, count, share)
        # 3. The search.
        limit = self.iterations or (MOST_ITERATIONS if budget.default else None)
        path_of = teacher if self.gradients is False else None
        taking_part = max(most, 1 + len(self.warm_starts))
        found, how = JointSearch(loss, parts, plans, limit, run, path_of, self.checkpoint_steps, taking_part)()
        own = {name: found.provenance[name] for name in ("spacing",) if name in found.provenance}
        return found.with_provenance(**{**plan.provenance, **own, **notes, **how})

    def _others(
        self,
        loss: TeacherLoss,
        teacher: Plan,
        starts: Sequence[Plan],
        parts: Sequence[str],
        run: TuningRun,
        count: int,
        share: float,
    ) -> list[Plan]:
        """So many other candidates, whose ranking may take so many runs of BATCH pairs; of several starts the best of
        each, the nearest first."""
        if "corrections" not in parts:
            own = [candidate_plans(one, run.ranking, parts, count) for one in starts]
            return [each for row in zip_longest(*own) for each in row if each is not None][: max(0, count)]
        began, budget, found = run.seconds, run.budget.seconds, list[tuple[float, Plan]]()
        for i, start in enumerate(starts):

            def late(part: float = (i + 1) / len(starts)) -> bool:
                return budget is not None and run.seconds - began > part * RANKING * budget

            with run.cost_log.purpose("grids"):
                corrected = CorrectedPlans(loss, teacher, start, parts)
                evaluations = share * len(start) * BATCH / len(starts)
                nearest = [one.plan for one in run.ranking]
                if len(starts) == 1:
                    found += corrected([start, *nearest], count, evaluations, late)
                else:
                    found += corrected(nearest, min(count, 1), evaluations, late)
        return [one for _, one in sorted(found, key=lambda each: each[0])][: max(0, count)]

    def _parts(self, model: BatchedModel, plan: Plan, run: TuningRun) -> tuple[str, ...]:
        """The parts without tau where the network ignores its time; a ValueError if none of the plan is left."""
        parts = check_parts(self.parts)
        with run.cost_log.purpose("sizing"):
            if "tau" not in parts or not ignores_time(model, plan, run.calibration):
                return parts
        left = tuple(part for part in parts if part != "tau")
        if not left or not len(Parameters(plan, left)):
            raise ValueError(
                f"parts={list(parts)} of a plan for {len(plan)} calls need a network that uses its time, this one "
                "predicts the same at every conditioning time: take 'times' and 'corrections', or more calls"
            )
        return left

    def _pairs(self, model: BatchedModel, teacher: Plan, run: TuningRun) -> Pairs:
        """The pairs of the teacher, which a calibration for several plans may have already."""
        made = kept_pairs(run, self.pairs)
        pairs = made or self.pairs or num_pairs(len(teacher), run.budget, model.batch)
        kept, key = run.calibration.teacher_runs, described(teacher)
        if key not in kept or len(kept[key]) < (pairs or 0):
            cache = None if self.teacher_cache is None else Path(self.teacher_cache)
            kept[key] = teach(model, teacher, run, pairs, cache, found=kept.get(key))
        found: Pairs = kept[key][:pairs]
        return found

    def cost(
        self, plan: Plan, samples: int, batch: int | None, budget: Budget, speed: Speed | None
    ) -> dict[str, tuple[Cost, Cost]]:
        """Of runs in a cache one is made again; {} where only an unknown speed decides."""
        calls = len(teacher_of(plan, self.teacher))
        costs = joint_cost(self, calls, plan, batch, budget, speed)
        if costs and self.teacher_cache is not None and Path(self.teacher_cache).exists():
            costs["teacher"] = Cost(calls, calls), costs["teacher"][1]
        return costs

    def exchanged(self, plan: Plan, tuning: Cost, numbers: int) -> int:
        """In an iteration the derivatives of each pair by the numbers of its run, twice, two losses and a slope, and a
        tensor of the shape of a sample; by differences the sums for a gradient and a curvature."""
        calls = len(plan)
        weights = calls * (calls + 3) // 2 + 2 * calls  # of rows, and times; without what is reused
        count = tuning.evaluations // max(1, int(Runs.of(self, plan).fewest * calls) * BATCH)
        if self.gradients is False:
            parameters = len(Parameters(plan, self.tunes))
            return int(count * 8 * (parameters**2 + BATCH * (parameters + 3)))
        return int(count * (BATCH * (2 * 4 * weights + 3 * 8) + 8 * numbers))

    def following(self, tuned: Plan) -> "Joint":
        """It has as many pairs, and this plan as a warm start."""
        pairs, starts = self.pairs or tuned.provenance.get("pairs"), self.warm_starts or (tuned,)
        return replace(self, pairs=pairs, warm_starts=starts)


def without_gradient(model: BatchedModel, plan: Plan, calibration: Calibration) -> str:
    """Why the network has no gradient in the states, "" where it has one; by a call with two samples."""
    if torch.is_inference_mode_enabled():
        return "torch.inference_mode is on"
    found = list[bool]()

    def look(quantity: str, x: Tensor, t: Any, prediction: Tensor) -> None:
        found.append(prediction.requires_grad and not prediction.is_inference())

    with torch.enable_grad():
        batch = calibration.trial(model)
        x = plan.initial_state(batch.noise).requires_grad_()
        try:
            prediction = predict(HookedModel(batch.model, look), plan, 0, x)
            if all(found) and torch.autograd.grad(prediction.sum(), x, allow_unused=True)[0] is not None:
                return ""
        except RuntimeError as error:  # of networks that are no torch code, or have operations without a backward
            return str(error).partition("\n")[0]
    return "its predictions do not depend on the states by torch operations with a gradient"
