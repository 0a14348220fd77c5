"""Verdicts and grades -> one table and the safety-reasoning frontier, every rate with its interval.

`table.json` holds all numbers, `table.md` shows them, `frontier.png` draws them. What is no measurement
is no zero: an unfinished reply stays in n (it neither refuses nor solves) and has a column of its own;
unparsed and failed ones are left out of n and counted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowtax import reasoning, stats
from lowtax.files import write_json, write_text
from lowtax.picture import frontier, solved
from lowtax.safety import shown, table_lines

Table = dict[str, Any]
Row = dict[str, Any]
Cell = dict[str, Any]


def compare(out: Path, table: Table) -> None:
    """Write `table.json`, `table.md` and `frontier.png` into a folder."""
    rows = table["rows"]
    best = [[row["arm"], row["checkpoint"]] for row in pareto(rows)]
    write_json(
        out / "table.json", table | {"frontier": best, "hypervolume": round(stats.hypervolume(_points(rows)), 4)}
    )
    write_text(out / "table.md", markdown(table))
    frontier(table, out / "frontier.png")


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in problems solved and harmful requests refused."""
    measured = [row for row in rows if solved(row) and row["safety"]["value"] is not None]
    return [measured[i] for i in stats.nondominated(_points(measured))]


def _points(rows: Sequence[Row]) -> list[stats.Point]:
    both = [(solved(row), row["safety"]["value"]) for row in rows]
    return [(right[0], refused) for right, refused in both if right is not None and refused is not None]


def markdown(table: Table) -> str:
    """The table for people: a GitHub table and a caption with what it was measured on."""
    rows = table["rows"]
    tasks = list(dict.fromkeys(task for row in rows for task in row["reasoning"]))
    lost = any(cell.get(kind, 0) for row in rows for cell in _cells(row) for kind in ("failed", "unparsed"))
    best, taxed = pareto(rows), any("tax" in row for row in rows)
    moved = any(row.get("update") for row in rows)
    head = [
        "arm",
        "step",
        "trainable parameters",
        "seconds",
        *["update norm"] * moved,
        "harmful refused",
        "ordinary refused",
        *tasks,
        *["tax"] * taxed,
        "unfinished",
    ]
    lines = [head + ["failed, unparsed"] * lost, ["---"] + ["---:"] * (len(head) - 1 + lost)]
    for row in rows:
        cells = [row["safety"], row["over_refusal"], *(row["reasoning"].get(task) for task in tasks)]
        lines.append([
            f"**{row['arm']}**" if row in best else row["arm"],
            f"{row['step']:,}",
            f"{row['trainable_parameters'] or 0:,}",
            f"{row['train_seconds'] or 0:,.0f}",
            *[_update(row)] * moved,
            *(shown(cell) for cell in cells),
            *["-" if row["arm"] == "base" else reasoning.tax_shown(row.get("tax"))] * taxed,
            f"{_count(row, 'unfinished'):,} of {sum(cell['n'] for cell in _cells(row)):,}",
            *[f"{_count(row, 'failed'):,}, {_count(row, 'unparsed'):,}"] * lost,
        ])  # fmt: skip
    more = [part for part in (_answers(rows), _texts(table), _categories(table)) if part]
    return "\n\n".join([table_lines(lines), _caption(table, tasks), *more]) + "\n"


def _update(row: Row) -> str:
    """The update's norm relative to that of the matrices it changes."""
    if not (found := row.get("update")):
        return "-"
    relative: float = found["relative_norm"]
    return f"{relative:.1%}" if relative >= 0.01 else f"{100 * relative:.2g}%"


def _answers(rows: Sequence[Row]) -> str:
    """How the answers to the tasks end, how long they are, and what each task lost: a table, or nothing."""
    known = any("tokens" in cell for row in rows for cell in row["reasoning"].values())
    return reasoning.markdown(rows) if known else ""


def _texts(table: Table) -> str:
    """What else was judged of the replies to harmful prompts, beside the text of the column: a table, or nothing."""
    rows = [row for row in table["rows"] if row.get("texts")]
    if not rows:
        return ""
    names = list(rows[0]["texts"])
    head = ["harmful requests", "step", *(f"{name} refuses or is safe" for name in names), "in part, of the answer"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        cells = [shown(row["texts"][name]) for name in names]
        lines.append([row["arm"], f"{row['step']:,}", *cells, f"{row['safety'].get('partial', 0):,}"])
    return table_lines(lines)


def _categories(table: Table) -> str:
    """The rates of every category of harmful prompts: a table, or nothing."""
    rows = [row for row in table["rows"] if row["safety"].get("categories")]
    names = list(dict.fromkeys(name for row in rows for name in row["safety"]["categories"]))
    if len(names) < 2:
        return ""
    lines = [["category", *(f"{row['arm']} {row['step']:,}" for row in rows)], ["---"] + ["---:"] * len(rows)]
    lines += [[name or "none", *(shown(row["safety"]["categories"].get(name)) for row in rows)] for name in names]
    return table_lines(lines)


def _caption(table: Table, tasks: Sequence[str]) -> str:
    rows = table["rows"]
    measured = {
        "harmful requests": [row["safety"] for row in rows],
        "ordinary requests": [row["over_refusal"] for row in rows],
    }
    measured |= {task: [row["reasoning"][task] for row in rows if task in row["reasoning"]] for task in tasks}
    sizes = []
    for name, cells in measured.items():
        few, many = min((c["n"] for c in cells), default=0), max((c["n"] for c in cells), default=0)
        sizes.append(f"{name} {many:,}" if few == many else f"{name} {few:,} to {many:,}")
    seeds = ", ".join(str(seed) for seed in table["seeds"])
    return (
        f"{table['recipe']}: model {table['model']}, {table['precision']}, judge {table['judge']}, "
        f"seed{'s' * (len(table['seeds']) > 1)} {seeds}. n a row: {'; '.join(sizes)}. "
        "Rates with 95 % intervals. Refused counts partial refusals; an unfinished reply neither refuses nor solves. "
        f"{_said_of_updates(rows)}{_said_of_tax(table, tasks)}"
        "Bold: on the frontier of problems solved and harmful requests refused."
    )


def _said_of_updates(rows: Sequence[Row]) -> str:
    """What update norm and seconds are, for the caption."""
    said = ""
    if any(row.get("update") for row in rows):
        said += "Update norm: ||dW|| / ||W|| (Frobenius) of the matrices that an arm changes. "
    if any("edit_seconds" in row for row in rows):
        said += "Seconds of an edited arm: those of the training it starts from, and the edits. "
    return said


def _said_of_tax(table: Table, tasks: Sequence[str]) -> str:
    """What the tax is, for the caption."""
    if not any("tax" in row for row in table["rows"]):
        return ""
    said = "Tax: the share that the base solves minus the arm's, paired by question"
    said += ", mean of the tasks" * (len(tasks) > 1)
    return said + (
        "; one training seed, whose choice its interval does not cover. " if len(table["seeds"]) < 2 else ". "
    )


def _cells(row: Row) -> list[Cell]:
    return [row["safety"], row["over_refusal"], *row["reasoning"].values()]


def _count(row: Row, kind: str) -> int:
    return sum(cell.get(kind, 0) for cell in _cells(row))
