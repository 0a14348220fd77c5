"""Where a reply states its final answer."""

import re

from lowtax import spelling
from lowtax.answers import boxed

SEARCHED = 8_000  # characters at the end in which an answer is looked for outside of a box
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;!: ]|\\q?quad|\\text\{[^{}]{0,12}\}|and|or|[a-z](?:_\{?\d\}?)?\s*=)*"
)
UNCLOSED = re.compile(r"\\(?:boxed|fbox)\s*\{(?!\s*\})")
HASHES = re.compile(r"####\s*([^\n]+)")
LETTER_A = re.compile(r"(?:^|\n)\s*A:\s*([^\n]+)\s*$")
PHRASE = re.compile(
    r"(?:(?<![\w\u2011-])(?<!to )(?:final\s+)?answer|\bresult)\**(?:\s+(?:to|of|for)\s[^\n.:]{1,60}?)?\s*"
    r"(?::|=|\bis\b|\bwould be\b|\bmust be\b|\bshould be\b|(?<=[*#_])\s*\n)(?:[\s:*#]|- )*([^\n]+)",
    re.IGNORECASE,
)
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
FORMULA = re.compile(r"(?<!\\)\$\$?(?=\S)([^$\n]+?)(?<=[^\s\\])\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
AMOUNT = re.compile(r"(?<![\w.^_{])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?: ?\d+/\d+|/\d+)?(?!\w*\d)")
PROSE = re.compile(rf"(?<![\\\w{{])[A-Za-z]{{2,}}[ ,:]|{spelling.LONG_WORD.pattern}")
RESULT = re.compile(r"(?:=|\\approx|≈)\s*&?\s*([^=≈\n]{1,60})")
EQUALS = re.compile(r"=|≈|\bequals\b|\\approx")
ASIDE = re.compile(r"\([^()]*\)|,? which (?:is|equals) .*|,? or about .*")
SUBORDINATE = re.compile(r"^\W*(?:Since|After|For|With|In|Over|If|Because|Given|Of|At|By|During|When)\b.*?,\s")
TOTAL = re.compile(r"\bfor an? (?:\w+ )?total of\b(?=.*\d)")
RESULTS_IN = 2_000  # characters above a conclusion in which its calculation is looked for
CURRENCY = re.compile(r"\\?\$\s*|\\text\{\s*\$\s*\}")
LONGEST_LINE = 2_000


def final(text: str) -> tuple[str | None, str]:
    """The final answer of a reply, and the rule that found it; None and "no answer" if there is none.

    The first rule that finds something counts, and inside a rule the last finding: a box (the last ones together if
    nothing but "and", "or" or a comma stands between them); `#### 18`; a last line `A: 18`; a phrase such as "Final
    Answer:" or "the answer is"; a reply that is an answer and nothing else; the last line with a number in
    it: something bold, the right side of a formula, an amount, of several the result of the last calculation above.
    """
    box = _boxes(text)
    if box is not None and len(re.findall(r"[A-Za-z]{2,}", spelling.plain(box))) >= 5 and "\\text" in box:
        inside = re.sub(r"\\text\{([^{}]*)\}", r"\1", box)
        return _amount(inside, text[: text.rfind("\\boxed")]) or box, "sentence in the last box"
    if box is not None:
        return box, "last box"
    if UNCLOSED.search(text):
        return None, "box not closed"
    end = text[-SEARCHED:].strip()
    for pattern, rule in ((HASHES, "####"), (LETTER_A, "A:"), (PHRASE, "phrase")):
        for found in reversed(list(pattern.finditer(end))):
            if (value := _value(found[1], end[: found.start()], phrase=True)) is not None:
                return value, rule
    lines = [line.strip()[:LONGEST_LINE] for line in end.split("\n") if re.search(r"\w", line)]
    if len(lines) == 1 and (whole := _bare(lines[0])) is not None:
        return whole, "the answer itself"
    for line in reversed([line for line in lines if not ASIDE.fullmatch(line)][-3:]):
        before = end[: end.rfind(line)]
        if re.search(r"\d", line) and (value := _value(line, before)) is not None:
            return value, "last line"
    return None, "no answer"


def _boxes(text: str) -> str | None:
    """The content of the last box, or of several that are one answer, with commas."""
    last = boxed(text)
    if last is None or text.count("\\boxed") < 2:
        return last
    contents = [last]
    start = text.rfind("\\boxed")
    while len(contents) < 10 and (before := text.rfind("\\boxed", 0, start)) >= 0:
        content = boxed(text[before:start])
        closing = text.rfind("}", before, start)
        between = text[closing + 1 : start]
        if content is None or closing < 0 or len(between) > 40 or not BETWEEN_BOXES.fullmatch(between):
            break
        if not re.search(r"and|or|,", between):
            break
        contents.insert(0, content)
        start = before
    return ", ".join(dict.fromkeys(contents))


def _bare(line: str) -> str | None:
    """A line that is an answer and nothing else, as it is."""
    inside = line.strip("*").strip()
    short = spelling.plain(inside)
    if not short or len(short) > 200:
        return None
    if spelling.is_words(short):
        return inside if len(short.split()) <= 2 else None
    return inside.rstrip(".") if not spelling.has_words(short) else None


def _value(line: str, before: str, phrase: bool = False) -> str | None:
    """The answer in what follows a phrase, or in a last line: a formula, something bold, an amount, a few words.

    `before` is the text above it: of several amounts, the result of the last calculation there counts.
    """
    line = re.sub(r"^[-•]\s+", "", line[:LONGEST_LINE].strip())
    short = spelling.unlabelled(spelling.plain(re.sub(r"[*`]+", "", line)))
    if spelling.number(short) is not None or (short and not PROSE.search(line) and re.search(r"\w", short)):
        return _written(_right(short))
    bold = [part for part in BOLD.findall(line) if re.search(r"\d", part)]
    formulas = [a or b or c for a, b, c in FORMULA.findall(line)]
    formulas = [f for f in formulas if not PROSE.search(re.sub(r"\\text\{[^{}]*\}", "", f)) and re.search(r"\w", f)]
    if not bold and formulas and not re.fullmatch(r"[\d.,{}$%\\ ]*", formulas[-1]):
        return _written(_right(spelling.unlabelled(spelling.plain(formulas[-1])))) or None
    return _amount(" ".join(bold) if bold and not TOTAL.search(line) else line, before, phrase)


def _amount(prose: str, before: str, phrase: bool = False) -> str | None:
    """The amount that the last sentence states, after a phrase the first; or its few words if there is none."""
    prose = re.sub(r"[*`]+", "", prose)
    shorter = ASIDE.sub("", prose)
    sentences = [each for each in re.split(r"(?<=[^\s\d][.!?])\s+|(?<=\d\.)\s+(?=[A-Z])", shorter) if _amounts(each)]
    sentence = sentences[0 if phrase else -1] if sentences else prose
    if _amounts(after := SUBORDINATE.sub("", sentence)):
        sentence = after
    if total := TOTAL.search(sentence):
        sentence = sentence[total.end() :]
    amounts = _amounts(sentence)
    time = spelling.DURATION.search(sentence)
    if time and spelling.duration(time[0]) and not _amounts(sentence[: time.start()]):
        return " ".join(time[0].split())
    if not amounts:
        words = spelling.plain(prose)
        return words if spelling.is_words(words) and len(words.split()) <= 3 else None
    if right := [_amounts(part)[:1] for part in EQUALS.split(sentence)[1:] if _amounts(part)]:
        return right[-1][0]
    results = [number for result in RESULT.findall(before[-RESULTS_IN:]) for number in _amounts(result)[:1]]
    whole = [_even(number) for number in amounts]
    for result in reversed(results[-3:]):
        if _even(result) in whole:
            return amounts[whole.index(_even(result))]
    return amounts[0] if phrase or re.match(r"\W*\d", sentence) else amounts[-1]


def _right(short: str) -> str:
    """What a chain of calculations ends in; an equation with letters on its right stays whole."""
    right = re.split(r"(?<![<>!\\])=", short)[-1]
    return right if spelling.number(right) is not None else short


def _even(number: str) -> str:
    return number.rstrip("0").removesuffix(".") if "." in number else number


def _written(short: str) -> str:
    """Numbers without separators."""
    return short.replace(",", "") if spelling.NUMBER.fullmatch(short) else short


def _amounts(line: str) -> list[str]:
    """The numbers in a line of prose, without separators."""
    line = CURRENCY.sub("", line.replace("{,}", ",").replace("\\!", "")).replace("\\,", " ")
    line = re.sub(r"(?<=\d)[\u00a0\u202f\u2009 ](?=\d{3}(?!\d))", "", line.replace("\u2212", "-"))
    return [found[0].replace(",", "") for found in AMOUNT.finditer(line)]
