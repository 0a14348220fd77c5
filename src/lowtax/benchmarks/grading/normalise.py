"""Normalise mathematical answers; most then compare equal as strings and need no algebra.

LaTeX writes one thing in many ways: `\\dfrac12`, `\\frac{1}{2}` and `1/2`; `10{,}000`, `10\\,000` and `10,000`. Units,
currency, degrees and a name before an equals sign are not part of an answer; `units` compares the units of two answers
that both have some. Words that multiply, such as "million" or "and a half", are part of the number.
"""

# ruff: noqa: RUF001  # mathematical signs

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from lowtax.benchmarks.grading.units import units

LONGEST_NUMBER = 400  # characters
BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
         "ten": "10", "twelve": "12", "sixteen": "16", "hex": "16", "bin": "2", "oct": "8"}  # fmt: skip
SIGNS = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "\u222a": "\\cup ", "∈": "\\in ", "±": "\\pm ",
    "°": "^\\circ ", "\u2032": "'", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "€": "", "£": "", "₱": "", "¥": "", "₹": "",
    "\uff08": "(", "\uff09": ")", "\uff0c": ",", "\u2044": "/", "\u2215": "/", "\u2011": "-", "\u2010": "-", "‰": "",
    "\u2218": "\\circ ", "∅": "\\emptyset ", "∩": "\\cap ", "ℝ": "\\mathbb{R}", "∖": "\\setminus ", 
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "θ": "\\theta ", "λ": "\\lambda ", "μ": "\\mu ",
    "ρ": "\\rho ", "σ": "\\sigma ", "τ": "\\tau ", "φ": "\\phi ", "ϕ": "\\phi ", "ω": "\\omega ", "ε": "\\epsilon ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∗": "*", "⋅": "\\cdot ", "∙": "\\cdot ",
    "⟨": "\\langle ", "⟩": "\\rangle ", "≈": "\\approx ", "％": "%", "：": ":", "；": ";", "\u2003": " ", "\u200b": "",
    "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}",
    "⅘": "\\frac{4}{5}", "⅙": "\\frac{1}{6}", "⅚": "\\frac{5}{6}", "⅛": "\\frac{1}{8}", "⅜": "\\frac{3}{8}",
    "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}",
})  # fmt: skip
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ"
PLAIN_DIGITS = "0123456789+-()n"
TO_PLAIN = str.maketrans(RAISED + LOWERED, PLAIN_DIGITS * 2)
SMALL = re.compile(f"(?P<up>[{RAISED}]+)|(?P<down>[{LOWERED}]+)")
FACTORS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "hundredth": 100,
    "thousandth": 1000,
}
SIMPLE = r"(?<![\w.])([-+]?\d[\d,]*(?:\.\d+)?)"
TEXT_OR_SPACE = r"(?:\s|~|\\[,;: ])*(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*)?"
MULTIPLIED = re.compile(rf"{SIMPLE}{TEXT_OR_SPACE}({'|'.join(FACTORS)})s?\b\s*\}}?", re.IGNORECASE)
AND_PART = re.compile(rf"{SIMPLE}{TEXT_OR_SPACE}and (?:a|an|one) ({'|'.join(PARTS)})\b\s*\}}?", re.IGNORECASE)
IN_PARTS = re.compile(rf"(?<![\w./{{}}-])(\d+){TEXT_OR_SPACE}({'|'.join(PARTS)})s?\b\s*\}}?", re.IGNORECASE)
IN_QUOTES = re.compile(r"^\s*[\"\u201c']([^\"\u201c\u201d']*)[\"\u201d']\s*[.,}]?\s*$")
WHOLE_TEXT = re.compile(r"^\s*\$?\s*\\(?:text|mathrm|textbf)\s*\{([^{}]*\d[^{}]*)\}\s*\$?\s*$")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
).split()
EUROPEAN = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:\.\d{3})+),(\d{1,2})(?![\w.,])|(?<![\w.,])(\d{1,3}(?: \d{3})+),(\d+)(?![\w.,])"
)
BRACKETS = re.compile(r"([\[\]])([^\[\]]+[,;][^\[\]]+)([\[\]])")
RENAMED = (
    (re.compile(r"^(\d+) ?(?:\^?\{? ?(?:\\(?:text|mathrm)\{ ?)?(?:st|nd|rd|th)\b[ }]*)$"), r"\1"),
    (re.compile(r"\\\\(?=(?:d?frac|sqrt|left|right|pi|text|cdot|infty|times|cup|pm|theta|begin|end|leq?|geq?"
                r"|circ)(?![a-z]))"),
     r"\\"),
    (re.compile(r"\\(?:mathrm|text|textrm|rm|mathit|operatorname)\s*\{\s*([ie])\s*\}"), r"\1 "),
    (re.compile(r"\\math(?:bf|it)\s*\{\s*([A-Za-z])\s*\}"), r"\1 "),
    (re.compile(r"\\imath(?![a-z])"), "i "),
    (re.compile(r"\\(?:operatorname\{cis\}|text\{cis\}|mathrm\{cis\}|cis) ?\(?(\d+) ?\^ ?\{?\\circ ?\}?\)?"),
     r"e^{\\frac{\1\\pi i}{180}}"),
    (re.compile(r"\\(?:operatorname\{cis\}|text\{cis\}|mathrm\{cis\}|cis) ?\(([^()]*)\)"), r"e^{i(\1)}"),
    (re.compile(r"^\s*(?:\\text\{\s*)?(?:the set of )?all real(?:s| numbers"
                r"| values)?(?: of x)?\s*\}?\s*$", re.IGNORECASE),
     r"(-\\infty ,\\infty )"),
    (re.compile(r"(?<![\w{}])(\d{1,3})C(\d{1,3})(?!\w)"), r"\\binom{\1}{\2}"),
    (re.compile(r"\b(?:nCr|binom|choose|comb)\(([^(),]+),([^(),]+)\)"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\(?:text|mathrm)\s*\{\s*\\?(?:%|per ?cent(?:age)?)\s*\}|(?<=\d) ?per ?cent\b"), "%"),
    (re.compile(r"(?<=\d)\s*(?:\{:\}|\\colon(?![a-z]))\s*(?=[\d\\])"), ":"),
    (re.compile(r"(?<=\d)(\\!)*:(\\!)*(?=\d)"), ":"),
    (re.compile(r"√ ?(\d+(?:\.\d+)?)"), r"\\sqrt{\1}"),
    (re.compile(r"√ ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"∛ ?(\d+)"), r"\\sqrt[3]{\1}"),
    (re.compile(r"(?<=[\dA-F])\)?_(?:\{?\\?(?:text|mathrm)\{ ?(\w+) ?\}\}?|\{\(?(\w+)\)?\}|\((\w+)\))"),
     lambda match: f"_{{{BASES.get((match[1] or match[2] or match[3]).lower(), match[1] or match[2] or match[3])}}}"),
    (re.compile(r"^\(([0-9A-F]+_(?:\{\w+\}|\d+))\)$"), r"\1"),
    (re.compile(r"^\(([0-9A-F]+)_\{"), r"\1_{"),
    (re.compile(r"^\(([0-9A-F]+)\)_(\d+)$"), r"\1_{\2}"),
    (re.compile(r"(?<=\d\.)(\d*)\\(?:bar|dot|overline)\s*\{(\d+)\}"), r"\1\\overline{\2}"),
    (re.compile(r"(?<=\d\.)(\d*)\\overline\s*(\d)(?!\d)"), r"\1\\overline{\2}"),
    (re.compile(r"\\log_ ?(\d+)(?=[ \\({])"), r"\\log_{\1}"),
    (re.compile(r"(?:\{ ?\})?(?:_\{?(\w+)\}?|\^\{?(\w+)\}?) ?(?:C|\\text\{ ?C ?\}|\\mathrm\{ ?C ?\})_\{?(\w+)\}?"),
     lambda match: f"\\binom{{{match[1] or match[2]}}}{{{match[3]}}}"),
    (re.compile(r"(?<![A-Za-z}])(?:C|\\(?:text|mathrm)\{ ?C ?\})(?:_\{?(\d+|[a-z])\}? ?\^\{?(\d+|[a-z])\}?"
                r"|\^\{?(\d+|[a-z])\}? ?_\{?(\d+|[a-z])\}?)"),
     lambda match: f"\\binom{{{match[1] or match[4]}}}{{{match[2] or match[3]}}}"),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\(le|ge)q(?:slant)?(?![a-z])"), r"\\\1 "),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\\neq(?![a-z])|(?<=\s)!=(?=\s)"), r"\\ne "),
    (re.compile(r"\\(?:lbrace)(?![a-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![a-z])"), r"\\}"),
    (re.compile(r"\\(?:dots|ldots|cdots)(?![a-z])"), "..."),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)(?:\\[,;:! ]|,\\!|\s|~)+(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d),\\!(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<!\\)\\(?:[!;:,>]|q?quad|hspace\{[^{}]*\}|(?=\s))|~"), " "),
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
    (re.compile(r"√"), r"\\sqrt "),
)  # fmt: skip
UNIT = re.compile(
    r"(?:(?<=\S) ?\\text\{(?! ?[\d-])(?! ?(?:or|,) ?(?:more|less|fewer))(?!(?: ?and)?(?: ?an?)? ?(?:hundred"
    r"|thousand|[mbtr]+illion|dozen|half|halves|thirds?|quarters?)\b)"
    r"[^{}()]*\}|(?<=[\d})\]%]) ?(?:(?: (?!and\b|or\b|more\b|less\b|hundred|thousand|[mbtr]+illion|dozen|half"
    r"|halves|third|quarter)[A-Za-z]{2,}\.?)+| ?[ap]\.?m\b\.?"
    r"|(?:cm|mm|km|kg|mph|ft|deg|dollars|cents|hours|minutes)\b))"
    r"(?: ?\^ ?\{?-?\d\}?)?(?: ?/ ?(?:\\text\{[^{}]*\}|[a-z]+))?$",
    re.IGNORECASE,
)
ASIDE = re.compile(r" ?\((?:(?:or|about|approximately|rounded|since|because)\b|i\.e\.|≈|\\approx)[^()]*\)$")
LABEL = re.compile(
    r"(?:\\text\{[^{}]*\}|[A-Za-z]'*|[A-Za-z]_(?:\w|\{\w{1,3}\})|[A-Za-z](?:\^\{-1\}|')*\([A-Za-z](?:,[A-Za-z])?\)"
    r"|(?:Pr?|E)[(\[][^()\[\]=]{1,40}[)\]]|m?\\angle ?[A-Z]{1,3}|\\frac\{[A-Z]{1,3}\}\{[A-Z]{1,3}\}"
    r"|[A-Z](?:_\{?\w{1,5}\}?)?:[A-Z](?:_\{?\w{1,5}\}?)?|\\[a-z]+(?:_\w)?"
    r"|\|?[A-Z]{2,3}\|?|\([a-z](?:,[a-z]){1,3}\)|[a-z](?:,[a-z]){1,3}) ?(?:= ?|\\in(?![a-z]) ?)(?=[^=])"
)
RIGHT_LABEL = re.compile(r"([-+\d.,\s/()]+|-?\\frac\{\d+\}\{\d+\}) ?= ?[A-Za-z]")
NUMBER = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d*)?|\d+\.?\d*|\.\d+)")
FRACTION = re.compile(r"([-+]?)(?:\\frac\{([-+]?\d+)\}\{([-+]?\d+)\}|\(?(\d+)/\(?(\d+)\)?)")
MIXED = re.compile(r"([-+]?)(\d+)(?: (?:\+ )?(\d+)/(\d+)| ?\\frac\{(\d+)\}\{(\d+)\})")
POWER = re.compile(
    r"([-+]?\d+\.?\d*)(?:(?:\\times ?|\\cdot ?|\*)10\^(?:\{([-+]?\d{1,3})\}|([-+]?\d))|[eE]([-+]?\d{1,3}))"
)
PERIOD = re.compile(r"([-+]?\d+)\.(\d*)\\overline\{(\d+)\}")
FOREIGN = "\u0400-\u052f\u0590-\u06ff\u0900-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # letters of other scripts
WORDS = re.compile(rf"[A-Za-z\u00c0-\u024f\u1e00-\u1eff{FOREIGN}][A-Za-z\u00c0-\u024f\u1e00-\u1eff{FOREIGN}' -]*")
LONG_WORD = re.compile(
    rf"[{FOREIGN}]+|"
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|arcsin|arccos|arctan|sqrt"
    r"|frac)\b)[A-Za-z\u00c0-\u024f\u1e00-\u1eff]{3,}"
)
DURATION = re.compile(
    r"(\d{1,6})[\s\u00a0\u202f]*(days?|hours?|h|hrs?|minutes?|mins?)\b[\s\u00a0\u202f,]*(?:and\s+)?"
    r"(\d{1,6})[\s\u00a0\u202f]*(hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)\b",
    re.IGNORECASE,
)
SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
DECIMAL = re.compile(r"[-+]?\d*\.\d+")
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

    @cached_property
    def unit(self) -> tuple[str, Fraction] | None:
        """The unit of the answer, if it has one that is known (see `units`)."""
        return units(self.written)


def normalise(written: str) -> Answer:
    """Normalise one side of a comparison."""
    return Answer(written, plain(written))


def plain(text: str) -> str:
    """Return the one spelling of an answer, without units. Words keep single spaces; all else has none."""
    if len(text) > LONGEST:
        return text.strip()
    if re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", text, re.ASCII):
        return text.strip()
    text = WHOLE_TEXT.sub(r"\1", IN_QUOTES.sub(r"\1", text))
    text = _multiplied(SMALL.sub(_small, text)).translate(SIGNS)
    for pattern, new in RENAMED:
        text = pattern.sub(new, text)
    text = _european(BRACKETS.sub(_outward, text))
    text = " ".join(text.split()).strip("*").strip()
    text = text if text.endswith("...") else text.rstrip(".,;").strip()
    text = UNIT.sub("", text).strip() or text
    if not re.search(r"\\text\{[^{}]*\}(?:=| =|:)", text):
        text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = unbraced(ASIDE.sub("", " ".join(text.split())))
    if re.fullmatch(r"\( ?[A-Za-z] ?\)", text):
        text = text.strip("() ")
    if MIXED.fullmatch(text) or has_words(text):
        return text
    return re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])| ", lambda match: f"{match[1]} " if match[1] else "", text)


def _small(match: re.Match[str]) -> str:
    """Write raised and lowered digits as exponents and indices."""
    return f"{'^' if match['up'] else '_'}{{{match[0].translate(TO_PLAIN)}}}"


def _multiplied(text: str) -> str:
    """Compute `4 million`, `2 dozen`, `4 and a half` and `4 thirds`."""
    if not re.search(r"[a-z]{4}", text, re.IGNORECASE):
        return text
    text = AND_PART.sub(lambda match: _mixed(match, Fraction(1, PARTS[match[2].lower()])), text)
    text = IN_PARTS.sub(lambda match: f"\\frac{{{match[1]}}}{{{PARTS[match[2].lower()]}}}", text)
    return MULTIPLIED.sub(_scaled, text)


def _scaled(match: re.Match[str]) -> str:
    number = exact(Fraction(_digits(match[1])) * FACTORS[match[2].lower()])
    return number + "\\text{" * (match[0].count("{") - match[0].count("}"))  # more words follow in its braces


def _mixed(match: re.Match[str], part: Fraction) -> str:
    value = Fraction(_digits(match[1]))
    return exact(value - part if value < 0 else value + part)


def _digits(number: str) -> str:
    return number.replace(",", "." if re.fullmatch(r"[-+]?\d+,\d{1,2}", number) else "")


def exact(value: Fraction) -> str:
    """Write a number as digits or as a fraction."""
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _outward(match: re.Match[str]) -> str:
    """Write an interval such as `]0,1[` with parentheses."""
    low, high = ("(" if match[1] == "]" else "["), (")" if match[3] == "[" else "]")
    return f"{low}{match[2]}{high}"


def _european(text: str) -> str:
    """Write semicolons as commas, and 1.234,56 as 1234.56; a comma beside semicolons is a decimal one."""
    text = EUROPEAN.sub(lambda m: re.sub(r"[. ]", "", m[1] or m[3]) + "." + (m[2] or m[4]), text)
    if ";" not in text:
        return text
    groups = text.split(";")
    if all("=" in group and "," in group for group in groups):  # `p=5,q=2;p=7,q=2` is two pairs
        return ",".join(f"({group.strip()})" for group in groups)
    text = re.sub(r"\\;", " ", text)
    return re.sub(r"(?<=\d),(?=\d)", ".", text).replace(";", ",") if ";" in text else text


def unbraced(text: str) -> str:
    """Remove braces around the whole, in one pass."""
    if not (text.startswith("{") and text.endswith("}")):
        return text
    opened: list[int] = []
    partner: dict[int, int] = {}
    for place, sign in enumerate(text):
        if sign == "{":
            opened.append(place)
        elif sign == "}" and opened:
            partner[opened.pop()] = place
    start, end = 0, len(text)
    while start < end - 1 and text[start] == "{" and partner.get(start) == end - 1:
        start, end = start + 1, end - 1
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
    return text[start:end]


def unlabelled(text: str) -> str:
    """Remove the name from `x=5`, `f(x)=5` and `x\\in[0,1]`; an equation with more on its left stays whole."""
    label = LABEL.match(text)
    rest = text[label.end() :] if label else text
    if not label and (right := RIGHT_LABEL.fullmatch(text)):
        rest = right[1]
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
    if text.isalpha() and text.lower() in NUMBERS:
        return Fraction(NUMBERS.index(text.lower()))
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

    A decimal that was rounded to six or more places equals the number from which it was rounded (see `rounded`).
    """
    a, b = number(text), number(gold)
    if a is None or b is None:
        return None
    if a == b:
        return True
    if text.endswith("%") != gold.endswith("%"):
        return a == b / 100 if gold.endswith("%") else a / 100 == b
    return rounded(*((text, b) if places(text) >= places(gold) else (gold, a)))


def places(text: str) -> int:
    """Return the number of decimal places of a plain decimal number; 0 for anything else."""
    return len(text.partition(".")[2]) if DECIMAL.fullmatch(text) else 0


def rounded(decimal: str, value: Any) -> bool:
    """Return True if a decimal with six or more places, five of them significant, is a value rounded or cut there."""
    count = places(decimal)
    if count < 6 or len(re.sub(r"[-+.]", "", decimal).lstrip("0")) < 5:
        return False
    return bool(abs(Fraction(decimal) - value) < Fraction(1, 10**count))
