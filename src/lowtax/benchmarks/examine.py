"""Turn tasks and checkpoints into answers, grades and rates, for `lowtax run` and `lowtax evaluate`.

Answers are in `answers/TASK.jsonl` (sampled by `sample.collect`), grades in `grades/TASK.jsonl` of the output folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lowtax.benchmarks import catalog, evaluate
from lowtax.benchmarks import rates as reasoning
from lowtax.benchmarks.base import TABLE, Task, load
from lowtax.benchmarks.rates import Answer, Key
from lowtax.common.errors import UserError
from lowtax.common.names import file_name, sharing
from lowtax.common.records import Grade, Reply, Subject
from lowtax.common.tables import Cell
from lowtax.engines.sampling import Ask, Sheet, replies_of
from lowtax.engines.settings import EngineSettings
from lowtax.models import loading

T = TypeVar("T")
TaskResult = dict[str, tuple[Ask, Answer]]  # by reply id
BASE = "base"


def sheets(tasks: Mapping[str, Task], out: Path) -> dict[str, Sheet]:
    """Return the problems of every task with the path of their answers.

    Raises:
        UserError: two tasks would share a file, or one does not exist.
    """
    if shared := sharing(tasks):
        raise UserError(f"The tasks {shared[0]!r} and {shared[1]!r} would share one file: give one another name.")
    return {
        name: Sheet(out / "answers" / f"{file_name(name)}.jsonl", load(name, task).rows(), task.sampling)
        for name, task in tasks.items()
    }


def questions(tasks: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """Return the source of each task's questions. Generated tasks are omitted."""
    sources = {}
    for name, task in tasks.items():
        benchmark = task.benchmark or name
        if benchmark in catalog.QUESTION_SETS or (task.file and benchmark in TABLE):
            sources[name] = catalog.read(benchmark, task).describe()
    return sources


def grade(
    tasks: Mapping[str, Task], out: Path, subjects: Sequence[Subject], engine: EngineSettings
) -> dict[str, TaskResult]:
    """Grade the stored answers.

    Returns:
        task -> reply id -> (request, (grade, reply)); the grade of a failed reply is None.
    """
    results: dict[str, TaskResult] = {}
    for name, sheet in sheets(tasks, out).items():
        task, stored = tasks[name], replies_of(sheet, subjects, engine)
        grades = evaluate.grade(
            [reply for _, reply in stored.values()],
            name,
            load(name, task),
            {p.id: p for p in sheet.prompts},
            out / "grades" / f"{file_name(name)}.jsonl",
            evaluate.Checker(task.checker, engine, task.preset) if task.checker else None,
        )
        results[name] = result(stored, grades)
    return results


def result(stored: Mapping[str, tuple[Ask, Reply]], grades: Mapping[str, Grade]) -> TaskResult:
    """Return answers with their grades, by reply id."""
    return {reply_id: (ask, (grades.get(reply_id), reply)) for reply_id, (ask, reply) in stored.items()}


def rates(graded: Mapping[str, TaskResult], subject: Subject) -> tuple[dict[str, Cell], Cell]:
    """Return the rates and the tax of every task of one checkpoint, over all its seeds; and the mean tax."""
    answers = {task: by_seed(result, subject.arm, subject.checkpoint) for task, result in graded.items()}
    cells = {task: reasoning.cell(by_key) for task, by_key in answers.items()}
    if subject.arm == BASE:
        return {task: cell | {"tax": reasoning.NO_TAX} for task, cell in cells.items()}, reasoning.NO_TAX
    by_task, mean = reasoning.taxes({task: by_seed(result, BASE, None) for task, result in graded.items()}, answers)
    return {task: cell | {"tax": by_task[task]} for task, cell in cells.items()}, mean


def by_checkpoint(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Group the subjects that differ in their seed alone."""
    groups: dict[tuple[str, str | None], list[Subject]] = {}
    for subject in subjects:
        groups.setdefault((subject.arm, subject.checkpoint), []).append(subject)
    return list(groups.values())


def by_seed(results: Mapping[str, tuple[Ask, T]], arm: str, checkpoint: str | None) -> dict[int, dict[Key, T]]:
    """Return the results of one checkpoint: seed -> prompt and sample -> result."""
    seeds: dict[int, dict[Key, T]] = {}
    for ask, result in results.values():
        if (ask.subject.arm, ask.subject.checkpoint) == (arm, checkpoint):
            seeds.setdefault(ask.subject.seed or 0, {})[ask.prompt.id, ask.sample] = result
    return seeds


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `table` as Markdown: the rates, and every run of them where there are several."""
    parts = [reasoning.markdown(rows), reasoning.CAPTION]
    if runs := reasoning.runs_markdown(rows):
        parts += [runs, reasoning.RUNS_CAPTION]
    return "\n\n".join(parts)


def table(graded: Mapping[str, TaskResult], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return a row for every checkpoint: its arm and step, the rates of its tasks, their runs, and its mean tax."""
    rows = []
    for first, *_ in by_checkpoint(subjects):
        cells, mean = rates(graded, first)
        where = {"arm": first.arm, "checkpoint": first.checkpoint, "step": first.step}
        runs = {task: reasoning.runs(by_seed(result, first.arm, first.checkpoint)) for task, result in graded.items()}
        rows.append({**where, "reasoning": cells, "runs": runs, "tax": mean})
    return rows


def context_warning(model: str, engine: str, tasks: Mapping[str, Task]) -> str | None:
    """Return a warning if a task allows longer answers than a local model has positions for, else None."""
    longest = max((task.sampling.max_new_tokens for task in tasks.values()), default=0)
    if engine not in ("hf", "vllm") or model.endswith(".gguf"):
        return None
    try:
        positions = loading.load_config(model).get_text_config().to_dict()
    except UserError:  # the engine reports what is wrong with the model
        return None
    room = positions.get("max_position_embeddings")
    if room is None or longest <= room:
        return None
    return (
        f"warning: max_new_tokens is {longest:,}, but {model} has {room:,} positions for prompt and answer together; "
        "answers are cut there and count as unfinished"
    )
