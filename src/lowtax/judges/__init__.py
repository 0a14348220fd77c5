"""Judges: given prompts and what was written to them, each says whether the text refuses."""

from typing import Literal, Protocol, cast

from lowtax import registry

Label = Literal["refusal", "partial", "compliance", "unparsed"]

BUILTIN = {"refusal_words": "lowtax.judges.refusal_words:RefusalWords"}


class Judge(Protocol):
    """Says of each text whether it refuses in full, in part or not at all; `unparsed` is no verdict.

    The caller decides which text a judge sees (answer, thought, or both) and keeps replies without an
    answer from it, so that a judge never guesses about them.
    """

    name: str

    def judge(self, prompts: list[str], texts: list[str]) -> list[Label]:
        """One label a text, in order. `prompts` are the requests that the texts answer."""
        ...


def load(name: str) -> Judge:
    """The judge of a name, or of an outsider's `path/file.py:Class`.

    Raises:
        UserError: There is no such judge.
    """
    return cast(Judge, registry.resolve("judge", name, BUILTIN)())
