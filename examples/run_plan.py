"""Runs a plan file with numpy alone, without this library: copy this file into your own project.

    x = run(json.load(open("plan.json")), eps, x_T)

`eps(x, t, tau)` is the noise that your network predicts in x at the solver's time t when it is told tau; a network
with N discrete levels takes tau N - 1. `x_T` is standard normal noise times sqrt(alpha^2 + sigma^2) of the first point.
A plan of which some rows have the unit "x0" also needs `x0(x, t, tau)`, the data that it predicts. As a program
it runs a plan on the Gaussian N(5, 2^2), whose noise prediction is known: python examples/run_plan.py plan.json
"""

import json
import sys

import numpy as np


def run(plan, eps, x, noise=np.random.standard_normal, x0=None):
    """The state at the end of the plan; each row says which weighted sum of past tensors comes next."""
    calls = []  # of each call so far: the state it saw, what the network said, the corrected state, the draw

    def combine(terms):
        return sum(weight * calls[-1 - ago][what] for what, ago, weight in terms)

    for t, tau, row in zip(plan["t"], plan["tau"], plan["rows"], strict=False):  # t has the end, too
        unit = row.get("predicts", "eps")
        calls.append({"x": x, unit: (x0 if unit == "x0" else eps)(x, t, tau)})
        if "corrected" in row:
            calls[-1]["c"] = combine(row["corrected"])
        if any(what == "z" for what, _, _ in row["next_state"]):
            calls[-1]["z"] = noise(x.shape)
        x = combine(row["next_state"])
    return x


def gaussian(plan, mean=5.0, std=2.0):
    """The noise prediction of N(mean, std^2) on the plan's own schedule, if that has betas."""
    log_alpha = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.array(plan["schedule"]["betas"])))])
    times = np.linspace(0, 1, len(log_alpha))

    def eps(x, t, tau):
        alpha = np.exp(np.interp(tau, times, log_alpha))
        sigma = np.sqrt(1 - alpha**2)
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return eps


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    x = run(plan, gaussian(plan), np.random.standard_normal(10000))
    print(f"{plan['calls']} calls: mean {x.mean():.3f}, standard deviation {x.std():.3f} (the data's: 5 and 2)")
