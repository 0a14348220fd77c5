"""Limits on chat templates, which strangers write: a template is a program, and may take for ever or fill the memory.

jinja2's sandbox keeps a template away from the machine, and limits neither time nor memory. So a template that could
grow is first rendered on trial, in a separate process with 1 GB of memory and 10 seconds: the first conversation that
it is used for, and a long one. Templates that only go once through the messages cannot grow and need no trial. A limit
in this process would not do: one multiplication of a text may take all memory, and cannot be interrupted.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common.errors import UserError
from lowtax.data.template_trial import SECONDS, environment

if TYPE_CHECKING:
    from jinja2 import nodes

LONG = 40  # turns of the conversation that is tried besides
SHORT = 20_000  # characters of a template that needs no trial
WAIT = 120  # seconds on a busy machine
METHODS = frozenset("split rsplit strip lstrip rstrip startswith endswith items keys values get upper lower".split())
FILTERS = frozenset("trim length string lower upper default d list first last items safe".split())

_tried: dict[str, bool] = {}


def require_bounded(template: str, where: str, messages: Sequence[Any], variables: Mapping[str, Any]) -> None:
    """Check that a template ends within the limits; each template is tried once.

    Args:
        template: its source.
        where: the tokenizer, for the error.
        messages, variables: the conversation and the other variables.

    Raises:
        UserError: it does not.
    """
    if template not in _tried:
        _tried[template] = not may_grow(template) or _ends(template, messages, variables)
    if not _tried[template]:
        raise UserError(
            f"The chat template of {where!r} takes more than {SECONDS} seconds or 1 GB of memory for a conversation: "
            "it is damaged or hostile, so give another chat template."
        )


def _ends(template: str, messages: Sequence[Any], variables: Mapping[str, Any]) -> bool:
    """Render a template in a process with limits, and return whether that ends."""
    roles = ("user", "assistant")
    long = [{"role": roles[i % 2], "content": f"Text {i} of a turn. " * 8} for i in range(LONG + 1)]
    plain = {"tools": None, "documents": None} | {k: v for k, v in variables.items() if not callable(v)}
    both = [{**plain, "messages": list(turns)} for turns in (messages, long)]
    script = Path(__file__).with_name("template_trial.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            input=json.dumps({"template": template, "variables": both}, default=str),
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@cache
def may_grow(template: str) -> bool:
    """Return whether a template could write much more than it reads; False only if nothing in it repeats or grows."""
    from jinja2 import TemplateError, nodes

    if len(template) > SHORT:
        return True
    try:
        tree = environment().parse(template)
    except (TemplateError, RecursionError):
        return True
    plain: tuple[type[nodes.Node], ...] = (nodes.Output, nodes.TemplateData, nodes.If, nodes.CondExpr, nodes.Const)
    plain += (nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.And)
    plain += (nodes.Or, nodes.Not, nodes.Test, nodes.Add, nodes.Sub, nodes.Concat, nodes.Neg, nodes.For, nodes.Call)
    plain += (nodes.Filter, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword)
    waiting: list[tuple[nodes.Node, int]] = [(node, 0) for node in tree.body]
    while waiting:
        node, depth = waiting.pop()
        depth += isinstance(node, nodes.For)
        if not isinstance(node, plain) or depth > 1 or _may_repeat(node):
            return True
        waiting += [(child, depth) for child in node.iter_child_nodes()]
    return False


def _may_repeat(node: "nodes.Node") -> bool:
    """Return whether a node calls what could repeat or grow."""
    from jinja2 import nodes

    if isinstance(node, nodes.For):
        return node.recursive
    if isinstance(node, nodes.Filter):
        return node.name not in FILTERS
    if isinstance(node, nodes.Call):
        named = node.node
        known = isinstance(named, nodes.Getattr) and named.attr in METHODS
        return not (known or (isinstance(named, nodes.Name) and named.name == "raise_exception"))
    return False
