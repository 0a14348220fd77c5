"""The commands `sample` and `judge`, for a study or without one."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowtax.cli.options import (
    ON_HELP,
    Adapters,
    BatchSize,
    Engine,
    FolderOrNone,
    Model,
    Out,
    Precision,
    Revision,
    Same,
    TemplateKwargs,
    Text,
    Thinking,
    at_revision,
    template_kwargs,
)
from lowtax.common.errors import UserError


def sample(
    folder: FolderOrNone = None,
    model: Model = None,
    adapter: Adapters = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", metavar="SET", help="Prompt set: a name or FILE[:COLUMN]; repeatable."),
    ] = None,
    model_revision: Revision = None,
    base_is_the_same: Same = False,
    out: Out = None,
    engine: Engine = "hf",
    preset: Annotated[
        Literal["paper"] | None, typer.Option("--preset", help="paper: temperature 1 and 2,048 tokens.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a reply; 512 by default.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Temperature; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Nucleus sampling; 1 is all tokens.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 is all.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Replies to each prompt.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the replies.")] = None,
    decoding: Annotated[
        Literal["default", "zero_think", "less_think", "more_think"] | None,
        typer.Option("--decoding", help="How thoughts are cut short or extended."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    thinking: Thinking = "default",
    chat_template_kwargs: TemplateKwargs = None,
    precision: Precision = "auto",
    batch_size: BatchSize = 64,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="At most N prompts of a set.")
    ] = None,
) -> None:
    """Sample replies to prompts.

    The replies are those of a model and its adapters; in a study, those of the base and all checkpoints.

    Example: lowtax sample runs/quickstart

    Example: lowtax sample --model builtin:smollm2-135m-reasoner --prompts strongreject --out replies --limit 20
    """
    if folder:
        from lowtax.cli.main import study

        if model or prompts or adapter:
            raise UserError("A study defines its own model and prompts: remove --model, --adapter and --prompts.")
        with study(folder, same=base_is_the_same) as work:
            work.require("prompts")
            work.sample(list(work.reply_sheets().values()))
        return
    if not (model and prompts and out):
        raise UserError("Give a study's folder, or --model, --prompts and --out.")
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "samples": samples,
        "seed": seed,
        "decoding": decoding,
        "system": system,
    }
    from lowtax.study import api

    replies = api.sample(
        str(at_revision(model, model_revision)),
        prompts=prompts,
        adapters=adapter or [],
        out=out,
        preset=preset,
        limit=limit,
        engine=engine,
        precision=precision,
        batch_size=batch_size,
        thinking=thinking,
        base_is_the_same=base_is_the_same,
        chat_template_kwargs=template_kwargs(chat_template_kwargs),
        **sampling,
    )
    print(f"{len(replies)} replies in {out / 'replies.jsonl'}")


def judge(
    folder: FolderOrNone = None,
    judge_: Annotated[str | None, typer.Option("--judge", help="Judge; in a study, instead of the recipe's.")] = None,
    replies: Annotated[Path | None, typer.Option("--replies", help="File replies.jsonl, or its folder.")] = None,
    on: Annotated[Text | None, typer.Option("--on", help=ON_HELP)] = None,
    out: Out = None,
    again: Annotated[bool, typer.Option("--again", help="Discard stored verdicts and judge again.")] = False,
    engine: Engine = "hf",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
) -> None:
    """Judge stored replies.

    A judge decides whether replies refuse, or whether they are harmful.

    Example: lowtax judge runs/quickstart --judge refusal_words

    Example: lowtax judge --replies replies --judge refusal_words --on answer --out verdicts
    """
    if folder:
        from lowtax.cli.main import study

        with study(folder) as work:
            work.require("prompts")
            for kind, judged in work.judge(judge_, on, again).items():
                labels = [verdict.label for _, verdict in judged.values()]
                print(f"{kind}: " + ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels))))
        return
    if not (replies and judge_ and out):
        raise UserError("Give a study's folder, or --replies, --judge and --out.")
    from lowtax.engines.settings import EngineSettings
    from lowtax.judges import base as judges
    from lowtax.study import api

    if ignored := judges.unused(judge_, EngineSettings(engine, precision, batch_size)):
        print(f"The judge {judge_!r} has a separate engine and ignores {', '.join(ignored)}.", file=sys.stderr)
    api.judge(
        replies,
        judge_,
        on=on or "answer",
        out=out,
        again=again,
        engine=engine,
        precision=precision,
        batch_size=batch_size,
    )
    print((out / "safety.md").read_text())
