"""Run a plan file with numpy alone, without this library: copy the function `run` into your own project.

    x = run(json.load(open("plan.json")), eps, x_T)

`eps(x, t, tau)` is the noise that your network predicts in the state x at the solver's time t, where it receives the
conditioning time tau; a network with N levels receives n = tau N - 1. `x_T` is standard normal noise times
sqrt(alpha^2 + sigma^2) of the first point. A plan with rows that predict "x0" also needs `x0(x, t, tau)`, the predicted
data. As a program the file runs a plan on the Gaussian N(5, 2^2): python examples/run_plan.py plan.json
"""

import json
import sys

import numpy as np


def run(plan, eps, x, noise=np.random.standard_normal, x0=None):
    """The state at the end of the plan; each row is a weighted sum of the tensors of earlier calls."""
    calls = []  # the tensors of each call: state x, prediction eps or x0, corrected state c, noise z

    def combine(terms):
        return sum(weight * calls[-1 - ago][what] for what, ago, weight in terms)

    for t, tau, row in zip(plan["t"], plan["tau"], plan["rows"], strict=False):  # t also holds the end
        predicts = row.get("predicts", "eps")
        calls.append({"x": x, predicts: (x0 if predicts == "x0" else eps)(x, t, tau)})
        if "corrected" in row:
            calls[-1]["c"] = combine(row["corrected"])
        if any(what == "z" for what, _, _ in row["next_state"]):
            calls[-1]["z"] = noise(x.shape)
        x = combine(row["next_state"])
    return x


def gaussian(plan, mean=5.0, std=2.0):
    """The noise prediction for data from N(mean, std^2), on the betas of the plan's schedule."""
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
