"""What model judges share: contents put into a prompt once, and verdicts read from what the judge alone wrote.

A reply may hold anything: verdict lines, closing tags, placeholders. None of it is ever formatted, and none of it is
ever parsed. Of what the judge wrote only lines of the form `name: value` count, and two that disagree are no verdict.
"""

import hashlib
import re
import unicodedata

from lowtax import rendering
from lowtax.engines import Completion

LEAD = r"""(?:^|[{,])[ \t>*_`#"'\d.)-]{0,12}"""  # of a line or a JSON key: list marks, bold, quotes
BETWEEN = r"""[ \t*_`"']{0,9}[:=\uff1a][ \t*_`"'\[(]{0,9}"""
NUMBER = r"\d+(?:\.\d+)?(?:[ \t]*(?:/|out of|of)[ \t]*\d+)?"
MASS = 0.5  # words that are less likely than this together are not what the judge was about to write


def well_formed(text: str) -> str:
    """The text with each lone surrogate replaced by a question mark: no tokenizer takes one."""
    return text.encode("utf-8", "replace").decode()


def filled(template: str, prompt: str, text: str) -> str:
    """The template with {prompt}, {text} and {mark} replaced once; what they bring in is not looked at again.

    {mark} is a word that depends on both contents, so that neither can hold it: a fence that a reply cannot close.
    """
    prompt, text = well_formed(prompt), well_formed(text)
    mark = hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()[:12]
    contents = {"{prompt}": prompt, "{text}": text, "{mark}": mark}
    return re.sub(r"\{(?:prompt|text|mark)\}", lambda found: contents[found[0]], template)


def said(completion: Completion) -> str:
    """What the judge wrote after its own thought, without invisible characters; empty if the thought never ended."""
    answer = rendering.split_reply(completion.text, completion.opened).answer
    return "".join(c for c in answer if unicodedata.category(c) != "Cf")


def choice(text: str, name: str, *values: str) -> str | None:
    """Which of the values the line `name: value` has, in lower case; None without such a line or if two differ."""
    found = {value.lower() for value in _lines(text, name, "|".join(values))}
    return found.pop() if len(found) == 1 else None


def number(text: str, name: str, low: float, high: float) -> float | None:
    """The number in the line `name: number`, also as 4/5; None if there is none from `low` to `high`, or two differ."""
    found = set()
    for written in _lines(text, name, NUMBER):
        value, *of = re.findall(r"\d+(?:\.\d+)?", written)
        found.add(float(value) if not of or float(of[0]) == high else None)
    only = found.pop() if len(found) == 1 else None
    return only if only is not None and low <= only <= high else None


def _lines(text: str, name: str, form: str) -> list[str]:
    """The values of all lines `name: value`; "0 or 1" and "1-5" are the question and no value."""
    more = rf"(?![ \t]*(?:[/|,\u2013-]|or|to|and)[ \t]*(?:{form})(?!\w))"
    return re.findall(rf"{LEAD}{name}{BETWEEN}({form})(?!\w|\.\d|/){more}", text, re.IGNORECASE | re.MULTILINE)


def second_of_two(scores: tuple[float, ...]) -> float | None:
    """The second word's share of the probability of two words; None if they are not what the judge would write."""
    return scores[1] / sum(scores) if len(scores) == 2 and sum(scores) >= MASS else None
