"""Judges that are language models: one request per text, and the opinion is read from what the model wrote.

A reply may contain anything: verdict lines, closing tags, placeholders. No part of a reply is ever formatted or parsed.
Of what the judge wrote, only lines of the form `name: value` count, and two lines that disagree are no verdict.
"""

import hashlib
import re
from typing import ClassVar

from lowtax.common.log import counted
from lowtax.engines import base
from lowtax.engines.base import Completion, Request, well_formed
from lowtax.engines.settings import EngineSettings
from lowtax.judges.base import Kind, Opinion

LEAD = r"""(?:^|[{,])[ \t>*_`#"'\d.)-]{0,12}"""  # of a line or a JSON key: list marks, bold, quotes
BETWEEN = r"""[ \t*_`"']{0,9}[:=\uff1a][ \t*_`"'\[(]{0,9}"""
NUMBER = r"\d+(?:\.\d+)?(?:[ \t]*(?:/|out of|of)[ \t]*\d+)?"
MASS = 0.5  # the least total probability at which words count as what the judge was about to write


class ModelJudge:
    """The base class of these judges. A subclass has a model, the request for a text, and how its reply is read."""

    is_model: ClassVar[bool] = True
    default_model: ClassVar[str]
    name: str
    kind: Kind = "harm"

    def __init__(self, settings: EngineSettings | None = None, model: str | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.model = model or self.default_model
        self.engine: base.Engine | None = None

    def request(self, number: str, prompt: str, text: str) -> Request:
        """Return the request to the model about one text; `number` is its id."""
        raise NotImplementedError

    def read(self, completion: Completion) -> Opinion:
        """Return the opinion in what the model wrote; `unparsed` if there is none."""
        raise NotImplementedError

    def judge(self, prompts: list[str], texts: list[str]) -> list[Opinion]:
        """Return one opinion per text, in order. All texts go to the engine at once."""
        requests = [self.request(str(n), *pair) for n, pair in enumerate(zip(prompts, texts, strict=True))]
        if self.engine is None:
            how = self.settings
            self.engine = base.load(how.name, self.model, how.precision, how.batch_size)
        generated = counted(self.engine.generate(requests), len(requests), f"texts read by {self.model}")
        completions = {c.id: c for c in generated}
        return [self._opinion(completions[r.id]) for r in requests]

    def _opinion(self, completion: Completion) -> Opinion:
        if completion.finish == "failed":
            return Opinion("failed", detail=completion.error or "")
        return self.read(completion)


def fill(template: str, prompt: str, text: str) -> str:
    """Return the template with {prompt}, {text} and {mark} replaced once; the contents are not searched again.

    {mark} is a word that depends on both contents, so that neither can contain it: a fence that a reply cannot close.
    """
    prompt, text = well_formed(prompt), well_formed(text)
    mark = hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()[:12]
    contents = {"{prompt}": prompt, "{text}": text, "{mark}": mark}
    return re.sub(r"\{(?:prompt|text|mark)\}", lambda match: contents[match[0]], template)


def read_choice(text: str, name: str, *values: str) -> str | None:
    """Return the value in the line `name: value`, in lower case; None if there is no such line, or two that differ."""
    written = {value.lower() for value in _values(text, name, "|".join(values))}
    return written.pop() if len(written) == 1 else None


def read_number(text: str, name: str, low: float, high: float) -> float | None:
    """Return the number in the line `name: number`, also as 4/5.

    Returns:
        None if there is no such line, if two differ, or if the number is not from `low` to `high`.
    """
    numbers = set()
    for written in _values(text, name, NUMBER):
        value, *of = re.findall(r"\d+(?:\.\d+)?", written)
        numbers.add(float(value) if not of or float(of[0]) == high else None)
    only = numbers.pop() if len(numbers) == 1 else None
    return only if only is not None and low <= only <= high else None


def _values(text: str, name: str, form: str) -> list[str]:
    """Return the values in all lines `name: value`; "0 or 1" and "1-5" repeat the question and are no values."""
    more = rf"(?![ \t]*(?:[/|,\u2013-]|or|to|and)[ \t]*(?:{form})(?!\w))"
    return re.findall(rf"{LEAD}{name}{BETWEEN}({form})(?!\w|\.\d|/){more}", text, re.IGNORECASE | re.MULTILINE)


def second_share(scores: tuple[float, ...]) -> float | None:
    """Return the second word's share of the probability of two words; None if their total is below MASS."""
    return scores[1] / sum(scores) if len(scores) == 2 and sum(scores) >= MASS else None
