"""The command `evaluate`: the reasoning tasks of a study, or of any model with any adapters."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowtax.cli_common import own_folder, say, thinking_mode
from lowtax.cli_safety import BatchSize, Engine, FolderOrNone, Out
from lowtax.errors import UserError


def evaluate(
    folder: FolderOrNone = None,
    model: Annotated[str | None, typer.Option("--model", help="A hub id, a folder or builtin:NAME.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option("--adapter", help="A PEFT folder; several times.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="A task by name, or a file of questions; several times."),
    ] = None,
    out: Out = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Answers a question.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the draws.")] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="paper: its prompts, 8 samples; reference: its extraction of answers, too."),
    ] = None,
    exam_seed: Annotated[
        int | None, typer.Option("--exam-seed", min=0, help="Which questions, and the order of options.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many questions of a task.")] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Of mmlu, subjects; of reasoning_gym, a set.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A local copy of the task's questions.")] = None,
    checker: Annotated[
        str | None, typer.Option("--checker", help="A model that is asked about answers which the rules reject.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="32,768 if not given.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0.6 if not given; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="0.95 if not given.")] = None,
    engine: Engine = "hf",
    precision: Annotated[str, typer.Option("--precision", help="auto, bfloat16 or float32.")] = "auto",
    batch_size: BatchSize = 64,
    thinking: Annotated[str, typer.Option("--thinking", help="default, on or off.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Let a model and its adapters solve tasks, and grade the answers; in a study, the base and all checkpoints.

    Example: lowtax evaluate runs/quickstart
    Example: lowtax evaluate --model builtin:smollm2-135m-reasoner --task arithmetic --limit 20 --max-new-tokens 128
    --samples 4 --out exam
    """
    if folder:
        if model or adapter or task or out:
            raise UserError("A study brings its own model and tasks: leave --model, --adapter, --task and --out away.")
        return _study(folder, as_json)
    if not (model and task and out):
        raise UserError("Give the folder of a study, or --model, --task and --out.")
    exam = {"seed": exam_seed, "n": limit, "subset": subset, "checker": checker, "file": file and str(file)}
    drawn: dict[str, Any] = {"samples": samples, "seed": seed, "max_new_tokens": max_new_tokens}
    drawn |= {"temperature": temperature, "top_p": top_p}
    from lowtax import tasklist

    tasks = tasklist.tasks(task, preset, exam, drawn)
    found = _alone(model, adapter or [], tasks, out, (engine, precision, batch_size, thinking_mode(thinking)))
    print(json.dumps(found) if as_json else (out / "reasoning.md").read_text().rstrip())


def _study(folder: Path, as_json: bool) -> None:
    """Draw and grade the answers of a study, and print its rates."""
    from lowtax.cli import study

    with study(folder) as work:
        from lowtax import examine, reasoning

        work.warn()
        work.sample(list(work.answer_sheets().values()))
        rows = examine.table(work.grade(), work.subjects())
    print(json.dumps({"rows": rows}) if as_json else f"{reasoning.markdown(rows)}\n\n{reasoning.CAPTION}")


def _alone(model: str, adapters: list[Path], tasks: dict[str, Any], out: Path, how: tuple[Any, ...]) -> dict[str, Any]:
    with own_folder(out):
        from lowtax import examine, models, standalone
        from lowtax.sample import EngineChoice

        engine, precision, batch_size, thinking = how
        if sentence := examine.context_warning(model, engine, tasks):
            say(sentence)
        choice = EngineChoice(engine, models.precision(precision), batch_size, thinking)
        return standalone.evaluate(standalone.Exam(model, adapters, tasks, choice), out, say)
