"""Pictures: sample sheets, comparisons from the same noise, histograms, and what a plan tells the network."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._files import replacing
from .data import is_picture
from .models.exact import ExactModel, Gaussian
from .plans.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, SOFT, GRID = "#1a1a1a", "#6b6b6b", "#e4e4e4"
DPI = 200
CELL, GAP = 140, 8  # pixels: about how wide a picture of a comparison is, and what is between two
LARGEST = 16_384  # pixels along the side of a sheet


@dataclass(frozen=True)
class Strip:
    """One row of a comparison: pictures (n, C, H, W) in [-1, 1], what they are, and a remark below that."""

    caption: str
    images: Tensor
    note: str = ""


def image_grid(blocks: Mapping[str, Sequence[Strip]], title: str = "", subtitle: str = "") -> "Figure":
    """Rows of pictures, one below the other, to be compared column by column.

    Args:
        blocks: rows under a heading each; all rows have equally many pictures of one size.
        title, subtitle: above it all; the subtitle may have several lines.

    Raises:
        ValueError: no rows, or rows that do not match.
    """
    from matplotlib.figure import Figure

    strips = [strip for rows in blocks.values() for strip in rows]
    count, _, height, width = _checked_strips(strips)
    larger = max(1, round(CELL / width))
    gap, heading, margin = 0.05, 0.44, 0.25  # inches
    captions = max(1.45, 2 * margin + 0.082 * max(max(len(s.caption), 0.85 * len(s.note)) for s in strips))
    tall = height * larger / DPI
    top = margin + (0.33 if title else 0) + (0.17 * (subtitle.count("\n") + 1) if subtitle else 0)
    wide = captions + (count * (width * larger + GAP) - GAP) / DPI + margin
    high = top + len(blocks) * heading + len(strips) * (tall + gap) + margin
    figure = Figure(figsize=(wide, high), dpi=DPI, facecolor="white")

    def write(y: float, text: str, **style: Any) -> None:
        kwargs: dict[str, Any] = {"color": INK, "fontsize": 10, "va": "center"} | style
        figure.text(margin / wide, 1 - y / high, text, **kwargs)

    write(margin + 0.1, title, fontsize=15, weight="bold")
    write(top, subtitle, fontsize=9, color=SOFT, va="bottom", linespacing=1.35)
    y = top
    for name, rows in blocks.items():
        write(y + heading * 0.6, name, fontsize=11.5, weight="bold")
        y += heading
        for strip in rows:
            write(y + tall / 2 - (0.09 if strip.note else 0), strip.caption)
            write(y + tall / 2 + 0.09, strip.note, fontsize=8.5, color=SOFT)
            pixels = _displayable(_mosaic(strip.images, count, GAP, larger))
            below = round((high - y - tall) * DPI)
            figure.figimage(pixels, round(captions * DPI), below, cmap="gray", vmin=0, vmax=1, origin="upper")
            y += tall + gap
    return figure


def check_sheet(count: int, shape: Sequence[int]) -> None:
    """Raise a ValueError if so many samples of this shape cannot be drawn by `sample_sheet` or `histogram`."""
    if math.prod(shape) == 1:
        return
    if not is_picture(shape):
        raise ValueError(f"samples of shape {tuple(shape)} are no pictures: write them to an .npz file")
    side = math.ceil(math.sqrt(count)) * (max(shape[1:]) + 2)
    if side > LARGEST:
        raise ValueError(
            f"{count} pictures of {shape[1]} x {shape[2]} make a sheet of {side} pixels, at most {LARGEST}: "
            "ask for fewer, or write them to an .npz file"
        )


def sample_sheet(images: Tensor, columns: int | None = None) -> "Image":
    """Pictures (n, C, H, W) in [-1, 1] as one, in rows; small ones are enlarged by a whole number.

    Raises:
        ValueError: they are no pictures, or too many for one sheet.
    """
    from PIL import Image

    check_sheet(len(images), images.shape[1:])
    columns = columns or math.ceil(math.sqrt(len(images)))
    larger = max(1, min(3, 1600 // (columns * (images.shape[-1] + 2))))
    sheet = _displayable(_mosaic(images, columns, 2 * larger, larger))
    return Image.fromarray((sheet * 255).round().astype(np.uint8))


def histograms(samples: Mapping[str, Tensor], density: Callable[[Tensor], Tensor] | None = None) -> "Figure":
    """The distribution of scalar samples (n, ...), a panel for each by its name, with the density they should have."""
    if not samples:
        raise ValueError("histograms need at least one set of samples")
    values = {name: drawn.detach().double().flatten().cpu() for name, drawn in samples.items()}
    figure, panels = _figure(len(values), (max(6.4, 3.6 * len(values)), 3.8))
    low = min(float(drawn.min()) for drawn in values.values())
    high = max(float(drawn.max()) for drawn in values.values())
    for axes, (name, drawn) in zip(panels, values.items(), strict=True):
        bins = max(10, min(80, round(2 * len(drawn) ** (1 / 3))))
        style: dict[str, Any] = {"color": COLOURS[5], "edgecolor": "white", "linewidth": 0.5, "label": "samples"}
        axes.hist(drawn.numpy(), bins=bins, range=(low, high), density=True, **style)
        if density is not None:
            x = torch.linspace(low, high, 400, dtype=torch.float64)
            axes.plot(x.numpy(), density(x).numpy(), color=COLOURS[1], linewidth=2, label="target density")
        axes.set(xlabel="x", ylabel="density", title=name)
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, top)
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


def plot_tau(plans: Plan | Mapping[str, Plan], title: str = "What the network is told") -> "Figure":
    """What the network is told, tau, against where the solver is, t: the two times, and their ratio.

    Args:
        plans: one plan, or several by the name each has in the legend.
        title: above the two panels.

    Raises:
        ValueError: no plans.
    """
    named = {"": plans} if isinstance(plans, Plan) else dict(plans)
    if not named:
        raise ValueError("plot_tau needs at least one plan")
    figure, (times, ratios) = _figure(2, (9.6, 4.0))
    times.axline((0, 0), slope=1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="untuned, $\\tau = t$")
    ratios.axhline(1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    for i, (name, plan) in enumerate(named.items()):
        t, tau = plan.t[:-1].detach().numpy(), plan.tau.detach().numpy()
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dv"[i % 5], "markersize": 5}
        times.plot(t, tau, label=name or f"{len(plan)} calls", linewidth=1.5, **style)
        ratios.plot(t, tau / t, linewidth=1.5, **style)
    times.set(xlabel="$t$, where the solver is", ylabel="$\\tau$, what the network is told")
    ratios.set(xlabel="$t$, where the solver is", ylabel="$\\tau / t$, 1 when untuned")
    low, high = ratios.get_ylim()
    ratios.set_ylim(min(low, 0.98), max(high, 1.02))  # an untuned plan is a flat line, not rounding enlarged
    for axes in (times, ratios):
        axes.invert_xaxis()  # a run goes from t = T to 0
    times.legend(frameon=False)
    figure.suptitle(title, fontsize=13, weight="bold", color=INK)
    return figure


def save(picture: "Figure | Image", path: Path) -> None:
    """Write a picture in the format that the name says (PNG without one); it appears whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """
    kind = path.suffix.lower().removeprefix(".") or "png"
    with replacing(path) as file:
        if hasattr(picture, "savefig"):
            picture.savefig(file, format=kind)
        else:
            picture.save(file, format=kind)


def _checked_strips(strips: Sequence[Strip]) -> tuple[int, ...]:
    if not strips:
        raise ValueError("image_grid needs at least one row of pictures")
    shape = tuple(strips[0].images.shape)
    for strip in strips:
        if tuple(strip.images.shape) != shape:
            got = tuple(strip.images.shape)
            raise ValueError(
                f"all rows must have pictures of one number and size, {shape}, got {got} in {strip.caption!r}"
            )
    if len(shape) != 4 or not shape[0] or not is_picture(shape[1:]):
        raise ValueError(f"pictures must have shape (n, 1, H, W) or (n, 3, H, W), got {shape}")
    return shape


def _mosaic(images: Tensor, columns: int, gap: int, larger: int = 1) -> Tensor:
    """Pictures (n, C, H, W) in [-1, 1] as one, (C, ...) in [0, 1]: enlarged, in rows, with white in between."""
    n, channels, height, width = images.shape
    height, width, rows = height * larger, width * larger, math.ceil(n / columns)
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate((images.detach().float().cpu().clamp(-1, 1) + 1) / 2):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image.repeat_interleave(larger, 1).repeat_interleave(larger, 2)
    return sheet


def _displayable(image: Tensor) -> Any:
    """(1, H, W) -> (H, W) and (3, H, W) -> (H, W, 3), numpy."""
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def _figure(panels: int, size: tuple[float, float]) -> "tuple[Figure, Sequence[Axes]]":
    """A figure of some panels side by side, in the library's quiet style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    panes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for axes in panes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panes
