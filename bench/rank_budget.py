"""The formula of `lowtax.analysis.rank_budget` beside its simulation: base loss by rank, and the cost of excess rank.

    python bench/rank_budget.py            # writes bench/results/rank_budget.json and docs/explanation/theory.png
    python bench/rank_budget.py --quick    # fewer runs; writes nothing

An interval is 1.96 standard errors of the mean over runs, each with subspaces, inputs and noise of its own.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowtax.analysis.rank_budget import (
    Setting,
    draw,
    intrinsic_dimension,
    overshoot_rate,
    predicted,
    simulate,
    top_energy,
)
from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

ROOT = Path(__file__).parents[1]
RESULT, PICTURE = ROOT / "bench" / "results" / "rank_budget.json", ROOT / "docs/explanation/theory.png"
START = Setting(base=64)
BASES = (32, 64, 128, 256, 512)
EXCESS = 8
NEEDED = len(START.change)
RANKS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32)
REGIMES: dict[str, dict[str, Any]] = {
    "all shared": {"shared": 32, "needed_share": 1.0},
    "half shared": {},
    "half shared, decaying": {"decay": 1.0},
    "at random in 1024": {"shared": None},
    "none shared": {"shared": 0},
}
OTHERS: dict[str, list[Any]] = {
    "examples": [64, 128, 256, 1024, 4096],
    "noise": [0.0, 0.05, 0.4, 0.8],
    "outputs": [16, 64, 512],
    "change": [(), (3.0,), (3.0,) * 8, (1.0, 0.8, 0.6), (0.4, 0.3, 0.2)],
}
STEPS = (30, 100, 300, 1000, 10000)


def interval(values: Any) -> tuple[float, float, float]:
    """Mean over runs and its 95 % interval."""
    mean, half = np.mean(values), 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
    return float(mean), float(mean - half), float(mean + half)


def rates(setting: Setting, runs: int) -> np.ndarray:
    """Base loss a rank, over the first EXCESS ranks above the needed one, by run."""
    needed = len(setting.change)
    curves = [simulate(setting, [needed, needed + EXCESS], [1, setting.base, run]).base_cost for run in range(runs)]
    return np.array([(after - before) / EXCESS for before, after in curves])


def compared(setting: Setting, runs: int) -> dict[str, Any]:
    """Predicted and simulated rate, and their quotient, with interval."""
    formula, found = overshoot_rate(setting, EXCESS), interval(rates(setting, runs))
    return {
        "predicted": formula,
        "simulated": found,
        "quotient": [value / formula for value in found] if formula else None,
    }


def curves(runs: int) -> list[dict[str, Any]]:
    """Base loss and error on the new task by rank, for every number of base dimensions."""
    found = []
    for base in BASES:
        setting = replace(START, base=base)
        runs_of = [simulate(setting, RANKS, [0, base, run]) for run in range(runs)]
        formula = predicted(setting, RANKS)
        for name, wanted in (("base_cost", formula.base_cost), ("task_error", formula.task_error)):
            values = np.array([asdict(curve)[name] for curve in runs_of])
            points = [interval(column) for column in values.T]
            found.append({"base": base, "of": name, "predicted": wanted.tolist(), "simulated": points})
    return found


def regimes(runs: int) -> list[dict[str, Any]]:
    """The rate for every number of base dimensions, where the two tasks share inputs in different ways."""
    found = []
    for name, options in REGIMES.items():
        settings = [replace(START, base=base, **options) for base in BASES]
        by_base = np.array([rates(setting, runs) for setting in settings])
        sizes = [intrinsic_dimension(setting.variances) for setting in settings]
        found.append(
            {
                "regime": name,
                "base": BASES,
                "intrinsic_dimension": sizes,
                "predicted": [overshoot_rate(setting, EXCESS) for setting in settings],
                "simulated": [interval(row) for row in by_base],
                "exponent_in_base": slope(BASES, by_base),
                "exponent_in_intrinsic_dimension": slope(sizes, by_base),
            }
        )
    return found


def slope(sizes: Sequence[float], by_size: np.ndarray) -> tuple[float, float, float] | None:
    """Exponent p of rate ~ size^p by least squares in logarithms, one run at a time; -1 is inverse proportionality."""
    if not by_size.min() > 0:
        return None
    return interval(np.polyfit(np.log(sizes), np.log(by_size), 1)[0])


def sensitivity(runs: int) -> list[dict[str, Any]]:
    """The rate with one assumption at a time stretched; `clarity` is how far the change stands out of the noise."""
    found = []
    for name, values in OTHERS.items():
        for value in values:
            setting = replace(START, **{name: value})
            floor = setting.error * (setting.outputs * setting.tuning) ** 0.5
            clarity = min(setting.change) ** 2 / floor if setting.change and floor else None
            found.append({"setting": {name: value}, "clarity": clarity, **compared(setting, runs)})
    return found


def spectrum(runs: int) -> list[dict[str, Any]]:
    """`top_energy` beside drawn matrices."""
    found = []
    for rows, columns in ((32, 32), (128, 32), (128, 16), (400, 100)):
        random = np.random.default_rng([rows, columns])
        drawn = [np.linalg.svd(random.standard_normal((rows, columns)), compute_uv=False) for _ in range(runs)]
        sums = np.square(drawn).cumsum(axis=1)
        for k in (1, 4, 8, 16):
            quotient = [value / top_energy(rows, columns, k) for value in interval(sums[:, k - 1])]
            found.append({"rows": rows, "columns": columns, "k": k, "quotient": quotient})
    return found


def descend(setting: Setting, rank: int, seed: list[int], speed: float = 0.05) -> np.ndarray:
    """Base loss at STEPS of a LoRA that gradient descent trains on the data of `simulate`, and what of it is left over
    from its start, (STEPS, 2).

    b starts at 0 and a as in PEFT, at random over all inputs of the layer. Along base directions that fine-tuning never
    shows, a keeps its start: that is the second column.
    """
    data, scale = draw(setting, seed), setting.tuning / setting.examples
    random, start = np.random.default_rng([rank, *seed]), (3 * setting.ambient) ** -0.5
    a = start * random.standard_normal((rank, setting.tuning))
    outside = start * random.standard_normal((rank, setting.base - (setting.shared or 0)))
    b = np.zeros((setting.outputs, rank))
    gram, cross = scale * data.inputs @ data.inputs.T, scale * data.residuals @ data.inputs.T
    costs = []
    for step in range(1, STEPS[-1] + 1):
        gradient = b @ (a @ gram) - cross
        a, b = a - speed * b.T @ gradient, b - speed * gradient @ a.T
        if step in STEPS:
            costs.append([(b @ a @ data.exposed * (b @ a)).sum(), np.square(b @ outside).sum() / setting.base])
    return np.array(costs)


def trained(runs: int) -> list[dict[str, Any]]:
    """Base loss of that LoRA divided by that of the exact solution, by rank and step."""
    found = []
    for rank in (NEEDED, NEEDED + EXCESS):
        quotients = [
            descend(START, rank, [2, run]) / simulate(START, [rank], [2, run]).base_cost for run in range(runs)
        ]
        by_step = np.array(quotients).transpose(1, 2, 0)
        for step, (inside, outside) in zip(STEPS, by_step, strict=True):
            found.append({"rank": rank, "steps": step, "inside": interval(inside), "start": interval(outside)})
    return found


def picture(result: dict[str, Any], path: Path) -> None:
    """Left: base loss by rank. Right: what a rank too many costs, by the base task's dimensions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lowtax.common.palette import COLOURS, GREY, INK

    figure = Figure(figsize=(10.4, 4.2), dpi=160)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.068, right=0.9, top=0.84, bottom=0.13, wspace=0.46)
    rows = [row for row in result["curves"] if row["of"] == "base_cost" and row["base"] < BASES[-1]]
    ranks = range(RANKS[-1] + 1)
    for row, colour in zip(rows, COLOURS, strict=False):
        left.plot(ranks, predicted(replace(START, base=row["base"]), ranks).base_cost, color=colour, lw=1.3)
        bars(left, RANKS, np.array(row["simulated"]), colour)
        name(left, RANKS[-1], row["predicted"][-1], f"{row['base']} base\ndimensions", colour)
    left.axvline(NEEDED, color=GREY, lw=0.9, ls="--")
    left.text(NEEDED + 0.6, 0.97, "needed rank", transform=left.get_xaxis_transform(), color=GREY, fontsize=9, va="top")
    left.set(xlabel="rank of the update", ylabel="base loss added / E|W x|\u00b2")
    left.set_title("Beyond the needed rank the base task pays", fontsize=11, loc="left", color=INK)
    drawn = [row for row in result["regimes"] if "decaying" not in row["regime"]]
    for row, colour in zip(drawn, COLOURS, strict=False):
        lines = [replace(START, base=base, **REGIMES[row["regime"]]) for base in range(BASES[0], BASES[-1] + 1, 8)]
        rate = [overshoot_rate(setting, EXCESS) for setting in lines]
        right.plot([1 / setting.base for setting in lines], rate, color=colour, lw=1.3)
        bars(right, 1 / np.array(BASES), np.array(row["simulated"]), colour)
        height = rate[0] + (0.0009 if 0 < rate[0] < 0.001 else 0)  # the two lowest labels, off each other
        name(right, 1 / BASES[0], height, row["regime"].replace(" in ", "\nin "), colour)
    right.set_xlim(0, 1 / BASES[0])
    right.set_xticks([0, *(1 / base for base in BASES[:-1])], ["0", *(f"1/{base}" for base in BASES[:-1])])
    right.set(
        xlabel="1 / dimensions of the base task's inputs", ylabel=f"base loss a rank, of the first {EXCESS} too many"
    )
    right.set_title("Inversely proportional, where inputs are shared", fontsize=11, loc="left", color=INK)
    for axes in (left, right):
        axes.set_ylim(0)
        axes.grid(color="#e4e4e4", lw=0.7)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    above = "A linear model, ours: lines are the formula, points simulations; 95 % intervals, mostly within the points"
    figure.text(0.068, 0.945, above, fontsize=10, color=GREY)
    beside = path.with_name(f".{path.name}.tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)


def name(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """What a line is, at its right end."""
    axes.annotate(text, (x, y), (10, 0), textcoords="offset points", color=colour, fontsize=9, va="center")


def bars(axes: Any, x: Any, points: np.ndarray, colour: str) -> None:
    """Points with their intervals."""
    mean, low, high = points.T
    axes.errorbar(x, mean, [mean - low, high - mean], fmt="o", ms=4, color=colour, elinewidth=1.2, clip_on=False)


def main() -> None:
    """Simulate, print what matters, write the result and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs; writes nothing")
    runs = 4 if (quick := parser.parse_args().quick) else 64
    began = time.perf_counter()
    result: dict[str, Any] = {
        "setting": asdict(START),
        "excess": EXCESS,
        "runs": runs,
        "ranks": RANKS,
        "curves": curves(runs),
        "regimes": regimes(runs),
        "sensitivity": sensitivity(runs),
        "top_energy": spectrum(16 * runs if not quick else runs),
        "trained": trained(max(2, runs // 8)),
    }
    result["seconds"] = round(time.perf_counter() - began, 1)
    for row in result["regimes"]:
        print(f"{row['regime']}: exponent in base dimensions {said(row['exponent_in_base'])}, "
              f"in intrinsic dimension {said(row['exponent_in_intrinsic_dimension'])}")  # fmt: skip
    for row in [*result["sensitivity"], *result["top_energy"]]:
        where = {name: value for name, value in row.items() if name in ("setting", "clarity", "rows", "columns", "k")}
        print(f"{where}: simulated / predicted {said(row['quotient'])}")
    for row in result["trained"]:
        print(f"rank {row['rank']}, {row['steps']} steps: base loss {said(row['inside'])} of the exact fit's, "
              f"and {said(row['start'])} from the start of a")  # fmt: skip
    print(f"{result['seconds']} s")
    if not quick:
        write_json(RESULT, {**result, **provenance()})
        picture(result, PICTURE)


def said(found: Sequence[float] | None) -> str:
    """Mean and interval in words."""
    return "not defined" if found is None else f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


if __name__ == "__main__":
    main()
