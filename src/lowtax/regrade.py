"""Stored answers of any origin -> grades: a table with replies and gold answers, no model."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax import benchmarks, exam, grading, stats
from lowtax.benchmarks import Score
from lowtax.benchmarks.base import Task
from lowtax.data.readers import Row, read_table
from lowtax.data.rendering import CLOSE, OPEN, split_reply
from lowtax.errors import UserError
from lowtax.evaluate import UNFINISHED, shown
from lowtax.records import Grade, Prompt, row_id

CUT = ("length", "max_tokens", "max_length", "truncated")  # how a reply that was cut ended


@dataclass(frozen=True)
class Columns:
    """Where a file has what. A dot leads into a nested object: `175b_verification.solution`."""

    reply: str
    gold: str
    question: str | None = None
    finish: str | None = None
    choices: str | None = None


@dataclass(frozen=True)
class Stored:
    """A stored reply: its question with the gold answer, and what follows the thought; None if it is unfinished."""

    row: Prompt
    reply: str
    answer: str | None


def read(path: Path, columns: Columns, name: str) -> list[Stored]:
    """The replies of a CSV, JSON, JSONL or parquet file, in its order, also of a .gz.

    Raises:
        UserError: The file cannot be read or lacks a column.
    """
    rows = read_table(path)
    for column in filter(None, (columns.reply, columns.gold, columns.question, columns.finish, columns.choices)):
        if not any(_has(row, column) for row in rows):
            names = ", ".join(dict.fromkeys(str(key) for row in rows for key in row if key is not None))
            raise UserError(f"{path} has no column {column!r}; its columns are {names}.")
    replies = [_text(_value(row, columns.reply)) for row in rows]
    # Where replies end a think block that none began, the prompts opened it.
    opened = any(CLOSE in reply and not reply.lstrip().startswith(OPEN) for reply in replies)
    return [
        _stored(row, reply, columns, f"{name}, row {number}", opened)
        for number, (row, reply) in enumerate(zip(rows, replies, strict=True), 1)
    ]


def _stored(row: Row, reply: str, columns: Columns, where: str, opened: bool) -> Stored:
    gold = _text(_value(row, columns.gold))
    if not gold.strip():
        raise UserError(f"{where}: its column {columns.gold!r} is empty; every row needs a gold answer.")
    prompt = Prompt(
        id=where.rpartition(" ")[2],
        source=where.rpartition(",")[0],
        text=_text(_value(row, columns.question)) if columns.question else "",
        gold=gold,
        choices=tuple(exam.listed(_value(row, columns.choices), where)) if columns.choices else (),
    )
    parts = split_reply(reply, opened)
    cut = columns.finish is not None and _text(_value(row, columns.finish)).strip().lower() in CUT
    return Stored(prompt, reply, parts.answer if parts.closed and not cut else None)


def _has(row: Row, column: str) -> bool:
    return column in row or _value(row, column) is not None


def _value(row: Row, column: str) -> Any:
    """What a row has in a column; None if it lacks it."""
    try:
        return _cell(row, column)
    except KeyError:
        return None


def _cell(row: Any, column: str) -> Any:
    """The value of a column; a nested object may also be the JSON text of one, as CSV files have it.

    Raises:
        KeyError: The row lacks it.
    """
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    while dot and head not in row:
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    if not dot:
        raise KeyError(column)
    inner = row[head]
    if isinstance(inner, str) and inner.lstrip().startswith("{"):
        try:
            inner = json.loads(inner)
        except json.JSONDecodeError as error:
            raise UserError(f"The column {head!r} holds a value that is not the JSON text of an object.") from error
    if not isinstance(inner, dict):
        raise KeyError(column)
    return _cell(inner, rest)


def _text(value: Any) -> str:
    """A value as text, lone surrogates replaced."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def grade(stored: list[Stored], task: str, settings: Task, workers: int | None = None) -> list[Grade]:
    """A grade for every reply. Unfinished ones are wrong and not looked at."""
    finished = [each for each in stored if each.answer is not None]
    benchmark = benchmarks.load(task, settings)
    scores = grading.grade_all(benchmark, [(each.row, each.answer or "") for each in finished], workers)
    found = {each.row.id: score for each, score in zip(finished, scores, strict=True)}
    return [_grade(each, found.get(each.row.id), task) for each in stored]


def _grade(stored: Stored, score: Score | None, task: str) -> Grade:
    given = score or UNFINISHED
    return Grade(
        id=row_id(task, stored.row.id, stored.reply),
        reply_id=stored.row.id,
        task=task,
        correct=given.correct,
        finished=score is not None,
        extracted=given.extracted,
        gold=shown(stored.row),
        rule=given.rule,
    )


def summary(grades: Iterable[Grade]) -> dict[str, Any]:
    """Counts, and accuracy over all rows with its 95 % interval, rows taken as independent."""
    rows = list(grades)
    right = sum(grade.correct for grade in rows)
    checked = [grade.checked for grade in rows if grade.checked is not None]
    return {
        "n": len(rows),
        "accuracy": right / len(rows),
        "interval": list(stats.wilson(right, len(rows))),
        "correct": right,
        "unfinished": sum(not grade.finished for grade in rows),
        "no_answer": sum(grade.finished and grade.extracted is None and not grade.correct for grade in rows),
        "rules": dict(Counter(grade.rule for grade in rows).most_common()),
        **({"checked": len(checked), "checked_right": sum(checked)} if checked else {}),
    }
