"""Tasks x checkpoints -> answers, grades and rates: what `lowtax run` and `lowtax evaluate` have in common.

`answers/TASK.jsonl` and `grades/TASK.jsonl` lie in the folder that is given; answers are drawn by `sample.collect`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig

from lowtax import benchmarks, evaluate, models, reasoning
from lowtax.benchmarks import catalog
from lowtax.benchmarks.base import Task
from lowtax.cells import Cell
from lowtax.engines.settings import EngineSettings
from lowtax.reasoning import Answer, Key
from lowtax.sample import Ask, Sheet, Subject, replies_of

T = TypeVar("T")
Found = dict[str, tuple[Ask, Answer]]  # by reply id
BASE = "base"


def file_name(name: str) -> str:
    """A name as a file may have it."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def sheets(tasks: Mapping[str, Task], out: Path) -> dict[str, Sheet]:
    """The problems of every task, and where their answers lie."""
    return {
        name: Sheet(out / "answers" / f"{file_name(name)}.jsonl", benchmarks.load(name, task).rows(), task.sampling)
        for name, task in tasks.items()
    }


def questions(tasks: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """Where the questions of every task are from; of generated ones nothing need be said."""
    found = {}
    for name, task in tasks.items():
        benchmark = task.benchmark or name
        if benchmark in catalog.QUESTION_SETS or (task.file and benchmark in benchmarks.TABLE):
            found[name] = catalog.read(benchmark, task).describe()
    return found


def grade(
    tasks: Mapping[str, Task], out: Path, subjects: Sequence[Subject], engine: EngineSettings
) -> dict[str, Found]:
    """Grades of the stored answers: task -> reply id -> (what was asked, (grade, reply)); failed replies have none."""
    found: dict[str, Found] = {}
    for name, sheet in sheets(tasks, out).items():
        task, stored = tasks[name], replies_of(sheet, subjects, engine)
        grades = evaluate.grade(
            [reply for _, reply in stored.values()],
            name,
            benchmarks.load(name, task),
            {p.id: p for p in sheet.prompts},
            out / "grades" / f"{file_name(name)}.jsonl",
            evaluate.Checker(task.checker, engine, task.preset) if task.checker else None,
        )
        found[name] = {reply_id: (ask, (grades.get(reply_id), reply)) for reply_id, (ask, reply) in stored.items()}
    return found


def rates(graded: Mapping[str, Found], subject: Subject) -> tuple[dict[str, Cell], Cell]:
    """The cell of every task of one checkpoint, all its seeds together, each with its tax; and the mean tax."""
    answers = {task: by_seed(found, subject.arm, subject.checkpoint) for task, found in graded.items()}
    cells = {task: reasoning.cell(asked) for task, asked in answers.items()}
    if subject.arm == BASE:
        return {task: found | {"tax": reasoning.NO_TAX} for task, found in cells.items()}, reasoning.NO_TAX
    by_task, mean = reasoning.taxes({task: by_seed(found, BASE, None) for task, found in graded.items()}, answers)
    return {task: found | {"tax": by_task[task]} for task, found in cells.items()}, mean


def by_checkpoint(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The subjects that differ in their seed alone, together."""
    groups: dict[tuple[str, str | None], list[Subject]] = {}
    for subject in subjects:
        groups.setdefault((subject.arm, subject.checkpoint), []).append(subject)
    return list(groups.values())


def by_seed(found: Mapping[str, tuple[Ask, T]], arm: str, checkpoint: str | None) -> dict[int, dict[Key, T]]:
    """The results of one checkpoint: seed -> prompt and sample -> result."""
    seeds: dict[int, dict[Key, T]] = {}
    for ask, result in found.values():
        if (ask.subject.arm, ask.subject.checkpoint) == (arm, checkpoint):
            seeds.setdefault(ask.subject.seed or 0, {})[ask.prompt.id, ask.sample] = result
    return seeds


def table(graded: Mapping[str, Found], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """A row for every checkpoint: who, its tasks, and its mean tax."""
    rows = []
    for first, *_ in by_checkpoint(subjects):
        cells, mean = rates(graded, first)
        where = {"arm": first.arm, "checkpoint": first.checkpoint, "step": first.step}
        rows.append({**where, "reasoning": cells, "tax": mean})
    return rows


def context_warning(model: str, engine: str, tasks: Mapping[str, Task]) -> str | None:
    """A sentence if a task asks for longer answers than a local model has positions for; None if all is well."""
    longest = max((task.sampling.max_new_tokens for task in tasks.values()), default=0)
    if engine not in ("hf", "vllm") or model.endswith(".gguf"):
        return None
    try:
        positions = AutoConfig.from_pretrained(models.resolve(model)).get_text_config().to_dict()
    except (OSError, ValueError):  # the engine says what is wrong with the model
        return None
    room = positions.get("max_position_embeddings")
    if room is None or longest <= room:
        return None
    return (
        f"warning: max_new_tokens is {longest:,}, but {model} has {room:,} positions for prompt and answer together; "
        "answers are cut there and count as unfinished"
    )
