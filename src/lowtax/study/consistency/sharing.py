"""Results that a cell shares with the reference cell: checkpoints by hard links, files of rows by copies.

A checkpoint is never written to once it has its name, so that its files can be links (copies where the file system has
none). Files of rows are appended to, and are always copies. Ids of rows hash what made them, so that a row that is
shared is a row that the cell would have made; nothing of it is made again.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lowtax.benchmarks.examine import BASE
from lowtax.common.files import atomic_file, atomic_folder, read_rows, write_text
from lowtax.common.names import file_name, is_checkpoint
from lowtax.common.records import Grade, Reply, Row, Verdict
from lowtax.models.fingerprint import RECORD
from lowtax.study.consistency.cells import SETS, Cell
from lowtax.study.recipe import Recipe

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
    _write(out / replies, rows)
    if folder == "replies":
        for path in sorted(source.glob(f"verdicts/{name}.*.jsonl")):
            verdicts = read_rows(path, Verdict)
            _write(out / "verdicts" / path.name, {id_: v for id_, v in verdicts.items() if v.reply_id in rows})
    else:
        grades = read_rows(source / "grades" / f"{file_name(name)}.jsonl", Grade)
        _write(out / "grades" / f"{file_name(name)}.jsonl", {i: g for i, g in grades.items() if g.reply_id in rows})


def _write(path: Path, rows: dict[str, Row] | dict[str, Reply] | dict[str, Verdict] | dict[str, Grade]) -> None:
    if rows and not path.exists():
        write_text(path, "".join(row.model_dump_json() + "\n" for row in rows.values()))
