"""Judges that are language models: one request per text, and the opinion is read from what the model wrote.

A reply may contain anything: verdict lines, closing tags, placeholders. No part of a reply is ever formatted or parsed.
Of what the judge wrote, a verdict of one word must come first, and of several grades only lines of the form
`name: value` count, also as JSON or a table. Two that disagree are no verdict.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import ClassVar

from lowtax.common.log import counted
from lowtax.engines import base
from lowtax.engines.base import Completion, Request, well_formed
from lowtax.engines.settings import EngineSettings
from lowtax.judges.base import Kind, Opinion

LEAD = r"""(?:^|[{,])[ \t>*_`#"'\d.)-]{0,12}"""  # of a line or a JSON key: list marks, bold, quotes
BETWEEN = r"""[ \t*_`"']{0,9}[:=\uff1a][ \t*_`"'\[(]{0,9}"""
DECORATION = r"""[\s*_`#>"'\[({\u201c-]{0,12}"""  # before the first word
LABEL = r"(?:[A-Za-z][A-Za-z '_-]{0,40}[:=\uff1a]" + DECORATION + ")?"  # such as "Verdict:"
NUMBER = r"\d+(?:\.\d+)?(?:[ \t]*(?:/|out of|of)[ \t]*\d+)?"
RULE = re.compile(r"[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|?)+[ \t]*")  # the line below the head of a table
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
        """Return one opinion per text, in order."""
        read = counted(self.opinions(prompts, texts), len(texts), f"texts read by {self.model}")
        by_number = dict(read)
        return [by_number[number] for number in range(len(texts))]

    def opinions(self, prompts: list[str], texts: list[str]) -> Iterator[tuple[int, Opinion]]:
        """Yield the number of each text and its opinion, as the model ends. All texts go to the engine at once."""
        requests = [self.request(str(n), *pair) for n, pair in enumerate(zip(prompts, texts, strict=True))]
        if self.engine is None:
            how = self.settings
            self.engine = base.load(how.name, self.model, how.precision, how.batch_size)
        for completion in self.engine.generate(requests):
            yield int(completion.id), self._opinion(completion)

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


def read_word(text: str, *words: str) -> tuple[str, str] | None:
    """Return the first word of a text if it is one of `words`, in lower case, and the text after it.

    Marks and a label such as `Verdict:` may stand before it.

    Returns:
        None if another word comes first, or if another of `words` stands alone after it.
    """
    either = "|".join(words)
    match = re.match(rf"{DECORATION}{LABEL}({either})(?![\w-])", text, re.IGNORECASE)
    if not match:
        return None
    word, rest = match[1].lower(), text[match.end() :]
    alone = re.findall(rf"^[^\w\n]{{0,12}}({either})[^\w\n]{{0,12}}$", rest, re.IGNORECASE | re.MULTILINE)
    return None if any(other.lower() != word for other in alone) else (word, rest)


def table_lines(text: str) -> str:
    """Return the cells of Markdown tables as lines `name: value`, by rows and by columns; empty without a table."""
    lines: list[str] = []
    for block in re.findall(r"(?:^[^\n|]*\|[^\n]*(?:\n|\Z)){2,}", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        if not (any(RULE.fullmatch(line) for line in block.splitlines()) or block.lstrip().startswith("|")):
            continue
        rows = [row for row in rows if not all(re.fullmatch(r":?-*:?", cell) for cell in row)]
        lines += [f"{row[0]}: {row[1]}" for row in rows if len(row) > 1]
        lines += [f"{name}: {cell}" for row in rows[1:] for name, cell in zip(rows[0], row, strict=False)]
    return "\n".join(lines)


def _values(text: str, name: str, form: str) -> list[str]:
    """Return the values in all lines `name: value`; "0 or 1" and "1-5" repeat the question and are no values."""
    more = rf"(?![ \t]*(?:[/|,\u2013-]|or|to|and)[ \t]*(?:{form})(?!\w))"
    text = f"{text}\n{table_lines(text)}" if "|" in text else text
    return re.findall(rf"{LEAD}{name}{BETWEEN}({form})(?!\w|\.\d|/){more}", text, re.IGNORECASE | re.MULTILINE)


def second_share(scores: tuple[float, ...]) -> float | None:
    """Return the second word's share of the probability of two words; None if their total is below MASS."""
    return scores[1] / sum(scores) if len(scores) == 2 and sum(scores) >= MASS else None
