"""The drawings of the documentation, each a function that returns a figure. Their numbers are those of real plans."""

import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, WIDTH, arrow, blank, box, put
from torch import Tensor

from time_tuner import (
    SPACINGS,
    Model,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    exact,
    make_plan,
    named_betas,
    trajectory,
    tune,
)
from time_tuner.plans import reference_plan
from time_tuner.tuners import ReferenceDistance

DOCS = Path(__file__).resolve().parents[1]
SCHEDULE = NoiseScheduleVP("linear")


@cache
def three_clouds() -> Model:
    """Points of the plane, around three places."""
    places = [[1.2 * math.cos(angle), 1.2 * math.sin(angle)] for angle in (0.4, 2.2, 4.4)]
    return exact.Mixture(places, 0.15).eps(SCHEDULE)


def two_times() -> Figure:
    """The times of the solver and those of the network, of a bundled plan."""
    plan = Plan.load("latent-digits/joint-5")
    figure, axes = blank(2.3, (1.1, -0.06), (-0.8, 2.05))
    t, tau = plan.t.tolist(), plan.tau.tolist()
    for y, label, colour in ((1.0, "solver", BLUE), (0.0, "network", ORANGE)):
        axes.plot([0.86, -0.03], [y, y], color=GRID, lw=1.5, zorder=0)
        put(axes, 1.08, y, label, color=colour, weight="bold", size=10, ha="left")
    for start, end in pairwise(t):
        arrow(axes, (start, 1.08), (end, 1.08), -0.45, BLUE)
    axes.plot(t[:-1], [1.0] * len(tau), "o", color=BLUE, ms=6)
    axes.plot(t[-1:], [1.0], "o", color=BLUE, ms=6, mfc="none")
    axes.plot(tau, [0.0] * len(tau), "D", color=ORANGE, ms=5)
    for k, (a, b) in enumerate(zip(t, tau, strict=False)):
        axes.plot([a, b], [0.93, 0.08], color=SOFT, lw=1)
        put(axes, b, -0.22, f"{b / a:.2f}", size=8.5, color=ORANGE)
        side = 1 if a < b else -1  # beside the line to the network
        put(axes, a - 0.018 * side, 0.8, str(k), size=8.5, color=SOFT)
    put(axes, 0.86, -0.62, "noise", color=SOFT, ha="left", size=10)
    put(axes, -0.03, -0.62, "data", color=SOFT, ha="right", size=10)
    put(axes, 0.42, -0.62, "ratio \u03c4 / t of each call", color=ORANGE)
    put(axes, 0.42, 1.92, "steps from t to the next t", color=BLUE)
    return figure


def plan_table() -> Figure:
    """A bundled plan as a table: the times and the row of every call."""
    plan = Plan.load("latent-digits/joint-5")
    calls = len(plan)
    heads = ["call", "t", "\u03c4", "x", *(f"\u03b5{chr(0x2080 + j)}" for j in range(calls))]
    edges = [0.0, 0.55, 1.25, 1.95, 2.7, *(2.7 + 0.76 * (j + 1) for j in range(calls))]
    figure, axes = blank(2.6, (-0.05, edges[-1] + 0.05), (-calls - 1.2, 1.3))
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    for x, head in zip(centres, heads, strict=True):
        put(axes, x, 0.0, head, weight="bold", size=9.5)
    for a, b, title in ((edges[1], edges[3], "times"), (edges[3], edges[-1], "row: weights of the next state")):
        put(axes, (a + b) / 2, 0.85, title, color=SOFT)
        axes.plot([a + 0.08, b - 0.08], [0.5, 0.5], color=SOFT, lw=0.8)
    for k, row in enumerate(plan.rows):
        y = -1.0 - k
        for x, text in zip(centres, (str(k), f"{plan.t[k]:.3f}", f"{plan.tau[k]:.3f}"), strict=False):
            put(axes, x, y, text)
        for tensor, ago, weight in row.next_state.to_list():
            j = 3 if tensor == "x" else 4 + k - ago
            shade = {"color": BLUE if weight > 0 else ORANGE, "alpha": min(0.12 + 0.1 * abs(weight), 0.6), "lw": 0}
            box(axes, edges[j] + 0.03, edges[j + 1] - 0.03, y, 0.9, **shade)
            put(axes, centres[j], y, f"{weight:.2f}".replace("-", "\u2212"))
    rule = "next state = sum of weight \u00d7 state or prediction"
    put(axes, edges[-1], -calls - 0.85, rule, ha="right", size=8.5, color=SOFT)
    return figure


@cache
def corrected() -> tuple[Plan, Plan]:
    """An untuned plan of five calls for the three clouds, and the same with tuned corrections."""
    plan = make_plan("ddim", SCHEDULE, 5, "quadratic", end=0)
    return plan, tune(three_clouds(), plan, "least_squares(pairs=256)", guard=False)


def path(plan: Plan, x: Tensor) -> Tensor:
    """The predicted place of the run: its states (K + 1, B, D), divided by sqrt(alpha^2 + sigma^2)."""
    return torch.stack([x, *trajectory(three_clouds(), plan, x)])


def corrections() -> Figure:
    """The same runs untuned, corrected, and in many calls."""
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    noise = SeededNoise(3)(torch.empty(60, 2)).double()
    untuned, tuned = corrected()
    many = reference_plan(SCHEDULE, 0.0, 200)
    data = exact.Mixture([[1.2 * math.cos(a), 1.2 * math.sin(a)] for a in (0.4, 2.2, 4.4)], 0.15).sample(500, seed=1)
    axes.plot(*data.T, ".", color=GRID, ms=3, zorder=0)
    runs = [path(plan, plan.initial_state(noise)) for plan in (many, untuned, tuned)]
    gaps, ends = (runs[1][-1] - runs[0][-1]).norm(dim=1), runs[0][-1]
    chosen: list[int] = []
    for i in gaps.argsort()[len(gaps) * 3 // 4 :].tolist():  # one run to each cloud, of the less exact ones
        if all((ends[i] - ends[j]).norm() > 1 for j in chosen):
            chosen.append(i)
    for i in chosen:
        axes.plot(*runs[0][:, i].T, color=SOFT, lw=1.2, zorder=1)
        axes.plot(*runs[0][-1, i], "o", color=INK, ms=7, mfc="none", mew=1.6, zorder=4)
        axes.plot(*runs[1][:, i].T, "o--", color=ORANGE, ms=4, lw=1.3, zorder=2)
        axes.plot(*runs[2][:, i].T, "o-", color=BLUE, ms=4, lw=1.5, zorder=3)
    axes.plot([], [], color=SOFT, lw=1.2, label="200 calls")
    axes.plot([], [], "o--", color=ORANGE, ms=4, label="5 calls")
    axes.plot([], [], "o-", color=BLUE, ms=4, label="5 calls, corrected")
    axes.legend(loc="lower right", fontsize=9.5, labelcolor=INK)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


def guard() -> Figure:
    """Distances of tuned and untuned plans on noise that was not tuned on, in two cases."""
    noise = SeededNoise(900)(torch.empty(256, 2)).double()
    measure = ReferenceDistance(three_clouds(), SCHEDULE, 0.0, noise, calls=200)
    start, tuned = corrected()
    published = tune(three_clouds(), start, "sequential(objective=published)", guard=False, samples=64)
    best_untuned = make_plan("ipndm", SCHEDULE, 5, "logsnr", end=0)
    figure = Figure(figsize=(WIDTH, 3.1))
    cases = (
        ("The tuned plan is nearer: it is returned", {"best untuned": best_untuned, "tuned plan": tuned}),
        ("The tuned plan is not nearer: an untuned one is returned", {"tuned plan": published}),
    )
    for i, (title, others) in enumerate(cases):
        axes = figure.add_axes((0.28, 0.60 - 0.46 * i, 0.7, 0.24 + 0.06 * (1 - i)))
        values = {name: measure.per_sample(plan) for name, plan in {"start": start, **others}.items()}
        means = [float(value.mean()) for value in values.values()]
        for y, (mean, value) in enumerate(zip(means, values.values(), strict=True)):
            error, chosen = float(value.std()) / len(value) ** 0.5, mean == min(means)
            axes.barh(y, mean, 0.62, color=GREEN if chosen else GRID, xerr=error, ecolor=SOFT, capsize=2)
            if chosen:
                x = mean + error + 0.04 * max(means)
                put(axes, x, y, "returned", ha="left", color=GREEN, weight="bold")
        axes.set_yticks(range(len(values)), list(values))
        axes.set_xticks([])
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_xlim(0, 1.4 * max(means))
        axes.invert_yaxis()
        figure.text(0.02, 0.94 - 0.49 * i, title, size=9.5, weight="bold")
    figure.text(0.28, 0.03, "distance to the reference run \u2192", size=9, color=SOFT)
    return figure


def guidance() -> Figure:
    """The evaluations of a run with guidance at all calls and of one with guidance at the first calls."""
    calls, guided = 6, 3
    figure, axes = blank(3.2, (-2.15, calls + 0.1), (-3.55, 3.5))
    for top, count, title in ((2.35, calls, "at all 6 calls"), (-0.75, guided, "at the first 3 calls")):
        text = f"Guidance {title}: {calls + count} evaluations"
        put(axes, -2.1, top + 0.85, text, ha="left", weight="bold", size=9.5)
        for y, name, colour in ((top, "condition", BLUE), (top - 1, "no condition", PURPLE)):
            put(axes, -0.15, y, name, ha="right", color=colour)
            for k in range(calls):
                made = y == top or k < count
                look = {"ls": "-", "ec": colour, "fc": colour} if made else {"ls": ":", "ec": SOFT, "fc": "none"}
                box(axes, k + 0.08, k + 0.92, y, 0.72, lw=1.2, alpha=0.85, **look)
    for k in range(guided, calls):
        arrow(axes, (guided - 0.5, -2.15), (k + 0.5, -2.15), 0.3, PURPLE)
    put(axes, -0.15, -2.75, "reuse", ha="right", color=PURPLE)
    put(axes, 0, -3.35, "call 0", ha="left", size=8.5, color=SOFT)
    put(axes, calls, -3.35, f"call {calls - 1}", ha="right", size=8.5, color=SOFT)
    return figure


def spacings() -> Figure:
    """Where eight steps begin and end on each spacing, by the noise of the states."""
    schedule = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000, 0.00085, 0.012))  # of Stable Diffusion
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.add_axes((0.22, 0.13, 0.75, 0.85))
    for y, spacing in enumerate(SPACINGS.values()):
        times = spacing(schedule, 8)
        axes.axhline(y, color=GRID, lw=1, zorder=0)
        axes.plot(times, [y] * len(times), "o", color=BLUE, ms=5)
    axes.set_yticks(range(len(SPACINGS)), list(SPACINGS))
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set(xlim=(1.03, -0.03), xticks=[1, 0.75, 0.5, 0.25, 0], xlabel="time t: noise at 1, data at 0")
    axes.invert_yaxis()
    return figure


def untuned(heading: str, title: str) -> Figure:
    """The curves of the table of untuned samplers below a heading of the results."""
    section = (DOCS / "results.md").read_text().split(f"### {heading}\n", 1)[1]
    head, _, *rows = [line.strip("| ").split("|") for line in re.findall(r"^\|.*$", section.split("\n```")[0], re.M)]
    calls = [int(cell) for cell in head[1:]]
    named = {"`ddim`": (ORANGE, "D"), "`heun`": (PURPLE, "s"), "`unipc(order=3)`": (BLUE, "o"), "`ipndm`": (GREEN, "^")}
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.add_axes((0.13, 0.14, 0.84, 0.77))
    for name, *cells in rows:
        values = [float(cell.strip(" *").split()[0].strip("*")) for cell in cells]
        colour, marker = named.get(name.strip(), (GRID, ""))
        axes.plot(calls, values, color=colour, marker=marker or None, ms=5, lw=1.6 if marker else 1.2,
                  zorder=2 if marker else 1, label=name.strip(" `") if marker else None)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylim=(None, min(30.0, axes.get_ylim()[1])))
    axes.set_xticks(calls, map(str, calls))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(labelcolor=INK, fontsize=9.5)
    figure.text(0.02, 0.95, title, size=9.5, weight="bold")
    return figure


PICTURES = {
    "two-times": two_times,
    "plan-table": plan_table,
    "corrections": corrections,
    "guard": guard,
    "guidance": guidance,
    "spacings": spacings,
    "untuned-exact": lambda: untuned("Exact digits", "Frechet distance, exact digits"),
    "untuned-network": lambda: untuned("The network", "Distance to 200 calls, the bundled network"),
}
"""Every drawing by its name in docs/images."""
