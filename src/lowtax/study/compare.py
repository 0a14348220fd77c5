"""The table of a study, from verdicts and grades: every rate with its interval.

`table.json` holds all numbers, `table.md` shows them. A failure is not a zero: an unfinished reply stays in n (it
neither refuses nor solves) and has a separate column; unparsed and failed replies are left out of n and counted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowtax.benchmarks import rates
from lowtax.common import stats
from lowtax.common.display import Markup, as_markdown
from lowtax.common.files import write_json, write_text
from lowtax.common.tables import Cell, markdown_table, shown
from lowtax.study import after, attack_tables, matched, panel_tables, readings, thought_patterns
from lowtax.study.shares import pareto, points

Table = dict[str, Any]
Row = Mapping[str, Any]


def compare(out: Path, table: Table) -> Table:
    """Write `table.json` and `table.md` into a folder, and return the table with its frontier and hypervolume."""
    rows = table["rows"]
    best = [[row["arm"], row["checkpoint"]] for row in pareto(rows)]
    whole = table | {"frontier": best, "hypervolume": round(stats.hypervolume(points(rows)), 4)}
    write_json(out / "table.json", whole)
    write_text(out / "table.md", markdown(table))
    return whole


def markdown(table: Table) -> str:
    """Return the table as Markdown: a row for each checkpoint, a caption, and further tables where they apply."""
    rows = table["rows"]
    tasks = list(dict.fromkeys(task for row in rows for task in row["reasoning"]))
    lost = any(cell.get(kind, 0) for row in rows for cell in _cells(row) for kind in ("failed", "unparsed"))
    best, taxed = pareto(rows), any("tax" in row for row in rows)
    moved, acts = any(row.get("update") for row in rows), any("logit_change" in row for row in rows)
    in_part = any("in_part" in row["safety"] for row in rows)
    head = [
        "arm",
        "step",
        "trainable parameters",
        "seconds",
        *["update norm"] * moved,
        *["logit change"] * acts,
        "seeds",
        "harmful refused",
        *["in part"] * in_part,
        "ordinary refused",
        *tasks,
        *["tax"] * taxed,
        "unfinished",
        *["failed, unparsed"] * lost,
    ]
    lines = [head]
    for row in rows:
        cells = [row["over_refusal"], *(row["reasoning"].get(task) for task in tasks)]
        lines.append([
            Markup(f"**{as_markdown(row['arm'])}**") if row in best else row["arm"],
            f"{row['step']:,}",
            f"{row['trainable_parameters'] or 0:,}",
            f"{row['train_seconds'] or 0:,.0f}",
            *[_update(row)] * moved,
            *[f"{row['logit_change']:.3g}" if "logit_change" in row else "-"] * acts,
            _seeds(row),
            shown(row["safety"]),
            *[f"{row['safety'].get('in_part', {}).get('value', 0):.2f}"] * in_part,
            *(shown(cell) for cell in cells),
            *["-" if row["arm"] == "base" else rates.tax_shown(row.get("tax"))] * taxed,
            f"{_count(row, 'unfinished'):,} of {sum(cell['n'] for cell in _cells(row)):,}",
            *[f"{_count(row, 'failed'):,}, {_count(row, 'unparsed'):,}"] * lost,
        ])  # fmt: skip
    level = matched.Level(**table.get("matched_safety", {}))
    parts = (
        _failed(table),
        matched.markdown(rows, level),
        after.markdown(rows),
        readings.markdown(table.get("your_reading", ())),
        _answers(rows),
        _texts(table),
        thought_patterns.markdown(rows),
        _sets(rows),
        _categories(table),
        attack_tables.markdown(rows, table.get("judge_kind") == "harm"),
        panel_tables.markdown(table),
    )
    more = [part for part in parts if part]
    return "\n\n".join([markdown_table(lines), _caption(table, tasks), *more]) + "\n"


def _seeds(row: Row) -> str:
    """Return how many training seeds the intervals of a row cover."""
    number = max((len(cell.get("seeds", ())) for cell in _cells(row)), default=0)
    return "-" if row["arm"] == "base" or not number else "one seed" if number == 1 else f"{number}"


def _update(row: Row) -> str:
    """Return the norm of the update relative to that of the matrices it changes."""
    if not (update := row.get("update")):
        return "-"
    relative: float = update["relative_norm"]
    return f"{relative:.1%}" if relative >= 0.01 else f"{100 * relative:.2g}%"


def _failed(table: Table) -> str:
    """Return a table of the arms that failed and are left out of all others; or nothing."""
    lines = [["failed, and not in any table", "seed", "reason"]]
    lines += [[row["arm"], f"{row['seed']}", row["reason"]] for row in table.get("failed", [])]
    return markdown_table(lines) if lines[1:] else ""


def _answers(rows: Sequence[Row]) -> str:
    """Return a table of how the answers to the tasks end, how long they are and what each task lost; or nothing."""
    has_answers = any("tokens" in cell for row in rows for cell in row["reasoning"].values())
    return rates.markdown(rows) if has_answers else ""


def _texts(table: Table) -> str:
    """Return a table of the other texts that were judged of the replies to harmful prompts; or nothing."""
    rows = [row for row in table["rows"] if row.get("texts")]
    if not rows:
        return ""
    names = list(rows[0]["texts"])
    head = ["harmful requests", "step", *(f"{name} refuses or is safe" for name in names), "in part, of the answer"]
    lines = [head]
    for row in rows:
        cells = [shown(row["texts"][name]) for name in names]
        lines.append([row["arm"], f"{row['step']:,}", *cells, f"{row['safety'].get('partial', 0):,}"])
    return markdown_table(lines)


def _sets(rows: Sequence[Row]) -> str:
    """Return a table of the rates of every prompt set, where a study has several of a kind; or nothing."""
    kinds = {"safety": "harmful", "over_refusal": "ordinary"}
    names = [
        (key, name) for key in kinds for name in dict.fromkeys(n for row in rows for n in row[key].get("sets", {}))
    ]
    if not names:
        return ""
    lines = [["refused, of each prompt set", *(f"{row['arm']} {row['step']:,}" for row in rows)]]
    for key, name in names:
        lines.append([f"{name} ({kinds[key]})", *(shown(row[key].get("sets", {}).get(name)) for row in rows)])
    return markdown_table(lines)


def _categories(table: Table) -> str:
    """Return a table of the rates of every category of harmful prompts; or nothing."""
    rows = [row for row in table["rows"] if row["safety"].get("categories")]
    names = list(dict.fromkeys(name for row in rows for name in row["safety"]["categories"]))
    if len(names) < 2:
        return ""
    lines = [["category", *(f"{row['arm']} {row['step']:,}" for row in rows)]]
    lines += [[name or "none", *(shown(row["safety"]["categories"].get(name)) for row in rows)] for name in names]
    return markdown_table(lines)


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
        sizes.append(f"{as_markdown(name)} {many:,}" if few == many else f"{as_markdown(name)} {few:,} to {many:,}")
    seeds = ", ".join(str(seed) for seed in table["seeds"])
    return (
        f"{as_markdown(table['recipe'])}: model {as_markdown(table['model'])}, {as_markdown(table['precision'])}"
        f"{_machine(table)}, "
        f"judge {as_markdown(table['judge'])}, "
        f"seed{'s' * (len(table['seeds']) > 1)} {seeds}. n a row: {'; '.join(sizes)}. "
        f"{_on_intervals(rows)}Refused counts partial refusals; an unfinished reply neither refuses nor solves. "
        f"{_on_partial(rows)}{_on_updates(rows)}{_on_tax(table, tasks)}"
        "Bold: on the frontier of problems solved and harmful requests refused."
    )


def _machine(table: Table) -> str:
    """Return the accelerator, or the processor with its arithmetic; empty in a table of an older version."""
    hardware = table.get("hardware", {})
    if hardware.get("accelerator"):
        return f" on {as_markdown(str(hardware['accelerator']))}"
    names = [str(hardware[name]) for name in ("cpu", "arithmetic") if hardware.get(name)]
    return f" on {as_markdown(', '.join(names))}" if names else ""


def _on_intervals(rows: Sequence[Row]) -> str:
    """Return the sentences of the caption on intervals."""
    several = any(_seeds(row) not in ("-", "one seed") for row in rows)
    text = "Rates with 95 % intervals, which cover the prompts"
    if several:
        text += " and the training seeds"
    one = any(_seeds(row) == "one seed" for row in rows)
    return text + ("; those of one seed say nothing about another seed. " if one else ". ")


def _on_partial(rows: Sequence[Row]) -> str:
    """Return the sentence of the caption on partial refusals."""
    some = any("in_part" in row["safety"] for row in rows)
    return "In part: the share that is refused in part, of all. " * some


def _on_updates(rows: Sequence[Row]) -> str:
    """Return the sentences of the caption on update norm and seconds."""
    text = ""
    if any(row.get("update") for row in rows):
        text += "Update norm: ||dW|| / ||W|| (Frobenius) of the matrices that an arm changes. "
    if any("logit_change" in row for row in rows):
        text += "Logit change: the largest after a prompt, mean over two prompts. "
    if any("edit_seconds" in row for row in rows):
        text += "Seconds of an edited arm: those of the training it starts from, and the edits. "
    if any("parent" in row and "edit_seconds" not in row for row in rows):
        text += "Seconds of an arm that starts from another: its own training alone. "
    return text


def _on_tax(table: Table, tasks: Sequence[str]) -> str:
    """Return the sentence of the caption on the tax."""
    if not any("tax" in row for row in table["rows"]):
        return ""
    text = "Tax: the share that the base solves minus the arm's, paired by question"
    return text + ", mean of the tasks" * (len(tasks) > 1) + ". "


def _cells(row: Row) -> list[Cell]:
    return [row["safety"], row["over_refusal"], *row["reasoning"].values()]


def _count(row: Row, kind: str) -> int:
    return sum(cell.get(kind, 0) for cell in _cells(row))
