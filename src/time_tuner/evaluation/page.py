"""The page of a report: one file with its styles, its program and its pictures, which needs no network."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from .. import plots
from ..data import is_picture
from ..sampling import coefficients
from .measures import METRICS
from .report import BEST, PLAN, REFERENCE, Report, Run, shown

COLUMNS, LARGEST = 8, 96  # pictures in a row, and pixels along their longer side
SIDE = 240  # pixels of a scatter plot or a histogram
SMALL = 64  # pixels of a picture that is enlarged without smoothing


def page(report: Report) -> str:
    """The HTML of a report."""
    parts = {
        "title": escape(f"{report.facts['model']}: plans against untuned samplers"),
        "facts": escape(_facts(report.facts)),
        "verdicts": _verdicts(report),
        "table": _table(report),
        "left_out": _left_out(report.left_out),
        "group": "as many evaluations" if report.by_evaluations else "as many calls",
        "provenance": _provenance(report),
        "command": f"<pre>{escape(report.command)}</pre>" if report.command else _program(report),
        "data": json.dumps(_data(report), allow_nan=False).replace("<", "\\u003c"),
        "css": _asset("report.css"),
        "js": _asset("report.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))


def _asset(name: str) -> str:
    return (files("time_tuner.evaluation") / "assets" / name).read_text("utf-8")


def _facts(facts: Mapping[str, Any]) -> str:
    made = facts["environment"]
    return (
        f"{facts['samples']} samples of each run from seed {facts['seed']}; target: {facts['target']}, "
        f"{facts['target size']}; features: {facts['features']}; {made['date']}"
    )


def _verdicts(report: Report) -> str:
    found = report.verdicts()
    if not found:
        return '<p class="note">No plan was given: the untuned samplers are compared with one another.</p>'
    return '<ul class="verdicts">' + "".join(f"<li>{escape(one)}</li>" for one in found) + "</ul>"


def _table(report: Report) -> str:
    names = report.metrics
    head = "".join(f'<th scope="col">{escape(METRICS[name].title)}</th>' for name in names)
    best = {(run.evaluations, name): report.best(name, run.evaluations) for run in report.runs for name in names}
    rows, size = [], None
    for run in report.sorted():
        cells = []
        for name in names:
            if name not in run.values:
                cells.append("<td>-</td>")
                continue
            value, _, error = shown(run.values[name]).partition("±")
            kind = ' class="best"' if best[run.evaluations, name] is run and run.kind != REFERENCE else ""
            cells.append(f'<td{kind}>{value}<span class="pm"> ±{error}</span></td>')
        title = f"best untuned, {run.name}" if run.kind == BEST else run.name
        kinds = " ".join(["plan"] * (run.kind == PLAN) + ["first"] * (run.evaluations != size))
        size = run.evaluations
        sizes = "".join(f"<td>{getattr(run, name)}</td>" for name in report.sizes)
        rows.append(f'<tr class="{kinds}"><th scope="row">{escape(title)}</th>{sizes}{"".join(cells)}</tr>')
    columns = "".join(f'<th scope="col">{name}</th>' for name in ("run", *report.sizes))
    top = f"<thead><tr>{columns}{head}</tr></thead>"
    return f"<table>{top}<tbody>{''.join(rows)}</tbody></table>"


def _left_out(left_out: Mapping[str, str]) -> str:
    lines = "".join(f"<li>{escape(f'{name}: {why}')}</li>" for name, why in left_out.items())
    return f'<details class="note"><summary>Left out</summary><ul>{lines}</ul></details>' if lines else ""


def _provenance(report: Report) -> str:
    parts = [f"<dl>{_items(report.facts)}</dl>"]
    for run in report.runs:
        if run.kind == PLAN:
            about = {"sampler": str(run.plan.sampler), "schedule": str(run.plan.schedule), **run.plan.provenance}
            parts.append(f"<details><summary>{escape(run.name)}</summary><dl>{_items(about)}</dl></details>")
    return "".join(parts)


def _items(facts: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in facts.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _program(report: Report) -> str:
    return (
        '<p class="note">The report was made in Python, by <code>evaluate(model, plans)</code> with these facts; the '
        "plans are in report.json.</p>"
    )


def _data(report: Report) -> dict[str, Any]:
    """What the program of the page reads."""
    metrics = {n: {"title": METRICS[n].title, "text": METRICS[n].text, "more": METRICS[n].more_is_better}
               for n in report.metrics}  # fmt: skip
    shapes = [run.pictures.shape[1:] for run in report.runs if run.pictures is not None]
    limits = _limits(report.runs)
    small = bool(shapes) and is_picture(shapes[0]) and max(shapes[0][1:]) <= SMALL
    return {
        "metrics": metrics,
        "runs": [_run(run, limits) for run in report.sorted()],
        "small": small,
        "points": limits is not None,
        "sizes": report.sizes,
    }


def _run(run: Run, limits: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    plan = run.plan
    about: dict[str, Any] = {name: getattr(run, name) for name in ("name", "kind", "series", "calls", "evaluations")}
    about["values"] = {name: [v.value, v.low, v.high] for name, v in run.values.items()}
    if (picture := _picture(run.pictures, limits)) is not None:
        about["picture"] = picture
    if run.kind == REFERENCE:
        return about
    predicts = {row.predicts for row in plan.rows}
    kinds = "predictions are of the " + " and the ".join(
        {"eps": "noise", "x0": "data"}[one] for one in sorted(predicts)
    )
    table = coefficients(plan.with_tau(plan.tau.detach()))[:, : 1 + run.calls]
    times = {"t": plan.t[:-1].tolist(), "tau": plan.tau.tolist()}
    return about | times | {"table": [[_short(x) for x in row] for row in table.tolist()], "predicts": kinds}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _picture(pictures: Tensor | None, limits: tuple[Tensor, Tensor] | None) -> str | None:
    """Pictures (n, C, H, W) in [-1, 1], points in the plane or a histogram of numbers, as the address of one PNG; None
    for other samples. Points and numbers are drawn within these limits of each axis."""
    if pictures is None:
        return None
    if is_picture(pictures.shape[1:]) and pictures[0].numel() > 2:
        largest = max(pictures.shape[2:])
        if largest > LARGEST:
            size = [round(side * LARGEST / largest) for side in pictures.shape[2:]]
            pictures = torch.nn.functional.interpolate(pictures.float(), size, mode="bilinear", antialias=True)
        whole = len(pictures) // COLUMNS * COLUMNS or len(pictures)  # rows that are full
        sheet = plots.sample_sheet(pictures[:whole], COLUMNS, 1)
    elif limits is not None:
        drawn = _points if pictures[0].numel() == 2 else _histogram
        sheet = plots.sample_sheet(drawn(pictures.double().flatten(1), *limits), 1, 1)
    else:
        return None
    file = io.BytesIO()
    sheet.save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _limits(runs: Sequence[Run]) -> tuple[Tensor, Tensor] | None:
    """The least and the greatest values of points or numbers of all runs, (1,) or (2,) each; None for other samples."""
    some = [run.pictures.double().flatten(1) for run in runs if run.pictures is not None]
    if not some or some[0].shape[1] > 2:
        return None
    every = torch.cat(some)
    low, high = every.amin(0), every.amax(0)
    pad = (high - low).clamp(min=1e-6) * 0.03
    return low - pad, high + pad


def _points(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A scatter plot of points (n, 2), black on white, (1, 1, SIDE, SIDE)."""
    columns, rows = ((x - low) / (high - low) * (SIDE - 1)).round().long().T
    picture = torch.zeros(1, 1, SIDE, SIDE)
    picture[0, 0, SIDE - 1 - rows, columns] = 1.0
    return 1 - 2 * torch.nn.functional.max_pool2d(picture, 3, 1, 1)


def _histogram(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A histogram of numbers (n, 1), black on white, (1, 1, SIDE / 2, SIDE)."""
    bins = max(10, min(60, round(2 * len(x) ** (1 / 3))))
    counts = torch.histc(x, bins, float(low), float(high))
    heights = (counts / counts.max())[torch.arange(SIDE) * bins // SIDE] * (SIDE // 2)
    return torch.where(torch.arange(SIDE // 2, 0, -1)[:, None] <= heights, -1.0, 1.0)[None, None]
