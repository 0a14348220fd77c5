"""Normalise mathematical answers; most then compare equal as strings and need no algebra.

LaTeX writes one thing in many ways: `\\dfrac12`, `\\frac{1}{2}` and `1/2`; `10{,}000`, `10\\,000` and `10,000`. Units,
currency, degrees and a name before an equals sign are not part of an answer.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

LONGEST_NUMBER = 400  # characters
SIGNS = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ",
    "√": "\\sqrt ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "\u222a": "\\cup ", "∈": "\\in ", "±": "\\pm ",
    "°": "^\\circ ", "\u2032": "'", "²": "^{2}", "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "€": "", "£": "", "₱": "", "¥": "", "₹": "",
    "\uff08": "(", "\uff09": ")", "\uff0c": ",", "\u2044": "/", "θ": "\\theta ",
})  # fmt: skip
RENAMED = (
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\(le|ge)q(?:slant)?(?![a-z])"), r"\\\1 "),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\\neq(?![a-z])"), r"\\ne "),
    (re.compile(r"\\(?:lbrace)(?![a-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![a-z])"), r"\\}"),
    (re.compile(r"\\(?:dots|ldots|cdots)(?![a-z])"), "..."),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)(?:\\[,;:! ]|,\\!|\s|~)+(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d),\\!(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<!\\)\\(?:[!;:,>]|q?quad(?![a-z])|hspace\{[^{}]*\}|(?=\s))|~"), " "),
    (re.compile(r"\\(?:\$|pounds|euro)|\$|(?<!\\)\\[()\[\]]"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|boldsymbol)\*?"
                r"\s*\{([^{}]*)\}"), r"\\text{\1}"),
    (re.compile(r"\\(sin|cos|tan|cot|sec|csc) ?\(? ?(\d+) ?\^ ?\{?\\circ ?\}?\)?"), r"\\\1(\\frac{\2\\pi}{180})"),
    (re.compile(r"\\varnothing(?![a-z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\\(?:mathbb|mathbf|Bbb) ?\{? ?R ?\}?(?![A-Za-z^])"), r"(-\\infty ,\\infty )"),
    (re.compile(r"^\s*\\approx(?![a-z])"), ""),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ|\{\s*\\degree\s*\})\s*(?:\\text\{\s*[CF]\s*\}|[CF]\b)?"
                r"|\\degrees?"), ""),
    (re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<=[\s\d})])(?:and|or)(?=[\s\\({-])"), ","),
    (re.compile(r",\s*,"), ","),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*(\d)"), r"\\frac\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d|[a-z])(?![a-z])"), r"\\sqrt{\1}"),
)  # fmt: skip
UNIT = re.compile(
    r"(?:(?<=\S) ?\\text\{(?! ?[\d-])[^{}()]*\}|(?<=[\d})\]%]) ?(?:(?: (?!and\b|or\b)[A-Za-z]{2,}\.?)+| ?[ap]\.?m\b\.?"
    r"|(?:cm|mm|km|kg|mph|ft|deg|dollars|cents|hours|minutes)\b))"
    r"(?: ?\^ ?\{?-?\d\}?)?(?: ?/ ?(?:\\text\{[^{}]*\}|[a-z]+))?$",
    re.IGNORECASE,
)
ASIDE = re.compile(r" \((?:or|i\.e\.|about|approximately|rounded)\b[^()]*\)$")
LABEL = re.compile(
    r"(?:\\text\{[^{}]*\}|[A-Za-z]'*|[A-Za-z]_(?:\w|\{\w{1,3}\})|[A-Za-z]'*\([a-z](?:,[a-z])?\)|\\[a-z]+(?:_\w)?"
    r"|\|?[A-Z]{2,3}\|?|\([a-z](?:,[a-z]){1,3}\)|[a-z](?:,[a-z]){1,3}) ?(?:= ?|\\in(?![a-z]) ?)(?=[^=])"
)
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)")
FRACTION = re.compile(r"([-+]?)(?:\\frac\{([-+]?\d+)\}\{([-+]?\d+)\}|\(?(\d+)/\(?(\d+)\)?)")
MIXED = re.compile(r"([-+]?)(\d+)(?: (?:\+ )?(\d+)/(\d+)| ?\\frac\{(\d+)\}\{(\d+)\})")
POWER = re.compile(
    r"([-+]?\d+\.?\d*)(?:(?:\\times ?|\\cdot ?|\*)10\^(?:\{([-+]?\d{1,3})\}|([-+]?\d))|[eE]([-+]?\d{1,3}))"
)
PERIOD = re.compile(r"([-+]?\d+)\.(\d*)\\overline\{(\d+)\}")
WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
LONG_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|arcsin|arccos|arctan|sqrt|frac)\b)[A-Za-z]{3,}"
)
DURATION = re.compile(
    r"(\d{1,6})[\s\u00a0\u202f]*(days?|hours?|h|hrs?|minutes?|mins?)\b[\s\u00a0\u202f,]*(?:and\s+)?"
    r"(\d{1,6})[\s\u00a0\u202f]*(hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)\b",
    re.IGNORECASE,
)
SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
LONGEST = 2_000  # characters that are normalised; a longer text is compared as it is


@dataclass(frozen=True)
class Answer:
    """A normalised answer.

    written: the answer as the text has it.
    text: its one spelling, without units (see `plain`).
    """

    written: str
    text: str

    @cached_property
    def integer(self) -> str | None:
        """The answer in plain digits if it is an integer: `025`, `25.0`, `x = 25` and `\\frac{50}{2}` are "25"."""
        value = number(unlabelled(self.text))
        return str(value.numerator) if value is not None and value.denominator == 1 else None

    @cached_property
    def duration(self) -> tuple[Fraction, ...]:
        """The answer as a time in two units, if it is one (see `duration`)."""
        return duration(self.written)


def normalise(written: str) -> Answer:
    """Normalise one side of a comparison."""
    return Answer(written, plain(written))


def plain(text: str) -> str:
    """Return the one spelling of an answer, without units. Words keep single spaces; all else has none."""
    if len(text) > LONGEST:
        return text.strip()
    text = text.translate(SIGNS)
    for pattern, new in RENAMED:
        text = pattern.sub(new, text)
    text = " ".join(text.split()).strip("*").strip().rstrip(".,;").strip()
    text = UNIT.sub("", text).strip() or text
    if not re.search(r"\\text\{[^{}]*\}(?:=| =|:)", text):
        text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = unbraced(ASIDE.sub("", " ".join(text.split())))
    if re.fullmatch(r"\( ?[A-Za-z] ?\)", text):
        text = text.strip("() ")
    if MIXED.fullmatch(text) or has_words(text):
        return text
    return re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])| ", lambda match: f"{match[1]} " if match[1] else "", text)


def unbraced(text: str) -> str:
    """Remove braces around the whole."""
    while text.startswith("{") and text.endswith("}"):
        depth = 0
        for place, sign in enumerate(text):
            depth += (sign == "{") - (sign == "}")
            if depth == 0 and place < len(text) - 1:
                return text
        text = text[1:-1].strip()
    return text


def unlabelled(text: str) -> str:
    """Remove the name from `x=5`, `f(x)=5` and `x\\in[0,1]`; an equation with more on its left stays whole."""
    label = LABEL.match(text)
    rest = text[label.end() :] if label else text
    return unbraced(rest) if "=" not in rest else text


def is_words(text: str) -> bool:
    """Return True for a normalised answer that is a name or other words, such as `Evelyn` or `no solution`."""
    return bool(WORDS.fullmatch(text)) and has_words(text)


def has_words(text: str) -> bool:
    """Return True if the text has words that are not functions of LaTeX."""
    return bool(LONG_WORD.search(text))


def number(text: str) -> Fraction | None:
    """Return the exact value of an integer, decimal, fraction, mixed or scientific number; `%` is ignored."""
    text = text.removesuffix("%").strip()
    if not text or len(text) > LONGEST_NUMBER or not (text[-1].isdecimal() or text[-1] in "}.)"):
        return None
    if NUMBER.fullmatch(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    if match := FRACTION.fullmatch(text):
        above, below = match[2] or match[4], match[3] or match[5]
        return _signed(match[1], Fraction(int(above), int(below))) if int(below) else None
    if match := MIXED.fullmatch(text):
        above, below = int(match[3] or match[5]), int(match[4] or match[6])
        return _signed(match[1], int(match[2]) + Fraction(above, below)) if below else None
    if match := PERIOD.fullmatch(text):
        repeated = Fraction(int(match[3]), (10 ** len(match[3]) - 1) * 10 ** len(match[2]))
        return _signed(text[0], abs(Fraction(f"{match[1]}.{match[2]}0")) + repeated)
    if match := POWER.fullmatch(text):
        return Fraction(match[1].removesuffix(".")) * Fraction(10) ** int(match[2] or match[3] or match[4])
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def duration(text: str) -> tuple[Fraction, ...]:
    """Return a time in two units, such as `3 hours 45 minutes`, in the smaller and in the larger one; empty if none."""
    if len(text) > LONGEST:
        return ()
    match = DURATION.search(re.sub(r"\\text\{([^{}]*)\}|\\[,;: ]|~", r" \1 ", text))
    if not match:
        return ()
    large, small = (SECONDS[match[unit][0].lower()] for unit in (2, 4))
    seconds = Fraction(match[1]) * large + Fraction(match[3]) * small
    return (seconds / small, seconds / large) if large > small else ()


def same_number(text: str, gold: str) -> bool | None:
    """Return True if two numbers are equal; None unless both are numbers. 50 % is 50 and 0.5.

    A decimal that was rounded to six or more places equals the number from which it was rounded.
    """
    a, b = number(text), number(gold)
    if a is None or b is None:
        return None
    if a == b:
        return True
    if text.endswith("%") != gold.endswith("%"):
        return a == b / 100 if gold.endswith("%") else a / 100 == b
    places = max(len(each.partition(".")[2]) for each in (text, gold))
    return places >= 6 and abs(a - b) < Fraction(1, 10**places)
