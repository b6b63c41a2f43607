"""What commands print with `--json`: plain values, by the names that the tables have."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..models.counting import Cost
from ..plans.plan import Plan
from ..tuners import PlanCheck
from . import output


def mean(values: Tensor) -> dict[str, float]:
    """The mean of values (n,) and its standard error."""
    return {"mean": float(values.double().mean()), "error": float(values.double().std()) / math.sqrt(len(values))}


def of_plan(plan: Plan) -> dict[str, Any]:
    """A plan: where the network is called, what it receives, and how the plan was made."""
    values: dict[str, Any] = {
        "calls": len(plan),
        "evaluations": plan.evaluations,
        "sampler": plan.sampler,
        "schedule": plan.schedule,
        **{name: getattr(plan, name) for name in ("t", "tau", "alpha", "sigma", "corrections", "guided")},
        "provenance": plan.provenance,
    }
    return values | ({"verdict": output.verdict(plan)} if output.measured(plan) else {})


def of_cost(costs: Mapping[str, tuple[Cost, Cost]], seconds: float, calls: int) -> dict[str, Any]:
    """The estimated cost of tuning for a number of calls, by purpose: usual, and at most."""
    purposes = {
        name: {
            "calls": {"usual": usual.calls, "most": most.calls},
            "evaluations": {"usual": usual.evaluations, "most": most.evaluations},
        }
        for name, (usual, most) in costs.items()
    }
    return {"calls": calls, "costs": purposes, "seconds": seconds}


def of_check(found: PlanCheck) -> dict[str, Any]:
    """Whether a plan fits a model, and the distances by which that was found."""
    return {
        "fits": found.fits,
        "verdict": found.verdict,
        "differences": list(map(str, found.differences)),
        "gain": {"mean": found.gain, "error": found.error},
        "distances": {name: mean(distances) for name, distances in found.distances.items()},
    }


def of_plans(plans: Mapping[str, Plan] | Sequence[Plan]) -> dict[str, Any]:
    """Several plans, by their names where they have names."""
    if isinstance(plans, Mapping):
        return {"plans": [{"plan": name, **of_plan(plan)} for name, plan in plans.items()]}
    return {"plans": [of_plan(plan) for plan in plans]}
