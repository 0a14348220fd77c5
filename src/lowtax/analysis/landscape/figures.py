"""Figures of a landscape: a slice as safe replies above perplexity, a line for each direction; a plane as heat maps.

Bands are 95 % intervals of the rate, which cover the choice of prompts. The spread between the lines of several seeds
shows the effect of the direction.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from lowtax.common.figures import new_figure, quiet_axes, save
from lowtax.common.palette import COLOURS, GREY, INK

Row = Mapping[str, Any]
WIDTH, TOP, BOTTOM = 6.4, 2.6, 1.7  # of a slice, in inches
MAP = (3.6, 3.0)  # of a heat map
ACROSS = {
    "random": "alpha, along a random direction",
    "adapter": "alpha, along the adapter: 0 is the base, 1 the adapter",
    "between": "alpha, from the first checkpoint (0) to the second (1)",
}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw a landscape into a PNG."""
    save((plane if result["slice"]["two"] else line)(result), path)


def line(result: Mapping[str, Any]) -> Figure:
    """Draw safe replies and perplexity over alpha."""
    figure = new_figure(WIDTH, TOP + BOTTOM)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(TOP, BOTTOM))
    groups = _groups(result["points"])
    for number, (seed, rows) in enumerate(groups.items()):
        colour, label = COLOURS[number % len(COLOURS)], "" if seed is None else f"seed {seed}"
        alphas = [row["alpha"] for row in rows]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.4, "marker": "o", "markersize": 3}
        upper.fill_between(
            alphas, *([row["safe"][end] for row in rows] for end in ("low", "high")), color=colour, alpha=0.13, lw=0
        )
        upper.plot(alphas, [row["safe"]["value"] for row in rows], label=label, **style)
        lower.plot(alphas, _numbers(rows), **style)
    upper.set_ylim(-0.03, 1.03)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _logarithmic(lower, [value for row in result["points"] if (value := row["perplexity"]) is not None])
    slice_ = result["slice"]
    for axes, what in ((upper, "refused or safe"), (lower, "perplexity of\nordinary answers")):
        quiet_axes(axes, 8)
        axes.set_ylabel(what, fontsize=9, color=INK)
        axes.axvline(1.0 if slice_["along"] == "adapter" else 0.0, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    lower.set_xlabel(ACROSS[slice_["along"]], fontsize=9, color=INK)
    if len(groups) > 1:
        upper.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    return figure


def plane(result: Mapping[str, Any]) -> Figure:
    """Draw safe replies and log10 of the perplexity over alpha and beta, a row for each seed."""
    groups = _groups(result["points"])
    figure = new_figure(2 * MAP[0], MAP[1] * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (seed, rows), (left, right) in zip(groups.items(), panels, strict=True):
        alphas, betas = (sorted({row[name] for row in rows}) for name in ("alpha", "beta"))
        logs = np.log10(np.array(_numbers(rows)))
        values = [row["safe"]["value"] for row in rows]
        what = f"seed {seed}: " if len(groups) > 1 else ""
        _map(figure, left, values, alphas, betas, f"{what}refused or safe", {"vmin": 0.0, "vmax": 1.0})
        _map(figure, right, logs, alphas, betas, f"{what}log10 perplexity", {"cmap": "magma_r"})
        between = result["slice"]["along"] == "between"
        up = "beta, from the first (0) to the third (1)" if between else "beta, random direction"
        left.set_ylabel(up, fontsize=9, color=INK)
        for axes in (left, right):
            axes.set_xlabel(ACROSS[result["slice"]["along"]].partition(":")[0], fontsize=9, color=INK)
    return figure


def _map(
    figure: Figure,
    axes: Axes,
    values: Sequence[float] | np.ndarray,
    alphas: Sequence[float],
    betas: Sequence[float],
    title: str,
    style: Mapping[str, Any],
) -> None:
    """Draw one heat map of values ordered by alpha, then beta. White means no number."""
    grid = np.array(values, dtype=float).reshape(len(alphas), len(betas)).T
    across, up = ((axis[1] - axis[0]) / 2 for axis in (alphas, betas))
    extent = (alphas[0] - across, alphas[-1] + across, betas[0] - up, betas[-1] + up)
    image = axes.imshow(grid, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **style)
    quiet_axes(axes, 8)
    axes.grid(False)
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.tick_params(labelsize=8, colors=GREY, length=0)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic, with plain numbers as ticks: three a decade if there are few decades."""
    axes.set_yscale("log")
    few = max(values, default=1.0) < 100 * min(values, default=1.0)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _groups(points: Sequence[Row]) -> dict[int | None, list[Row]]:
    seeds = dict.fromkeys(row["seed"] for row in points)
    return {seed: [row for row in points if row["seed"] == seed] for seed in seeds}


def _numbers(rows: Sequence[Row]) -> list[float]:
    """Perplexities; a gap where there is none."""
    return [math.nan if row["perplexity"] is None else row["perplexity"] for row in rows]
