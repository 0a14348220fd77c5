"""The plan of a consistency study: a reference cell, and cells that differ from it in one axis each.

```
OUT/recipes/CELL.yaml            the recipe of each cell
OUT/cells/CELL/                  a study each: reference, AXIS=LEVEL
OUT/logs/CELL.log                what the process of a cell said last
OUT/progress.json                which cells are finished, and why others failed
OUT/consistency.json  .md  .png  the results
```
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.registry import is_program
from lowtax.common.yaml_files import read_yaml
from lowtax.study.consistency.axes import ARITHMETICS, AXES, Axis, Change, Kind, axis, levels_of
from lowtax.study.recipe import Recipe, refuse_programs

REFERENCE = "reference"
SETS = ("harmful", "ordinary")
Chosen = Mapping[str, Sequence[str] | None]  # axis -> its levels; None takes those of the axis


@dataclass(frozen=True)
class Cell:
    """One study of the plan.

    moves: the prompt sets and tasks whose outcomes it makes anew; the others are those of the reference cell.
    """

    name: str
    kind: Kind | None
    change: Change
    moves: frozenset[str]
    axis: str | None = None
    level: str | None = None

    @property
    def same_arithmetic(self) -> bool:
        """Return whether the replies of the base, and its own answers, are those of the reference cell."""
        return self.axis not in ARITHMETICS


@dataclass(frozen=True)
class Level:
    """A level of an axis: the cell that has it and, if that has several training seeds, the one that counts."""

    label: str
    cell: str
    seed: int | None = None


@dataclass(frozen=True)
class Grid:
    """The reference recipe, the levels of every axis, and all cells, the reference first."""

    recipe: Recipe
    levels: dict[str, list[Level]]
    cells: dict[str, Cell] = field(default_factory=dict)


def grid(recipe: Recipe, chosen: Chosen | None) -> Grid:
    """Return the cells of a study: one factor at a time, from the reference.

    Args:
        recipe: that of the reference cell, with all that is resolved when a study begins.
        chosen: the axes; None takes the cheap ones that apply.

    Raises:
        UserError: The recipe measures nothing, or an axis or a level does not apply.
    """
    if not measured(recipe):
        raise UserError("The recipe has neither prompts nor tasks, so that no rate can move: add `harmful` or `tasks`.")
    axes = {name: axis(name) for name in chosen} if chosen else _cheap(recipe)
    if not axes:
        raise UserError(f"No axis that is cheap applies to this recipe: name one by --axis ({', '.join(AXES)}).")
    cells = {REFERENCE: Cell(REFERENCE, None, Change(recipe), frozenset(measured(recipe)))}
    levels: dict[str, list[Level]] = {}
    for name, each in axes.items():
        own = each.own(recipe)
        for label, change in levels_of(each, recipe, (chosen or {}).get(name)):
            level = Level(label, REFERENCE) if label == own else _view(recipe, label, change)
            if level is None:
                cell = _cell(recipe, each, label, change)
                level, cells[cell.name] = Level(label, cell.name), cell
            levels.setdefault(name, []).append(level)
    return Grid(recipe, levels, cells)


def _cheap(recipe: Recipe) -> dict[str, Axis]:
    return {name: each for name, each in AXES.items() if each.cheap and each.refuse(recipe) is None}


def measured(recipe: Recipe) -> list[str]:
    """Return the prompt sets and tasks of a recipe; attacks are not compared."""
    return [*(kind for kind in SETS if any(spec.attack is None for spec in getattr(recipe, kind))), *recipe.tasks]


def _view(recipe: Recipe, label: str, change: Change) -> Level | None:
    """Return a level that is one of several training seeds of the reference cell; None if it is no such level."""
    seeds = change.recipe.seeds
    whole = change.recipe.model_copy(update={"seeds": recipe.seeds})
    if change.environment or whole != recipe or not set(seeds) < set(recipe.seeds):
        return None
    return Level(label, REFERENCE, seeds[0])


def _cell(recipe: Recipe, axis: Axis, label: str, change: Change) -> Cell:
    return Cell(_named(axis.name, label), axis.kind, change, _moves(recipe, axis, change), axis.name, label)


def _named(axis: str, label: str) -> str:
    """Return the name of a cell, which is that of its folder."""
    plain = re.sub(r"[^A-Za-z0-9.@+-]", "_", label)[:60]
    digest = hashlib.sha256(label.encode()).hexdigest()[:6]
    return f"{axis}={plain}" if plain == label else f"{axis}={plain}.{digest}"


def _moves(recipe: Recipe, axis: Axis, change: Change) -> frozenset[str]:
    """Return the prompt sets and tasks whose outcomes a change can move."""
    everything = measured(recipe)
    if axis.kind == "reading":
        return frozenset(kind for kind in SETS if kind in everything)
    if axis.kind == "training" or change.environment:
        return frozenset(everything)
    sampled = {"sampling": recipe.sampling, "tasks": recipe.tasks}
    if change.recipe.model_copy(update=sampled) != recipe:
        return frozenset(everything)
    sets = SETS if change.recipe.sampling != recipe.sampling else ()
    tasks = [name for name, task in recipe.tasks.items() if change.recipe.tasks[name] != task]
    return frozenset({*sets, *tasks} & {*everything})


# --- the choice of axes


def parsed(options: Sequence[str]) -> dict[str, list[str] | None]:
    """Return the axes that options name: NAME, or NAME=LEVEL,LEVEL.

    Raises:
        UserError: An axis is unknown or named twice, or has no level after its sign.
    """
    chosen: dict[str, list[str] | None] = {}
    for option in options:
        name, equals, text = option.partition("=")
        axis(name.strip())
        if name.strip() in chosen:
            raise UserError(f"The axis {name.strip()} is there twice: name all of its levels in one --axis.")
        texts = [part.strip() for part in text.split(",") if part.strip()]
        if equals and not texts:
            raise UserError(
                f"--axis {option!r} names no level: write {name}=LEVEL,LEVEL, or {name} for the usual ones."
            )
        chosen[name.strip()] = texts or None
    return chosen


def read(path: Path, trust: bool = False) -> dict[str, list[str] | None]:
    """Return the axes in a YAML file: `judge: [level, level]`, or `judge:` for the usual levels.

    They may be in a section `consistency`.

    Raises:
        UserError: The file cannot be read, names an unknown axis, or has a Python file as a judge and is not trusted.
    """
    values = read_yaml(path, f"The file of axes {str(path)!r}")
    if isinstance(values, dict) and "consistency" in values:
        values = values["consistency"]
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} names no axes: write `consistency: {{judge: [refusal, refusal_words]}}`.")
    chosen = {str(name): _texts(path, str(name), levels) for name, levels in values.items()}
    for name in chosen:
        axis(name)
    if not trust:
        refuse_programs([text for texts in chosen.values() for text in texts or () if is_program(text)], str(path))
    return chosen


def _texts(path: Path, name: str, levels: Any) -> list[str] | None:
    if levels is None:
        return None
    if not isinstance(levels, list) or not levels or any(isinstance(each, list | dict | bool) for each in levels):
        raise UserError(f"{path}: the levels of {name} must be a list of words or numbers: `{name}: [LEVEL, LEVEL]`.")
    return ["none" if each is None else str(each) for each in levels]
