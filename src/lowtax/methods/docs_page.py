"""Generate docs/reference/methods.md from the docstrings and fields of the methods."""

import re
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lowtax.common import registry
from lowtax.common.display import Markup
from lowtax.common.tables import markdown_table
from lowtax.methods.base import Method
from lowtax.methods.loading import TABLE, catalog

WIDTH = 120
HEAD = """\
# The methods

What each published method does, its source, where the code here departs from the source, and where the method fails.
`lowtax methods --markdown` prints this page from the docstrings in `src/lowtax/methods`. How methods are used:
[Placements](placements.md#regularisers) for `orthogonal`,
[Methods that act while training](../guides/training-methods.md), [Editing a trained adapter](../guides/editing.md).

A method acts at moments of a training run: `prepare`, once before the first step; `penalty`, a term of the loss;
`after_backward`, which changes gradients before they are clipped; `after_step`, which changes weights after the
optimiser's step. On a trained adapter it acts at two: `prepare` and `edit`. Every method gives the same result in one
process, data parallel, with ZeRO and with FSDP2 ([Scaling](../guides/scaling.md#methods)).

Only a study can tell whether a method helps a model. A caution about all methods that look for directions of safety:
Ponkshe et al. 2025, arXiv:2505.14185, argue that such directions cannot be separated from useful ones.
"""


def markdown() -> str:
    """Return the text of docs/reference/methods.md."""
    entries = catalog()
    table = markdown_table([["method", "moments", "on", "does", "from"], *map(_row, entries)], left=5)
    sections = (_section(entry, registry.resolve("method", entry["name"], TABLE)) for entry in entries)
    return "\n".join([HEAD, table, "", *sections])


def _row(one: dict[str, Any]) -> list[Markup]:
    name = one["name"]
    moments = ", ".join(one["moments"])
    cells = (f"[`{name}`](#{name})", moments, one["on"], one["does"].rstrip("."), _origin(one["source"]))
    return [*map(Markup, cells)]


def _origin(text: str) -> str:
    """Return a link to the paper that a source names first; "ours" if the method is ours."""
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
    """Return names and defaults of the fields, with the other choices in brackets."""
    return ", ".join(f"`{name}` {_value(field)}" for name, field in kind.model_fields.items()) + "."


def _value(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    alternatives = [choice for choice in _choices(field.annotation) if choice != field.default]
    default = "none" if field.default is None else str(field.default).lower()
    return default + (f" ({', '.join(alternatives)})" if alternatives else "")


def _choices(annotation: Any) -> list[str]:
    """Return the values of a Literal, which may be part of a union."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]
