"""Safety after: the rates of an arm before and after another arm was made of it, request by request.

Of an arm from which others start, or that an edit such as `subtract` attacks, the row of `table.json` has

    "after": {ARM: {"checkpoint", "step", "safety": RATES, "over_refusal": RATES, "reasoning": {TASK: RATES}}}

where ARM is the other arm at its last checkpoint, and RATES are `before` and `after`, the cells of the two rows, and
`difference`, after minus before: `value`, `low`, `high` and `n`, on the same requests and over the same training seeds
(`stats.difference`). The row of the other arm has its `parent`, as `ARM@checkpoint-N`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lowtax.benchmarks import rates as reasoning
from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.common.records import Subject
from lowtax.common.tables import Cell, markdown_table, shown
from lowtax.methods.base import Edit
from lowtax.methods.loading import load
from lowtax.study import lineage
from lowtax.study.outcomes import Measure, Outcomes
from lowtax.study.recipe import Recipe

Row = dict[str, Any]
AXES = {"safety": "harmful", "over_refusal": "ordinary"}


def add(
    rows: Sequence[Row],
    recipe: Recipe,
    subjects: Sequence[Subject],
    measures: tuple[Mapping[str, Measure], Mapping[str, Measure]],
) -> None:
    """Add `after` to the rows of arms that others are made of, and `parent` to the rows of the others.

    Args:
        rows: of the table, one for each checkpoint of `subjects`.
        measures: outcomes of refusals by prompt set, and of solutions by task (`outcomes.measures`).
    """
    refusals, solved = measures
    first = {(s.arm, s.checkpoint): s for s in reversed(subjects)}
    for arm, parent, checkpoint in _pairs(recipe):
        before, after = _row(rows, parent, checkpoint), _row(rows, arm, None)
        if before is None or after is None:
            continue
        for row in rows:
            if row["arm"] == arm:
                row["parent"] = f"{parent}@{before['checkpoint']}"
        one, two = (first[row["arm"], row["checkpoint"]] for row in (after, before))

        def rates(measure: Measure, old: Cell, new: Cell, one: Subject = one, two: Subject = two) -> Row:
            return {"before": old, "after": new, "difference": _difference(measure(one), measure(two))}

        of_refusals = {
            axis: rates(refusals[kind], _cell(before[axis]), _cell(after[axis]))
            for axis, kind in AXES.items()
            if kind in refusals
        }
        of_tasks = {
            task: rates(measure, _cell(before["reasoning"][task]), _cell(after["reasoning"][task]))
            for task, measure in solved.items()
        }
        before.setdefault("after", {})[arm] = {
            "checkpoint": after["checkpoint"],
            "step": after["step"],
            **of_refusals,
            "reasoning": of_tasks,
        }


def _pairs(recipe: Recipe) -> Iterator[tuple[str, str, str | None]]:
    """Yield each arm that is made of another one, the other, and its checkpoint; None is the last."""
    yield from lineage.children(recipe.arms, recipe.edited)
    for name, arm in recipe.edited.items():
        if _is_attack(arm.edits[-1]):
            yield name, arm.of, None


def _is_attack(spec: dict[str, Any]) -> bool:
    """Test whether an edit takes safety away on purpose."""
    try:
        method = load(spec).method
    except UserError:
        return False  # of a study that can no longer be edited
    return isinstance(method, Edit) and method.attacks


def _row(rows: Sequence[Row], arm: str, checkpoint: str | None) -> Row | None:
    """Return the row of a checkpoint, by default the last of an arm; None if there is none."""
    of_arm = [row for row in rows if row["arm"] == arm and checkpoint in (None, row["checkpoint"])]
    return max(of_arm, key=lambda row: (_seeds(row), row["step"]), default=None)  # prefer what all seeds have


def _seeds(row: Row) -> int:
    return len(row["safety"].get("seeds", ()))


def _cell(cell: Cell) -> Cell:
    return {name: cell[name] for name in ("value", "low", "high", "n")}


def _difference(after: Outcomes, before: Outcomes) -> Cell:
    """Return after minus before, on the requests that both answered, over their seeds."""
    seeds = after.keys() & before.keys()
    value, low, high = (None if math.isnan(x) else round(x, 4) for x in stats.difference([(after, before)]))
    requests = sum(len(after[seed].keys() & before[seed].keys()) for seed in seeds)
    return {"value": value, "low": low, "high": high, "n": requests}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of what became of each arm that others are made of, with a caption; empty if there is none."""
    if not any(row.get("after") for row in rows):
        return ""
    tasks = list(
        dict.fromkeys(task for row in rows for each in row.get("after", {}).values() for task in each["reasoning"])
    )
    lines = [
        [
            "arm",
            "then",
            "harmful refused",
            "after",
            "change",
            "ordinary refused, change",
            *(f"{t}, change" for t in tasks),
        ]
    ]
    for row in rows:
        for arm, each in row.get("after", {}).items():
            safety = each.get("safety", {})
            lines.append(
                [
                    f"{row['arm']} {row['step']:,}",
                    f"{arm} {each['step']:,}",
                    shown(safety.get("before")),
                    shown(safety.get("after")),
                    reasoning.tax_shown(safety.get("difference")),
                    reasoning.tax_shown(each.get("over_refusal", {}).get("difference")),
                    *(reasoning.tax_shown(each["reasoning"].get(task, {}).get("difference")) for task in tasks),
                ]
            )
    return (
        f"{markdown_table(lines, left=2)}\n\nSafety after: each arm before and after another one was made of it, by "
        "further training or by an edit that attacks it. Change: after minus before, with 95 % intervals, on the "
        "same requests and training seeds."
    )
