"""Coherence of replies: whether they are empty, repeat themselves, are in another script, or have no end.

A fine-tuned model may refuse nothing and still say nothing: rates of refusal and judges mislead on such text. The rules
here are coarse and see words alone; a share of them is a warning to read replies, not a measure of quality.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache

from lowtax.common.records import Reply

GRAM = 4  # words of a passage
TIMES, SHARE = 5, 0.2  # a passage that is there so often, and fills so much of the text, is a repetition
LETTERS = 10  # of a text whose script can be told
# Scripts of one writing: Japanese has three of them.
TOGETHER = {"CJK": "HAN", "HIRAGANA": "HAN", "KATAKANA": "HAN"}
NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")


@dataclass(frozen=True)
class Coherence:
    """Shares of n replies that are not failed: those that are empty, repeat, are in another script, are unfinished."""

    empty: float
    repeats: float
    other_script: float
    unfinished: float
    n: int


def coherence(replies: Iterable[Reply]) -> Coherence | None:
    """Return the shares among replies; None if there is no reply that did not fail.

    A reply is *unfinished* if it was cut, or its thought has no end; else *empty* if it has no answer. It *repeats* if
    it repeats a passage (`repeats`), in thought or answer; it is in *another script* if most letters of its answer are
    of a script that its prompt does not have (`other_script`).
    """
    each = [_flags(reply) for reply in replies if reply.finish != "failed"]
    if not each:
        return None
    names = [field.name for field in fields(Coherence) if field.name != "n"]
    return Coherence(**{name: round(sum(flags[name] for flags in each) / len(each), 4) for name in names}, n=len(each))


def _flags(reply: Reply) -> dict[str, bool]:
    unfinished = reply.finish == "length" or not reply.closed
    return {
        "unfinished": unfinished,
        "empty": not unfinished and not reply.answer.strip(),
        "repeats": repeats(reply.thought) or repeats(reply.answer),
        "other_script": other_script(reply.prompt, reply.answer),
    }


def repeats(text: str) -> bool:
    """Return True if a passage of four words is there five times and these fill a fifth of the text.

    In scripts without spaces between words, a character counts as a word.
    """
    words = NO_SPACES.findall(text.lower())
    passages = Counter(zip(*(words[start:] for start in range(GRAM)), strict=False))
    most = max(passages.values(), default=0)
    return most >= TIMES and most * GRAM >= SHARE * len(words)


def other_script(prompt: str, text: str) -> bool:
    """Return True if most letters of a text are of a script of which its prompt has no letter.

    Texts of fewer than ten letters have no script. Languages of one script are not told apart: French is no other
    script than English. A request for a translation makes a false alarm.
    """
    scripts = Counter(script for letter in text if (script := _script(letter)))
    if scripts.total() < LETTERS:
        return False
    [(main, number)] = scripts.most_common(1)
    expected = {_script(letter) for letter in prompt} - {None}
    return bool(expected) and main not in expected and 2 * number > scripts.total()


@lru_cache(maxsize=4096)
def _script(letter: str) -> str | None:
    """Return the script of a letter, the first word of its name in Unicode; None of what is no such letter."""
    if not letter.isalpha():
        return None
    first = unicodedata.name(letter, "").partition(" ")[0]
    return None if first in ("", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE") else TOGETHER.get(first, first)
