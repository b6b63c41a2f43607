"""The drawings of the documentation, each a function that returns a figure. Their numbers are those of real plans."""

import math
from functools import cache

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SOFT, WIDTH, blank
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
        axes.text(1.08, y, label, color=colour, weight="bold", va="center")
    for start, end in zip(t, t[1:], strict=False):
        arrow = FancyArrowPatch((start, 1.08), (end, 1.08), connectionstyle="arc3,rad=-0.45", arrowstyle="->", shrinkA=3,
                                shrinkB=3, mutation_scale=9, color=BLUE, lw=1.2)  # fmt: skip
        axes.add_patch(arrow)
    axes.plot(t[:-1], [1.0] * len(tau), "o", color=BLUE, ms=6)
    axes.plot(t[-1:], [1.0], "o", color=BLUE, ms=6, mfc="none")
    axes.plot(tau, [0.0] * len(tau), "D", color=ORANGE, ms=5)
    for k, (a, b) in enumerate(zip(t, tau, strict=False)):
        axes.plot([a, b], [0.93, 0.08], color=SOFT, lw=1)
        axes.text(b, -0.22, f"{b / a:.2f}", ha="center", va="center", size=8.5, color=ORANGE)
        side = 1 if a < b else -1  # beside the line to the network
        axes.text(a - 0.018 * side, 0.8, str(k), ha="center", va="center", size=8.5, color=SOFT)
    axes.text(0.86, -0.62, "noise", color=SOFT, ha="left", va="center")
    axes.text(-0.03, -0.62, "data", color=SOFT, ha="right", va="center")
    axes.text(0.42, -0.62, "ratio τ / t of each call", color=ORANGE, ha="center", va="center", size=9)
    axes.text(0.42, 1.92, "steps from t to the next t", color=BLUE, ha="center", va="center", size=9)
    return figure


def plan_table() -> Figure:
    """A bundled plan as a table: the times and the row of every call."""
    plan = Plan.load("latent-digits/joint-5")
    calls = len(plan)
    heads = ["call", "t", "τ", "x", *("ε" + "₀₁₂₃₄"[j] for j in range(calls))]
    edges = [0.0, 0.55, 1.25, 1.95, 2.7, *(2.7 + 0.76 * (j + 1) for j in range(calls))]
    figure, axes = blank(2.6, (-0.05, edges[-1] + 0.05), (-calls - 1.2, 1.3))
    centres = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    for x, head in zip(centres, heads, strict=True):
        axes.text(x, 0.0, head, ha="center", va="center", weight="bold", size=9.5)
    axes.text((edges[1] + edges[3]) / 2, 0.85, "times", ha="center", va="center", color=SOFT, size=9)
    axes.text((edges[3] + edges[-1]) / 2, 0.85, "row: weights of the next state", ha="center", va="center", color=SOFT,
              size=9)  # fmt: skip
    for a, b in ((edges[1], edges[3]), (edges[3], edges[-1])):
        axes.plot([a + 0.08, b - 0.08], [0.5, 0.5], color=SOFT, lw=0.8)
    for k, row in enumerate(plan.rows):
        y = -1.0 - k
        for x, text in zip(centres, (str(k), f"{plan.t[k]:.3f}", f"{plan.tau[k]:.3f}"), strict=False):
            axes.text(x, y, text, ha="center", va="center", size=9, color=INK)
        for tensor, ago, weight in row.next_state.to_list():
            column = 3 if tensor == "x" else 4 + k - ago
            colour = BLUE if weight > 0 else ORANGE
            box = Rectangle((edges[column] + 0.03, y - 0.45), edges[column + 1] - edges[column] - 0.06, 0.9, color=colour,
                            alpha=min(0.12 + 0.1 * abs(weight), 0.6), lw=0)  # fmt: skip
            axes.add_patch(box)
            axes.text(centres[column], y, f"{weight:.2f}".replace("-", "−"), ha="center", va="center", size=9, color=INK)
    axes.text(edges[-1], -calls - 0.85, "next state = sum of weight × state or prediction", va="center", ha="right", size=8.5,
              color=SOFT)  # fmt: skip
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
    model, noise = three_clouds(), SeededNoise(900)(torch.empty(256, 2)).double()
    start, tuned = corrected()
    published = tune(model, start, "sequential(objective=published)", guard=False, samples=64)
    others = {"best untuned": make_plan("ipndm", SCHEDULE, 5, "logsnr", end=0)}
    figure = Figure(figsize=(WIDTH, 3.1))
    measure = ReferenceDistance(model, SCHEDULE, 0.0, noise, calls=200)
    for i, (title, plan, rest) in enumerate((
        ("The tuned plan is nearer: it is returned", tuned, others),
        ("The tuned plan is not nearer: an untuned one is returned", published, {}),
    )):  # fmt: skip
        axes = figure.add_axes((0.36, 0.60 - 0.46 * i, 0.6, 0.30 if not i else 0.24))
        plans = {"start": start, **rest, "tuned plan": plan}
        values = {name: measure.per_sample(one) for name, one in plans.items()}
        means = {name: float(value.mean()) for name, value in values.items()}
        best = min(means, key=means.__getitem__)
        for y, (name, value) in enumerate(values.items()):
            error = float(value.std()) / len(value) ** 0.5
            chosen = name == best
            axes.barh(y, means[name], 0.62, color=GREEN if chosen else GRID, xerr=error, ecolor=SOFT, capsize=2)
            axes.text(means[name] + error + 0.04 * max(means.values()), y, "returned" if chosen else "", va="center", size=9, color=GREEN,
                      weight="bold")  # fmt: skip
        axes.set_yticks(range(len(plans)), list(plans))
        axes.set_xticks([])
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_xlim(0, 1.5 * max(means.values()))
        axes.invert_yaxis()
        figure.text(0.02, 0.94 - 0.49 * i, title, size=9.5, weight="bold")
    figure.text(0.36, 0.03, "distance to the reference run →", size=9, color=SOFT)
    return figure


def guidance() -> Figure:
    """The evaluations of a run with guidance at all calls and of one with guidance at the first calls."""
    calls, guided = 6, 3
    figure, axes = blank(3.2, (-2.15, calls + 0.1), (-3.55, 3.5))
    for top, count, title in ((2.35, calls, "Guidance at all 6 calls"), (-0.75, guided, "Guidance at the first 3 calls")):
        evaluations = calls + count
        axes.text(-2.1, top + 0.85, f"{title}: {evaluations} evaluations", weight="bold", size=9.5, va="center")
        for y, name, colour in ((top, "condition", BLUE), (top - 1, "no condition", PURPLE)):
            axes.text(-0.15, y, name, ha="right", va="center", size=9, color=colour)
            for k in range(calls):
                filled = y == top or k < count
                box = Rectangle((k + 0.08, y - 0.36), 0.84, 0.72, lw=1.2, ls="-" if filled else ":",
                                ec=colour if filled else SOFT, fc=colour if filled else "none", alpha=0.85)  # fmt: skip
                axes.add_patch(box)
    for k in range(guided, calls):
        arrow = FancyArrowPatch((guided - 0.5, -2.15), (k + 0.5, -2.15), connectionstyle="arc3,rad=0.3", arrowstyle="->",
                                mutation_scale=9, color=PURPLE, lw=1.2)  # fmt: skip
        axes.add_patch(arrow)
    axes.text(-0.15, -2.75, "reuse", ha="right", va="center", size=9, color=PURPLE)
    axes.text(0, -3.35, "call 0", size=8.5, color=SOFT, va="center")
    axes.text(calls, -3.35, f"call {calls - 1}", size=8.5, color=SOFT, va="center", ha="right")
    return figure


def spacings() -> Figure:
    """Where eight steps begin and end on each spacing, by the noise of the states."""
    schedule = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000, 0.00085, 0.012))  # of Stable Diffusion
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.add_axes((0.22, 0.13, 0.75, 0.85))
    for y, (name, spacing) in enumerate(SPACINGS.items()):
        times = spacing(schedule, 8)
        axes.axhline(y, color=GRID, lw=1, zorder=0)
        axes.plot(times, [y] * len(times), "o", color=BLUE, ms=5)
    axes.set_yticks(range(len(SPACINGS)), list(SPACINGS))
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set(xlim=(1.03, -0.03), xticks=[1, 0.75, 0.5, 0.25, 0], xlabel="time t: noise at 1, data at 0")
    axes.invert_yaxis()
    return figure


PICTURES = {
    "two-times": two_times,
    "plan-table": plan_table,
    "corrections": corrections,
    "guard": guard,
    "guidance": guidance,
    "spacings": spacings,
}
"""Every drawing by its name in docs/images."""
