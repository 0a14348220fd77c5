"""Runs of cells: each is `lowtax run` in a separate process, whose end is recorded before the next one begins.

A cell is finished if it ended well with the recipe and the environment that the plan has now. One that failed is run
again when the command is repeated; `lowtax run` resumes what was made of it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lowtax.common.cards import ConsistencyProgress, read_card
from lowtax.common.errors import Busy, Stopped, UserError
from lowtax.common.files import locked, write_json, write_text
from lowtax.common.log import say
from lowtax.common.records import row_id
from lowtax.study import stored_recipe
from lowtax.study.consistency.cells import REFERENCE, Cell, Grid
from lowtax.study.consistency.sharing import share
from lowtax.training import stopping

Run = Callable[[Sequence[str], Mapping[str, str], Path], str | None]
"""Runs a command line of lowtax with more variables in its environment, and a file for what it says.

Returns None if it ended well, else the reason.
"""
PROGRESS = "progress.json"
SPEAK_EVERY, LOOK_EVERY = 10.0, 0.1  # seconds


@dataclass(frozen=True)
class Place:
    """The folder of a consistency study.

    study: the study that becomes the reference cell; None if that is run.
    same: the user's word about the model, for the process of every cell.
    """

    out: Path
    study: Path | None = None
    same: bool = False

    def folder(self, cell: str) -> Path:
        """Return the folder of a cell."""
        return self.out / "cells" / cell

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return how the cells ended that have been run, by name."""
        path = self.out / PROGRESS
        cells: dict[str, dict[str, Any]] = read_card(path, ConsistencyProgress)["cells"] if path.exists() else {}
        return cells


def run_cells(grid: Grid, place: Place, run: Run) -> dict[str, dict[str, Any]]:
    """Run the cells that are not finished, and return how all of them ended.

    Raises:
        UserError: The reference cell failed, without which there is nothing to compare.
    """
    records = {name: record for name, record in place.progress().items() if name in grid.cells}
    left = [cell for cell in grid.cells.values() if not finished(cell, place, records)]
    for number, cell in enumerate(left, 1):
        say(f"cell {number} of {len(left)}: {cell.name}, {summary(cell, place)}")
        began = time.monotonic()
        error = _run(cell, place, run)
        records[cell.name] = {"key": _key(cell), "seconds": round(time.monotonic() - began, 1), "error": error}
        write_json(place.out / PROGRESS, {"cells": place.progress() | records})
        if error is not None:
            say(f"  {cell.name} FAILED: {error}")
            if cell.name == REFERENCE:
                raise UserError(f"The reference cell failed, so that there is nothing to compare: {error}")
    return {name: records[name] for name in grid.cells}


def finished(cell: Cell, place: Place, records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a cell ended well as it is now."""
    record = records.get(cell.name)
    table = place.folder(cell.name) / "table.json"
    return record is not None and record["error"] is None and record["key"] == _key(cell) and table.exists()


def summary(cell: Cell, place: Place) -> str:
    """Return what the run of a cell does, in words."""
    if cell.kind is None:
        return f"copied from {place.study}" if place.study else "trained and measured"
    return {"training": "trained and measured", "evaluation": "measured anew", "reading": "judged anew"}[cell.kind]


def _key(cell: Cell) -> str:
    return row_id(stored_recipe.dumped(_values(cell)), cell.change.environment)


def _values(cell: Cell) -> Any:
    return cell.change.recipe.model_dump(mode="json", exclude_unset=True)


def _run(cell: Cell, place: Place, run: Run) -> str | None:
    """Run a cell, and return the reason if it failed."""
    recipe, folder = place.out / "recipes" / f"{cell.name}.yaml", place.folder(cell.name)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, stored_recipe.dumped(_values(cell)))
    source = place.study if cell.name == REFERENCE else place.folder(REFERENCE)
    try:
        _wait_for(folder)
        with locked(folder):
            if source is not None:
                share(cell, source, folder)
    except UserError as error:
        return str(error)
    trains = cell.kind == "training" or (cell.kind is None and place.study is None)
    # Whoever made the plan has looked at the Python files that it names.
    options = ["--trust", *["--no-train"] * (not trains), *["--base-is-the-same"] * place.same]
    return run(["run", str(recipe), "--out", str(folder), *options], cell.change.environment, _log(place, cell))


def _log(place: Place, cell: Cell) -> Path:
    (place.out / "logs").mkdir(exist_ok=True)
    return place.out / "logs" / f"{cell.name}.log"


def _wait_for(folder: Path) -> None:
    """Wait while another process works in a folder, such as the cell of a consistency study that was killed."""
    spoke = -SPEAK_EVERY
    while True:
        try:
            with locked(folder):
                return
        except Busy:
            if time.monotonic() - spoke >= SPEAK_EVERY:
                spoke = time.monotonic()
                say(f"  another process still works in {folder}: waiting for its end")
            time.sleep(LOOK_EVERY)


def in_process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> str | None:
    """Run a command line in a process, and pass on what it says (`Run`).

    A signal that ends this process is passed on first, so that the state of training is saved.

    Raises:
        Stopped: A signal has come, and that process has ended.
    """
    with log.open("wb") as output, log.open("rb") as lines, stopping.signals() as signals:
        child = subprocess.Popen(
            [sys.executable, "-m", "lowtax", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=os.environ | environment,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which passes it on once
        )
        try:
            passed = False
            while child.poll() is None:
                if signals.number and not passed:
                    child.send_signal(signals.number)
                    passed = True
                _pass_on(lines)
                time.sleep(LOOK_EVERY)
        except BaseException:
            child.kill()
            raise
        _pass_on(lines)
    if signals.number:
        raise Stopped(signals.number, "stopped; repeat the command to resume.")
    if not child.returncode:
        return None
    if child.returncode < 0:
        return f"its process was ended by signal {-child.returncode}"
    return _last(log) or f"its process ended with code {child.returncode}"


def _pass_on(lines: IO[bytes]) -> None:
    for line in lines.read().decode(errors="replace").splitlines():
        say(f"  {line.rstrip()}")


def _last(log: Path) -> str:
    """Return the last line that a process wrote, which is the sentence of its error."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("lowtax: ") if lines else ""
