"""How the drawings of the documentation look: narrow, so that they can be read on a phone, and for light and dark."""

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

IMAGES = Path(__file__).resolve().parents[1] / "images"
WIDTH = 4.6  # inches

INK, SOFT, GRID = "#1f2328", "#59636e", "#d1d9e0"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#c75300", "#007f5f", "#a24b84"  # they differ without red and green, too
DARK = {
    INK: "#e6e8eb",
    SOFT: "#a6afb9",
    GRID: "#444c56",
    BLUE: "#63bdf2",
    ORANGE: "#ff9a57",
    GREEN: "#3fd0a4",
    PURPLE: "#e29cc9",
}
"""What takes the place of each colour where the reader prefers dark pages."""

matplotlib.rcParams.update({
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "time-tuner",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
})  # fmt: skip


def blank(height: float, xlim: tuple[float, float], ylim: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of this height in inches, with one pair of axes over all of it, without ticks."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=xlim, ylim=ylim)
    axes.axis("off")
    return figure, axes


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float, colour: str) -> None:
    """A curved arrow between two points."""
    look = {"connectionstyle": f"arc3,rad={bend}", "arrowstyle": "->", "mutation_scale": 9, "shrinkA": 3, "shrinkB": 3}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, lw=1.2, **look))


def box(axes: Axes, left: float, right: float, y: float, height: float, **look: object) -> None:
    """A box around a height."""
    axes.add_patch(Rectangle((left, y - height / 2), right - left, height, **look))


def put(axes: Axes, x: float, y: float, text: str, **look: object) -> None:
    """A text in the middle of a place."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 9, **look})


def svg(figure: Figure) -> str:
    """The figure as SVG, the same at every run, with the colours of `DARK` for readers who prefer dark pages."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"'DejaVu Sans'(, [^;]*)?sans-serif", "'DejaVu Sans', Verdana, Arial, sans-serif", file.getvalue())
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media(prefers-color-scheme:dark){{{rules}}}</style>\n"
    return re.sub(r"(<svg[^>]*>\n)", rf"\1{style}", text, count=1)


def keep(figure: Figure, name: str) -> Path:
    """Write the figure to docs/images/NAME.svg."""
    path = IMAGES / f"{name}.svg"
    path.write_text(svg(figure))
    return path
