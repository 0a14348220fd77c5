"""Extract the letter of the option that a reply chooses. All rules are linear in the length of the text."""

import re
import string
import unicodedata
from collections.abc import Sequence
from enum import StrEnum

from lowtax.benchmarks.grading.extract import boxed

SEARCHED = 20_000  # characters at the end in which a letter is looked for outside of a box

WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mathcal|mathbb|boldsymbol|bm|bf|rm|mbox|hbox"
    r"|left|right|displaystyle|Large|large|quad|qquad)(?![A-Za-z])"
    r"|\\[,;!: ()\[\]]|\\(?=\s)|[{}$*`\"“”]|(?<!\w)_+|_+(?!\w)"
)
WORD = r"(?!['\u2019]?\w)"  # no word continues here
LETTER = rf"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Z])\s*\]|\b([A-Z]){WORD}(?![-+=^/]\w))"
LEAD = re.compile(
    r"\s*(?:(?:the\s+)?(?:correct\s+|best\s+|final\s+)?(?:options?|choices?|letters?|answers?)(?:\s+is)?\s*:?\s*)?"
    rf"{LETTER}(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
SEVERAL = re.compile(
    rf"\s*(?:,|;|/|&|and\b|or\b)+\s*(?:and\b|or\b|option\b)?\s*\(?([A-Z])\)?{WORD}(?!\s+[a-z])",
)
ARTICLE = re.compile(r"\s+(?!(?:because|since|as|is|for|with|due|which|where|based|in|given|from|by)\b)[a-z]")
PHRASE = re.compile(
    r"\b(?:(?:answer|choice|option|solution)s?(?:\s+(?:to|for)\s+(?:this|the)\s+[\w ]{1,30}?)?\s*"
    r"(?::|=|→|\b(?:is|would be|must be|should be|will be)\b)(?:\s+(?:therefore|thus|then|hence|clearly|indeed)\b)?"
    r"|(?:I|we|to|should|would|will)\s+(?:choose|select|pick|go with))[\s:]*(?=\S)([^\n]{1,400})",
    re.IGNORECASE,
)
STATED = re.compile(
    rf"{LETTER}(?:(?!\b[A-Z]\b)[^.\n]){{0,80}}?\b(?:is|would be|must be)\s+(?:the\s+)?(?:only\s+|most\s+|best\s+)?"
    r"(?:correct|right|best|accurate|true|answer)\b",
)
CHOSEN = re.compile(
    rf"\b(?:choose|select|pick|go with|choosing|selecting)\s+(?:option\s+|choice\s+|answer\s+)?{LETTER}"
)
PARENTHESES = re.compile(r"\(\s*([A-Z])\s*\)|\b[Oo]ption\s+([A-Z])\b")


class Rule(StrEnum):
    """The rule that found a letter, or the reason why there is none; its value is the prose of a grade."""

    BOX = "last box"
    TEXT_IN_BOX = "option text in the box"
    OPTION_TEXT = "option text"
    PHRASE = "phrase"
    STATEMENT = "statement"
    LAST_LINE = "last line"
    ONLY_LETTER = "last resort: the only letter in the last line"
    SEVERAL = "several letters"
    OUT_OF_RANGE = "letter out of range"
    NOTHING = "no letter"

    @property
    def boxed(self) -> bool:
        """True if the letter was in a box."""
        return self in (Rule.BOX, Rule.TEXT_IN_BOX)


Reading = tuple[str | None, Rule | None]


def letter(text: str, choices: Sequence[str] = ()) -> tuple[str | None, Rule]:
    """Return the letter of the option that a reply chooses, and the rule that found it or the reason for None.

    The first rule that finds something counts: the last box; the last phrase such as "the answer is"; the last
    statement such as "(C) is correct"; a last line that is an option and nothing else; finally the only letter in
    parentheses in the last line. Within a rule the last match counts. Without `choices` the options are A to D.
    """
    options = _Options(choices)
    box = boxed(text)
    if box is not None:
        name, why = options.read(_plain(box), in_box=True)
        if name or why:
            return name, why or Rule.BOX
    plain = _plain(text[-SEARCHED:])
    for rule, read in (
        (Rule.PHRASE, options.phrase),
        (Rule.STATEMENT, options.statement),
        (Rule.LAST_LINE, options.last_line),
    ):
        name, why = read(plain)
        if name or why:
            return name, why or rule
    lines = [line for line in plain.split("\n") if line.strip()]
    single = {a or b for a, b in PARENTHESES.findall(lines[-1])} if lines else set()
    if len(single) == 1 and (only := single.pop()) in options.letters:
        return only, Rule.ONLY_LETTER
    return None, Rule.NOTHING


def _plain(text: str) -> str:
    """Remove LaTeX wrappers and Markdown emphasis; full-width letters become plain ones."""
    return WRAPPER.sub(lambda match: " " if match[0][:2] in ("\\q", "\\ ", "\\,") else "", _narrow(text))


def _narrow(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _key(text: str) -> str:
    """Return a text that is equal for two options that say the same."""
    return re.sub(r"[\s.,;:!?]+", " ", _plain(text)).strip().casefold()


class _Options:
    """The options of one question.

    Every reader returns a letter, with a rule if that is not the rule of the caller; None and the reason why what it
    read counts as no letter; or (None, None) if it read nothing.
    """

    def __init__(self, choices: Sequence[str]) -> None:
        self.letters = string.ascii_uppercase[: len(choices) or 4]
        keys = [_key(choice) for choice in choices]
        self.by_text = {key: name for key, name in zip(keys, self.letters, strict=False) if keys.count(key) == 1}

    def read(self, text: str, in_box: bool = False) -> Reading:
        """Read a text that holds an option and little else: its letter, its letter and text, or its text alone."""
        named = self.by_text.get(_key(text)) if len(text) < 2000 else None
        short = text.strip(" .:;,()[]\n\t").removesuffix("\\")
        if in_box and len(short) == 1 and short.isalpha():
            return self._in_range(short.upper())
        lead = LEAD.match(text[:2000])
        if named and not (lead and not lead["rest"].strip(" .")):
            return named, Rule.TEXT_IN_BOX if in_box else Rule.OPTION_TEXT
        if not lead:
            return None, None
        name = lead[1] or lead[2] or lead[3]
        rest = lead["rest"]
        if not lead[1] and not name.isupper():  # lower case counts in parentheses, or alone
            if rest.strip(" .") or not in_box:
                return None, None
            name = name.upper()
        name = name.upper()
        if not lead[1] and name in "AI" and ARTICLE.match(rest):
            return None, None
        second = SEVERAL.match(rest)
        if second and second[1] in self.letters and second[1] != name:
            return None, Rule.SEVERAL
        if in_box and not lead[1] and rest.strip() and not re.match(r"\s*[.:),\-\u2013\u2014]|\s*\(", rest):
            return (name, None) if self.by_text.get(_key(rest)) == name else (None, None)
        return self._in_range(name)

    def _in_range(self, name: str) -> Reading:
        return (name, None) if name in self.letters else (None, Rule.OUT_OF_RANGE)

    def phrase(self, text: str) -> Reading:
        """Read the last "answer is", "Answer:" or "I choose" that an option follows."""
        for match in reversed(list(PHRASE.finditer(text))):
            rest = match[1]
            while deeper := PHRASE.search(rest):
                name, why = self.read(deeper[1])
                if name or why:
                    return name, why
                rest = deeper[1]
            name, why = self.read(match[1])
            if not name and not why and re.fullmatch(r"[a-z]\W*", match[1]) and ":" in match[0]:
                name, why = self._in_range(match[1][0].upper())
            if not name and not why:
                first = re.split(r"(?<=\w)[.;,](?:\s|$)", match[1])[0]
                name = self.by_text.get(_key(first))
                why = Rule.OPTION_TEXT if name else None
            if name or why:
                return name, why
        return None, None

    def statement(self, text: str) -> Reading:
        """Read the last "C is correct" or "choose C"; "not correct" does not match."""
        both = [*STATED.finditer(text), *CHOSEN.finditer(text)]
        for match in sorted(both, key=lambda each: each.start(), reverse=True):
            name = (match[1] or match[2] or match[3]).upper()
            negated = re.search(r"\b(?:not|n't|neither|incorrect|wrong)\b|n['\u2019]t\b", match[0])
            if (
                not negated
                and name in self.letters
                and not (name in "AI" and re.match(r"[AI]\s+(?!is\b|would\b|must\b)[a-z]+\s", match[0]))
            ):
                return name, None
        return None, None

    def last_line(self, text: str) -> Reading:
        """Read a last line, or a whole reply, that is an option: "C", "(C)", "C) its text", its text."""
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        last = lines[-1] if lines else ""
        if re.fullmatch(r"[(\[]?\s*[A-Za-z]\s*[)\]]?\s*[.:]?", last) and (last[0] in "([" or last[0].isupper()):
            return self._in_range(last.strip("()[].: \t").upper())
        headed = re.match(r"\(?([A-Z])[).:]\s+\S", last)
        if headed and headed[1] in self.letters:
            return headed[1], None
        return self.by_text.get(_key(last)), None
