"""Raw rows of an exam: a local copy if there is one, else the hub at a pinned commit.

A named exam is read from the task's `file`; else from the folder that LOWTAX_TASKS names, if its file is there; else
from the hub's cache or the hub. Copies differ in what they call things: `cell` finds a column under any of its names.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowtax import tables
from lowtax.errors import UserError, did_you_mean
from lowtax.recipe import Task
from lowtax.tables import Row
from lowtax.tasksets import NAMED, NamedTask, Questions

FOLDER = "LOWTAX_TASKS"
SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet")
GPQA_COLUMNS = '"Question", "Correct Answer" and "Incorrect Answer 1" to "Incorrect Answer 3"'


def rows(name: str, task: Task) -> list[Row]:
    """The raw rows of an exam, in file order; see `read`."""
    return read(name, task).rows


def read(name: str, task: Task) -> Questions:
    """The raw rows of an exam, and where they are from.

    name: one of `tasksets.NAMED`; any other name needs the task's `file`.

    Raises:
        UserError: The exam cannot be had here, or has no such split; the sentence says what can be done.
    """
    named = NAMED.get(name)
    if named is None:
        return _unnamed(name, task)
    if task.subset and named.subset != "all":
        raise UserError(f"The task {name} has no subsets: leave out {task.subset!r}.")
    local = Path(task.file).expanduser() if task.file else _local(name, named, task.split)
    if local is None:
        table, origin = _downloaded(name, named, task.split), named.hub
    elif local.is_dir():
        split = task.split or named.split
        table, origin = tables.Table(tables.read_folder(local, named.subset, split)), local.name
    else:
        table, origin = tables.Table(tables.read_table(local)), local.name
    usual = task.split in (None, named.split)
    if task.file and local and local.is_file() and not usual:
        raise UserError(f"{task.file!r} is a file, which is one split: leave out the split {task.split!r}.")
    note = f"{len(table.rows)} rows instead of the {named.rows} published"
    return Questions(
        name,
        table.rows,
        origin,
        table.revision,
        named.licence,
        named.citation,
        note if usual and len(table.rows) != named.rows else "",
    )


def _unnamed(name: str, task: Task) -> Questions:
    """A file, a folder or a data set of the hub that the task names."""
    if not task.file:
        raise UserError(
            f"The task {name} has no questions of its own: give its file (`file` in a recipe, or the file itself "
            "as the task), a .jsonl, .json, .csv or .parquet file."
        )
    path = Path(task.file).expanduser()
    if path.is_file() or not (path.is_dir() or tables.is_hub_id(task.file)):
        found = of_subjects(tables.load(task.file, split=task.split).rows, task.subset, path.name)
        if not found:
            raise UserError(f"{task.file} has no rows whose column `split` is {task.split!r}.")
        return Questions(name, found, path.name)
    table = tables.load(task.file, task.subset, task.split)
    return Questions(name, table.rows, path.name if path.is_dir() else task.file, table.revision)


def _local(name: str, named: NamedTask, split: str | None) -> Path | None:
    """The exam's file in the folder that LOWTAX_TASKS names, or where other tools look for it."""
    stems = (name, *named.stems) if split in (None, named.split) else (f"{name}_{split}",)
    if given := os.environ.get(FOLDER):
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise UserError(f"{FOLDER} is {given!r}, which is no folder: set it to the one that holds your task files.")
        paths = (folder / (stem + suffix) for stem in stems for suffix in SUFFIXES)
        if found := next((path for path in paths if path.is_file()), None):
            return found
    if named.override and (given := os.environ.get(named.override)):
        return Path(given).expanduser()
    return None


def _downloaded(name: str, named: NamedTask, split: str | None) -> tables.Table:
    """The exam's rows on the hub; the error says what can be done instead."""
    columns = f" with the columns {GPQA_COLUMNS}" if named.gated else ""
    instead = f"put it as {name}.csv or .jsonl{columns} into a folder and set {FOLDER} to that, or give its file"
    try:
        folder = tables.snapshot(named.hub, named.revision)
    except UserError as error:
        why = str(error).partition(", or give a local copy")[0].removesuffix(".")
        page = f"https://huggingface.co/datasets/{named.hub}"
        terms = f" (gated: accept its terms at {page} and log in with `hf auth login`)"
        raise UserError(f"{why}{terms if named.gated and 'gated' not in why else ''}; or {instead}.") from error
    return tables.Table(tables.read_folder(folder, named.subset, split or named.split, named.hub), folder.name)


def cell(row: Row, names: Iterable[str], where: str) -> Any:
    """What stands in the first of these columns that the row has, capitals aside."""
    wanted = list(names)
    if (found := column(row, wanted)) is None:
        raise UserError(f"{where} has no column {' or '.join(wanted)}; its columns are {', '.join(map(str, row))}.")
    if row[found] is None:
        raise UserError(f"{where}: the column {found!r} is empty.")
    return row[found]


def column(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The row's own name of the first of these columns that it has, capitals aside."""
    have = {str(own).lower(): own for own in row}
    return next((have[name.lower()] for name in names if name.lower() in have), None)


def of_subjects(given: list[Row], subset: str | None, where: str) -> list[Row]:
    """The rows of the subjects that `subset` lists with commas; all if it is absent."""
    if not subset:
        return given
    wanted = [word.strip() for word in subset.split(",")]
    known = {str(cell(row, ("subject",), where)) for row in given}
    for subject in wanted:
        if subject not in known:
            raise UserError(f"{where} has no subject {subject!r}; {did_you_mean(subject, known)}")
    return [row for row in given if str(cell(row, ("subject",), where)) in wanted]
