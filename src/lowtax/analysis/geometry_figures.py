"""Figures of the anatomy of updates: stable rank by layer, overlap by module, norms by layer and module.

A panel is a kind of module (for norms, an arm). Modules outside of the layers, such as embeddings, are in geometry.json
only. A fourth figure has the maps of singular vectors, if the report has them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lowtax.common.figures import new_figure, quiet_axes, save
from lowtax.common.palette import COLOURS, GREY, INK, MARKS

Row = Mapping[str, Any]
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTH, HEIGHT = 2.35, 1.9  # of a panel, in inches
FILES, SIMILARITY = ("stable_rank.png", "overlap.png", "norms.png"), "similarity.png"
MAP = 2.1  # inches of a map of singular vectors


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """Write the figures of a report, if there is an update in a layer."""
    arms = [(arm["label"], [site for site in arm["sites"] if site["layer"] is not None]) for arm in report["arms"]]
    arms = [(label, sites) for label, sites in arms if any(site["norm"] for site in sites)]
    if not arms:
        return
    for name, figure in zip(FILES, (stable_rank, overlap, norms), strict=True):
        save(figure(arms, report), folder / name)
    if maps := report.get("similarity", {}).get("maps"):
        save(similarity(maps), folder / SIMILARITY)


def stable_rank(arms: Sequence[tuple[str, list[Row]]], report: Mapping[str, Any]) -> Figure:
    """Draw the stable rank of dW over the layers: a panel for each kind of module, a line for each arm."""
    modules = _modules(arms)
    figure, panels = _panels(len(modules), arms)
    figure.supylabel("stable rank of dW", fontsize=10, color=INK)
    for axes, module in zip(panels, modules, strict=False):
        for number, (_, sites) in enumerate(arms):
            points = sorted((s["layer"], s["stable_rank"]) for s in sites if s["module"] == module and s["norm"])
            if points:
                style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
                axes.plot(*zip(*points, strict=True), markersize=3, linewidth=1.1, **style)
        _frame(axes, _short(module), "layer")
        axes.set_ylim(bottom=0)
    return figure


def overlap(arms: Sequence[tuple[str, list[Row]]], report: Mapping[str, Any]) -> Figure:
    """Draw left and right overlap by module, as multiples of that of a random direction; arms are side by side."""
    modules, k = _modules(arms), report["settings"]["top"]
    figure, panels = _panels(2, arms, width=max(3.2, 0.14 * len(modules) * (len(arms) + 1)), height=2.5, columns=2)
    width = 0.8 / len(arms)
    for axes, (side, what) in zip(panels, (("left", "outputs"), ("right", "inputs")), strict=False):
        for number, (_, sites) in enumerate(arms):
            bars = [_times_random(sites, module, side) for module in modules]
            places = np.arange(len(modules)) + (number - (len(arms) - 1) / 2) * width
            axes.bar(places, bars, width, color=COLOURS[number % len(COLOURS)])
        axes.axhline(1, color=INK, linewidth=0.8, linestyle="--")
        _frame(axes, f"{side}: W's top {k} {what}", "")
        axes.set_xticks(range(len(modules)), [_short(module) for module in modules], rotation=35, ha="right")
    figure.supylabel("overlap / random", fontsize=10, color=INK)
    return figure


def norms(arms: Sequence[tuple[str, list[Row]]], report: Mapping[str, Any]) -> Figure:
    """Draw ||dW|| / ||W|| as colour, on a logarithmic scale: a panel for each arm. White means no update."""
    modules = _modules(arms)
    layers = 1 + max(site["layer"] for _, sites in arms for site in sites)
    columns = min(2, len(arms))
    rows = -(-len(arms) // columns)
    figure = new_figure(4.2 * columns + 0.6, (0.26 * len(modules) + 0.75) * rows + 0.2)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    sizes = [site["relative_norm"] for _, sites in arms for site in sites if site["norm"]]
    scale = LogNorm(min(sizes) / 1.05, max(sizes) * 1.05)
    for axes, (label, sites) in zip(panels, arms, strict=False):
        grid = np.full((len(modules), layers), np.nan)
        for site in sites:
            if site["norm"]:
                grid[modules.index(site["module"]), site["layer"]] = site["relative_norm"]
        image = axes.imshow(grid, aspect="auto", cmap="viridis", norm=scale, interpolation="nearest")
        _frame(axes, label, "layer")
        axes.grid(False)
        axes.set_yticks(range(len(modules)), [_short(module) for module in modules])
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=panels, pad=0.02)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("||dW|| / ||W||", fontsize=9, color=INK)
    bar.ax.tick_params(which="both", labelsize=8, colors=GREY, length=0)
    return figure


def similarity(maps: Sequence[Row]) -> Figure:
    """Draw the absolute cosines of singular vectors: a row for each module, a column for each arm that changes it.

    A mark above a column is a vector of W + dW that has no match among those of W.
    """
    modules, labels = (list(dict.fromkeys(one[key] for one in maps)) for key in ("module", "label"))
    figure = new_figure(MAP * len(labels) + 1.1, (MAP + 0.45) * len(modules) + 0.2)
    panels = figure.subplots(len(modules), len(labels), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for one in maps:
        axes = panels[modules.index(one["module"]), labels.index(one["label"])]
        axes.set_axis_on()
        edges = (0.5, one["k"] + 0.5)
        image = axes.imshow(one["cosines"], cmap="magma", vmin=0, vmax=1, extent=(*edges, *edges[::-1]))
        if one["unmatched"]:
            places = [j + 1 for j in one["unmatched"]]
            across = axes.get_xaxis_transform()
            (marks,) = axes.plot(places, [1.03] * len(places), "v", ms=4, color=INK, clip_on=False, transform=across)
            marks.set_in_layout(False)
        _frame(axes, "", "of W + dW")
        axes.set_title(one["label"], fontsize=9, color=INK, loc="left", pad=11)
        axes.set_xlim(*edges)
        axes.set_ylim(*edges[::-1])
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes, module in zip(panels[:, 0], modules, strict=True):
        axes.set_axis_on()
        axes.set_ylabel(f"{module.removeprefix('model.')}\nof W", fontsize=8, color=GREY)
    bar = figure.colorbar(image, ax=panels, pad=0.02, shrink=0.6)
    bar.set_label("|cosine| of left singular vectors", fontsize=8, color=INK)
    bar.ax.tick_params(which="both", labelsize=8, colors=GREY, length=0)
    return figure


def _modules(arms: Sequence[tuple[str, list[Row]]]) -> list[str]:
    """Return the kinds of modules: attention first, then the MLP, then others by name."""
    modules = {site["module"] for _, sites in arms for site in sites if site["norm"]}
    return sorted(modules, key=lambda m: (ORDER.index(_short(m)) if _short(m) in ORDER else len(ORDER), m))


def _short(module: str) -> str:
    return module.rpartition(".")[2]


def _times_random(sites: Sequence[Row], module: str, side: str) -> float:
    """Return the mean overlap of a kind of module as a multiple of a random direction's; 0 without such modules."""
    chosen = [s for s in sites if s["module"] == module and s["norm"]]
    return mean(s["overlap"][side] / s["random_overlap"][side] for s in chosen) if chosen else 0.0


def _panels(
    number: int,
    arms: Sequence[tuple[str, list[Row]]],
    width: float = WIDTH,
    height: float = HEIGHT,
    columns: int = 4,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in rows above one legend of the arms, and the panels."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure(width * columns + 0.3, height * rows + 0.25 + 0.2 * len(arms))
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in panels[number:]:
        axes.set_visible(False)
    handles = [
        panels[0].plot([], [], color=COLOURS[i % len(COLOURS)], marker="s", linestyle="none", label=label)[0]
        for i, (label, _) in enumerate(arms)
    ]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8, labelcolor=INK)
    return figure, panels


def _frame(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(across, fontsize=8, color=GREY)
    if across:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    quiet_axes(axes, 8)
