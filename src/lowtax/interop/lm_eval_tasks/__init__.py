"""Our benchmarks as tasks of lm-evaluation-harness: this folder is its `--include_path` (`lowtax tasks-path`).

The YAML files name the functions here; rows and grades are those of `lowtax.benchmarks`, so that both agree. Checked
against lm_eval 0.4.13: `custom_dataset` receives the task's metadata, of which `lowtax` is ours, and its
dataset_kwargs; the filter `custom` receives all replies to all questions, where the usual ones keep the first of each.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowtax.benchmarks.base import Task, load, whole_replies
from lowtax.benchmarks.grading import pool
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.records import Prompt
from lowtax.data.rendering import split_stored

FOLDER = Path(__file__).parent
OURS = ("opened",)  # settings beyond the fields of a recipe's task


def exam(exam: str, lowtax: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Any]:
    """Return the rows of a benchmark as a split `test`.

    Args:
        exam: name of the benchmark.
        lowtax: fields of a recipe's task, and `opened`: True if the chat template ends in `<think>`, which replies
            from lm-eval then lack.
    """
    from datasets import Dataset

    fields = dict(lowtax or {})
    opened = bool(fields.pop("opened", False))
    task = settings(fields)
    how = {"benchmark": exam, "task": task.model_dump_json(exclude_unset=True), "opened": opened}
    rows = load(exam, task).rows()
    docs = [
        {"id": row.id, "prompt": row.text, "gold": row.gold, "lowtax": json.dumps(how | {"row": row.model_dump()})}
        for row in rows
    ]
    return {"test": Dataset.from_list(docs)}


def settings(fields: Mapping[str, Any]) -> Task:
    """Return the settings of a task from `--metadata '{"lowtax": {...}}'`.

    Raises:
        UserError: an unknown field, or a value of the wrong type.
    """
    names = sorted({*Task.model_fields, *OURS} - {"sampling", "checker"})
    for name in fields:
        if name in ("sampling", "checker"):
            raise UserError(
                f"The metadata lowtax cannot set {name!r}: give --gen_kwargs, or regrade with `lowtax grade`."
            )
        if name not in names:
            raise UserError(f"The metadata lowtax has an unknown key {name!r}; {did_you_mean(name, names)}")
    try:
        return Task.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"The metadata lowtax: {where}: {problem['msg']} (found {problem['input']!r}).") from error


def grades(replies: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Grade all replies at once, as `lowtax evaluate` does; the filter of our tasks.

    Returns the grade of every reply to every question as JSON, which `--log_samples` stores.
    """
    graded: list[list[dict[str, Any]]] = [
        [{"finished": False, "correct": False} for _ in several] for several in replies
    ]
    pairs: dict[tuple[str, str], list[tuple[dict[str, Any], Prompt, str, str]]] = {}
    for doc, several, results in zip(docs, replies, graded, strict=True):
        exam = json.loads(doc["lowtax"])
        row = Prompt.model_validate(exam["row"])
        for reply, result in zip(several, results, strict=True):
            parts = split_stored(reply, opened=exam["opened"] or None)
            result["finished"] = parts.closed and bool(parts.answer)
            pairs.setdefault((exam["benchmark"], exam["task"]), []).append((result, row, reply, parts.answer))
    for (name, task), of_exam in pairs.items():
        benchmark = load(name, Task.model_validate_json(task))
        whole = whole_replies(benchmark)
        read = [entry for entry in of_exam if whole or entry[0]["finished"]]
        scores = pool.grade_all(benchmark, [(row, reply if whole else answer) for _, row, reply, answer in read])
        for (result, *_), score in zip(read, scores, strict=True):
            result |= {"correct": score.correct, "extracted": score.extracted, "rule": score.rule}
    return [[json.dumps(result) for result in results] for results in graded]


def shares(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the shares of replies to a question that are correct, unfinished (incorrect too), or without an answer."""
    decoded = [json.loads(grade) for grade in results[0]]
    return {
        "acc": sum(grade["correct"] for grade in decoded) / len(decoded),
        "unfinished": sum(not grade["finished"] for grade in decoded) / len(decoded),
        "no_answer": sum(grade["finished"] and grade["extracted"] is None for grade in decoded) / len(decoded),
    }
