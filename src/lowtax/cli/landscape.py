"""The command `landscape`: refusal along slices and planes through weight space, and VISAGE."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lowtax.cli.options import ON_HELP, BatchSize, Precision, Same, TemplateKwargs, Text, Thinking, template_kwargs
from lowtax.common.errors import UserError
from lowtax.common.log import tell

if TYPE_CHECKING:
    from lowtax.data.prompt_sets import PromptList

PICTURE = "landscape.png"


def landscape(
    model: Annotated[str, typer.Option("--model", help="Model: a hub id, a folder or builtin:NAME.")],
    harmful: Annotated[
        list[str],
        typer.Option(
            "--harmful", metavar="SET", help="Harmful prompts: SOURCE[,split=S][,n=N][,column=C]; repeatable."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder. If it exists, the command resumes.")],
    along: Annotated[
        Literal["random", "adapter", "between"],
        typer.Option("--along", help="Slice along random directions, an adapter, or between checkpoints."),
    ] = "random",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="PEFT LoRA: the slice follows it, starts at it, or keeps it fixed.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="M", help="For between: the other model, or PEFT LoRA.")
    ] = None,
    third: Annotated[
        str | None, typer.Option("--third", metavar="M", help="With --two, for between: a third model, or PEFT LoRA.")
    ] = None,
    two: Annotated[
        bool, typer.Option("--two", help="A plane: add a second, random direction, or between, the one to --third.")
    ] = False,
    points: Annotated[
        int | None, typer.Option("--points", help="Points on each axis: 21; adapter 16; --two 9.")
    ] = None,
    radius: Annotated[
        float | None, typer.Option("--radius", metavar="R", help="Random directions run from -R to R; 0.5 by default.")
    ] = None,
    reach: Annotated[
        float | None,
        typer.Option("--reach", metavar="R", help="An adapter runs from 0 to R, 1.5 by default; between, 1 - R to R."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Number of random directions: 3; --two 1.")
    ] = None,
    judge: Annotated[str, typer.Option("--judge", help="Judge of the replies.")] = "refusal",
    on: Annotated[Text, typer.Option("--on", help=ON_HELP)] = "answer",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reply.")] = 512,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    thinking: Thinking = "default",
    chat_template_kwargs: TemplateKwargs = None,
    precision: Precision = "auto",
    batch_size: BatchSize = 64,
    base_is_the_same: Same = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print landscape.json.")] = False,
) -> None:
    """Measure how refusal changes as weights move.

    The weights move around a model, along an adapter, or between two checkpoints; VISAGE sums this up. No model is
    written.

    Example: lowtax landscape --model org/model --harmful advbench,n=80 --judge refusal --out landscape
    """
    from lowtax.analysis.landscape.slices import check_ends, sliced
    from lowtax.common.files import locked
    from lowtax.common.log import quiet_libraries

    slice_ = sliced(along, two, points, radius, reach, seeds)
    check_ends(along, adapter, to, third, two)
    quiet_libraries()
    with locked(out):
        from lowtax.analysis.landscape import figures as landscape_picture
        from lowtax.analysis.landscape import walk as walking
        from lowtax.engines.settings import EngineSettings, Sampling
        from lowtax.models import loading

        ask = walking.Ask(
            model=model,
            adapter=adapter,
            to=to,
            slice=slice_,
            prompts=[_prompts(spec) for spec in harmful],
            sampling=Sampling(max_new_tokens=max_new_tokens, system=system),
            engine=EngineSettings(
                "hf",
                loading.precision(precision),
                batch_size,
                thinking,
                base_is_the_same,
                template_kwargs(chat_template_kwargs),
            ),
            judge=judge,
            on=on,
            third=third,
        )
        result = walking.landscape(ask, out)
        landscape_picture.draw(result, out / PICTURE)
    tell(json.dumps(result) if as_json else f"{described(result)}\n\npicture: {out / PICTURE}")


def _prompts(spec: str) -> "PromptList":
    """Return the prompts of SOURCE[,key=value...], the one-line form of a recipe's `harmful` entry."""
    from pydantic import ValidationError

    from lowtax.data import prompt_sets, specs
    from lowtax.data.specs import PromptSet

    try:
        fields = PromptSet.model_validate(specs.fields(spec))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"--harmful {spec!r}: {key}: {first['msg']}; keys are split, n and column.") from error
    except ValueError as error:
        raise UserError(f"--harmful {spec!r}: {error}.") from error
    source = f"{fields.source}:{fields.column}" if fields.column else fields.source
    prompt_list = prompt_sets.load(source, fields.split, fields.n)
    if not prompt_list.prompts:
        raise UserError(f"--harmful {spec!r} has no prompts: choose another split or set.")
    return prompt_list


def described(result: dict[str, Any]) -> str:
    """Return a landscape as text: VISAGE, and the rates by alpha if it is a line."""
    parts = [] if result["slice"]["two"] else [_table(result["points"])]
    if visage := result["visage"]:
        parts.append("\n".join(_visage(name, visage[name]) for name in ("trimmed", "formula") if name in visage))
    return "\n\n".join(parts)


def _visage(name: str, figures: dict[str, Any]) -> str:
    if figures["mean"] is None:
        return f"VISAGE ({name}): undefined, nothing is refused anywhere"
    directions = len(figures["by_seed"])
    spread = "one direction" if figures["sd"] is None else f"sd {figures['sd']:.1f} over {directions} directions"
    return f"VISAGE ({name}): {figures['mean']:.1f}, {spread}, {figures['min']:.1f} to {figures['max']:.1f}"


def _table(points: list[dict[str, Any]]) -> str:
    """Return a row for each alpha: the safe and the complying share, and the perplexity, of each seed."""
    seeds = list(dict.fromkeys(row["seed"] for row in points))
    by_place = {(row["alpha"], row["seed"]): row for row in points}
    width = 7 * max(2, len(seeds))
    lines = [f"{'alpha':>7}  {'safe':<{width}}{'complied':<{width}}perplexity"]
    for alpha in dict.fromkeys(row["alpha"] for row in points):
        rows = [by_place[alpha, seed] for seed in seeds]
        rates = ("".join(f"{row[name]['value']:<7.2f}" for row in rows).ljust(width) for name in ("safe", "complied"))
        lines.append(f"{alpha:>7.3g}  {''.join(rates)}{'  '.join(_number(row['perplexity']) for row in rows)}")
    return "\n".join([*lines, f"n = {points[0]['n']} replies a point" + (f", seeds {seeds}" if seeds[1:] else "")])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
