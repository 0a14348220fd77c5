"""The options that several commands have."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lowtax.common.errors import UserError

if TYPE_CHECKING:
    from lowtax.engines.settings import EngineSettings

JSON = (str, int, float, list, dict, type(None))  # bool is an int
ON_HELP = "Text to judge: the answer, the thought, or both, the reply as it was written."

FolderOrNone = Annotated[
    Path | None, typer.Argument(help="A study; without one, give a model, or replies, by options.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Output folder. If it exists, the command resumes.")]
Model = Annotated[str | None, typer.Option("--model", help="Model: a hub id, a folder or builtin:NAME.")]
Adapters = Annotated[list[Path] | None, typer.Option("--adapter", help="PEFT adapter folder; repeatable.")]
Engine = Annotated[str, typer.Option("--engine", help="hf, vllm, openai (a server), or file.py:Class.")]
Precision = Annotated[
    Literal["auto", "bfloat16", "float32", "nf4", "nf4-float32"],
    typer.Option(
        "--precision",
        help="Precision of the weights; auto is that which the hardware multiplies fast, nf4 has the base in 4 bits.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows that the engine decodes together.")]
Thinking = Annotated[
    Literal["default", "on", "off"], typer.Option("--thinking", help="Thinking, for templates with a switch.")
]
Same = Annotated[
    bool,
    typer.Option("--base-is-the-same", help="The model is the one that adapters and results were made with."),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the Python files (file.py:Class) that the recipe or the study names.")
]
Revision = Annotated[
    str | None, typer.Option("--model-revision", metavar="REV", help="Commit, tag or branch of a model of the hub.")
]
TemplateKwargs = Annotated[
    str | None,
    typer.Option("--chat-template-kwargs", metavar="YAML", help="Variables of the chat template: {NAME: VALUE}."),
]
ThinkingTags = Annotated[
    str | None,
    typer.Option(
        "--thinking-tags",
        metavar="TAGS",
        help="Tags of thoughts: a family, such as magistral, or OPENING...CLOSING; found by itself by default.",
    ),
]
Opened = Annotated[
    bool | None,
    typer.Option(
        "--opened/--not-opened", help="The prompts opened a thought, or none did; each reply shows it by default."
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Fixed batches: a resumed command draws the same in any precision.")
]
Text = Literal["answer", "thought", "both"]
Preset = Literal["default", "paper", "reference"]


def say_unused(judge: str, settings: "EngineSettings", model: str | None = None) -> None:
    """Say which options a judge ignores whose engine is fixed, or that has none."""
    from lowtax.common.log import say
    from lowtax.judges.base import unused

    if names := unused(judge, settings, model):
        say(f"the judge {judge} has no use for {' and '.join(names)}: ignored")


def at_revision(model: str | None, revision: str | None) -> str | None:
    """Return the reference of a model at a revision: MODEL@REVISION.

    Raises:
        UserError: there is a revision without a model.
    """
    if revision is None:
        return model
    if model is None:
        raise UserError("--model-revision needs --model, a model of the hub; in a recipe, write model: owner/name@rev.")
    return f"{model}@{revision}"


def template_kwargs(text: str | None) -> dict[str, Any]:
    """Return the variables of a chat template that `--chat-template-kwargs` has.

    Raises:
        UserError: It is not a mapping.
    """
    from lowtax.common.yaml_files import parse_yaml

    try:
        values = parse_yaml(text or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"--chat-template-kwargs {text!r} is no mapping; write it as '{{reasoning_effort: low}}'.")
    return {str(name): value if isinstance(value, JSON) else str(value) for name, value in values.items()}
