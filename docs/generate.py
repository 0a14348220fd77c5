"""Write the reference pages that are made of code: docs/reference/recipe.md and docs/reference/commands.md.

`make docs-reference` runs this. A test compares the committed pages with what it would write.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lowtax.cli.main import app
from lowtax.study.recipe import Recipe

DOCS = Path(__file__).resolve().parent
BOUNDS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
ELSEWHERE = {"Placement": "placements.md#fields"}
RECIPE_HEAD = """\
# Recipe

All keys of a recipe, for anyone who writes one. `make docs-reference` writes this page from the code that reads
recipes.

A recipe is a YAML file. It holds only what differs from the defaults below; only `model` is required. An unknown key
is an error, and so is a value of the wrong type. `--set key=value` overrides any key on the command line, with dots
between levels: `--set train.lr=1e-4`, `--set arms.full.train.lr=2e-5`, `--set data.0.n=100`.
"""
COMMANDS_HEAD = """\
# Commands

The options of every command, for looking up. `lowtax COMMAND --help` prints the same; `make docs-reference` writes
this page.
"""


def pages() -> dict[Path, str]:
    """Return the text of each generated page."""
    return {DOCS / "reference/recipe.md": recipe(), DOCS / "reference/commands.md": commands()}


def recipe() -> str:
    """Return the page of the recipe: a table for each of its sections."""
    parts = [RECIPE_HEAD, "## The study\n", *_table(Recipe)]
    for section, keys in _sections().items():
        heading = " and ".join(f"`{key}`" for key in keys)
        parts += [f"\n## {heading}\n", _linked((section.__doc__ or "").strip()) + "\n", *_table(section)]
    return "\n".join(parts) + "\n"


def commands() -> str:
    """Return the page of the commands: the help text of each."""
    group = typer.main.get_command(app)
    parts = [COMMANDS_HEAD]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        context = command.context_class(command, info_name=f"lowtax {name}", terminal_width=100)
        parts.append(f"## `lowtax {name}`\n\n```text\n{_trimmed(command.get_help(context))}\n```\n")
    return "\n".join(parts)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _sections() -> dict[type[BaseModel], list[str]]:
    """Return the sections of the recipe with the keys that hold them, in the order of the recipe."""
    sections: dict[type[BaseModel], list[str]] = {}
    for key, field in Recipe.model_fields.items():
        for section, named in _models(field.annotation):
            if section.__name__ not in ELSEWHERE:
                sections.setdefault(section, []).append(f"{key}.NAME" if named else key)
    inner = [(name, field, part) for part in [*sections] for name, field in part.model_fields.items()]
    for name, field, part in inner:
        for section, _ in _models(field.annotation):
            if section not in sections and section.__name__ not in ELSEWHERE:
                sections[section] = [f"{key}.{name}" for key in sections[part]]
    return sections


def _models(annotation: Any, named: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the sections in an annotation, and whether each is the value of a mapping from names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, named
    for part in get_args(annotation):
        yield from _models(part, named or get_origin(annotation) is dict)


def _table(section: type[BaseModel]) -> list[str]:
    rows = [
        (f"`{name}`", _type(field.annotation, field.metadata), _default(field), _linked(field.description or ""))
        for name, field in section.model_fields.items()
    ]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return head + [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _linked(text: str) -> str:
    """Turn the pages that a text names into links from docs/reference."""

    def link(match: re.Match[str]) -> str:
        page = next(DOCS.rglob(f"{match[1]}.md"), None)
        return f"[{match[1]}](../{page.relative_to(DOCS)})".replace("(../reference/", "(") if page else match[0]

    return re.sub(r"docs/(?:[\w-]+/)*([\w-]+)\.md", link, text)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.json_schema_extra, dict) and "default" in field.json_schema_extra:
        return str(field.json_schema_extra["default"])
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        changed = value.model_dump(exclude_unset=True)
        return ", ".join(f"`{key}: {item}`" for key, item in changed.items()) or "its defaults"
    if value is None or value in ([], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


HUGE = 10_000  # bounds from here on only refuse what no study has


def _type(annotation: Any, metadata: list[Any]) -> str:
    """Return a type as a reader of YAML knows it."""
    marks = [(sign, getattr(mark, key)) for kind, key, sign in BOUNDS for mark in metadata if isinstance(mark, kind)]
    bounds = [f"{sign} {value}" for sign, value in marks if value < HUGE]
    return " ".join([_plain(annotation), " and ".join(bounds)]).strip()


def _plain(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], list(args[1:]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, UnionType):
        return " or ".join(_plain(part) for part in args if part is not NoneType)
    if origin is list:
        return f"list of {_plain(args[0])}" if args[0] is not Any else "list"
    if origin is dict:
        return f"mapping to {_plain(args[1])}" if args[1] is not Any else "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _section_link(annotation)
    return {str: "text", bool: "boolean", int: "integer", float: "number"}.get(annotation, str(annotation))


def _section_link(section: type[BaseModel]) -> str:
    """Return a link to where the keys of a section are."""
    name = section.__name__
    if name in ELSEWHERE:
        return f"[{name.lower()}]({ELSEWHERE[name]})"
    heading = " and ".join(_sections()[section])
    return f"[{heading}](#{re.sub(r'[^a-z0-9_ -]', '', heading.lower()).replace(' ', '-')})"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(f"wrote {path}")
