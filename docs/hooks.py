"""Hooks of MkDocs: Markdown that is written for GitHub's view of the repository also works on the site."""

import importlib
import posixpath
import re
from typing import Any

UP = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)")
IN_TABLE = re.compile(r"^\|.*\|$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
PUBLIC = re.compile(r"^::: lowtax\.(\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return a page with working links and tables, and with public names where their code is."""

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[2]))
        if path.startswith("docs/"):
            return match[0]
        return f"[{match[1]}]({config.repo_url}/blob/main/{path})" if config.repo_url else match[1]

    markdown = UP.sub(link, markdown)
    markdown = IN_TABLE.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), markdown)
    return PUBLIC.sub(lambda name: f"::: {_address(name[1])}", markdown)


def _address(name: str) -> str:
    """Return the module and name under which a public name of lowtax is defined.

    Public names are loaded lazily, so that mkdocstrings, which reads source and runs nothing, does not see them.
    """
    value = getattr(importlib.import_module("lowtax"), name)
    return f"{value.__module__}.{value.__qualname__}"
