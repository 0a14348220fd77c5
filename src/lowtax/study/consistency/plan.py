"""The plan of a consistency study for people: every cell, and what it trains, samples and judges."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lowtax.common.tables import markdown_table
from lowtax.study.consistency.axes import AXES
from lowtax.study.consistency.cells import SETS, Cell, Grid
from lowtax.study.consistency.running import Place, finished, summary
from lowtax.study.dryrun.counts import RequestCount
from lowtax.study.dryrun.plan import Plan, plan
from lowtax.study.recipe import Recipe


@dataclass(frozen=True)
class CellPlan:
    """The work of a cell: training runs, replies to draw and texts to judge at most; none if it is finished."""

    name: str
    what: str
    runs: int
    replies: int
    texts: int
    finished: bool


def planned(grid: Grid, place: Place) -> list[CellPlan]:
    """Return what each cell does. Numbers of replies are those of `lowtax run --dry-run`."""
    whole, records = plan(grid.recipe), place.progress()
    return [_one(cell, place, whole, records) for cell in grid.cells.values()]


def _one(cell: Cell, place: Place, whole: Plan, records: Mapping[str, Any]) -> CellPlan:
    if finished(cell, place, records):
        return CellPlan(cell.name, "finished", 0, 0, 0, True)
    recipe, copied = cell.change.recipe, cell.kind is None and place.study is not None
    trained = cell.kind == "training" or (cell.kind is None and not copied)
    checkpoints = (whole.subjects - 1) * len(recipe.seeds) // len(whole.seeds)
    of_base = 0 if cell.kind == "training" and cell.same_arithmetic else 1
    replies = texts = 0
    for sheet in whole.sheets:
        anew = _drawn_anew(sheet, cell, copied)
        number = (sheet.requests - sheet.repeated) // sheet.subjects * (checkpoints + of_base)
        replies += number * anew
        texts += number * _judged(sheet, recipe) * (anew or cell.kind == "reading")
    return CellPlan(
        cell.name, summary(cell, place), len(recipe.arms) * len(recipe.seeds) * trained, replies, texts, False
    )


def _drawn_anew(sheet: RequestCount, cell: Cell, copied: bool) -> bool:
    if copied or cell.kind == "reading" or sheet.kind == "own answers":
        return False
    name = sheet.name if sheet.kind == "task" else sheet.kind
    return name in cell.moves


def _judged(sheet: RequestCount, recipe: Recipe) -> int:
    """Return how many texts of a reply the judge reads at most."""
    if sheet.kind not in SETS:
        return 0
    return len({recipe.judged_text, *recipe.judged_also}) if sheet.kind == "harmful" else 1


def markdown(cells: Sequence[CellPlan], grid: Grid) -> str:
    """Return the plan as a table with a caption."""
    lines = [["cell", "", "trainings", "replies", "texts to judge"]]
    for cell in cells:
        lines.append([cell.name, cell.what, f"{cell.runs:,}", f"{cell.replies:,}", f"{cell.texts:,}"])
    total = [sum(getattr(cell, name) for cell in cells) for name in ("runs", "replies", "texts")]
    lines.append(["all", "", *(f"{number:,}" for number in total)])
    left = [name for name, axis in AXES.items() if name not in grid.levels and axis.refuse(grid.recipe) is None]
    others = f" Axes that apply and are not in it: {', '.join(left)}; name them by --axis." if left else ""
    return (
        f"{markdown_table(lines, left=2)}\n\nOne factor at a time: each cell differs from the reference in one axis. A "
        f"model's own answers, which it trains on, are drawn beside these replies, once for each arithmetic.{others}"
    )


def as_json(cells: Sequence[CellPlan]) -> dict[str, Any]:
    """Return the plan as JSON data."""
    return {"cells": [asdict(cell) for cell in cells]}
