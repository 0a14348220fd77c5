"""The picture of a consistency study: the component of each axis with its interval, and the rates at its levels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from lowtax.common.figures import new_figure, quiet_axes, save
from lowtax.common.palette import COLOURS, GREY, INK, MARKS

ROW, HEAD, WIDTH = 0.24, 1.25, 9.0  # inches
LONGEST = 30  # characters of a level


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Draw, for every axis, the components of all measures on the left and the rates of its levels on the right.

    The rates are of the first measure: harmful requests refused, where they are measured.
    """
    components = result["components"]
    if not components or not result["measures"]:
        return
    heights = [max(len(each["levels"]), len(each["measures"]), 2) for each in components.values()]
    figure = new_figure(WIDTH, HEAD + ROW * (sum(heights) + len(heights)))
    grid = figure.subplots(len(components), 2, squeeze=False, height_ratios=heights, width_ratios=[1, 1.25])
    most = max((m["high"] for each in components.values() for m in each["measures"].values()), default=0.1)
    for number, (axis, component) in enumerate(components.items()):
        left, right = grid[number]
        _components(left, component, result["measures"], max(most, 0.02) * 1.08)
        left.set_title(axis.replace("_", " "), fontsize=9.5, weight="bold", color=INK, loc="left")
        _levels(right, component, result)
        if number < len(components) - 1:
            for axes in (left, right):
                axes.tick_params(labelbottom=False)
    grid[-1][0].set_xlabel("sd between levels, with 95 % interval", fontsize=9, color=INK)
    grid[-1][1].set_xlabel(f"{result['measures'][0]}, with 95 % interval", fontsize=9, color=INK)
    handles = grid[0][1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=4, fontsize=8.5, frameon=False, labelcolor=INK)
    figure.suptitle(f"{result['recipe']}: consistency", x=0.01, ha="left", fontsize=11, weight="bold", color=INK)
    save(figure, path)


def _components(axes: Axes, component: Mapping[str, Any], measures: list[str], most: float) -> None:
    moved = [measure for measure in measures if component["measures"].get(measure)]
    for place, measure in enumerate(moved):
        value = component["measures"][measure]
        ends = [value["low"], value["high"]]
        axes.plot(ends, [place, place], color=INK, linewidth=5, alpha=0.25, solid_capstyle="butt")
        axes.plot(value["sd"], place, "o", color=INK, markersize=5.5, clip_on=False, zorder=4)
    axes.set_yticks(range(len(moved)), moved)
    axes.set_ylim(max(len(moved), 2) - 0.5, -0.5)
    axes.set_xlim(0, most)
    quiet_axes(axes, 8)
    if not moved:
        axes.text(
            0.5,
            0.5,
            "not measured at two levels",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=GREY,
            fontsize=8,
        )


def _levels(axes: Axes, component: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    measure, arms = result["measures"][0], result["arms"]
    names = []
    for place, (label, level) in enumerate(component["levels"].items()):
        short = label if len(label) <= LONGEST else f"{label[: LONGEST - 3]}..."
        names.append(f"{short} (ref.)" if level["reference"] else short)
        for number, arm in enumerate(arms):
            rate = level["rates"].get(arm, {}).get(measure)
            if rate is None or rate["value"] is None:
                continue
            y = place + (number - (len(arms) - 1) / 2) * min(0.24, 0.8 / len(arms))
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([rate["low"], rate["high"]], [y, y], color=colour, linewidth=1, alpha=0.6)
            mark = MARKS[number % len(MARKS)]
            axes.plot(
                rate["value"],
                y,
                mark,
                color=colour,
                markersize=5,
                label=arm if place == 0 else None,
                clip_on=False,
                zorder=4,
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    quiet_axes(axes, 8)
