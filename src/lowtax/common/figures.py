"""Helpers of all figures: quiet axes, and files that appear as a whole."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lowtax.common.display import as_text
from lowtax.common.files import atomic_file
from lowtax.common.palette import GREY

DPI = 200


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which lays out its panels itself."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def quiet_axes(axes: Axes, size: float) -> None:
    """Give axes grey labels of a size, a light grid, and a frame of two lines."""
    axes.tick_params(which="both", labelsize=size, colors=GREY, length=0)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color("#bbbbbb")


def save(figure: Figure, path: Path) -> None:
    """Write the picture as a whole or not at all. Names in it are shown as text: `$` begins no formula."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis) if axis.get_scale() == "log"]
    powers = {label for axis in axes for label in axis.get_ticklabels(which="both")}  # written as formulas
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in powers:
            text.set_parse_math(False)
            text.set_text(as_text(text.get_text()))
    with atomic_file(path) as work:
        figure.savefig(work, format="png", dpi=DPI)
