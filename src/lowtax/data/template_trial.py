"""A process that renders a chat template on trial, with limits on time and memory; `template_limits` starts it.

It is a script that imports nothing of lowtax and needs jinja2 alone. Its input is a JSON object with the template and a
list of variables for it. It ends with 0 if every rendering ends, also in an error of the template.
"""

import json
import resource
import sys
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, BYTES = 10, 2**30
LONGEST = 50_000_000  # characters
OUT_OF_MEMORY, TOO_LONG = 3, 4


class Generation(Extension):
    """The tag `generation`, around what an assistant writes."""

    tags: set[str] = {"generation"}  # noqa: RUF012  # as the class above has it

    def parse(self, parser: Parser) -> Node:
        """Return the body of the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """Return an environment with what transformers gives to chat templates."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **_: json.dumps(value)
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda _: "2026-01-31"
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


def main() -> int:
    """Render a template with each of its variables, and return the code with which the process ends."""
    for limit, value in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES)):
        with suppress(ValueError, OSError):  # a system without this limit
            resource.setrlimit(limit, (value, value))
    task = json.load(sys.stdin)
    for variables in task["variables"]:
        try:
            text = environment().from_string(task["template"]).render(**variables)
        except MemoryError:
            return OUT_OF_MEMORY
        except Exception:  # noqa: BLE001  # row recorded as failed
            continue  # transformers raises it again, with its text
        if len(text) > LONGEST:
            return TOO_LONG
    return 0


if __name__ == "__main__":
    sys.exit(main())
