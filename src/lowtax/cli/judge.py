"""The commands `calibrate` and `export`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lowtax.cli.options import BatchSize, Engine, Opened, Precision, Text, ThinkingTags, say_unused
from lowtax.common.errors import UserError
from lowtax.common.log import complain, tell

RATES = ("accuracy", "precision", "recall", "f1", "kappa")


def calibrate(
    judge: Annotated[str, typer.Argument(help="Judge: a name, NAME:MODEL, or path/to/file.py:Class.")],
    file: Annotated[Path, typer.Argument(help="Labelled replies: CSV, JSONL, JSON or parquet, also .gz.")],
    prompt: Annotated[str, typer.Option("--prompt", metavar="COL", help="Column of the requests.")],
    reply: Annotated[str, typer.Option("--reply", metavar="COL", help="Column of the replies.")],
    label: Annotated[str, typer.Option("--label", metavar="COL", help="Column of people's labels.")],
    positive: Annotated[
        list[str],
        typer.Option(
            "--positive",
            metavar="VALUE[,VALUE]",
            help="Labels that mean refusal, or for a harm judge, harm; repeatable.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="COL", help="Column: report all figures for each of its values, too."),
    ] = None,
    on: Annotated[
        Literal["text", "answer", "thought", "both"],
        typer.Option("--on", help="Judge the text as it is (text, both), or its answer or thought, without tags."),
    ] = "text",
    thinking_tags: ThinkingTags = None,
    opened: Opened = None,
    model: Annotated[str | None, typer.Option("--model", help="Model of the judge, instead of its default.")] = None,
    engine: Engine = "hf",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="At most N rows, drawn by the seed, spread over the labels."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Random seed of --limit, the bootstrap and --disagreements.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder for calibration.json and rows.jsonl.")
    ] = None,
    disagreements: Annotated[
        int,
        typer.Option("--disagreements", metavar="N", min=0, help="With --out: write N of them to disagreements.md."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a judge against people's labels.

    Reports agreement, F1, Cohen's kappa, and the calibration of the judge's scores.

    Example: lowtax calibrate refusal_words judged.csv --prompt prompt --reply completion --label final_label
    --positive 2_full_refusal,3_partial_refusal --source model
    """
    if disagreements and out is None:
        raise UserError("--disagreements needs --out DIR, the folder to write them to.")
    from lowtax.common.files import write_text
    from lowtax.common.log import quiet_libraries
    from lowtax.common.names import refuse_inputs
    from lowtax.engines.settings import EngineSettings
    from lowtax.judges import base as judges
    from lowtax.judges import calibration

    if out is not None:
        refuse_inputs(out, ("calibration.json", "rows.jsonl", "disagreements.md"), file)
    settings = EngineSettings(engine, precision, batch_size)
    say_unused(judge, settings, model)
    columns = calibration.Columns(prompt, reply, label, tuple(positive), source, on, thinking_tags, opened)
    cases = calibration.sampled(calibration.read(file, columns), limit, seed)
    labels = {case.label for case in cases}
    named = calibration.positive_labels(positive, sorted(labels))
    for name in (name for name in named if name not in labels):
        complain(f"no row has the label {name!r}")
    loaded = judges.load(judge, settings, model)
    if getattr(loaded, "is_model", False):
        quiet_libraries()
    judged = calibration.judge_cases(loaded, cases)
    report = calibration.report(loaded.kind, judged, cases, seed)
    report |= {"judge": judge, "model": model, "file": file.name, "positive_labels": named, "on": on}
    if out is not None:
        calibration.write(out, report, judged)
        if disagreements:
            text = calibration.disagreements(loaded.kind, judged, disagreements, seed)
            write_text(out / "disagreements.md", text)
    tell(json.dumps(report) if as_json else described(report))


def described(report: dict[str, Any]) -> str:
    """Return a calibration report as tables for people."""
    from lowtax.common.tables import markdown_table

    groups = [("all", report), *report.get("by_source", {}).items()]
    rates = [["rows", "n", *RATES, "unparsed"]]
    rates += [[name, f"{each['n']:,}", *(_interval(each, key) for key in RATES), str(each["unparsed"])]
              for name, each in groups]  # fmt: skip
    columns = list(next(iter(report["confusion"].values())))
    confusion = [["people \\ judge", *columns]]
    confusion += [[label, *map(str, row.values())] for label, row in report["confusion"].items()]
    parts = [markdown_table(rates, padded=True), _rows_described(report), markdown_table(confusion, padded=True)]
    parts += [_curve(name, each["calibration"]) for name, each in groups if each["calibration"]]
    return "\n\n".join(parts)


def _interval(group: dict[str, Any], key: str) -> str:
    low, high = group["intervals"][key]
    return "none" if group[key] is None else f"{group[key]:.3f} [{low:.3f}, {high:.3f}]"


def _rows_described(report: dict[str, Any]) -> str:
    return (
        f"Over the n of {report['rows']:,} rows with a verdict of {report['judge']}, {report['positive']:,} of them "
        f"positive ({', '.join(report['positive_labels'])}); 95 % intervals, for independent rows. Left out: "
        f"{report['unparsed']:,} unparsed (of them {report['failed']:,} failed), {report['empty']:,} without a text, "
        f"{report['unlabelled']:,} without a label."
    )


def _curve(name: str, calibration: dict[str, Any]) -> str:
    from lowtax.common.tables import markdown_table

    rows = [["score", "n", "mean score", "positive"]]
    rows += [
        [
            f"{b['from']:.1f} to {b['to']:.1f}",
            f"{b['n']:,.0f}",
            f"{b['score']:.3f}",
            f"{b['positive']:.3f} [{b['low']:.3f}, {b['high']:.3f}]",
        ]
        for b in calibration["curve"]
    ]
    brier, error, n = (calibration[key] for key in ("brier", "expected_calibration_error", "n"))
    head = f"Scores, {name}: Brier {brier:.3f}, expected calibration error {error:.3f}, n {n:,}"
    return f"{head}\n\n{markdown_table(rows, padded=True)}"


def export(
    where: Annotated[Path, typer.Argument(help="A study, or a folder of `lowtax sample` and `judge`.")],
    format_: Annotated[
        Literal["reference", "inspect"],
        typer.Option("--format", help="reference: files of the reference project; inspect: logs of Inspect."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder.")],
    judge: Annotated[
        str | None, typer.Option("--judge", help="Judge whose verdicts to export, if there are several.")
    ] = None,
    on: Annotated[
        Text | None, typer.Option("--on", help="Text whose verdicts to export, if there are several.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--set", help="Prompts of a study: harmful or ordinary; of a folder, its set. inspect: all by default."
        ),
    ] = None,
) -> None:
    """Write replies and verdicts in another project's format.

    reference: a folder for every checkpoint. inspect: a log for every checkpoint and prompt set or task.

    Example: lowtax export runs/14b --format reference --judge llama_guard --out exported

    Example: lowtax export runs/quickstart --format inspect --set harmful --out logs
    """
    if format_ == "inspect":
        from lowtax.interop import inspect_logs

        for line in inspect_logs.write(where, out, prompts, judge, on):
            tell(line)
        return
    from lowtax.interop import reference_files as exporting
    from lowtax.interop.reference_files import read_stored

    for line in exporting.write(read_stored(where, judge, on, prompts or "harmful"), out):
        tell(line)
