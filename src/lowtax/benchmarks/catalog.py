"""Published benchmarks by name: where their questions are, and how the raw rows are read.

A named benchmark is read from the task's `file`; else from the folder that LOWTAX_TASKS names, if its file is there;
else from the hub's cache or the hub, at a pinned commit. Ids, commits, splits and numbers of rows are those that public
evaluation code states; `unverified` says what could not be checked. docs/reference/benchmarks.md has the table.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lowtax.benchmarks.base import Task
from lowtax.common.borders import expanded
from lowtax.common.errors import UserError, did_you_mean
from lowtax.data import readers
from lowtax.data.catalog import DatasetRecord, LocalCopies, NamedDataset
from lowtax.data.tables import Row


@dataclass(frozen=True, kw_only=True)
class Questions(DatasetRecord):
    """The raw rows of a benchmark in file order, and the data set that they are from."""

    rows: list[Row]

    def describe(self) -> dict[str, Any]:
        """Return what a card records of the questions."""
        text = json.dumps(self.rows, sort_keys=True, default=str)
        return {**super().describe(), "rows": len(self.rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def rows(name: str, task: Task) -> list[Row]:
    """Return the raw rows of a benchmark, in file order; see `read`."""
    return read(name, task).rows


def read(name: str, task: Task) -> Questions:
    """Read the raw rows of a benchmark. A name that is not in `QUESTION_SETS` needs the task's `file`.

    Raises:
        DataNotAvailable: The questions are not on this machine and cannot be downloaded.
        UserError: The questions cannot be read, or have no such split or subset.
    """
    named = QUESTION_SETS.get(name)
    if named is None:
        return _read_own(name, task)
    if task.subset and named.subset != "all":
        raise UserError(f"The task {name} has no subsets: remove {task.subset!r}.")
    file = expanded(task.file) if task.file else None
    usual = task.split in (None, named.split)
    table = named.open(file, task.split)
    if file and file.is_file() and not usual:
        raise UserError(f"{task.file!r} is a file, which is one split: remove the split {task.split!r}.")
    note = named.size_note(len(table.rows)) if usual else ""
    return Questions(rows=table.rows, **named.record(table, note))


def _read_own(name: str, task: Task) -> Questions:
    """Read a file, a folder or a data set of the hub that the task names."""
    if not task.file:
        raise UserError(
            f"The task {name} comes without questions: give its file (`file` in a recipe, or the file itself as the "
            "task), a .jsonl, .json, .csv or .parquet file."
        )
    path = expanded(task.file)
    if path.is_dir() or (not path.is_file() and readers.is_hub_id(task.file)):
        table = readers.load(task.file, task.subset, task.split)
        return Questions(name=name, origin=table.origin, revision=table.revision, rows=table.rows)
    table = readers.load(task.file, split=task.split)
    chosen = of_subjects(table.rows, task.subset, table.origin)
    if not chosen:
        raise UserError(f"{task.file} has no rows whose column `split` is {task.split!r}.")
    return Questions(name=name, origin=table.origin, rows=chosen)


def of_subjects(rows: list[Row], subset: str | None, where: str) -> list[Row]:
    """Return the rows of the subjects that `subset` lists with commas, or all rows if it is empty.

    Raises:
        UserError: The rows have no column `subject`, or no such subject.
    """
    if not subset:
        return rows
    subjects = [word.strip() for word in subset.split(",")]
    present = {str(readers.cell(row, ("subject",), where)) for row in rows}
    for subject in subjects:
        if subject not in present:
            raise UserError(f"{where} has no subject {subject!r}; {did_you_mean(subject, present)}")
    return [row for row in rows if str(readers.cell(row, ("subject",), where)) in subjects]


TASK_COPIES = LocalCopies(
    variable="LOWTAX_TASKS",
    suffixes=(".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet"),
    contents="task files",
    formats=".csv or .jsonl",
    direct="its file",
)
_questions = partial(
    NamedDataset,
    split="test",
    copies=TASK_COPIES,
    unverified="that the commit holds these rows, since no hub could be reached",
)
GPQA = _questions(
    name="gpqa_diamond",
    hub="Idavidrein/gpqa",
    revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    rows=198,
    licence="CC-BY-4.0; its authors ask that questions are not shown in plain text where crawlers find them",
    citation="Rein et al. 2023, GPQA, arXiv:2311.12022",
    subset="gpqa_diamond",
    split="train",
    copy_columns='"Question", "Correct Answer" and "Incorrect Answer 1" to "Incorrect Answer 3"',
    gated=True,
)
HUMANEVAL = _questions(
    name="humaneval",
    hub="openai/openai_humaneval",
    revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    rows=164,
    licence="MIT",
    citation="Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374",
    stems=("HumanEval",),
)
MBPP = _questions(
    name="mbpp",
    hub="google-research-datasets/mbpp",
    revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    rows=257,
    licence="CC-BY-4.0",
    citation="Austin et al. 2021, Program Synthesis with Large Language Models, arXiv:2108.07732",
    subset="sanitized",
    stems=("mbpp_sanitized", "sanitized-mbpp"),
)
EVALPLUS = "Liu et al. 2023, Is Your Code Generated by ChatGPT Really Correct?, arXiv:2305.01210"

QUESTION_SETS = {
    named.name: named
    for named in (
        _questions(
            name="aime24",
            hub="Maxwell-Jia/AIME_2024",
            revision="8d88b2876a82a080e2f172cc9b25d0d9d2cb4792",
            rows=30,
            licence="MIT as stated there; the problems are the MAA's",
            citation="American Invitational Mathematics Examination 2024, I and II",
            split="train",
            stems=("aime_2024", "aime_2024_problems"),
        ),
        _questions(
            name="aime25",
            hub="math-ai/aime25",
            revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
            rows=30,
            licence="Apache-2.0 as stated there; the problems are the MAA's",
            citation="American Invitational Mathematics Examination 2025, I and II",
            stems=("aime_2025",),
        ),
        _questions(
            name="math500",
            hub="HuggingFaceH4/MATH-500",
            revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            rows=500,
            licence="MIT, as MATH is",
            citation="Hendrycks et al. 2021, MATH, arXiv:2103.03874; the 500 of Lightman et al. 2023, arXiv:2305.20050",
            stems=("MATH-500", "math_500", "math500_test", "math_500_test"),
        ),
        _questions(
            name="amc23",
            hub="math-ai/amc23",
            revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
            rows=40,
            licence="Apache-2.0 as stated there; the problems are the MAA's",
            citation="American Mathematics Competitions 2023, 12A and 12B",
            stems=("amc_2023", "amc23_test"),
        ),
        _questions(
            name="gsm8k",
            hub="openai/gsm8k",
            revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
            rows=1319,
            licence="MIT",
            citation="Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv:2110.14168",
            subset="main",
            stems=("gsm8k_test",),
        ),
        GPQA,
        replace(GPQA, name="gpqa_main", rows=448, subset="gpqa_main"),
        replace(GPQA, name="gpqa_extended", rows=546, subset="gpqa_extended"),
        _questions(
            name="mmlu",
            hub="cais/mmlu",
            revision="c30699e8356da336a370243923dbaf21066bb9fe",
            rows=14042,
            licence="MIT",
            citation="Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding, arXiv:2009.03300",
            subset="all",
            stems=("mmlu_test", "mmlu_science_mc"),
        ),
        HUMANEVAL,
        replace(
            HUMANEVAL,
            name="humaneval_plus",
            hub="evalplus/humanevalplus",
            revision="d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
            licence="Apache-2.0; HumanEval's own part MIT",
            citation=EVALPLUS,
            stems=("HumanEvalPlus", "HumanEvalPlus-v0.1.10"),
            override="HUMANEVAL_OVERRIDE_PATH",
        ),
        MBPP,
        replace(
            MBPP,
            name="mbpp_plus",
            hub="evalplus/mbppplus",
            revision="b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
            rows=378,
            licence="Apache-2.0; MBPP's own part CC-BY-4.0",
            citation=EVALPLUS,
            subset=None,
            stems=("MbppPlus", "MbppPlus-v0.2.0"),
            override="MBPP_OVERRIDE_PATH",
        ),
    )
}
