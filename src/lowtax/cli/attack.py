"""The command `attack`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lowtax.cli.options import (
    ON_HELP,
    Adapters,
    BatchSize,
    Engine,
    Precision,
    Same,
    Text,
    Thinking,
    ThinkingTags,
    say_unused,
)
from lowtax.common.errors import UserError
from lowtax.common.log import complain, tell


def attack(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="prefill, flawed_thought, template, best_of_n, pap, pair, crescendo, or file.py:Class.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="Model: a hub id, a folder or builtin:NAME.")],
    prompts: Annotated[
        list[str], typer.Option("--prompts", metavar="SET", help="Prompt set: a name or FILE[:COLUMN]; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder. If it exists, the command resumes.")],
    adapter: Adapters = None,
    judge: Annotated[str, typer.Option("--judge", help="Judge of the replies.")] = "refusal",
    judges: Annotated[
        list[str] | None,
        typer.Option("--judges", metavar="JUDGE", help="A further judge of the same replies; repeatable."),
    ] = None,
    on: Annotated[Text, typer.Option("--on", help=ON_HELP)] = "answer",
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="K", min=1, help="Most queries of the model about one request.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the attack, such as streams=3; repeatable."),
    ] = None,
    attacker: Annotated[
        str | None, typer.Option("--attacker", help="Model that writes the prompts, of pap, pair and crescendo.")
    ] = None,
    attacker_engine: Annotated[
        str | None, typer.Option("--attacker-engine", help="Its engine: hf, vllm, openai or file.py:Class.")
    ] = None,
    in_loop: Annotated[
        str | None, typer.Option("--in-loop-judge", help="Judge that steers pair and crescendo; --judge by default.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="At most N requests of a set, spread over its categories."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of a reply; by default 2,048 for models that think, 512 for others."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Temperature of replies; 0 is greedy.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt of the model.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Random seed of the replies; 0 by default.")] = None,
    engine: Engine = "hf",
    thinking: Thinking = "default",
    thinking_tags: ThinkingTags = None,
    precision: Precision = "auto",
    batch_size: BatchSize = 64,
    base_is_the_same: Same = False,
) -> None:
    """Attack a model, and measure how often an attack succeeds.

    The attacks change prompts, begin the reply, or talk to the model. What is judged is the reply to the plain
    request. Repeat the command to resume.

    Example: lowtax attack prefill --model builtin:smollm2-135m-reasoner --prompts builtin:harmful --limit 20
    --out attacked

    Example: lowtax attack pair --model owner/name --prompts strongreject --attacker owner/writer --judge llama_guard
    --budget 25 --out attacked
    """
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.attacks.base import Conversation, find, load
    from lowtax.common.files import locked
    from lowtax.engines.sampling import reply_tokens
    from lowtax.engines.settings import PLAIN, EngineSettings
    from lowtax.models.loading import precision as resolved
    from lowtax.study import adhoc, adhoc_attack
    from lowtax.study.attacking import Target

    fields: dict[str, Any] = settings_of(set_ or [])
    talk = {"attacker": attacker, "attacker_engine": attacker_engine, "judge": in_loop}
    if not issubclass(find(name), Conversation) and any(talk.values()):
        raise UserError(
            f"The attack {name} has no attacker and no judge in its loop: remove --attacker, --attacker-engine and "
            "--in-loop-judge."
        )
    fields |= {key: value for key, value in {"budget": budget, **talk}.items() if value is not None}
    say_unused(judge, EngineSettings(engine, precision, batch_size))
    drawn = {"max_new_tokens": max_new_tokens, "temperature": temperature, "system": system, "seed": seed}
    how = Target(
        adhoc.sampling(None, drawn, lambda: reply_tokens(model, engine, thinking_tags, short=PLAIN)),
        EngineSettings(
            engine, resolved(precision), batch_size, thinking, base_is_the_same, thinking_tags=thinking_tags
        ),
        judge,
        on,
    )
    chosen = load({"name": name, **fields})
    if budget is not None and chosen.queries < budget:
        complain(
            f"the attack {chosen.name} makes at most {chosen.queries} queries about one request with these settings, "
            f"fewer than the budget of {budget}"
        )
    request = adhoc_attack.Request(chosen, model, adapter or [], prompts, how, limit, judges or [])
    with locked(out):
        adhoc_attack.run(request, out)
    tell((out / "attack.md").read_text())


def settings_of(texts: list[str]) -> dict[str, Any]:
    """Return the settings of `KEY=VALUE` texts, with values in YAML.

    Raises:
        UserError: A text is not of this form, or its value is not YAML.
    """
    from lowtax.common.yaml_files import parse_yaml

    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set {text!r} is not of the form key=value, for example --set streams=3.")
        try:
            values[key] = parse_yaml(value)
        except ValueError as error:
            raise UserError(f"--set {text!r}: the value is not valid YAML: {error}.") from error
    return values
