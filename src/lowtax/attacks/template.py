"""Wrappers: the request is written into fixed texts, from a folder.

Source: Hand-written wrappers are the oldest attack; Wei et al. 2023, Jailbroken, arXiv:2307.02483, names the kinds
(competing objectives, such as refusal suppression and role play; mismatched generalisation, such as base64 and other
encodings, and translation).

Departures: The wrappers that come with lowtax are a few of our own, without content of any harmful kind. They are
weaker than those that circulate: use a folder of your own (`folder: DIR`) to compare with a published set.

A wrapper is a file NAME.txt with `{goal}` where the request goes; `{goal:base64}`, `{goal:leetspeak}` and
`{goal:rot13}` write it in that encoding. Other braces stay as they are.
"""

import base64
import codecs
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from pydantic import Field

from lowtax.attacks.base import Variant, Wrapping
from lowtax.common.borders import expanded, read_text
from lowtax.common.errors import UserError, did_you_mean

SHIPPED = resources.files("lowtax").joinpath("attacks/wrappers")
PLACE = re.compile(r"\{goal(?::(\w+))?\}")
LEET = str.maketrans("aeiostAEIOST", "431057431057")


def _leetspeak(text: str) -> str:
    return text.translate(LEET)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode()


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


ENCODINGS = {"base64": _base64, "leetspeak": _leetspeak, "rot13": _rot13}


class Template(Wrapping):
    """The attack `template`."""

    folder: str | None = Field(None, description="a folder of wrappers (NAME.txt); those of lowtax if absent")
    only: list[str] = Field(default_factory=list, description="the names of the wrappers to use; all if empty")

    def check(self) -> None:
        """Refuse a folder without wrappers, a wrapper without a place for the request, and unknown names."""
        self.wrappers()

    def own_queries(self) -> int:
        """Return the number of wrappers."""
        return len(self.wrappers())

    def variants(self, goal: str, seed: str) -> Iterator[Variant]:
        """Yield the request in each wrapper, by name."""
        return (Variant(wrap(text, goal), name) for name, text in self.wrappers().items())

    def wrappers(self) -> dict[str, str]:
        """Return the wrappers by name.

        Raises:
            UserError: There is none, or one cannot be used.
        """
        texts = _in_folder(self.folder) if self.folder else _shipped()
        for name in self.only:
            if name not in texts:
                raise UserError(f"template: there is no wrapper {name!r}; {did_you_mean(name, texts)}")
        chosen = {name: texts[name] for name in (self.only or sorted(texts))}
        for name, text in chosen.items():
            codes = [match[1] for match in PLACE.finditer(text)]
            if not codes:
                raise UserError(f"template: the wrapper {name} has no {{goal}}, so that no request would be in it.")
            for code in codes:
                if code and code not in ENCODINGS:
                    raise UserError(f"template: {name} has the encoding {code!r}; {did_you_mean(code, ENCODINGS)}")
        return chosen


def wrap(wrapper: str, goal: str) -> str:
    """Return a wrapper with the request in its places; the request is not searched for places."""
    return PLACE.sub(lambda match: ENCODINGS[match[1]](goal) if match[1] else goal, wrapper).strip()


def _shipped() -> dict[str, str]:
    files = [file for file in SHIPPED.iterdir() if file.name.endswith(".txt")]
    return {file.name.removesuffix(".txt"): file.read_text("utf-8") for file in files}


def _in_folder(folder: str) -> dict[str, str]:
    place: Path = expanded(folder)
    files = sorted(place.glob("*.txt")) if place.is_dir() else []
    if not files:
        raise UserError(f"template: {folder} has no wrappers: it must be a folder of NAME.txt files with {{goal}}.")
    return {file.stem: read_text(file) for file in files}
