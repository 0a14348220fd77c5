"""The verb `consistency`: plan the cells, run them, and say what moves and what holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.files import locked, write_json, write_text
from lowtax.common.log import quiet_libraries, say
from lowtax.common.provenance import provenance
from lowtax.study import recipe as recipes
from lowtax.study import stored_recipe
from lowtax.study.consistency import results as reading
from lowtax.study.consistency.axes import AXES
from lowtax.study.consistency.cells import REFERENCE, Chosen, Grid, Level, grid
from lowtax.study.consistency.components import component
from lowtax.study.consistency.conclusions import conclusions
from lowtax.study.consistency.report import markdown
from lowtax.study.consistency.results import REFUSED, Results, rates
from lowtax.study.consistency.running import Place, Run, in_process, run_cells
from lowtax.study.limits import limited
from lowtax.study.study import Study

SAFETY = REFUSED["harmful"]
RESULT = "consistency.json"


def consistency(
    source: str | Path | recipes.Recipe,
    *,
    out: str | Path | None = None,
    axes: Chosen | None = None,
    limit: int | None = None,
    base_is_the_same: bool = False,
    trust: bool = False,
    run: Run = in_process,
) -> dict[str, Any]:
    """Repeat a study along axes, one factor at a time, and return how far each moves the rates, and what holds.

    Writes a study for each cell below `out`, and `consistency.json`, `.md` and `.png`. Repeated, it resumes: cells that
    ended well are not run again, and those that failed are.

    Args:
        source: a recipe or its file, or the folder of a finished study, which becomes the reference cell and stays as
            it is.
        out: the folder of results; DIR-consistency beside a study.
        axes: axis -> its levels as text, or None for the usual ones; by default the cheap axes that apply.
        limit: at most so many prompts of a set, and problems of a task.
        base_is_the_same: your word that the model is the one that the study was made with.
        trust: accept the classes in Python files that the recipe or the study names; they run.
        run: runs the command line of a cell.

    Returns:
        `components`: for each axis `sd`, `low` and `high` of harmful requests refused (None if the axis cannot move
        them), `measures` with those of every rate (`components.Component`), by arm, too, and `levels` with their rates;
        `conclusions` (`conclusions.conclusions`); `cells`, with `error`, the reason for which one failed, or None, and
        coherence; `arms`, `measures`, recipe and model.

    Raises:
        UserError: the source is no study and no recipe, an axis or a level does not apply, or the reference cell fails.
    """
    quiet_libraries()
    planned, place = prepare(source, out, axes, limit, base_is_the_same, trust)
    with locked(place.out):
        records = run_cells(planned, place, run)
        say("reading the cells")
        result = analysed(planned, place, records)
        write_json(place.out / RESULT, result)
        write_text(place.out / "consistency.md", markdown(result))
        from lowtax.study.consistency.picture import picture  # lazy: matplotlib

        picture(result, place.out / "consistency.png")
    return result


def prepare(
    source: str | Path | recipes.Recipe,
    out: str | Path | None = None,
    axes: Chosen | None = None,
    limit: int | None = None,
    same: bool = False,
    trust: bool = False,
) -> tuple[Grid, Place]:
    """Return the cells of a consistency study and its place; nothing is written.

    Raises:
        UserError: as of `consistency`.
    """
    path = None if isinstance(source, recipes.Recipe) else Path(source)
    if path is not None and path.is_dir():
        work = Study.open(path, same, trust)
        _require_finished(work)
        place = Place(Path(out) if out else path.with_name(f"{path.resolve().name}-consistency"), path, same)
        settings = limited(work.recipe, limit) if limit else work.recipe
        return grid(settings, axes), place
    settings = source if isinstance(source, recipes.Recipe) else recipes.load(Path(source), trust=trust)
    if out is None:
        raise UserError("A consistency study of a recipe needs a folder to write to: give --out DIR.")
    place = Place(Path(out), None, same)
    return grid(Study(settings, place.folder(REFERENCE), same, limit).recipe, axes), place


def _require_finished(work: Study) -> None:
    """Refuse a study whose arms are not trained, or that has no table.

    Raises:
        UserError: It is such a one.
    """
    stored = stored_recipe.stored_in(work.out)
    finish = f"`lowtax run {stored} --out {work.out}` finishes it"
    if not (work.out / "table.json").exists():
        raise UserError(f"The study in {work.out} has no table.json, so that it is not finished: {finish}.")
    try:
        work.subjects()
    except UserError as error:
        raise UserError(
            f"The study in {work.out} is not finished ({str(error).removesuffix('.')}): {finish}."
        ) from error


def analysed(planned: Grid, place: Place, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result of finished cells (`consistency`)."""
    read = {
        name: reading.read(place.folder(name), place.same)
        for name, record in records.items()
        if record["error"] is None
    }
    reference = read[REFERENCE]
    components = {name: _axis(name, planned, read) for name in planned.levels}
    others = {name: each for name, each in read.items() if name != REFERENCE}
    moved = {name: planned.cells[name].moves for name in others}
    for name, levels in planned.levels.items():
        for level in levels:
            if level.seed is not None and name == "seed":
                others[f"{name}={level.label}"] = reference.of_seed(level.seed)
                moved[f"{name}={level.label}"] = planned.cells[REFERENCE].moves
    return {
        "components": components,
        "conclusions": conclusions(reference, others, moved),
        "cells": {name: _cell(name, planned, record, read.get(name)) for name, record in records.items()},
        "arms": reference.arms,
        "measures": reference.measures,
        "recipe": planned.recipe.name,
        "model": planned.recipe.model,
        "seeds": planned.recipe.seeds,
        "matched_safety": reference.level.model_dump(),
        **provenance(),
    }


def _cell(name: str, planned: Grid, record: Mapping[str, Any], results: Results | None) -> dict[str, Any]:
    cell = planned.cells[name]
    return {
        "axis": cell.axis,
        "level": cell.level,
        "kind": cell.kind,
        "environment": cell.change.environment,
        "seconds": record["seconds"],
        "error": record["error"],
        "hardware": dict(results.hardware) if results else {},
        "coherence": {arm: dict(shares) for arm, shares in results.coherent.items()} if results else {},
    }


def _axis(name: str, planned: Grid, read: Mapping[str, Results]) -> dict[str, Any]:
    """Return the components of one axis, and the rates at its levels."""
    reference, levels = read[REFERENCE], planned.levels[name]
    there = {level.label: _at(level, read) for level in levels if level.cell in read}
    moved = frozenset[str]().union(*(planned.cells[each.cell].moves for each in levels if each.cell != REFERENCE))
    views = any(level.seed is not None for level in levels)
    measures = {}
    for measure in reference.measures:
        by_name = next((kind for kind, called in REFUSED.items() if called == measure), measure)
        if by_name in moved or views:
            measures[measure] = _component(list(there.values()), reference.arms, measure)
    own = measures.get(SAFETY) or {}
    return {
        **{key: own.get(key) for key in ("sd", "low", "high")},
        "kind": AXES[name].kind,
        "about": AXES[name].about,
        "measures": {measure: value for measure, value in measures.items() if value},
        "levels": {level.label: _level(level, reference, there.get(level.label)) for level in levels},
    }


def _at(level: Level, read: Mapping[str, Results]) -> Results:
    results = read[level.cell]
    return results if level.seed is None else results.of_seed(level.seed)


def _level(level: Level, reference: Results, results: Results | None) -> dict[str, Any]:
    there = results.outcomes if results else {}
    rates_of = {
        arm: {measure: results.rate(arm, measure) for measure in of}
        for arm, of in there.items()
        if results and arm in reference.arms
    }
    return {"cell": level.cell, "seed": level.seed, "reference": level.cell == REFERENCE, "rates": rates_of}


def _component(levels: Sequence[Results], arms: list[str], measure: str) -> dict[str, Any] | None:
    """Return the component pooled over arms, and that of each arm; None if it was not measured at two levels."""
    table = rates(list(levels), arms, measure) if len(levels) > 1 else None
    pooled = component(table) if table is not None else None
    if table is None or pooled is None:
        return None
    by_arm = {arm: component(table[[number]]) for number, arm in enumerate(arms)}
    return _rounded(asdict(pooled)) | {"arms": {arm: _rounded(asdict(each)) for arm, each in by_arm.items() if each}}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
