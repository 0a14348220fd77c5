"""The command that walks through weight space and says how far refusal reaches: slices, planes, VISAGE."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowtax.cli_common import own_folder, say, thinking_mode
from lowtax.errors import UserError

if TYPE_CHECKING:
    from lowtax.promptsets import PromptList

PICTURE = "landscape.png"


def landscape(
    model: Annotated[str, typer.Option("--model", help="A hub id, a folder or builtin:NAME.")],
    harmful: Annotated[
        list[str],
        typer.Option(
            "--harmful", metavar="SET", help="SOURCE[,split=S][,n=N][,column=C]: what is asked; also several."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where it is written; an existing folder is gone on with.")],
    along: Annotated[str, typer.Option("--along", help="random, adapter or between.")] = "random",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT LoRA: walked along, or beside the model all the time.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="M", help="For between: the other model, or PEFT folder.")
    ] = None,
    two: Annotated[bool, typer.Option("--two", help="A plane: a second, random direction across.")] = False,
    points: Annotated[int | None, typer.Option("--points", help="On each axis: 21; adapter 16; --two 9.")] = None,
    radius: Annotated[float | None, typer.Option("--radius", help="Random directions from -R to R (0.5).")] = None,
    reach: Annotated[float | None, typer.Option("--reach", help="An adapter from 0 to R (1.5).")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Random directions: 3; --two 1.")] = None,
    judge: Annotated[str, typer.Option("--judge", help="Which judge.")] = "refusal",
    on: Annotated[str, typer.Option("--on", help="It judges the answer, thought or both.")] = "answer",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a reply is cut.")] = 512,
    system: Annotated[str | None, typer.Option("--system", help="A system prompt.")] = None,
    thinking: Annotated[
        str, typer.Option("--thinking", help="default, on or off, for templates with a switch.")
    ] = "default",
    precision: Annotated[str, typer.Option("--precision")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows that are decoded together.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print landscape.json.")] = False,
) -> None:
    """How refusal changes around a model, along an adapter, or between two checkpoints; VISAGE. No model is written.

    Example: lowtax landscape --model org/model --harmful advbench,n=80 --judge refusal --out landscape
    """
    from lowtax.landscape_plan import check_ends, sliced

    judged: Any = on
    if on not in ("answer", "thought", "both"):
        raise UserError(f"--on is answer, thought or both (found {on!r}).")
    slice_ = sliced(along, two, points, radius, reach, seeds)
    check_ends(along, adapter, to)
    with own_folder(out):
        from lowtax import landscape as walking
        from lowtax import landscape_picture, models
        from lowtax.recipe import Sampling
        from lowtax.sample import EngineChoice

        ask = walking.Ask(
            model=model,
            adapter=adapter,
            to=to,
            slice=slice_,
            prompts=[_prompts(spec) for spec in harmful],
            sampling=Sampling(max_new_tokens=max_new_tokens, system=system),
            engine=EngineChoice("hf", models.precision(precision), batch_size, thinking_mode(thinking)),
            judge=judge,
            on=judged,
        )
        found = walking.landscape(ask, out, say)
        landscape_picture.draw(found, out / PICTURE)
    print(json.dumps(found) if as_json else f"{described(found)}\n\npicture: {out / PICTURE}")


def _prompts(spec: str) -> "PromptList":
    """The prompts of SOURCE[,key=value...], the one-line form of a recipe's `harmful` entry."""
    from pydantic import ValidationError

    from lowtax import dataspec, prompts
    from lowtax.recipe import PromptSet

    try:
        wanted = PromptSet.model_validate(dataspec.fields(spec))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"--harmful {spec!r}: {key}: {first['msg']}; keys are split, n and column.") from error
    except ValueError as error:
        raise UserError(f"--harmful {spec!r}: {error}.") from error
    where = f"{wanted.source}:{wanted.column}" if wanted.column else wanted.source
    found = prompts.load(where, wanted.split, wanted.n)
    if not found.prompts:
        raise UserError(f"--harmful {spec!r} has no prompts.")
    return found


def described(found: dict[str, Any]) -> str:
    """A landscape for people: VISAGE, and on a line the rates by alpha."""
    parts = [] if found["slice"]["two"] else [_table(found["points"])]
    if found["visage"]:
        parts.append("\n".join(_visage(name, found["visage"][name]) for name in ("trimmed", "formula")
                               if name in found["visage"]))  # fmt: skip
    return "\n\n".join(parts)


def _visage(name: str, found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return f"VISAGE ({name}): undefined, nothing is refused anywhere"
    spread = "one direction" if found["sd"] is None else f"sd {found['sd']:.1f} over {len(found['by_seed'])} directions"
    return f"VISAGE ({name}): {found['mean']:.1f}, {spread}, {found['min']:.1f} to {found['max']:.1f}"


def _table(points: list[dict[str, Any]]) -> str:
    """A row an alpha: the shares that are safe and that complied, and the perplexity, of each seed."""
    seeds = list(dict.fromkeys(row["seed"] for row in points))
    by_place = {(row["alpha"], row["seed"]): row for row in points}
    width = 7 * max(2, len(seeds))
    lines = [f"{'alpha':>7}  {'safe':<{width}}{'complied':<{width}}perplexity"]
    for alpha in dict.fromkeys(row["alpha"] for row in points):
        here = [by_place[alpha, seed] for seed in seeds]
        rates = ("".join(f"{row[name]['value']:<7.2f}" for row in here).ljust(width) for name in ("safe", "complied"))
        lines.append(f"{alpha:>7.3g}  {''.join(rates)}{'  '.join(_number(row['perplexity']) for row in here)}")
    return "\n".join([*lines, f"n = {points[0]['n']} replies a point" + (f", seeds {seeds}" if seeds[1:] else "")])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
