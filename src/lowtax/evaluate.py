"""Stored answers -> grades. Grading needs no model, so it can be repeated.

An answer is taken after the thought. One whose thought never ended is wrong and counted as unfinished.
"""

from collections.abc import Iterable
from pathlib import Path

from lowtax import benchmarks
from lowtax.records import Grade, Reply, row_id, write_text


def grade(replies: Iterable[Reply], task: str, gold: dict[str, str], path: Path) -> dict[str, Grade]:
    """Grades by reply id, written to `path` as a whole; failed replies have none. `gold` is by prompt id."""
    extract = benchmarks.load(task).extract
    grades = {}
    for reply in replies:
        if reply.finish == "failed":
            continue
        finished = reply.closed and bool(reply.answer)
        found = extract(reply.answer) if finished else None
        right = gold[reply.prompt_id]
        grades[reply.id] = Grade(
            id=row_id(reply.id, reply.text, task),
            reply_id=reply.id,
            task=task,
            correct=found == right,
            finished=finished,
            extracted=found,
            gold=right,
        )
    write_text(path, "".join(g.model_dump_json() + "\n" for g in grades.values()))
    return grades
