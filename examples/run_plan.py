"""Runs a plan file with numpy alone, without this library: copy this file into your own project.

    x = run(load("plan.json"), eps, x_T)

`eps(x, t, tau)` is the noise that your network predicts in the state x at the solver's time t, given the conditioning
time tau; a network with N discrete levels receives level tau N - 1. `x_T` is standard normal noise times
sqrt(alpha^2 + sigma^2) of the first point. A plan with rows that have `"predicts": "x0"` also needs `x0(x, t, tau)`,
the predicted data. A plan that leaves guidance out of some calls needs `parts(x, t, tau, guided, predicts)` in place of
both: the prediction under the condition alone, and what guidance adds to it, or None where it is not `guided`.

As a program it runs a plan on the Gaussian N(5, 2^2), whose noise prediction is known:

    python examples/run_plan.py plan.json [calls]
"""

import json
import sys

import numpy as np


def load(path, calls=None):
    """The plan of a file; if the file has several, the one with this number of calls."""
    with open(path, encoding="utf-8") as file:
        plans = json.load(file)
    plans = plans if isinstance(plans, list) else [plans]
    if not all(isinstance(plan, dict) and {"calls", "t", "tau", "rows", "schedule"} <= plan.keys() for plan in plans):
        raise ValueError(f"{path} is not a plan file")
    found = [plan for plan in plans if calls in (plan["calls"], None)]
    if len(found) != 1:
        have = ", ".join(str(plan["calls"]) for plan in plans)
        raise ValueError(f"{path} has plans for calls = {have}, got calls={calls}: give one of these numbers")
    return found[0]


def run(plan, eps, x, noise=np.random.standard_normal, x0=None, parts=None):
    """The state at the end of the plan; each row is the weighted sum of past tensors that comes next."""
    calls = []  # of each call so far: the state, the prediction, what guidance added, the corrected state, the noise

    def combine(terms):
        return sum(weight * calls[-1 - ago][kind] for kind, ago, weight in terms)

    for t, tau, row in zip(plan["t"], plan["tau"], plan["rows"], strict=False):  # t also has the end
        predicts, guided = row.get("predicts", "eps"), "guidance" not in row
        if predicts == "x0" and x0 is None and parts is None:
            raise ValueError(f"x0= is needed: at t = {t} this plan uses the predicted data")
        if parts is None and not guided:
            raise ValueError(f"parts= is needed: at t = {t} this plan leaves guidance out")
        if parts is None:
            calls.append({"x": x, predicts: (x0 if predicts == "x0" else eps)(x, t, tau)})
        else:
            conditional, added = parts(x, t, tau, guided, predicts)
            calls.append({"x": x, "g": added})
            calls[-1][predicts] = conditional + (added if guided else combine(row["guidance"]))
        if "corrected" in row:
            calls[-1]["c"] = combine(row["corrected"])
        if any(kind == "z" for kind, _, _ in row["next_state"]):
            calls[-1]["z"] = noise(x.shape)
        x = combine(row["next_state"])
    return x


def gaussian(plan, mean=5.0, std=2.0):
    """The noise prediction of N(mean, std^2) on the plan's own schedule, which must have betas."""
    betas = plan["schedule"].get("betas")
    if betas is None:
        raise ValueError("this example needs a schedule with betas: run the plan with a network of its schedule")
    log_alpha = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.array(betas)))])
    times = np.linspace(0, 1, len(log_alpha))

    def eps(x, t, tau):
        alpha = np.exp(np.interp(tau, times, log_alpha))
        sigma = np.sqrt(1 - alpha**2)
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return eps


def main(path=None, calls=None, *more):
    if path is None or more or not (calls is None or calls.isdecimal()):
        sys.exit("usage: run_plan.py plan.json [calls]")
    try:
        plan = load(path, None if calls is None else int(calls))
        x = run(plan, gaussian(plan), np.random.standard_normal(10000))
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(f"error: {error}")
    print(f"{plan['calls']} calls: mean {x.mean():.3f}, standard deviation {x.std():.3f} (the data's: 5 and 2)")


if __name__ == "__main__":
    main(*sys.argv[1:])
