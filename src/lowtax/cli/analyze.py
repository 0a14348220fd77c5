"""The command `analyze`: the geometry of weight updates of a study, of adapters or of fine-tuned checkpoints."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowtax.cli.options import Trust
from lowtax.common.errors import UserError
from lowtax.common.log import tell

if TYPE_CHECKING:
    from lowtax.analysis.geometry import Settings

REPORT = "geometry.json"


def analyze(
    run: Annotated[
        Path | None, typer.Argument(help="A study; its last checkpoint of every arm and seed is analysed.")
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option("--adapter", metavar="DIR", help="PEFT LoRA folder; repeatable, to compare several."),
    ] = None,
    tuned: Annotated[
        list[str] | None, typer.Option("--tuned", metavar="M", help="Fully fine-tuned checkpoint; repeatable.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="M", help="Base model; by default the one the adapters name.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Singular directions of W on each side, for overlaps.")] = 16,
    exact: Annotated[
        bool, typer.Option("--exact", help="Decompose large matrices completely: minutes for each.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder for geometry.json and figures.")] = None,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every site.")] = False,
) -> None:
    """Measure the geometry of weight updates.

    Reports norms, ranks, overlap with the base's singular directions, and intruder dimensions. No GPU is needed.

    Example: lowtax analyze --adapter runs/14b/arms/MODE/seed-0/checkpoint-5000 --out geometry
    """
    if (run is None) == (not adapter and not tuned):
        raise UserError("lowtax analyze needs either a study, or --adapter DIR or --tuned M (both are repeatable).")
    if run is not None and base is not None:
        raise UserError("A study defines its own base: remove --base.")
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.analysis.geometry import Settings

    settings = Settings(top=top, exact=exact)
    if run is not None:
        report, out = _of_study(run, settings, trust), out or run
    else:
        from lowtax.study import api

        report = api.analyze(adapter or [], tuned=tuned or [], base=base, top=top, exact=exact)
    if out is not None:
        _write(out, report)
    tell(json.dumps(report) if as_json else described(report))


def _of_study(run: Path, settings: "Settings", trust: bool) -> dict[str, Any]:
    from lowtax.analysis import geometry as analysis
    from lowtax.cli import main
    from lowtax.models.weights import open_weights

    with main.study(run, trust=trust) as work:
        weights = open_weights(work.recipe.model)
        return analysis.analyze(weights, analysis.of_study(work.subjects(), weights), settings)


def _write(out: Path, report: dict[str, Any]) -> None:
    from lowtax.analysis import geometry_figures
    from lowtax.common.files import write_json

    write_json(out / REPORT, report)
    geometry_figures.draw(report, out)


def described(report: dict[str, Any]) -> str:
    """Return a report as a table with a row for each arm and an explanation of its columns."""
    from lowtax.common.tables import markdown_table

    rows: list[tuple[str, ...]] = [
        ("arm", "sites", "norm", "spectral", "stable rank", "left", "right", "both", "intruders", "unmoved")
    ]
    rows += [_row(arm) for arm in report["arms"]]
    notes = [f"{arm['label']}: {arm['note']}" for arm in report["arms"] if arm["note"]]
    return "\n".join([markdown_table(rows, padded=True), "", CAPTION.format(top=report["settings"]["top"]), *notes])


CAPTION = """\
norm: ||dW|| / ||W|| (Frobenius) over all sites. spectral: the median site's ||dW|| / ||W|| in the spectral norm. stable
rank: the median site's. left, right, both: dW's energy in the top {top} singular directions of W, as a multiple of what
a random direction has. intruders: of the singular vectors tested (! some undecided). unmoved: share of the changed
entries that a merge in bfloat16 would leave as they were."""


def _row(arm: dict[str, Any]) -> tuple[str, ...]:
    s = arm["summary"]
    times = [s["overlap"][side] / s["random_overlap"][side] if s["moved"] else 0.0 for side in s["overlap"]]
    counts = s["intruders"]
    return (
        arm["label"],
        f"{s['moved']} of {s['sites']}",
        f"{s['relative_norm']:.2%}",
        f"{s['relative_spectral_norm']:.1%}",
        f"{s['stable_rank']:.2f}",
        *(f"{value:.2f}x" for value in times),
        f"{counts['found']} of {counts['tested']}{'!' if counts['undecided'] else ''}",
        f"{s['unmoved']:.0%}",
    )
