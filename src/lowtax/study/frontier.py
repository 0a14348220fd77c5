"""The figure of the safety-reasoning frontier, readable at the width of a README.

Left: harmful requests refused against problems solved. Right: the same against ordinary requests answered. Up and to
the right is better in both. Every arm has a colour, a mark and a line; its marks grow with the checkpoints, and the
last one is filled. The base model is a star. Pale bars are 95 % intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lowtax.common import stats
from lowtax.common.figures import DPI, quiet_axes, save
from lowtax.common.palette import COLOURS, GREY, INK, MARKS
from lowtax.study.shares import Interval, answered, solved

Rows = Sequence[Mapping[str, Any]]

INCHES = (8.3, 3.8)
LEGEND = 0.7  # inches; a higher legend makes the figure higher
# Marker sizes in typographic points: the first checkpoint, the growth for each later one, the last one, the base.
FIRST, GROWTH, LAST, STAR = 4.0, 1.0, 8.5, 14.0


@dataclass(frozen=True)
class Spot:
    """One checkpoint in one panel: its place with intervals, and its mark."""

    arm: str
    x: Interval
    y: Interval
    colour: str
    mark: str
    size: float
    last: bool


def frontier(table: Mapping[str, Any], path: Path, task: str | None = None) -> None:
    """Draw the table's rows into a PNG, with one reasoning task or, by default, the mean of all."""
    rows = table["rows"]
    tasks = list(dict.fromkeys(name for row in rows for name in row["reasoning"] if task in (None, name)))
    named = {0: "", 1: f": {''.join(tasks)}"}.get(len(tasks), f", mean of {len(tasks)} tasks")
    figure = Figure(figsize=INCHES, dpi=DPI)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    legend = _legend(figure, rows, bool(table.get("matched_safety")))
    height = INCHES[1] + max(0.0, legend - LEGEND)
    figure.set_size_inches(INCHES[0], height)
    figure.subplots_adjust(left=0.082, right=0.975, top=1 - 0.5 / height, bottom=(0.72 + legend) / height, wspace=0.09)
    left.set_ylabel("harmful requests refused", fontsize=10, color=INK)
    title = f"{table['recipe']}: {table['model']}"
    title = title if len(title) <= 80 else f"{title[:38]} ... {title[-38:]}"
    figure.text(0.082, 1 - 0.247 / height, title, fontsize=11, weight="bold", color=INK)
    panels = (
        (left, f"problems solved{named}", _spots(rows, [solved(row, task) for row in rows])),
        (right, "ordinary requests answered", _spots(rows, [answered(row) for row in rows])),
    )
    level = (table.get("matched_safety") or {}).get("safety")
    heights = [spot.y for _, _, spots in panels for spot in spots]
    left.set_ylim(*_limits(heights + ([(level, level, level)] if level is not None else [])))
    for axes, what, spots in panels:
        _frame(axes, what)
        if level is not None:
            axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlim(*_limits([spot.x for spot in spots]))
        if not spots:
            axes.text(0.5, 0.5, "not measured in this study", transform=axes.transAxes, ha="center", color=GREY)
        _draw(axes, spots)
    save(figure, path)


def _spots(rows: Rows, across: Sequence[Interval | None]) -> list[Spot]:
    """Return the rows that were measured in both directions, with the style of the arm and the checkpoint's size."""
    looks = _looks(rows)
    points = [(row["arm"], x, row["safety"]) for row, x in zip(rows, across, strict=True)]
    shown = [(arm, x, (y["value"], y["low"], y["high"])) for arm, x, y in points if x and y["value"] is not None]
    spots = []
    for i, (arm, x, y) in enumerate(shown):
        nth, last = [a for a, _, _ in shown[:i]].count(arm), arm not in [a for a, _, _ in shown[i + 1 :]]
        size = STAR if arm == "base" else LAST if last else min(FIRST + GROWTH * nth, LAST - 2)
        spots.append(Spot(arm, x, y, *looks[arm], size, last))
    return spots


def _looks(rows: Rows) -> dict[str, tuple[str, str]]:
    """Return the colour and the mark of every arm."""
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != "base"]
    looks = {arm: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, arm in enumerate(arms)}
    return {"base": ("black", "*")} | looks


def _limits(intervals: Sequence[Interval]) -> tuple[float, float]:
    """Return the ends of an axis that holds all intervals and marks, long enough that noise does not look large."""
    low, high = min((i[1] for i in intervals), default=0.0), max((i[2] for i in intervals), default=1.0)
    short = max(0.0, 0.3 - (high - low)) / 2
    low, high = low - short, high + short
    shift = max(0.0, -low) - max(0.0, high - 1)
    room = 0.06 * (high - low)
    return max(0.0, low + shift) - room, min(1.0, high + shift) + room


def _frame(axes: Axes, what: str) -> None:
    """Draw axis label, ticks, grid, and the direction that is better."""
    axes.set_xlabel(what, fontsize=10, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    quiet_axes(axes, 9)
    axes.text(1.0, 1.02, "better \u2197", transform=axes.transAxes, fontsize=9.5, color=GREY, ha="right", va="bottom")


def _draw(axes: Axes, spots: Sequence[Spot]) -> None:
    """Draw bars at the true places, and lines and marks at places moved apart so that no mark hides another."""
    places = _apart(axes, spots)
    for spot in spots:
        strong = 0.5 if spot.last else 0.22
        (x, x_low, x_high), (y, y_low, y_high) = spot.x, spot.y
        style: dict[str, Any] = {"color": spot.colour, "linewidth": 0.9, "alpha": strong, "zorder": 2, "clip_on": False}
        axes.plot([x_low, x_high], [y, y], **style)
        axes.plot([x, x], [y_low, y_high], **style)
    base = [place for spot, place in zip(spots, places, strict=True) if spot.arm == "base"][:1]
    for arm in dict.fromkeys(spot.arm for spot in spots if spot.arm != "base"):
        way = base + [place for spot, place in zip(spots, places, strict=True) if spot.arm == arm]
        colour = next(spot.colour for spot in spots if spot.arm == arm)
        axes.plot(*zip(*way, strict=True), color=colour, linewidth=1.2, alpha=0.65, zorder=3, clip_on=False)
    for spot, (x, y) in zip(spots, places, strict=True):
        axes.plot(
            x, y, zorder=5 if spot.last else 4, clip_on=False, **_mark(spot.colour, spot.mark, spot.size, spot.last)
        )


def _mark(colour: str, mark: str, size: float, last: bool) -> dict[str, Any]:
    return {
        "marker": mark,
        "markersize": size,
        "color": colour,
        "linestyle": "none",
        "markerfacecolor": colour if last else "white",
        "markeredgecolor": "white" if last else colour,
        "markeredgewidth": 0.8 if last else 1.2,
    }


def _apart(axes: Axes, spots: Sequence[Spot]) -> list[stats.Point]:
    """Return places for the marks, in data coordinates within 0 to 100 %: pushed apart until none hides another."""
    ends = axes.transData.transform([(0.0, 0.0), (1.0, 1.0)])
    sizes = np.array([spot.size for spot in spots]) * DPI / 72
    room = (sizes[:, None] + sizes) / 2
    # Coinciding marks need a direction in which to part: each gets a tiny offset in a different one.
    turns = 2.4 * np.arange(len(spots))
    hair = 0.01 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    places = axes.transData.transform(np.array([(spot.x[0], spot.y[0]) for spot in spots]).reshape(-1, 2))
    for _ in range(600):
        away = (places + hair)[:, None] - (places + hair)
        distance = np.hypot(away[..., 0], away[..., 1]) + np.eye(len(spots))
        short = np.clip(room - distance, 0, None) * (1 - np.eye(len(spots)))
        # Mostly sideways: readers take the safety from the height.
        push = (away / distance[..., None] * short[..., None]).sum(axis=1) * (0.3, 0.12)
        places = np.clip(places + push, ends[0], ends[1])
    return [(float(x), float(y)) for x, y in axes.transData.inverted().transform(places)]


def _legend(figure: Figure, rows: Rows, dashed: bool) -> float:
    """Draw an entry for each arm with its trained parameters, and return the height of the legend in inches."""
    trained = {row["arm"]: row["trainable_parameters"] for row in rows}
    entries = []
    for arm, (colour, mark) in _looks(rows).items():
        label = arm if arm == "base" else f"{arm} ({_short(trained[arm])})"
        entries.append(Line2D([], [], label=label, **_mark(colour, mark, 11.0 if arm == "base" else LAST, last=True)))
    for columns in range(len(entries), 0, -1):
        legend = figure.legend(
            handles=entries,
            loc="lower center",
            bbox_to_anchor=(INCHES[0] / 2, 0.23),
            bbox_transform=figure.dpi_scale_trans,
            ncols=columns,
            fontsize=9,
            frameon=False,
            labelcolor=INK,
            handletextpad=0.2,
            columnspacing=1.6,
            borderaxespad=0.0,
        )
        box = legend.get_window_extent()
        if columns == 1 or box.width < 0.97 * figure.bbox.width:
            break
        legend.remove()
    notes = ["bars: 95 % intervals", *["dashed: matched safety"] * dashed]
    if len(entries) > 1:
        notes = [
            "brackets: trained parameters",
            "filled: last checkpoint",
            *notes,
            "coinciding marks: side by side",
        ]
    note: dict[str, Any] = {"fontsize": 8, "color": GREY, "ha": "center", "transform": figure.dpi_scale_trans}
    figure.text(INCHES[0] / 2, 0.08, "  \u00b7  ".join(notes), **note)
    return float(box.height) / DPI


def _short(number: int | None) -> str:
    """Return a number in short form: 21k for 21120."""
    value = float(number or 0)
    for unit in ("", "k", "M", "B"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"
