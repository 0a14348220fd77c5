"""The command `analyze`: the geometry of weight updates of a study, of adapters or of fine-tuned checkpoints."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="MODULE",
            help="Module whose singular vectors are compared; repeatable. By default the ones with most intruders.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="TEXT",
            help="Plain documents on which base and checkpoints are compared: SOURCE[,column=C][,split=S][,n=N].",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="L", help="Longest window of a text; 1024 by default.")
    ] = None,
    precision: Annotated[
        Literal["auto", "bfloat16", "float32", "nf4", "nf4-float32"] | None,
        typer.Option("--precision", help="Precision of the models that read the text; a study has its own."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder for geometry.json and figures.")] = None,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every site.")] = False,
) -> None:
    """Measure the geometry of weight updates.

    Reports norms, ranks, overlap with the base's singular directions, and intruder dimensions. No GPU is needed. With
    --text, also measures what was forgotten: the loss of the models on plain text, for which they are loaded.

    Example: lowtax analyze --adapter runs/14b/arms/MODE/seed-0/checkpoint-5000 --out geometry

    Example: lowtax analyze runs/14b --text wiki.jsonl,n=200
    """
    if (run is None) == (not adapter and not tuned):
        raise UserError("lowtax analyze needs either a study, or --adapter DIR or --tuned M (both are repeatable).")
    if run is not None and base is not None:
        raise UserError("A study defines its own base: remove --base.")
    if text is None and (max_tokens is not None or precision is not None):
        raise UserError("--max-tokens and --precision are for the models that read a text: add --text.")
    if run is not None and precision is not None:
        raise UserError("A study defines its own precision: remove --precision.")
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.analysis.geometry import Settings

    settings = Settings(top=top, exact=exact)
    if run is not None:
        report, out = _of_study(run, settings, maps or [], text, max_tokens, trust), out or run
    else:
        from lowtax.study import api

        report = api.analyze(
            adapter or [],
            tuned=tuned or [],
            base=base,
            top=top,
            exact=exact,
            maps=maps if out is None else maps or [],
            text=text,
            max_tokens=max_tokens,
            precision=precision or "auto",
        )
    if out is not None:
        _write(out, report)
    tell(json.dumps(report) if as_json else described(report))


def _of_study(
    run: Path, settings: "Settings", maps: list[str], text: str | None, max_tokens: int | None, trust: bool
) -> dict[str, Any]:
    from lowtax.analysis import geometry as analysis
    from lowtax.analysis import similarity
    from lowtax.cli import main
    from lowtax.data import documents
    from lowtax.models.weights import open_weights

    texts = None if text is None else documents.read(text)
    with main.study(run, trust=trust) as work:
        weights, subjects = open_weights(work.recipe.model), work.subjects()
        sources, read = analysis.of_study(subjects, weights), {}
        if texts is not None:
            from lowtax.analysis import text_loss

            last, labels = analysis.last_of(subjects), analysis.labels(sources)
            read = {"text": text_loss.measure(weights.ref, last, labels, texts, work.precision, max_tokens)}
        report = analysis.analyze(weights, sources, settings)
        return report | {"similarity": similarity.maps(weights, sources, report, maps)} | read


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
    parts = [markdown_table(rows, padded=True), "", CAPTION.format(top=report["settings"]["top"]), *notes]
    if pictured := report.get("similarity", {}).get("maps"):
        parts += ["", "Left singular vectors of W and of W + dW:"]
        parts += [f"  {one['label']}, {one['module']}: {one['text']}" for one in pictured]
    return "\n".join([*parts, *(["", _of_text(report["text"])] if "text" in report else [])])


CAPTION = """\
norm: ||dW|| / ||W|| (Frobenius) over all sites. spectral: the median site's ||dW|| / ||W|| in the spectral norm. stable
rank: the median site's. left, right, both: dW's energy in the top {top} singular directions of W, as a multiple of what
a random direction has. intruders: of the singular vectors tested (! some undecided). unmoved: share of the changed
entries that a merge in bfloat16 would leave as they were."""


def _of_text(text: dict[str, Any]) -> str:
    """Return the losses on plain text as a table with a row for each model, and for each arm of several seeds."""
    from lowtax.common.tables import markdown_table

    rows: list[tuple[str, ...]] = [("model", "loss", "perplexity", "above the base")]
    for model in text["models"]:
        perplexity = "-" if model["perplexity"] is None else f"{model['perplexity']:.4g}"
        rows.append((model["label"], _interval(model["loss"]), perplexity, _interval(model["difference"], "+")))
    rows += [(f"{x['arm']}, all seeds", "", "", _interval(x["difference"], "+")) for x in text["over_seeds"]]
    return "\n".join([markdown_table(rows, padded=True), "", TEXT_CAPTION.format(**text, **text["source"])])


TEXT_CAPTION = """\
loss: nats a token on {used} documents of {origin} ({tokens} tokens, windows of at most {max_tokens}); {dropped}
documents below two tokens were dropped. above the base: what training added to the loss, on the same windows. In
brackets the 95 % interval over documents, and with several seeds over these, too."""


def _interval(cell: dict[str, Any] | None, sign: str = "") -> str:
    if cell is None or cell["value"] is None:
        return "-"
    value = f"{cell['value']:{sign}.4f}"
    return value if cell["low"] is None else f"{value} [{cell['low']:{sign}.4f}, {cell['high']:{sign}.4f}]"


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
