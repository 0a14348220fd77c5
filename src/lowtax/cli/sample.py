"""The commands `sample` and `judge`, for a study or without one."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lowtax.cli.failures import report_failed_verdicts, report_failures, stored
from lowtax.cli.options import (
    ON_HELP,
    Adapters,
    BatchSize,
    Deterministic,
    Engine,
    FolderOrNone,
    Model,
    Opened,
    Out,
    Precision,
    Revision,
    Same,
    TemplateKwargs,
    Text,
    Thinking,
    ThinkingTags,
    Trust,
    at_revision,
    say_unused,
    template_kwargs,
)
from lowtax.cli.units import On, Workers, WorkersOn, reading_by, sampling_by
from lowtax.common.errors import UserError
from lowtax.common.log import tell


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
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of a reply; by default 2,048 for models that think, 512 for others."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Temperature; 0, the default, is greedy.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Nucleus sampling; 1, the default, is all tokens.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Draw from the k likeliest tokens; 0, the default, is all.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Replies to each prompt; 1 by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the replies; 0 by default.")] = None,
    decoding: Annotated[
        Literal["default", "zero_think", "less_think", "more_think"] | None,
        typer.Option("--decoding", help="How thoughts are cut short or extended; default: not at all."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    thinking: Thinking = "default",
    chat_template_kwargs: TemplateKwargs = None,
    thinking_tags: ThinkingTags = None,
    deterministic: Deterministic = False,
    precision: Precision = "auto",
    batch_size: BatchSize = 64,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="At most N prompts of a set, spread over its categories."),
    ] = None,
    workers: Workers = None,
    on: On = None,
    trust: Trust = False,
) -> None:
    """Sample replies to prompts.

    The replies are those of a model and its adapters; in a study, those of the base and all checkpoints, and the
    conversations of attacks.

    Example: lowtax sample runs/quickstart

    Example: lowtax sample --model builtin:smollm2-135m-reasoner --prompts strongreject --out replies --limit 20
    """
    if folder:
        from lowtax.cli.main import study

        if model or prompts or adapter:
            raise UserError("A study defines its own model and prompts: remove --model, --adapter and --prompts.")
        with study(folder, same=base_is_the_same, trust=trust) as work:
            work.require("prompts")
            sheets = [*work.reply_sheets().values(), *work.attack_sheets()]
            with sampling_by(workers, on, folder) as draw:
                work.sample(sheets, draw)
            work.converse()
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
        thinking_tags=thinking_tags,
        deterministic=deterministic,
        workers=workers,
        on=on,
        **sampling,
    )
    report_failures(replies)
    tell(f"{len(replies)} replies in {out / 'replies.jsonl'}")


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
    thinking_tags: ThinkingTags = None,
    opened: Opened = None,
    on: Annotated[Text | None, typer.Option("--on", help=ON_HELP)] = None,
    out: Out = None,
    again: Annotated[
        bool, typer.Option("--again", help="Judge again, and replace this judge's verdicts on this text.")
    ] = False,
    show: Annotated[int, typer.Option("--show", metavar="N", min=0, help="Print N replies beside their verdicts.")] = 0,
    engine: Engine = "hf",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
    workers: Workers = None,
    workers_on: WorkersOn = None,
    trust: Trust = False,
) -> None:
    """Judge stored replies.

    A judge decides whether replies refuse, or whether they are harmful.

    Example: lowtax judge runs/quickstart --judge refusal_words

    Example: lowtax judge --replies replies --judge refusal_words --on answer --out verdicts

    Example: lowtax judge --replies mine.csv --prompt question --reply response --judge refusal --out verdicts --show 5
    """
    columns: dict[str, Any] = {"prompt": prompt, "reply": reply, "id": id_, "category": category, "source": source}
    columns |= {"thinking_tags": thinking_tags, "opened": opened}
    if folder:
        if replies or out or any(value is not None for value in columns.values()):
            raise UserError("A study has its own replies: remove --replies, --out, columns and tags.")
        from lowtax.cli.main import study
        from lowtax.judges.verdicts import excerpts
        from lowtax.study import attack_panel

        with study(folder, trust=trust) as work:
            work.require("prompts")
            with reading_by(workers, workers_on, folder) as read:
                judged = attack_panel.judge_study(work, judge_, on, again, read)
            for kind, (replies_, verdicts) in judged.items():
                labels = [verdict.label for verdict in verdicts.values()]
                tell(f"{kind}: " + ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels))))
                if show:
                    tell(excerpts(replies_, verdicts, show))
        report_failed_verdicts([verdict for _, verdicts in judged.values() for verdict in verdicts.values()])
        return
    if not (replies and judge_ and out):
        raise UserError("Give a study's folder, or --replies, --judge and --out.")
    from lowtax.engines.settings import EngineSettings
    from lowtax.judges.own_replies import Columns
    from lowtax.judges.verdicts import excerpts
    from lowtax.study import api

    say_unused(judge_, EngineSettings(engine, precision, batch_size))
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
        workers=workers,
        workers_on=workers_on,
    )
    tell((out / "safety.md").read_text())
    if show:
        texts, _ = api.stored_replies(replies, Columns(**columns))
        tell(excerpts(texts, {verdict.reply_id: verdict for verdict in rows}, show))
    report_failed_verdicts(rows)
