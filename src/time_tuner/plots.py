"""Pictures: sample sheets, comparisons from the same noise, distributions, and the parts of a plan."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._checks import choose, require
from ._files import replacing
from .data import is_picture
from .models.exact import ExactModel, Gaussian
from .plans.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, SOFT, GRID = "#1a1a1a", "#6b6b6b", "#e4e4e4"
DPI = 200
CELL, GAP = 140, 8  # pixels: about how wide a picture of a comparison is, and the gap between two
LARGEST = 16_384  # pixels along the side of a sheet


@dataclass(frozen=True)
class Strip:
    """One row of a comparison: pictures (n, C, H, W) in [-1, 1], their caption, and a note below the caption."""

    caption: str
    images: Tensor
    note: str = ""


def image_grid(strips: Sequence[Strip], title: str = "", footnote: str = "", reference: int | None = None) -> "Figure":
    """Rows of pictures, one below the other, to be compared column by column.

    Args:
        strips: the rows, with equally many pictures of one size.
        title: above the rows.
        footnote: below them; it may have several lines.
        reference: the number of the row that the others are compared with. Below each other row stands a map of the
            difference, white where there is none; its caption is the note of the row.

    Raises:
        ValueError: no rows, rows that do not match, or a reference that is none of them.
    """
    if not strips:
        raise ValueError("image_grid needs at least one row of pictures")
    shape = tuple(strips[0].images.shape)
    for strip in strips:
        if (got := tuple(strip.images.shape)) != shape:
            raise ValueError(
                f"all rows must have pictures of one number and size, {shape}, got {got} in {strip.caption!r}"
            )
    if len(shape) != 4 or not shape[0] or not is_picture(shape[1:]):
        raise ValueError(f"pictures must have shape (n, 1, H, W) or (n, 3, H, W), got {shape}")
    if reference is not None and reference not in range(len(strips)):
        raise ValueError(f"reference must be the number of a row, 0 to {len(strips) - 1}, got {reference}")
    count, _, height, width = shape
    larger = max(1, round(CELL / width))
    wide, high = (count * (width * larger + GAP) - GAP) / DPI, height * larger / DPI
    # 1. The rows: of pictures, and below each but the reference the difference from it.
    rows: list[tuple[str, Any, bool]] = []
    for i, strip in enumerate(strips):
        compared = reference is not None and i != reference
        caption = f"{strip.caption}\n{strip.note}" if strip.note and not compared else strip.caption
        rows.append((caption, _mosaic(strip.images, count, GAP, larger), False))
        if reference is not None and compared:
            difference = (strip.images - strips[reference].images).abs().amax(1, keepdim=True) - 1
            rows.append((strip.note, _mosaic(difference, count, GAP, larger, background=0.0), True))
    # 2. The figure.
    figure, panels = _figure(len(rows), 1, (wide + 2.4, len(rows) * (high + 0.06) + 1.0))
    for axes, (caption, pixels, is_map) in zip(panels, rows, strict=True):
        axes.imshow(pixels, cmap=_difference_colours() if is_map else "gray", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[], anchor="E")  # what is left over is for captions
        weight = "bold" if reference is not None and not is_map else "normal"
        axes.set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=9, color=INK, weight=weight)
    panels[0].set_title(title, fontsize=13, weight="bold", color=INK, pad=10)
    panels[-1].set_xlabel(footnote, fontsize=8, color=SOFT, labelpad=8)
    return figure


def check_drawable(count: int, shape: Sequence[int]) -> None:
    """Raise a ValueError unless so many samples of this shape can be drawn: numbers, points or pictures."""
    if math.prod(shape) in (1, 2):
        return
    if not is_picture(shape):
        raise ValueError(f"samples of shape {tuple(shape)} are no pictures: write them to an .npz file")
    side = math.ceil(math.sqrt(count)) * (max(shape[1:]) + 2)
    if side > LARGEST:
        raise ValueError(
            f"{count} pictures of {shape[1]} x {shape[2]} make a sheet of {side} pixels, at most {LARGEST}: "
            "draw fewer, or write them to an .npz file"
        )


def sample_sheet(images: Tensor, columns: int | None = None, larger: int | None = None) -> "Image":
    """Pictures (n, C, H, W) in [-1, 1] as one, in rows.

    Args:
        images: the pictures.
        columns: in a row; as many as rows by default.
        larger: as many times are they enlarged; small ones by default.

    Raises:
        ValueError: they are no pictures, or too many for one sheet.
    """
    require("PIL", "plots")
    from PIL import Image

    check_drawable(len(images), images.shape[1:])
    columns = columns or math.ceil(math.sqrt(len(images)))
    larger = larger or max(1, min(3, 1600 // (columns * (images.shape[-1] + 2))))
    sheet = _mosaic(images, columns, 2 * larger, larger)
    return Image.fromarray((sheet * 255).round().astype(np.uint8))


def distributions(samples: Mapping[str, Tensor], density: Callable[[Tensor], Tensor] | None = None) -> "Figure":
    """The distributions of numbers (n, ...) or of points in the plane (n, 2), a panel for each by its name.

    Args:
        samples: of each panel.
        density: of the data, x (n,) -> (n,), drawn over histograms of numbers; None where it is not known.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("distributions needs at least one set of samples")
    values = {name: drawn.detach().double().cpu().reshape(len(drawn), -1) for name, drawn in samples.items()}
    figure, panels = _figure(1, len(values), (max(6.4, 3.6 * len(values)), 3.8))
    every = torch.cat(list(values.values()))
    (low, *_), (high, *_) = every.amin(0).tolist(), every.amax(0).tolist()
    for axes, (name, drawn) in zip(panels, values.items(), strict=True):
        axes.set_title(name)
        if every.shape[1] == 2:
            axes.plot(*drawn.T.numpy(), ".", color=COLOURS[0], alpha=min(1.0, 30 / len(drawn) ** 0.5), markersize=3)
            axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
            continue
        bins = max(10, min(80, round(2 * len(drawn) ** (1 / 3))))
        style: dict[str, Any] = {"color": COLOURS[5], "edgecolor": "white", "linewidth": 0.5, "label": "samples"}
        axes.hist(drawn.flatten().numpy(), bins=bins, range=(low, high), density=True, **style)
        if density is not None:
            x = torch.linspace(low, high, 400, dtype=torch.float64)
            axes.plot(x.numpy(), density(x).numpy(), color=COLOURS[1], linewidth=2, label="density of the data")
        axes.set(xlabel="x", ylabel="density")
        moments = f"mean {float(drawn.mean()):.2f}\nstd {float(drawn.std(correction=0)):.2f}"
        axes.text(0.03, 0.96, moments, transform=axes.transAxes, va="top", fontsize=9, color=SOFT)
    limits = [axis for axes in panels for axis in (axes.get_xlim(), axes.get_ylim())]
    for axes in panels:
        axes.set_xlim(min(x for x, _ in limits[::2]), max(x for _, x in limits[::2]))
        axes.set_ylim(min(y for y, _ in limits[1::2]), max(y for _, y in limits[1::2]))
    if every.shape[1] == 1:
        panels[0].legend(frameon=False)
    return figure


def target_density(eps: Any) -> Callable[[Tensor], Tensor] | None:
    """The density of a scalar exact model, x (n,) -> (n,); None where it is not known."""
    if not isinstance(eps, ExactModel) or math.prod(eps.shape) != 1:
        return None
    model = eps.distribution
    if isinstance(model, Gaussian):
        means, stds, weights = model.mean.reshape(1), model.std.reshape(1), torch.ones(1, dtype=torch.float64)
    else:
        means, weights = model.means.flatten(), model.weights
        stds = torch.full_like(means, model.std)
    return lambda x: torch.distributions.Normal(means, stds).log_prob(x[:, None]).exp() @ weights


def plot_plan(plans: Plan | Mapping[str, Plan], title: str = "") -> "Figure":
    """What tuning changed in plans: the conditioning times tau, their ratios to the solver's times t, and corrections;
    with a caption that explains the panels.

    Args:
        plans: one plan, or several by the name that each has in the legend.
        title: above the panels.

    Raises:
        ValueError: no plans.
    """
    named = {f"{len(plans)} calls": plans} if isinstance(plans, Plan) else dict(plans)
    if not named:
        raise ValueError("plot_plan needs at least one plan")
    corrections = {name: plan.corrections for name, plan in named.items() if plan.corrections is not None}
    figure, (times, ratios, *heat) = _figure(1, 2 + len(corrections), (4.8 * (2 + len(corrections)), 4.0))
    times.axline((0, 0), slope=1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="untuned, $\\tau = t$")
    ratios.axhline(1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    for i, (name, plan) in enumerate(named.items()):
        t, tau = plan.t[:-1].detach().numpy(), plan.tau.detach().numpy()
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dv"[i % 5], "markersize": 5}
        times.plot(t, tau, label=name, linewidth=1.5, **style)
        ratios.plot(t, tau / t, linewidth=1.5, **style)
    times.set(title="Conditioning time", xlabel="$t$, the solver's time", ylabel="$\\tau$, the conditioning time")
    ratios.set(title="Ratio", xlabel="$t$, the solver's time", ylabel="$\\tau / t$, 1 when untuned")
    low, high = ratios.get_ylim()
    ratios.set_ylim(min(low, 0.98), max(high, 1.02))  # an untuned plan is a flat line, not rounding enlarged
    for axes in (times, ratios):
        axes.invert_xaxis()  # a run begins at t = T and ends at 0
    times.legend(frameon=False)
    for axes, (name, matrix) in zip(heat, corrections.items(), strict=True):
        _heat_map(figure, axes, matrix.detach(), f"Corrections, {name}")
    figure.suptitle(title, fontsize=13, weight="bold", color=INK)
    caption = (
        "A run goes from noise, on the left, to data. Every marker is a network call: its place on the axis is the "
        "time of the state, where the grid puts the call,\nand its height is the time that the network receives. On "
        "the dashed line both are equal, as in an untuned plan."
    )
    if heat:
        caption += (
            " A cell of a map says how much of an earlier call's prediction is added after a call;\nwithout tuning all "
            "cells are white."
        )
    figure.supxlabel(caption, fontsize=8, color=SOFT)
    return figure


def _heat_map(figure: "Figure", axes: "Axes", corrections: Tensor, title: str) -> None:
    """Corrections (K, K): a row for each call, a column for each earlier call; what has no entry is left white."""
    largest = max(float(corrections.abs().max()), 1e-9)
    lower = np.ma.masked_where(~np.tri(len(corrections), k=-1, dtype=bool), corrections.numpy())
    shown = axes.imshow(lower, cmap="RdBu_r", vmin=-largest, vmax=largest)
    ticks = range(0, len(corrections), 1 + len(corrections) // 10)
    axes.set(title=title, xlabel="$j$, earlier call", ylabel="$k$, call", xticks=ticks, yticks=ticks)
    axes.grid(False)
    bar = figure.colorbar(shown, ax=axes, label="$C_{kj}$, weight of $\\epsilon_j - \\epsilon_k$", shrink=0.8)
    bar.outline.set_visible(False)


def save(picture: "Figure | Image", path: Path) -> None:
    """Write a picture in the format of its suffix (PNG without one); it appears whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """
    kind = path.suffix.lower().removeprefix(".") or "png"
    with replacing(path) as file:
        if hasattr(picture, "savefig"):
            picture.savefig(file, format=kind, bbox_inches="tight")  # the layout may cut long captions
        else:
            picture.save(file, format=kind)


def _difference_colours() -> "Colormap":
    """White where nothing differs, darker the more: also in gray, and to the colour-blind."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("difference", ["white", COLOURS[1], "#3d1a00"])


def save_animation(frames: "Sequence[Figure]", path: Path, seconds: float = 1.0) -> None:
    """Write figures of one size as a GIF or a WebP file, by its suffix, which begins again after the last.

    Args:
        frames: the figures, in their order.
        path: the file; it appears whole or not at all.
        seconds: that each figure is seen; the last one is seen three times as long.

    Raises:
        ValueError: no figures, or a file of another kind.
        OSError: the file cannot be written.
    """
    require("PIL", "plots")
    from PIL import Image

    kind = choose("the suffix of an animation", path.suffix.lower(), (".gif", ".webp")).removeprefix(".")
    if not frames:
        raise ValueError("save_animation needs at least one figure")
    drawn = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.savefig(buffer, format="png", dpi=DPI / 2)
        image = Image.open(buffer).convert("RGB")
        drawn.append(image.quantize(64) if kind == "gif" else image)
    durations = [round(1000 * seconds)] * (len(drawn) - 1) + [round(3000 * seconds)]
    first, *others = drawn
    with replacing(path) as file:
        first.save(file, format=kind, save_all=True, append_images=others, duration=durations, loop=0)


def _mosaic(images: Tensor, columns: int, gap: int, larger: int, background: float = 1.0) -> Any:
    """Pictures (n, C, H, W) in [-1, 1] as one, (H, W) or (H, W, 3) in [0, 1]: enlarged, in rows, with the background
    between."""
    n, channels, height, width = images.shape
    height, width, rows = height * larger, width * larger, math.ceil(n / columns)
    sheet = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), background)
    for i, image in enumerate((images.detach().float().cpu().clamp(-1, 1) + 1) / 2):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image.repeat_interleave(larger, 1).repeat_interleave(larger, 2)
    return (sheet[0] if channels == 1 else sheet.permute(1, 2, 0)).numpy()


def _figure(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, Sequence[Axes]]":
    """A figure of panels in rows and columns, in the library's quiet style, which notebooks show."""
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:  # IPython knows figures of pyplot alone
            file = io.BytesIO()
            self.savefig(file, format="png", bbox_inches="tight", dpi=DPI // 2)
            return file.getvalue()

    figure = ShownFigure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels
