"""The command that grades stored answers without a model."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from lowtax.errors import UserError

PRESETS = ("default", "paper", "reference")


def grade(
    task: Annotated[str, typer.Option("--task", help="A benchmark: its name (docs/benchmarks.md) or file.py:Class.")],
    answers: Annotated[Path, typer.Option("--answers", metavar="FILE", help="CSV, JSONL, JSON, parquet; also .gz.")],
    reply: Annotated[str, typer.Option("--reply", metavar="COL", help="The column of the replies; a.b is b in a.")],
    gold: Annotated[str, typer.Option("--gold", metavar="COL", help="The right answers; of code, the task ids.")],
    question: Annotated[str | None, typer.Option("--question", metavar="COL", help="The questions.")] = None,
    finish: Annotated[
        str | None, typer.Option("--finish", metavar="COL", help="How replies ended; those cut at a length are wrong.")
    ] = None,
    choices: Annotated[
        str | None, typer.Option("--choices", metavar="COL", help="Lists of options; A to D without texts if absent.")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="default, paper or reference.")] = "default",
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="A local copy of the benchmark, for code.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Grading processes; one a core.")] = None,
    checker: Annotated[
        str | None, typer.Option("--checker", metavar="MODEL", help="Asked about boxed answers that are rejected.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="What runs the checker.")] = "hf",
    out: Annotated[Path | None, typer.Option("--out", help="A folder for grades.jsonl and grades.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Grade stored answers. Thoughts are taken off; a reply whose thought never ended is unfinished, and wrong.

    Example: lowtax grade --task gsm8k --answers outputs.jsonl.gz --reply response --gold gold --json
    """
    if preset not in PRESETS:
        raise UserError(f"--preset is default, paper or reference (found {preset!r}).")
    from lowtax import regrade
    from lowtax.recipe import Task

    wording = cast(Literal["default", "paper", "reference"], preset)
    settings = Task(preset=wording, file=file, checker=checker)
    columns = regrade.Columns(reply, gold, question, finish, choices)
    stored = regrade.read(answers, columns, answers.name)
    grades = regrade.grade(stored, task, settings, workers)
    if checker:
        from lowtax import checker as checking
        from lowtax.quiet import quiet_libraries

        quiet_libraries()
        by_id = {each.reply_id: each for each in grades}
        rows = [(each, kept.row) for each, kept in zip(grades, stored, strict=True)]
        opinions = checking.check(rows, checking.engine_for(settings, engine), preset)
        grades = list(checking.checked(by_id, opinions).values())
    found = {"task": task, "file": answers.name, "preset": preset, **regrade.summary(grades)}
    if out is not None:
        from lowtax.files import write_json, write_text

        write_text(out / "grades.jsonl", "".join(each.model_dump_json() + "\n" for each in grades))
        write_json(out / "grades.json", found)
    print(json.dumps(found) if as_json else described(found))


def described(found: dict[str, Any]) -> str:
    """A summary for people."""
    low, high = found["interval"]
    lines = [
        f"accuracy    {found['accuracy']:.4f} [{low:.4f}, {high:.4f}], {found['correct']:,} of {found['n']:,}",
        f"unfinished  {found['unfinished']:,}",
        f"no answer   {found['no_answer']:,}",
    ]
    if "checked" in found:
        lines.append(
            f"checker     says right to {found['checked_right']:,} of {found['checked']:,} boxed, rejected ones"
        )
    return "\n".join([*lines, "rules:", *(f"  {count:>7,}  {rule}" for rule, count in found["rules"].items())])
