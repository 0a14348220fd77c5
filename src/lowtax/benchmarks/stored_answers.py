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
from lowtax.common.names import refuse_inputs
from lowtax.common.records import Grade, Prompt, Rows, row_id
from lowtax.common.tables import passage
from lowtax.data.columns import require, text, texts, value
from lowtax.data.readers import cell_text, read_table
from lowtax.data.rendering import opened_note, split_stored
from lowtax.data.tables import Row

Preset = Literal["default", "paper", "reference"]
SAMPLE = "#"  # between the number of a row and that of a further sample in it
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
        reply, gold, question, finish, choices: names of columns; `a.b` is the field b in a, `a.0` the first item of a.
        file: a local copy of the benchmark, for code.
        workers: grading processes; one per core by default.
        checker: a model that checks boxed answers which the rules reject; `engine` runs it.
        out: a folder for grades.jsonl, which has question and reply beside each grade, and grades.json.
        thinking_tags: the tags of thoughts: a family, or a pair such as `<reason>...</reason>`; all known ones if None.
        opened: the prompts opened a thought (True) or none did (False); if None, each reply shows it.

    Raises:
        UserError: the file, a column or the benchmark is missing.
    """
    if out is not None:
        refuse_inputs(Path(out), ("grades.jsonl", "grades.json"), Path(answers), Path(file) if file else None)
    path, settings = Path(answers), Task(preset=preset, file=file, checker=checker)
    stored = read(path, Columns(reply, gold, question, finish, choices, thinking_tags, opened), path.name)
    if checker:
        quiet_libraries()
    grades = grade_stored(stored, task, settings, workers, engine)
    if out is not None:
        write_text(Path(out) / "grades.jsonl", "".join(map(_line, stored, grades)))
        write_json(Path(out) / "grades.json", summary(grades, task=task, file=path.name, preset=preset))
    return Rows(grades)


@dataclass(frozen=True)
class Columns:
    """The columns of a file. A dot leads into an object, a number into a list: `choices.0.message.content`.

    A cell of `reply` may hold a list: one text is the reply, several are samples of it.
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
    require(rows, (columns.reply, columns.gold, columns.question, columns.finish, columns.choices), path)
    cells = [texts(value(row, columns.reply)) for row in rows]
    replies = [reply for several in cells for reply in several]
    if columns.opened is None and (note := opened_note(replies, columns.thinking_tags)):
        say(note)
    return [
        _stored(row, reply, columns, name, number, sample)
        for number, (row, several) in enumerate(zip(rows, cells, strict=True), 1)
        for sample, reply in enumerate(several)
    ]


def _line(stored: Stored, grade: Grade) -> str:
    """Return a line of grades.jsonl: the grade, and what it is about."""
    beside = {"question": stored.row.text, "reply": stored.reply}
    return json.dumps(grade.model_dump() | beside, ensure_ascii=False) + "\n"


def _stored(row: Row, reply: str, columns: Columns, name: str, number: int, sample: int) -> Stored:
    where = f"{name}, row {number}"
    gold = text(value(row, columns.gold), f"{where}: its column {columns.gold!r}")
    if not gold.strip():
        raise UserError(f"{where}: its column {columns.gold!r} is empty; every row needs a gold answer.")
    prompt = Prompt(
        id=f"{number}{SAMPLE}{sample + 1}" if sample else str(number),
        source=name,
        text=text(value(row, columns.question), f"{where}: the question") if columns.question else "",
        gold=gold,
        choices=tuple(questions.listed(value(row, columns.choices), where)) if columns.choices else (),
    )
    parts = split_stored(reply, columns.thinking_tags, columns.opened)
    cut = columns.finish is not None and cell_text(value(row, columns.finish)).strip().lower() in CUT
    return Stored(prompt, reply, parts.answer if parts.closed and not cut else None)


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


def excerpts(stored: Iterable[Stored], grades: Iterable[Grade], n: int) -> str:
    """Return n answers beside their grades as Markdown: wrong ones first, then unfinished, then right."""
    pairs = sorted(zip(stored, grades, strict=True), key=lambda pair: (pair[1].correct, not pair[1].finished))
    parts = []
    for each, grade in pairs[:n]:
        verdict = "right" if grade.correct else "wrong" if grade.finished else "unfinished"
        texts = {"Question": each.row.text, "Reply": each.reply, "Gold": grade.gold, "Read": grade.extracted or ""}
        parts.append(passage(f"Row {grade.reply_id}: {verdict}, by {grade.rule}", texts))
    return "\n".join(parts)


def summary(grades: Iterable[Grade], **origin: Any) -> dict[str, Any]:
    """Return the origin, counts, and the accuracy over all rows with its 95 % interval, for independent questions."""
    rows = list(grades)
    right = sum(grade.correct for grade in rows)
    by_question: dict[str, list[float]] = {}
    for grade in rows:
        by_question.setdefault(grade.reply_id.partition(SAMPLE)[0], []).append(float(grade.correct))
    checked = [grade.checked for grade in rows if grade.checked is not None]
    return {
        **origin,
        "n": len(rows),
        "accuracy": right / len(rows),
        "interval": list(stats.cluster_interval(by_question)[1:]),
        "correct": right,
        "unfinished": sum(not grade.finished for grade in rows),
        "no_answer": sum(grade.finished and grade.extracted is None and not grade.correct for grade in rows),
        "rules": dict(Counter(grade.rule for grade in rows).most_common()),
        **({"questions": len(by_question)} if len(by_question) < len(rows) else {}),
        **({"checked": len(checked), "checked_right": sum(checked)} if checked else {}),
    }
