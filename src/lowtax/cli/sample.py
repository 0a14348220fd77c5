"""The commands `sample` and `judge`, for a study or without one."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowtax.cli.failures import report_failures, stored
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
    say_unused,
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
            sheets = list(work.reply_sheets().values())
            work.sample(sheets)
            report_failures(stored(sheet.path for sheet in sheets))
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
    report_failures(replies)
    print(f"{len(replies)} replies in {out / 'replies.jsonl'}")


def judge(
    folder: FolderOrNone = None,
    judge_: Annotated[str | None, typer.Option("--judge", help="Judge; in a study, instead of the recipe's.")] = None,
    replies: Annotated[
        Path | None,
        typer.Option("--replies", help="Folder of `sample`, or any file: CSV, JSONL, JSON or parquet, also .gz."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="COL", help="Column of the requests; a.b is b in a.")
    ] = None,
    reply: Annotated[str | None, typer.Option("--reply", metavar="COL", help="Column of the replies.")] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="COL", help="Column of the ids.")] = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="COL", help="Column of the requests' categories.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="COL", help="Column of the models: each has separate rates.")
    ] = None,
    on: Annotated[Text | None, typer.Option("--on", help=ON_HELP)] = None,
    out: Out = None,
    again: Annotated[bool, typer.Option("--again", help="Discard stored verdicts and judge again.")] = False,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Print N replies beside their verdicts.")] = 0,
    engine: Engine = "hf",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
) -> None:
    """Judge stored replies.

    A judge decides whether replies refuse, or whether they are harmful.

    Example: lowtax judge runs/quickstart --judge refusal_words

    Example: lowtax judge --replies replies --judge refusal_words --on answer --out verdicts

    Example: lowtax judge --replies mine.csv --prompt question --reply response --judge refusal --out verdicts --show 5
    """
    columns = {"prompt": prompt, "reply": reply, "id": id_, "category": category, "source": source}
    if folder:
        if replies or out or any(columns.values()):
            raise UserError("A study has its own replies: remove --replies, --out and the names of columns.")
        from lowtax.cli.main import study
        from lowtax.judges.verdicts import excerpts

        with study(folder) as work:
            work.require("prompts")
            for kind, judged in work.judge(judge_, on, again).items():
                labels = [verdict.label for _, verdict in judged.values()]
                print(f"{kind}: " + ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels))))
                if show:
                    verdicts = {reply_id: verdict for reply_id, (_, verdict) in judged.items()}
                    print(excerpts(stored([work.reply_sheets()[kind].path]), verdicts, show))
        return
    if not (replies and judge_ and out):
        raise UserError("Give a study's folder, or --replies, --judge and --out.")
    say_unused(judge_, engine, precision, batch_size)
    from lowtax.judges.own_replies import Columns
    from lowtax.judges.verdicts import excerpts
    from lowtax.study import api

    rows = api.judge(
        replies,
        judge_,
        columns=columns,
        on=on or "answer",
        out=out,
        again=again,
        engine=engine,
        precision=precision,
        batch_size=batch_size,
    )
    print((out / "safety.md").read_text())
    if show:
        texts, _ = api.stored_replies(replies, Columns(**columns))
        print(excerpts(texts, {verdict.reply_id: verdict for verdict in rows}, show))
    failed = [verdict for verdict in rows if verdict.label == "failed"]
    if failed and len(failed) == len(rows):
        print(f"lowtax: all {len(failed)} verdicts failed: {failed[0].error}", file=sys.stderr)
        raise typer.Exit(1)
