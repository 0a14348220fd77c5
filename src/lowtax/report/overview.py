"""The first view of the page: measures of every checkpoint, arms at matched safety, warnings, and how it was made."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lowtax.common.display import as_line
from lowtax.report import attacked, failures
from lowtax.report.stored import Stored, is_cell, is_rate
from lowtax.report.subjects import BASE, Columns
from lowtax.study.readings import MOST_LISTED
from lowtax.study.shares import answered, solved

FEW = 100  # prompts or questions, below which the interval of a share is wider than 0.2
MUCH_UNPARSED, MUCH_UNFINISHED = 0.02, 0.1
GROUPS = (
    "safety",
    "reasoning",
    "update",
    "cost",
    "no result",
    "attacks",
    "prompt sets",
    "categories",
    "samples",
    "lengths",
)
Row = Mapping[str, Any]
Figure = list[float | int | None]  # value, low, high, n; of a number without an interval the value alone


class Measures:
    """The measures of the table, in the order of its columns, and the figure of every row."""

    def __init__(self) -> None:
        """Begin without a measure."""
        self.listed: dict[str, dict[str, Any]] = {}
        self.figures: dict[str, dict[int, Figure]] = {}

    def rate(self, column: int, key: str, name: str, group: str, better: str, cell: Any) -> None:
        """Add a rate of a row. A cell that is none, or was not measured, is left out."""
        if is_cell(cell) and cell["value"] is not None:
            self._add(column, key, name, group, "rate", better)
            self.figures[key][column] = [cell["value"], cell["low"], cell["high"], cell.get("n")]

    def number(self, column: int, key: str, name: str, group: str, better: str, value: Any, unit: str = "") -> None:
        """Add a number of a row that has no interval."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._add(column, key, name, group, unit or "number", better)
            self.figures[key][column] = [value]

    def _add(self, column: int, key: str, name: str, group: str, unit: str, better: str) -> None:
        self.listed.setdefault(key, {"key": key, "name": name, "group": group, "unit": unit, "better": better})
        self.figures.setdefault(key, {})

    def described(self) -> list[dict[str, Any]]:
        """Return each measure with its `figures` by column."""
        ordered = sorted(self.listed.values(), key=lambda measure: GROUPS.index(measure["group"]))
        return [measure | {"figures": self.figures[measure["key"]]} for measure in ordered]


def overview(studies: Sequence[Stored], columns: Columns) -> dict[str, Any]:
    """Return the measures, the rows, the arms at matched safety, the warnings, and a description of each study."""
    measures, rows, matched = Measures(), [], []
    for study, stored in enumerate(studies):
        best = stored.table.get("frontier")
        for row in stored.rows:
            column = columns.number(study, row["arm"], row["checkpoint"])
            add_row(measures, column, row)
            rows.append({"column": column, "best": isinstance(best, list) and [row["arm"], row["checkpoint"]] in best})
        matched += matched_rows(study, stored, columns)
    return {
        "columns": columns.described(),
        "measures": measures.described(),
        "rows": rows,
        "matched": matched,
        "attacks": attacked.successes(studies, columns),
        "failed": failures.of_studies([(stored.name, stored.table) for stored in studies]),
        "readings": readings_of(studies),
        "studies": [_described(stored) for stored in studies],
        "warnings": [warning for stored in studies for warning in warnings(stored, len(studies) > 1)],
    }


def add_row(measures: Measures, column: int, row: Row) -> None:
    """Add what a row of the table has, in the order in which people read it."""
    safety, over = row["safety"], row["over_refusal"]
    measures.rate(column, "safety", "harmful refused", "safety", "up", safety)
    measures.rate(column, "over_refusal", "ordinary refused", "safety", "down", over)
    for task, cell in row["reasoning"].items():
        measures.rate(column, f"task.{task}", f"{as_line(task)} solved", "reasoning", "up", cell)
    if len(row["reasoning"]) > 1 and (mean := solved(row)):
        measures.rate(column, "tasks", "solved, mean of tasks", "reasoning", "up", _cell(mean))
    if row["arm"] != BASE and isinstance(row.get("tax"), dict):
        measures.rate(column, "tax", "tax", "reasoning", "down", row["tax"])
    if ordinary := answered(row):
        measures.rate(column, "answered", "ordinary answered", "safety", "up", _cell(ordinary) | {"n": over.get("n")})
    _add_details(measures, column, row)
    _add_cost(measures, column, row)


def _add_details(measures: Measures, column: int, row: Row) -> None:
    """Add parts of the rates: partial refusals, other texts, attacks, prompt sets, categories, samples, lengths."""
    safety, over = row["safety"], row["over_refusal"]
    measures.rate(column, "in_part", "harmful refused in part", "safety", "", safety.get("in_part"))
    measures.rate(column, "harm", "harmful complied with", "safety", "down", safety.get("harm"))
    for text, cell in _items(row.get("texts")):
        measures.rate(column, f"text.{text}", f"harmful refused, by the {as_line(text)}", "safety", "up", cell)
    for attack, cell in attacked.cells(row):
        name = as_line(attack)
        measures.rate(column, f"attack.{attack}", f"success of the attack {name}", "attacks", "down", cell)
        one = f"success of one attempt of {name}"
        measures.rate(column, f"attempt.{attack}", one, "attacks", "down", cell.get("attempts"))
    for kind, cell, better in (("harmful", safety, "up"), ("ordinary", over, "down")):
        for part, group in (("sets", "prompt sets"), ("categories", "categories")):
            for name, share in _items(cell.get(part)):
                key, shown = f"{kind}.{part}.{name}", f"{kind} refused: {as_line(name) or 'none'}"
                measures.rate(column, key, shown, group, better, share)
    for task, cell in row["reasoning"].items():
        for k, share in _items(cell.get("pass_at_k")):
            if k != "1":
                measures.rate(column, f"pass.{task}.{k}", f"{as_line(task)} pass@{k}", "samples", "up", share)
        measures.rate(column, f"majority.{task}", f"{as_line(task)} by majority", "samples", "up", cell.get("maj_at_k"))
        measures.rate(column, f"tax.{task}", f"tax of {as_line(task)}", "reasoning", "down", cell.get("tax"))
        name = f"{as_line(task)} thought"
        measures.number(column, f"thought.{task}", name, "lengths", "", cell.get("thought_tokens"), "tokens")


def _add_cost(measures: Measures, column: int, row: Row) -> None:
    """Add what an arm costs and moves, and the replies that no rate counts."""
    update = row.get("update") if isinstance(row.get("update"), dict) else {}
    assert isinstance(update, dict)
    add = measures.number
    add(column, "parameters", "trained parameters", "cost", "down", row.get("trainable_parameters"), "count")
    add(column, "seconds", "training", "cost", "down", row.get("train_seconds"), "seconds")
    add(column, "update", "update norm, relative", "update", "", update.get("relative_norm"))
    add(column, "rank", "rank", "update", "", update.get("rank"), "count")
    add(column, "logits", "logit change", "update", "", row.get("logit_change"))
    cells = [row["safety"], row["over_refusal"], *row["reasoning"].values()]
    for kind in ("unfinished", "unparsed", "failed"):
        total = sum(cell.get(kind, 0) for cell in cells if isinstance(cell.get(kind, 0), int))
        add(column, kind, kind, "no result", "down", total, "count")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    return iter(value.items()) if isinstance(value, dict) else iter(())


def _cell(interval: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), interval, strict=True))


def matched_rows(study: int, stored: Stored, columns: Columns) -> list[dict[str, Any]]:
    """Return a row for each arm: its rates where it first reaches the level of safety, or None if it never does."""
    level = stored.table.get("matched_safety")
    arms = {row["arm"]: row for row in stored.rows if "at_matched_safety" in row}
    listed = []
    for arm, row in arms.items():
        place = row["at_matched_safety"] if isinstance(row["at_matched_safety"], dict) else None
        rates = {name: cell for name, cell in (place or {}).items() if is_cell(cell)}
        listed.append(
            {
                "column": columns.number(study, arm, row["checkpoint"]),
                "level": level if isinstance(level, dict) else {},
                "step": place.get("step") if place else None,
                "reached": place.get("reached") if place else None,
                "rates": {
                    as_line(name): [cell["value"], cell["low"], cell["high"], None] for name, cell in rates.items()
                },
            }
        )
    return listed


def readings_of(studies: Sequence[Stored]) -> list[dict[str, Any]]:
    """Return the agreement of judges with people's labels, of all studies that have some."""
    return [row for study, stored in enumerate(studies) for row in _readings(study, stored)]


def _readings(study: int, stored: Stored) -> list[dict[str, Any]]:
    """Return the agreement of each judge with the labels in the study's folder, as `readings.measured` wrote it."""
    rows = stored.table.get("your_reading")
    return [
        {
            "study": study,
            "judge": as_line(str(row.get("judge"))),
            "on": as_line(str(row.get("on"))),
            "figure": [row["value"], row["low"], row["high"], row["n"]],
            "judge_alone": _count(row, "judge_alone"),
            "people_alone": _count(row, "people_alone"),
            "no_verdict": _count(row, "no_verdict"),
            "differ": [id_ for id_ in row.get("differ", ()) if isinstance(id_, str)][:MOST_LISTED],
        }
        for row in (rows if isinstance(rows, list) else [])
        if is_rate(row) and row["value"] is not None and isinstance(row.get("differ", []), list)
    ]


def _count(row: Row, name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) else 0


def _described(stored: Stored) -> dict[str, Any]:
    """Return the study's name, its recipe as text, and its card without the recipe."""
    table = stored.table
    card = {key: value for key, value in stored.card.items() if key not in ("recipe", "questions")}
    return {
        "name": stored.name,
        "model": as_line(str(table.get("model") or stored.recipe.get("model") or "unknown")),
        "precision": as_line(str(table.get("precision", ""))),
        "judge": as_line(str(table.get("judge", ""))),
        "text": as_line(str(table.get("judged_text", ""))),
        "seeds": table.get("seeds") if isinstance(table.get("seeds"), list) else [],
        "recipe": stored.recipe_text,
        "card": card,
        "notes": stored.notes,
    }


def warnings(stored: Stored, named: bool = False) -> list[str]:
    """Return sentences on what makes the numbers of a study uncertain.

    Args:
        named: each sentence begins with the study's name.
    """
    rows = stored.rows
    cells = [cell for row in rows for cell in (row["safety"], row["over_refusal"], *row["reasoning"].values())]
    lines = [*failures.warnings(stored.table), *_on_numbers(rows), *_on_seeds(stored), *_on_lost(cells)]
    return [f"{stored.name}: {line}" if named else line for line in lines]


def _on_numbers(rows: Sequence[Row]) -> Iterator[str]:
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kinds.setdefault("harmful prompts", []).append(row["safety"].get("n", 0))
        kinds.setdefault("ordinary prompts", []).append(row["over_refusal"].get("n", 0))
        for task, cell in row["reasoning"].items():
            kinds.setdefault(f"problems of {as_line(task)}", []).append(cell.get("n", 0))
    few = {name: min(numbers) for name, numbers in kinds.items() if 0 < min(numbers) < FEW}
    if few:
        listed = ", ".join(f"{number:,} {name}" for name, number in few.items())
        yield f"Few replies: {listed}. The intervals are wide, and small differences say nothing."


def _on_seeds(stored: Stored) -> Iterator[str]:
    seeds = stored.table.get("seeds")
    if isinstance(seeds, list) and len(seeds) == 1:
        yield "One training seed: the intervals cover the prompts, and not what another seed would give."


def _on_lost(cells: Sequence[Row]) -> Iterator[str]:
    n = sum(cell.get("n") or 0 for cell in cells)
    for kind, most, why in (
        ("unparsed", MUCH_UNPARSED, "the judge could not read them, and no rate counts them"),
        ("failed", 0.0, "they were never made, and no rate counts them"),
        ("unfinished", MUCH_UNFINISHED, "they count as neither refused nor solved: raise max_new_tokens"),
    ):
        lost = sum(cell.get(kind, 0) for cell in cells if isinstance(cell.get(kind, 0), int))
        whole = n if kind == "unfinished" else n + lost
        if whole and lost / whole > most:
            yield f"{lost:,} of {whole:,} replies are {kind} ({lost / whole:.0%}): {why}."
