"""The commands and the blocks of code in the guides."""

import re
import shlex

from places import ROOT

DOCS = ROOT / "docs"
COMMAND = re.compile(r"(?:^|-m |--module )lowtax (?P<words>[a-z].*)")


def blocks(name: str, language: str) -> list[str]:
    text = (DOCS / name).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (lowtax .*)$", text, flags=re.MULTILINE) if language == "bash" else []
    return [*found, *indented]


def commands(name: str) -> list[list[str]]:
    """The words after `lowtax` of every command in a guide."""
    found = []
    for block in blocks(name, "bash"):
        text = block.replace("\\\n", " ")
        for variable, value in re.findall(r'^(\w+)="(.*)"$', text, flags=re.MULTILINE):
            text = text.replace(f"${variable}", value)
        lines = [COMMAND.search(line) for line in text.splitlines()]
        found += [shlex.split(line["words"], comments=True) for line in lines if line]
    return found
