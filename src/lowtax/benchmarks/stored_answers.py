"""Grade stored answers of any origin: a table with replies and gold answers, without the model that wrote them."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowtax.benchmarks import model_checker, questions
from lowtax.benchmarks.base import Score, Task, load, whole_replies
from lowtax.benchmarks.evaluate import UNFINISHED, shown
from lowtax.benchmarks.grading import pool
from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.common.files import write_json, write_text
from lowtax.common.log import quiet_libraries, say
from lowtax.common.records import Grade, Prompt, Rows, row_id
from lowtax.data.readers import cell_text, read_table
from lowtax.data.rendering import opened_note, split_stored
from lowtax.data.tables import Row

Preset = Literal["default", "paper", "reference"]
CUT = ("length", "max_tokens", "max_length", "truncated")  # endings of a reply that was cut


def grade(
    answers: str | Path,
    *,
    task: str,
    reply: str,
    gold: str,
    question: str | None = None,
    finish: str | None = None,
    choices: str | None = None,
    preset: Preset = "default",
    file: str | None = None,
    workers: int | None = None,
    checker: str | None = None,
    engine: str = "hf",
    out: str | Path | None = None,
    thinking_tags: str | None = None,
    opened: bool | None = None,
) -> Rows[Grade]:
    """Grade stored answers of any origin, and return one grade for each, in their order. No model is needed.

    Args:
        answers: CSV, JSONL, JSON or parquet; also .gz.
        task: a benchmark by name, or `path/to/file.py:Class`.
        reply, gold, question, finish, choices: names of columns; `a.b` is the field b in a.
        file: a local copy of the benchmark, for code.
        workers: grading processes; one per core by default.
        checker: a model that checks boxed answers which the rules reject; `engine` runs it.
        out: a folder for grades.jsonl and grades.json.
        thinking_tags: the tags of thoughts: a family, or a pair such as `<reason>...</reason>`; all known ones if None.
        opened: the prompts opened a thought (True) or none did (False); if None, each reply shows it.

    Raises:
        UserError: the file, a column or the benchmark is missing.
    """
    path, settings = Path(answers), Task(preset=preset, file=file, checker=checker)
    stored = read(path, Columns(reply, gold, question, finish, choices, thinking_tags, opened), path.name)
    if checker:
        quiet_libraries()
    grades = grade_stored(stored, task, settings, workers, engine)
    if out is not None:
        write_text(Path(out) / "grades.jsonl", "".join(row.model_dump_json() + "\n" for row in grades))
        write_json(Path(out) / "grades.json", summary(grades, task=task, file=path.name, preset=preset))
    return Rows(grades)


@dataclass(frozen=True)
class Columns:
    """The columns of a file. A dot leads into a nested object: `175b_verification.solution`.

    thinking_tags, opened: how thoughts are told from answers, as in `rendering.split_stored`.
    """

    reply: str
    gold: str
    question: str | None = None
    finish: str | None = None
    choices: str | None = None
    thinking_tags: str | None = None
    opened: bool | None = None


@dataclass(frozen=True)
class Stored:
    """A stored reply: its question with the gold answer, and the text after the thought; None if it is unfinished."""

    row: Prompt
    reply: str
    answer: str | None


def read(path: Path, columns: Columns, name: str) -> list[Stored]:
    """Read the replies of a CSV, JSON, JSONL or parquet file, also of a .gz, in its order.

    Raises:
        UserError: The file cannot be read or lacks a column.
    """
    rows = read_table(path)
    for column in filter(None, (columns.reply, columns.gold, columns.question, columns.finish, columns.choices)):
        if not any(_has(row, column) for row in rows):
            names = ", ".join(dict.fromkeys(str(key) for row in rows for key in row if key is not None))
            raise UserError(f"{path} has no column {column!r}; its columns are {names}.")
    replies = [cell_text(_value(row, columns.reply)) for row in rows]
    if columns.opened is None and (note := opened_note(replies, columns.thinking_tags)):
        say(note)
    return [
        _stored(row, reply, columns, name, number)
        for number, (row, reply) in enumerate(zip(rows, replies, strict=True), 1)
    ]


def _stored(row: Row, reply: str, columns: Columns, name: str, number: int) -> Stored:
    where = f"{name}, row {number}"
    gold = cell_text(_value(row, columns.gold))
    if not gold.strip():
        raise UserError(f"{where}: its column {columns.gold!r} is empty; every row needs a gold answer.")
    prompt = Prompt(
        id=str(number),
        source=name,
        text=cell_text(_value(row, columns.question)) if columns.question else "",
        gold=gold,
        choices=tuple(questions.listed(_value(row, columns.choices), where)) if columns.choices else (),
    )
    parts = split_stored(reply, columns.thinking_tags, columns.opened)
    cut = columns.finish is not None and cell_text(_value(row, columns.finish)).strip().lower() in CUT
    return Stored(prompt, reply, parts.answer if parts.closed and not cut else None)


def _has(row: Row, column: str) -> bool:
    return column in row or _value(row, column) is not None


def _value(row: Row, column: str) -> Any:
    """Return the value of a column, or None if the row lacks it."""
    try:
        return _cell(row, column)
    except KeyError:
        return None


def _cell(row: Any, column: str) -> Any:
    """Return the value of a column; a nested object may also be the JSON text of one, as in CSV files.

    Raises:
        KeyError: The row lacks it.
    """
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    while dot and head not in row:  # names of columns may have dots, too
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


def grade_stored(
    stored: list[Stored], task: str, settings: Task, workers: int | None = None, engine: str = "hf"
) -> list[Grade]:
    """Return a grade for every reply. Unfinished replies are wrong and not read, except under the preset `reference`.

    engine: runs the checker, if the settings name one.
    """
    benchmark = load(task, settings)
    whole = whole_replies(benchmark)
    read = [each for each in stored if whole or each.answer is not None]
    texts = [each.reply if whole else each.answer or "" for each in read]
    scores = pool.grade_all(benchmark, [(each.row, text) for each, text in zip(read, texts, strict=True)], workers)
    by_row = {each.row.id: score for each, score in zip(read, scores, strict=True)}
    grades = {each.row.id: _grade(each, by_row.get(each.row.id), task) for each in stored}
    rejected = [
        (grades[each.row.id], each.row)
        for each in read
        if settings.checker and model_checker.needs_second_opinion(by_row[each.row.id], each.row)
    ]
    if rejected:
        opinions = model_checker.check(rejected, model_checker.engine_for(settings, engine), settings.preset)
        grades = model_checker.checked(grades, opinions)
    return list(grades.values())


def _grade(stored: Stored, score: Score | None, task: str) -> Grade:
    score = score or UNFINISHED
    return Grade(
        id=row_id(task, stored.row.id, stored.reply),
        reply_id=stored.row.id,
        task=task,
        correct=score.correct,
        finished=stored.answer is not None,
        extracted=score.extracted,
        gold=shown(stored.row),
        rule=score.rule,
    )


def summary(grades: Iterable[Grade], **origin: Any) -> dict[str, Any]:
    """Return the origin, counts, and the accuracy over all rows with its 95 % interval, for independent rows."""
    rows = list(grades)
    right = sum(grade.correct for grade in rows)
    checked = [grade.checked for grade in rows if grade.checked is not None]
    return {
        **origin,
        "n": len(rows),
        "accuracy": right / len(rows),
        "interval": list(stats.wilson(right, len(rows))),
        "correct": right,
        "unfinished": sum(not grade.finished for grade in rows),
        "no_answer": sum(grade.finished and grade.extracted is None and not grade.correct for grade in rows),
        "rules": dict(Counter(grade.rule for grade in rows).most_common()),
        **({"checked": len(checked), "checked_right": sum(checked)} if checked else {}),
    }
