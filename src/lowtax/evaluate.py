"""Stored answers -> grades. Grading needs no model, so it can be repeated; a checker's opinions are kept.

An answer is taken after the thought. A reply that was cut at the token limit, in its thought or after it, is wrong and
counted as unfinished: what a cut text happens to end with is no answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lowtax import checker, engines, grading
from lowtax.benchmarks import Benchmark, Score
from lowtax.engines.settings import EngineSettings
from lowtax.files import read_rows, write_text
from lowtax.records import Grade, Prompt, Reply, row_id

UNFINISHED = Score(False, None, "unfinished")
CHUNK = 512  # answers that a checker gets at once; its opinions are then on disk


@dataclass(frozen=True)
class Checker:
    """A model that is asked about final answers which the rules reject, and how it runs (see `checker`)."""

    model: str
    through: EngineSettings
    preset: str = "default"


def grade(
    replies: Iterable[Reply],
    task: str,
    benchmark: Benchmark,
    rows: Mapping[str, Prompt],
    path: Path,
    asking: Checker | None = None,
) -> dict[str, Grade]:
    """Grades by reply id, written to `path` as a whole; failed replies have none. `rows` are by prompt id."""
    graded = [reply for reply in replies if reply.finish != "failed"]
    finished = [reply for reply in graded if reply.closed and reply.answer and reply.finish != "length"]
    scores = grading.grade_all(benchmark, [(rows[reply.prompt_id], reply.answer) for reply in finished])
    found = {reply.id: score for reply, score in zip(finished, scores, strict=True)}
    grades = {}
    for reply in graded:
        score = found.get(reply.id, UNFINISHED)
        grades[reply.id] = Grade(
            id=row_id(reply.id, reply.text, task, *([asking.model, asking.preset] if asking else [])),
            reply_id=reply.id,
            task=task,
            correct=score.correct,
            finished=reply.id in found,
            extracted=score.extracted,
            gold=shown(rows[reply.prompt_id]),
            rule=score.rule,
        )
    if asking:
        _check(grades, rows, {reply.id: reply.prompt_id for reply in finished}, asking, path)
    _write(path, grades)
    return grades


def _check(
    grades: dict[str, Grade], rows: Mapping[str, Prompt], asked: Mapping[str, str], asking: Checker, path: Path
) -> None:
    """Put the checker's opinion into the grades that it is for; opinions that are in `path` are kept."""

    wanted = checker.wanted((grades[reply_id], rows[prompt_id]) for reply_id, prompt_id in asked.items())
    known = {row.id: row for row in read_rows(path, Grade).values() if row.checked is not None}
    kept = {grade.reply_id: known[grade.id].checked for grade, _ in wanted if _same(known.get(grade.id), grade)}
    grades |= checker.checked({i: grades[i] for i in kept}, kept)
    new = [(grade, row) for grade, row in wanted if grade.reply_id not in kept]
    if not new:
        return
    how = asking.through
    engine = engines.load(how.name, asking.model, how.precision, how.batch_size)
    for start in range(0, len(new), CHUNK):
        grades |= checker.checked(grades, checker.check(new[start : start + CHUNK], engine, asking.preset))
        _write(path, grades)


def _same(earlier: Grade | None, now: Grade) -> bool:
    return earlier is not None and (earlier.extracted, earlier.gold) == (now.extracted, now.gold)


def _write(path: Path, grades: Mapping[str, Grade]) -> None:
    write_text(path, "".join(g.model_dump_json() + "\n" for g in grades.values()))


def shown(row: Prompt) -> str:
    """The gold answer as a grade shows it: tests of a program are left out."""
    gold = str(row.gold)
    return gold if len(gold) <= 200 else ""
