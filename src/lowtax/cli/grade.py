"""The command `grade`: grade stored answers without a model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowtax.cli.options import Opened, Preset, ThinkingTags
from lowtax.common.log import tell


def grade(
    task: Annotated[
        str, typer.Option("--task", help="Benchmark: a name (docs/reference/benchmarks.md) or file.py:Class.")
    ],
    answers: Annotated[
        Path, typer.Option("--answers", metavar="FILE", help="Answers: CSV, JSONL, JSON or parquet, also .gz.")
    ],
    reply: Annotated[
        str, typer.Option("--reply", metavar="COL", help="Column of the replies; a.b is b in a, a.0 its first item.")
    ],
    gold: Annotated[
        str, typer.Option("--gold", metavar="COL", help="Column of the right answers; for code, of the task ids.")
    ],
    question: Annotated[str | None, typer.Option("--question", metavar="COL", help="Column of the questions.")] = None,
    finish: Annotated[
        str | None,
        typer.Option("--finish", metavar="COL", help="Column of how replies ended; replies cut at a length are wrong."),
    ] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            "--choices", metavar="COL", help="Column of the lists of options; A to D without texts by default."
        ),
    ] = None,
    preset: Annotated[Preset, typer.Option("--preset", help="Rules of extraction and comparison.")] = "default",
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="Local copy of the benchmark, for code.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Grading processes; one per core by default.")
    ] = None,
    checker: Annotated[
        str | None,
        typer.Option("--checker", metavar="MODEL", help="Model that checks boxed answers which the rules reject."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Engine of the checker.")] = "hf",
    thinking_tags: ThinkingTags = None,
    opened: Opened = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder for grades.jsonl and grades.json.")] = None,
    show: Annotated[
        int, typer.Option("--show", metavar="N", min=0, help="Print N answers beside their grades, wrong ones first.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Grade stored answers.

    Thoughts are removed. A reply whose thought did not end is unfinished, and wrong. A list of texts has samples.

    Example: lowtax grade --task gsm8k --answers outputs.jsonl.gz --reply response --gold gold --json

    Example: lowtax grade --task math --answers samples_math.jsonl --reply resps --gold target --show 5
    """
    from lowtax.benchmarks import stored_answers

    grades = stored_answers.grade(
        answers,
        task=task,
        reply=reply,
        gold=gold,
        question=question,
        finish=finish,
        choices=choices,
        preset=preset,
        file=file,
        workers=workers,
        checker=checker,
        engine=engine,
        out=out,
        thinking_tags=thinking_tags,
        opened=opened,
    )
    summary = stored_answers.summary(grades, task=task, file=answers.name, preset=preset)
    tell(json.dumps(summary) if as_json else described(summary))
    if show:
        columns = stored_answers.Columns(reply, gold, question, finish, choices)
        tell(stored_answers.excerpts(stored_answers.read(answers, columns, answers.name), grades, show))


def described(summary: dict[str, Any]) -> str:
    """Return a summary as text for people."""
    low, high = summary["interval"]
    lines = [
        f"accuracy    {summary['accuracy']:.4f} [{low:.4f}, {high:.4f}], {summary['correct']:,} of {summary['n']:,}",
        f"unfinished  {summary['unfinished']:,}",
        f"no answer   {summary['no_answer']:,}",
    ]
    if "checked" in summary:
        lines.append(
            f"checker     accepts {summary['checked_right']:,} of {summary['checked']:,} boxed, rejected answers"
        )
    return "\n".join([*lines, "rules:", *(f"  {count:>7,}  {rule}" for rule, count in summary["rules"].items())])
