"""Results that a cell shares with the reference cell: checkpoints by hard links, files of rows by copies.

A checkpoint is never written to once it has its name, so that its files can be links (copies where the file system has
none). Files of rows are appended to, and are always copies. Ids of rows hash what made them, so that a row that is
shared is a row that the cell would have made; nothing of it is made again.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from lowtax.benchmarks.examine import BASE
from lowtax.common.files import append_rows, atomic_file, atomic_folder, read_rows
from lowtax.common.names import file_name, is_checkpoint
from lowtax.common.records import Grade, Reply, Row, Verdict
from lowtax.models.fingerprint import RECORD
from lowtax.study.consistency.cells import SETS, Cell
from lowtax.study.recipe import Recipe

R = TypeVar("R", bound=Row)
Rows = Callable[[Reply], bool]


def share(cell: Cell, source: Path, out: Path) -> None:
    """Put into the folder of a cell all results of the reference cell that are its own, too. What is there stays.

    Args:
        source: the folder of the reference cell, or of the study that becomes it.
        out: the folder of the cell.
    """
    out.mkdir(parents=True, exist_ok=True)
    _copy(source / RECORD, out / RECORD)
    if cell.same_arithmetic:
        for path in sorted(source.glob("data/*.jsonl")):
            _copy(path, out / "data" / path.name)
    if cell.kind != "training":
        _share_arms(cell.change.recipe, source, out)
        _copy(source / "updates.json", out / "updates.json")
    if cell.kind not in ("training", "evaluation"):
        _copy(source / "effects.json", out / "effects.json")
    if cell.kind == "training" and not cell.same_arithmetic:
        return
    anew = cell.moves if cell.kind == "evaluation" else frozenset[str]()
    of_base: Rows = lambda reply: reply.arm == BASE  # noqa: E731
    every: Rows = lambda reply: True  # noqa: E731
    for name in [*SETS, *cell.change.recipe.tasks]:
        if name not in anew:
            _share_rows(name, source, out, of_base if cell.kind == "training" else every)


def _share_arms(recipe: Recipe, source: Path, out: Path) -> None:
    """Share the checkpoints of all arms, trained and edited, and then their cards."""
    for arm in [*recipe.arms, *recipe.edited]:
        for seed in recipe.seeds:
            run = source / "arms" / arm / f"seed-{seed}"
            to = out / "arms" / arm / f"seed-{seed}"
            if not run.is_dir() or (to / "card.json").exists():
                continue
            for folder in sorted(path for path in run.iterdir() if path.is_dir() and is_checkpoint(path.name)):
                _link_folder(folder, to / folder.name)
            for name in ("job.json", "steps.jsonl", "card.json"):
                _copy(run / name, to / name)


def _link_folder(source: Path, target: Path) -> None:
    """Make a folder of hard links to the files of a finished one, or of copies; it appears as a whole."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as work:
        shutil.copytree(source, work, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy a file as a whole, unless it is there already or has not been made."""
    if source.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as work:
            shutil.copyfile(source, work)


def _share_rows(name: str, source: Path, out: Path, which: Rows) -> None:
    """Share the replies of a prompt set or a task, with what was made of them: verdicts and grades."""
    folder = "replies" if name in SETS else "answers"
    replies = f"{folder}/{file_name(name)}.jsonl"
    rows = {id_: row for id_, row in read_rows(source / replies, Reply).items() if which(row)}
    _add(out / replies, rows, Reply)
    if folder == "replies":
        for path in sorted(source.glob(f"verdicts/{name}.*.jsonl")):
            verdicts = read_rows(path, Verdict)
            of_rows = {id_: verdict for id_, verdict in verdicts.items() if verdict.reply_id in rows}
            _add(out / "verdicts" / path.name, of_rows, Verdict)
    else:
        grades = read_rows(source / "grades" / f"{file_name(name)}.jsonl", Grade)
        of_answers = {id_: grade for id_, grade in grades.items() if grade.reply_id in rows}
        _add(out / "grades" / f"{file_name(name)}.jsonl", of_answers, Grade)


def _add(path: Path, rows: Mapping[str, R], kind: type[R]) -> None:
    """Append the rows that a file does not have."""
    stored = read_rows(path, kind)
    if new := [row for id_, row in rows.items() if id_ not in stored]:
        append_rows(path, new)
