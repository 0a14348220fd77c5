"""The command `evaluate`: reasoning tasks of a study, or of any model with any adapters."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lowtax.cli.failures import report_failures, stored
from lowtax.cli.options import (
    Adapters,
    BatchSize,
    Deterministic,
    Engine,
    FolderOrNone,
    Model,
    Out,
    Precision,
    Preset,
    Revision,
    Same,
    TemplateKwargs,
    Thinking,
    ThinkingTags,
    Trust,
    at_revision,
    template_kwargs,
)
from lowtax.cli.units import On, Workers, sampling_by
from lowtax.common.errors import UserError
from lowtax.common.log import tell


def evaluate(
    folder: FolderOrNone = None,
    model: Model = None,
    adapter: Adapters = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="Task: a name, or a file of questions; repeatable."),
    ] = None,
    out: Out = None,
    model_revision: Revision = None,
    base_is_the_same: Same = False,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Answers to each question; 1 by default, 8 with a preset.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Random seed of the answers; 0 by default.")] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            "--preset", help="paper: the paper's prompts, 8 samples; reference: also its extraction of answers."
        ),
    ] = None,
    exam_seed: Annotated[
        int | None,
        typer.Option(
            "--exam-seed", min=0, help="Seed of the choice of questions and the order of options; 0 by default."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="At most N questions of a task.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--subset", help="mmlu: subjects; reasoning_gym: a data set; arithmetic: unseen.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Local copy of the task's questions.")] = None,
    checker: Annotated[
        str | None, typer.Option("--checker", help="Model that checks the answers which the rules reject.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer; 32,768 by default.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0.6 by default; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="0.95 by default.")] = None,
    engine: Engine = "hf",
    precision: Precision = "auto",
    batch_size: BatchSize = 64,
    thinking: Thinking = "default",
    chat_template_kwargs: TemplateKwargs = None,
    thinking_tags: ThinkingTags = None,
    deterministic: Deterministic = False,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    workers: Workers = None,
    on: On = None,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sample and grade answers to reasoning tasks.

    The answers are those of a model and its adapters; in a study, those of the base and all checkpoints.

    Example: lowtax evaluate runs/quickstart

    Example: lowtax evaluate --model builtin:smollm2-135m-reasoner --task arithmetic --limit 20 --max-new-tokens 128
    --samples 4 --out exam
    """
    if folder:
        if model or adapter or task or out:
            raise UserError("A study defines its own model and tasks: remove --model, --adapter, --task and --out.")
        return _study(folder, as_json, base_is_the_same, trust, workers, on)
    if not (model and task and out):
        raise UserError("Give a study's folder, or --model, --task and --out.")
    from lowtax.common.files import read_json
    from lowtax.study import api

    api.evaluate(
        str(at_revision(model, model_revision)),
        tasks=task,
        adapters=adapter or [],
        out=out,
        preset=preset,
        exam={"seed": exam_seed, "subset": subset, "checker": checker, "file": file and str(file)},
        limit=limit,
        engine=engine,
        precision=precision,
        batch_size=batch_size,
        thinking=thinking,
        base_is_the_same=base_is_the_same,
        chat_template_kwargs=template_kwargs(chat_template_kwargs),
        thinking_tags=thinking_tags,
        deterministic=deterministic,
        workers=workers,
        on=on,
        samples=samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        system=system,
    )
    report_failures(stored((out / "answers").glob("*.jsonl")))
    tell(json.dumps(read_json(out / "reasoning.json")) if as_json else (out / "reasoning.md").read_text().rstrip())


def _study(folder: Path, as_json: bool, same: bool, trust: bool, workers: int | None, on: str | None) -> None:
    """Sample and grade the answers of a study, and print the rates."""
    from lowtax.cli.main import study

    with study(folder, same=same, trust=trust) as work:
        from lowtax.benchmarks import examine

        work.require("tasks")
        work.warn()
        with sampling_by(workers, on, folder) as draw:
            work.sample(list(work.answer_sheets().values()), draw)
        report_failures(stored((work.out / "answers").glob("*.jsonl")))
        rows = examine.table(work.grade(), work.subjects())
    tell(json.dumps({"rows": rows}) if as_json else examine.page(rows))
