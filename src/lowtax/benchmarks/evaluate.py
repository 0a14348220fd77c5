"""Grade stored answers. Grading needs no model, so it can be repeated; a checker's opinions are kept.

The answer is the text after the thought. A reply that was cut at the token limit, in its thought or after it, is wrong
and counted as unfinished: the end of a cut text is no answer. Under the preset `reference` the whole reply is read, as
the published scripts do: an unfinished one may be right, and is counted as unfinished all the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowtax.benchmarks import model_checker
from lowtax.benchmarks.base import Benchmark, Score, whole_replies
from lowtax.benchmarks.grading import pool
from lowtax.benchmarks.model_checker import needs_second_opinion
from lowtax.common.files import read_rows, write_text
from lowtax.common.records import Grade, Prompt, Reply, require_texts, row_id
from lowtax.engines import base
from lowtax.engines.settings import EngineSettings

UNFINISHED = Score(False, None, "unfinished")
CHUNK = 512  # answers that a checker gets at once; its opinions are then written to disk


@dataclass(frozen=True)
class Checker:
    """The model that is asked about final answers which the rules reject, and how it runs (see `checker`)."""

    model: str
    engine: EngineSettings
    preset: str = "default"


def grade(
    replies: Iterable[Reply],
    task: str,
    benchmark: Benchmark,
    rows: Mapping[str, Prompt],
    path: Path,
    second_opinion: Checker | None = None,
) -> dict[str, Grade]:
    """Return the grades by reply id and write them to `path` as a whole; failed replies have none.

    Stored grades of other replies, and those with a checker's opinion, stay in the file.

    rows: the questions by prompt id.

    Raises:
        UserError: Replies are kept as hashes.
    """
    answered = [reply for reply in replies if reply.finish != "failed"]
    require_texts(answered, str(path))
    finished = {reply.id for reply in answered if reply.closed and reply.answer and reply.finish != "length"}
    whole = whole_replies(benchmark)
    texts = {reply.id: reply.text if whole else reply.answer for reply in answered if whole or reply.id in finished}
    read = {reply.id: rows[reply.prompt_id] for reply in answered if reply.id in texts}
    scores = pool.grade_all(benchmark, [(row, texts[reply_id]) for reply_id, row in read.items()])
    by_reply = dict(zip(read, scores, strict=True))
    earlier = read_rows(path, Grade)
    checker_key = [second_opinion.model, second_opinion.preset] if second_opinion else []
    grades = dict[str, Grade]()
    for reply in answered:
        score = by_reply.get(reply.id, UNFINISHED)
        grades[reply.id] = Grade(
            id=row_id(reply.id, reply.text, task, *checker_key),
            reply_id=reply.id,
            task=task,
            correct=score.correct,
            finished=reply.id in finished,
            extracted=score.extracted,
            gold=shown(rows[reply.prompt_id]),
            rule=score.rule,
        )
    if second_opinion:
        rejected = [(grades[i], row) for i, row in read.items() if needs_second_opinion(by_reply[i], row)]
        _check(grades, rejected, second_opinion, path, earlier)
    store(path, grades, earlier, opinions=second_opinion is None)
    return grades


def _check(
    grades: dict[str, Grade],
    rejected: Sequence[tuple[Grade, Prompt]],
    second_opinion: Checker,
    path: Path,
    stored_rows: Mapping[str, Grade],
) -> None:
    """Put the checker's opinions into the grades of rejected answers; opinions that are stored are kept."""
    earlier = {id_: row for id_, row in stored_rows.items() if row.checked is not None}
    stored = {grade.reply_id: earlier[grade.id].checked for grade, _ in rejected if _same(earlier.get(grade.id), grade)}
    grades |= model_checker.checked({i: grades[i] for i in stored}, stored)
    new = [(grade, row) for grade, row in rejected if grade.reply_id not in stored]
    if not new:
        return
    settings = second_opinion.engine
    engine = base.load(settings.name, second_opinion.model, settings.precision, settings.batch_size)
    for start in range(0, len(new), CHUNK):
        opinions = model_checker.check(new[start : start + CHUNK], engine, second_opinion.preset)
        grades |= model_checker.checked(grades, opinions)
        store(path, grades, stored_rows)


def _same(earlier: Grade | None, now: Grade) -> bool:
    return earlier is not None and (earlier.extracted, earlier.gold) == (now.extracted, now.gold)


def store(path: Path, grades: Mapping[str, Grade], earlier: Mapping[str, Grade], opinions: bool = True) -> None:
    """Write the grades, after those earlier ones that they do not replace.

    opinions: keep a checker's opinions on these answers, since there are no others.
    """
    now = {grade.id for grade in grades.values()}
    others = [
        g
        for g in earlier.values()
        if g.id not in now and (g.reply_id not in grades or (opinions and g.checked is not None))
    ]
    write_text(path, "".join(g.model_dump_json() + "\n" for g in [*others, *grades.values()]))


def shown(row: Prompt) -> str:
    """Return the gold answer as a grade shows it; tests of a program are left out."""
    gold = str(row.gold)
    return gold if len(gold) <= 200 else ""
