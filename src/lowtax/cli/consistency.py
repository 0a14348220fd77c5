"""The command `consistency`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowtax.cli.options import Same, Trust
from lowtax.common.errors import UserError
from lowtax.common.log import tell

if TYPE_CHECKING:
    from lowtax.study.consistency.cells import Chosen


def consistency(
    study: Annotated[
        Path, typer.Argument(metavar="RECIPE|DIR", help="A YAML recipe, or the folder of a finished study.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the cells and results; DIR-consistency by default.")
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option("--axis", metavar="NAME[=LEVEL,...]", help="An axis, with its levels; repeatable."),
    ] = None,
    axes: Annotated[
        Path | None, typer.Option("--axes", metavar="FILE", help="A YAML file of axes: consistency: {judge: [...]}.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="At most N prompts of a set, and N of a task.")
    ] = None,
    base_is_the_same: Same = False,
    trust: Trust = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--plan", help="Print the cells and what each does; runs and writes nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print components and conclusions as JSON, and no table.")
    ] = False,
) -> None:
    """Repeat a study along axes, and say how far each moves the rates, and which conclusions hold.

    A cell is a study that differs from the reference in one axis. Cells of evaluation axes use its checkpoints, cells
    of reading axes its replies. Repeat the command to resume.

    Example: lowtax consistency runs/quickstart --axis judge --axis evaluation_arithmetic=float32,bfloat16
    """
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.study.consistency import cells
    from lowtax.study.recipe import load

    if axis and axes:
        raise UserError("Give the axes by --axis or in a file by --axes, not both.")
    chosen: Chosen | None = cells.parsed(axis) if axis else cells.read(axes, trust) if axes else None
    if study.is_dir() and set_:
        raise UserError(f"--set changes a recipe, and {study} is a finished study: give the recipe.")
    subject = study if study.is_dir() else load(study, list(set_ or []), trust)
    from lowtax.study.consistency import run

    if dry_run:
        from lowtax.study.consistency import plan

        grid, place = run.prepare(subject, out or Path("."), chosen, limit, base_is_the_same, trust)
        cells_ = plan.planned(grid, place)
        return tell(json.dumps(plan.as_json(cells_)) if as_json else plan.markdown(cells_, grid))
    result = run.consistency(subject, out=out, axes=chosen, limit=limit, base_is_the_same=base_is_the_same, trust=trust)
    if as_json:
        tell(json.dumps({name: result[name] for name in ("components", "conclusions")}))
    else:
        from lowtax.study.consistency.report import markdown

        tell(markdown(result))
    if any(cell["error"] is not None for cell in result["cells"].values()):
        raise typer.Exit(1)
