"""The command line: one command for each stage, and `run` for a whole recipe. `--help` does not import torch."""

import errno
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lowtax import __version__
from lowtax.cli import (
    analyze,
    attack,
    consistency,
    edit,
    evaluate,
    grade,
    harness,
    judge,
    landscape,
    report,
    sample,
    sandbox,
    train,
    units,
)
from lowtax.cli.failures import report_failures, stored
from lowtax.cli.options import Same, Trust
from lowtax.common import threads, unused
from lowtax.common.errors import FULL_DISK, Stopped, UserError
from lowtax.common.launch import first_to_speak, world
from lowtax.common.log import complain, printable_streams, show_progress, tell

if TYPE_CHECKING:
    from lowtax.study.recipe import Recipe
    from lowtax.study.study import Study


OF_PATHS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTEMPTY,
    errno.EIO,
    errno.ESTALE,
}
"""Errors of the system about the paths that a user gives, or that a study has; others are bugs."""


class Commands(TyperGroup):
    """The group of commands. Typer would end the process on Ctrl-C without a sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C and SIGTERM end it with a sentence and the exit code of a shell."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            message = str(error) if isinstance(error, Stopped) else "stopped; repeat the command to resume."
            if world()[0] == 0:
                complain(f"lowtax: {message}")
            raise SystemExit(128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)) from error


app = typer.Typer(
    name="lowtax",
    cls=Commands,
    help="Make a reasoning LLM refuse harmful requests while it keeps its reasoning, and prove both with numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(help="A YAML recipe, for example recipes/quickstart.yaml.")]
Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Studies: the --out folders of `run` or `train`.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Output folder of the study. If it exists, the study resumes.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as train.lr=1e-4; repeatable."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, help="At most N prompts of a set, spread over its categories, and N of a task."
    ),
]
Engine = Annotated[str | None, typer.Option("--engine", help="Engine: hf, vllm, openai, fake or file.py:Class.")]


def _recipe(path: Path, settings: list[str] | None, engine: str | None, trust: bool) -> "Recipe":
    from lowtax.study.recipe import load

    return load(path, [*(settings or []), *([f"engine={engine}"] if engine else [])], trust)


@contextmanager
def study(
    out: Path, recipe: "Recipe | None" = None, same: bool = False, trust: bool = False, limit: int | None = None
) -> Iterator["Study"]:
    """Open the study in a folder, and keep other processes out of the folder meanwhile."""
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.study.study import Study

    with Study(recipe, out, same, limit) if recipe else Study.open(out, same, trust) as work:
        yield work


@app.command()
def run(
    recipe: RecipeFile,
    out: Out = None,
    set_: Set = None,
    limit: Limit = None,
    engine: Engine = None,
    base_is_the_same: Same = False,
    trust: Trust = False,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Measure the checkpoints that the folder has; nothing is trained.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count, offline; writes nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run or --plan, print JSON.")] = False,
    plan: units.Plan = False,
    workers: units.Workers = None,
    on: units.On = None,
    gpus_each: units.GpusEach = None,
    nodes_each: units.NodesEach = None,
    patience: units.Patience = None,
) -> None:
    """Run every stage of a recipe.

    The stages are: train its arms, sample, judge, evaluate and compare. Repeat the command to resume.

    Example: lowtax run recipes/quickstart.yaml --out runs/quickstart --set arms.full.train.lr=2e-5

    Example: lowtax run recipes/quickstart.yaml --out runs/quickstart --workers 8
    """
    if plan:
        return units.show_plan(_recipe(recipe, set_, engine, trust), limit, as_json)
    if dry_run:
        return _dry_run(_recipe(recipe, set_, engine, trust), limit, as_json)
    if as_json:
        raise UserError("--json is for --dry-run and --plan: the results of a run are in table.json in its folder.")
    if out is None:
        raise UserError("lowtax run needs --out DIR, the folder to write to; --dry-run writes nothing.")
    with study(out, _recipe(recipe, set_, engine, trust), base_is_the_same, limit=limit) as work:
        failure = units.run(work, not no_train, workers, on, gpus_each, patience, nodes_each)
    _show(out)
    report.write_beside(out)
    report.send_results(out, work.recipe.execution)
    report_failures(stored([*(out / "replies").glob("*.jsonl"), *(out / "answers").glob("*.jsonl")]))
    if failure:
        complain(f"lowtax: {failure}")
        raise typer.Exit(1)


def _dry_run(recipe: "Recipe", limit: int | None, as_json: bool) -> None:
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.study.dryrun.plan import plan
    from lowtax.study.dryrun.show import show
    from lowtax.study.limits import limited

    planned = plan(limited(recipe, limit) if limit else recipe)
    tell(json.dumps(asdict(planned))) if as_json else show(planned)


app.command()(train.train)


app.command()(sample.sample)
app.command()(sample.judge)
app.command()(attack.attack)
app.command()(judge.calibrate)
app.command()(judge.export)


app.command()(evaluate.evaluate)
app.command()(grade.grade)
app.command()(sandbox.sandbox)
app.command()(harness.tasks_path)
app.command(context_settings=harness.LM_EVAL_SETTINGS)(harness.lm_eval)


@app.command()
def compare(
    folders: Folders,
    against: Annotated[
        str | None, typer.Option(help="Compare every checkpoint with the last one of this arm, request by request.")
    ] = None,
    safety: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Share of harmful requests refused at which arms are compared; 0.9 by default."
        ),
    ] = None,
    over_refusal: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Largest share of ordinary requests refused there; 0.3 by default."),
    ] = None,
    expect: Annotated[
        Path | None, typer.Option(help="Say which rates agree with the stored results of the same recipe in this file.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="Labels that the page exported: the judges' agreement with you."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder, of several studies.")] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option("--report-to", help="Send the results to a tracker: tensorboard, wandb or trackio; repeatable."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write the table and the figure of a study, or of several on the prompts that all of them have.

    Of one study, stored replies and answers are judged and graded first. The files are table.json, table.md and
    frontier.png; with --against, against.ARM.json. Nothing is sent to the trackers that a recipe names without
    --report-to.

    Example: lowtax compare runs/quickstart

    Example: lowtax compare runs/a runs/b --out both
    """
    if len(folders) > 1:
        report.compare_several(folders, out, [against, safety, over_refusal, expect, labels, report_to])
        return
    [folder] = folders
    if out is not None:
        raise UserError("--out is for several studies: the table of one is in its folder.")
    report.check_trackers(report_to)
    with study(folder, trust=trust) as work:
        work.require("either")
        if labels is not None:
            from lowtax.study import readings

            readings.store(labels, folder)
        if against is not None:
            from lowtax.study import paired

            tell(paired.markdown(paired.against(work, against), against))
            return
        table = work.compare(work.level(safety, over_refusal))
    if (folder / report.PAGE).exists():
        report.write_beside(folder)
    report.send_results(folder, report.to_trackers(work.recipe.execution, report_to))
    if expect is None:
        return _show(folder)
    from lowtax.study import expected

    tell(expected.markdown(expected.agreement(table, expect)))


app.command()(consistency.consistency)
app.command()(report.report)
app.command()(report.view)
app.command()(edit.edit)
app.command()(edit.methods)
app.command()(analyze.analyze)
app.command()(landscape.landscape)
app.command()(train.placements)
app.command()(train.merge)


def _show(out: Path) -> None:
    tell((out / "table.md").read_text())
    tell(f"picture: {out / 'frontier.png'}")


def _version(requested: bool) -> None:
    if requested:
        tell(f"lowtax {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options before the command."""
    if world()[0] == 0:  # of several processes, the first speaks
        show_progress()


def main() -> None:
    """Run the command line. An error that the user can fix is one sentence and exit code 2."""
    unused.leave_out()
    threads.prepare()
    printable_streams()
    try:
        with first_to_speak():
            app()
    except UserError as error:
        complain(f"lowtax: {error}")
        sys.exit(2)
    except (MemoryError, RecursionError) as error:
        why = "a value is nested too deeply" if isinstance(error, RecursionError) else "the memory is full"
        complain(f"lowtax: {why}: give a smaller file, or fewer at a time.")
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL_DISK:
            if error.errno not in OF_PATHS or error.filename is None:
                raise
            complain(f"lowtax: {error.filename} cannot be used: {error.strerror}.")
            sys.exit(2)
        where = f" while writing {error.filename}" if error.filename else ""
        advice = "free some space and repeat the command, which resumes"
        complain(f"lowtax: the disk is full or a file may not grow{where}; {advice}.")
        sys.exit(2)
