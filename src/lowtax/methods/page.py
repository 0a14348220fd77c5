"""docs/reference/methods.md, made of what the methods say of themselves."""

import re
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lowtax import registry
from lowtax.cells import markdown_table
from lowtax.methods import TABLE, Method, listed

WIDTH = 130
HEAD = """\
# The methods

What each published method does, where it is from, where the code here departs from that, and where it fails.
`lowtax methods --markdown` prints this page, from the docstrings in `src/lowtax/methods`. How methods are used:
[Placements](placements.md#regularisers) for `orthogonal`,
[Methods that act while training](../guides/training-methods.md), [Editing a trained adapter](../guides/editing.md).

Moments of a training run: `prepare` once, before the first step; `penalty`, a term of the loss; `after_backward`, which
changes gradients before they are clipped; `after_step`, which changes weights after the optimiser did. A trained
adapter has two: `prepare` and `edit`. All of them give the same in one process, data parallel, ZeRO and FSDP2
([Scaling](../guides/scaling.md#methods)).

Whether a method helps a model is for a study to say. A caution for all that look for directions of safety: Ponkshe et
al. 2025, arXiv:2505.14185, argue that these are not apart from directions that are useful.
"""


def markdown() -> str:
    """docs/reference/methods.md."""
    found = listed()
    table = markdown_table([["method", "moments", "on", "does", "from"], *map(_row, found)], left=5)
    sections = (_section(one, registry.resolve("method", one["name"], TABLE)) for one in found)
    return "\n".join([HEAD, table, "", *sections])


def _row(one: dict[str, Any]) -> list[str]:
    name = one["name"]
    moments = ", ".join(one["moments"])
    return [f"[`{name}`](#{name})", moments, one["on"], one["does"].rstrip("."), _origin(one["source"])]


def _origin(text: str) -> str:
    """The paper that a source names first, unless the method is ours."""
    paper = re.search(r"arXiv:(\d+\.\d+)", text)
    if text.startswith("Ours") or paper is None:
        return "ours"
    return f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})"


def _section(one: dict[str, Any], kind: type[Method]) -> str:
    parts = {"Source": one["source"], "Departures": one["departures"], "Fails": one["fails"], "Fields": _fields(kind)}
    lines = [_wrapped(f"**{label}:** {text}") for label, text in parts.items()]
    file = f"src/{kind.__module__.replace('.', '/')}.py"
    lines.append(f"- **Equations:** [`{file}`](../../{file})")
    return "\n".join([f"## {one['name']}", "", one["does"], "", *lines, ""])


def _wrapped(text: str) -> str:
    return fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _fields(kind: type[Method]) -> str:
    """Names and defaults, in brackets the other values of those with a list of them."""
    return ", ".join(f"`{name}` {_value(field)}" for name, field in kind.model_fields.items()) + "."


def _value(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    others = [choice for choice in _choices(field.annotation) if choice != field.default]
    default = "none" if field.default is None else str(field.default).lower()
    return default + (f" ({', '.join(others)})" if others else "")


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, which may stand in a union."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]
