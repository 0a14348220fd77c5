"""Shares that several places derive from a row of a table, and the frontier: without torch, for the page too."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowtax.common import stats

Row = Mapping[str, Any]
Interval = tuple[float, float, float]  # value, low, high


def solved(row: Row, task: str | None = None) -> Interval | None:
    """Return the share of problems solved, of one task or the mean of all; None if a result is missing."""
    cells = [cell for name, cell in row["reasoning"].items() if task in (None, name)]
    if not cells or any(cell["value"] is None for cell in cells):
        return None
    return stats.mean_interval([(cell["value"], cell["low"], cell["high"]) for cell in cells])


def answered(row: Row) -> Interval | None:
    """Return the share of ordinary requests that were not refused; None if it was not measured."""
    cell = row["over_refusal"]
    return None if cell["value"] is None else (1 - cell["value"], 1 - cell["high"], 1 - cell["low"])


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other row beats in problems solved and harmful requests refused."""
    measured = [row for row in rows if solved(row) and row["safety"]["value"] is not None]
    return [measured[i] for i in stats.nondominated(points(measured))]


def points(rows: Sequence[Row]) -> list[stats.Point]:
    """Return problems solved and harmful requests refused of the rows that have both."""
    both = [(solved(row), row["safety"]["value"]) for row in rows]
    return [(right[0], refused) for right, refused in both if right is not None and refused is not None]
