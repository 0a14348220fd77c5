"""Extract the final answer that a text states: its last box, what follows "the answer is", a last line with a number.

The text alone decides: the gold answer is not known here, and nothing is computed. All rules are linear in its length.
"""

import re
from enum import StrEnum

from lowtax.benchmarks.grading import normalise

BOX = re.compile(r"\\{1,3}(?:boxed|fbox)(?![A-Za-z])|\x08oxed(?=\s*\{)|\\.|[{}]", re.DOTALL)
UNBRACED = re.compile(r"[ \t]*((?=[-+(\d.]|\\[A-Za-z{(]|[A-Za-z](?![A-Za-z]))(?:(?!\\[)\]])[^\n$])+)")
BRACE = re.compile(r"\s*\{")
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
PROSE = re.compile(rf"(?<![\\\w{{])[A-Za-z]{{2,}}[ ,:]|{normalise.LONG_WORD.pattern}")
RESULT = re.compile(r"(?:=|\\approx|≈)\s*&?\s*([^=≈\n]{1,60})")
EQUALS = re.compile(r"=|≈|\bequals\b|\\approx")
ASIDE = re.compile(r"\([^()]*\)|,? which (?:is|equals) .*|,? or about .*")
SUBORDINATE = re.compile(r"^\W*(?:Since|After|For|With|In|Over|If|Because|Given|Of|At|By|During|When)\b.*?,\s")
TOTAL = re.compile(r"\bfor an? (?:\w+ )?total of\b(?=.*\d)")
RESULTS_IN = 2_000  # characters above a conclusion in which its calculation is looked for
CURRENCY = re.compile(r"\\?\$\s*|\\text\{\s*\$\s*\}")
LONGEST_LINE = 2_000


class Rule(StrEnum):
    """The rule that found an answer, or the reason why there is none; its value is the prose of a grade."""

    BOX = "last box"
    BOXED_SENTENCE = "sentence in the last box"
    OPEN_BOX = "box not closed"
    HASHES = "####"
    LETTER_A = "A:"
    PHRASE = "phrase"
    ANSWER_ALONE = "the answer itself"
    LAST_LINE = "last line"
    NOTHING = "no answer"

    @property
    def boxed(self) -> bool:
        """True if the answer was in a box."""
        return self in (Rule.BOX, Rule.BOXED_SENTENCE)


LINES = ((HASHES, Rule.HASHES), (LETTER_A, Rule.LETTER_A), (PHRASE, Rule.PHRASE))


def final_answer(text: str) -> tuple[str | None, Rule]:
    """Return the final answer of a reply and the rule that found it.

    The first rule that finds something counts, and within a rule the last match: a box (the last ones together if only
    "and", "or" or a comma is between them); `#### 18`; a last line `A: 18`; a phrase such as "Final Answer:" or "the
    answer is"; a reply that is an answer and nothing else; the last line with a number in it: its bold part, the right
    side of its formula, its amount, and of several amounts the result of the last calculation above.
    """
    box = _boxes(text)
    if box is not None and "\\text" in box and len(re.findall(r"[A-Za-z]{2,}", normalise.plain(box))) >= 5:
        sentence = re.sub(r"\\text\{([^{}]*)\}", r"\1", box)
        return _amount(sentence, text[: text.rfind("\\boxed")]) or box, Rule.BOXED_SENTENCE
    if box is not None:
        return box, Rule.BOX
    if UNCLOSED.search(text):
        return None, Rule.OPEN_BOX
    end = text[-SEARCHED:].strip()
    for pattern, rule in LINES:
        for match in reversed(list(pattern.finditer(end))):
            if (value := _value(match[1], end[: match.start()], phrase=True)) is not None:
                return value, rule
    lines = [line.strip()[:LONGEST_LINE] for line in end.split("\n") if re.search(r"\w", line)]
    if len(lines) == 1 and (whole := _answer_alone(lines[0])) is not None:
        return whole, Rule.ANSWER_ALONE
    for line in reversed([line for line in lines if not ASIDE.fullmatch(line)][-3:]):
        above = end[: end.rfind(line)]
        if re.search(r"\d", line) and (value := _value(line, above)) is not None:
            return value, Rule.LAST_LINE
    return None, Rule.NOTHING


def boxed(text: str) -> str | None:
    """Return the content of the last box that is closed, `\\boxed{5}`, `\\boxed 5` or `\\fbox{5}`, or None."""
    opened: list[tuple[int, bool]] = []
    last: tuple[int, int] | None = None
    unbraced = -1
    expected = -1  # where the brace of a box is
    for token in BOX.finditer(text):
        mark = token[0]
        if len(mark) > 2 or mark[0] == "\x08":
            brace = BRACE.match(text, token.end())
            expected = brace.end() - 1 if brace else -1
            unbraced = unbraced if brace else token.end()
        elif mark == "{":
            opened.append((token.start(), token.start() == expected))
        elif mark == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (last is None or start > last[0]) and text[start + 1 : token.start()].strip():
                last = (start, token.start())
    if unbraced > (last[0] if last else -1) and (match := UNBRACED.match(text, unbraced)):
        content = match[1].strip().removesuffix(".").strip()
        return content if content and content.count("{") == content.count("}") else None
    return text[last[0] + 1 : last[1]].strip() if last else None


def unboxed(answer: str) -> str:
    """Return an answer without the box around it."""
    return (boxed(answer) or answer) if "box" in answer else answer


def _boxes(text: str) -> str | None:
    """Return the content of the last box, or of the last boxes that are one answer, joined by commas."""
    last = boxed(text)
    if last is None or text.count("\\boxed") < 2:
        return last
    contents = [last]
    start = text.rfind("\\boxed")
    while len(contents) < 10 and (earlier := text.rfind("\\boxed", 0, start)) >= 0:
        content = boxed(text[earlier:start])
        closing = text.rfind("}", earlier, start)
        between = text[closing + 1 : start]
        if content is None or closing < 0 or len(between) > 40 or not BETWEEN_BOXES.fullmatch(between):
            break
        if not re.search(r"and|or|,", between):
            break
        contents.insert(0, content)
        start = earlier
    return ", ".join(dict.fromkeys(contents))


def _answer_alone(line: str) -> str | None:
    """Return a line that is an answer and nothing else, as it is."""
    content = line.strip("*").strip()
    short = normalise.plain(content)
    if not short or len(short) > 200:
        return None
    if normalise.is_words(short):
        return content if len(short.split()) <= 2 else None
    return content.rstrip(".") if not normalise.has_words(short) else None


def _value(line: str, above: str, phrase: bool = False) -> str | None:
    """Return the answer in a last line, or after a phrase: a formula, something bold, an amount, or a few words.

    above: the text before it; of several amounts, the result of the last calculation in that text counts.
    """
    line = re.sub(r"^[-•]\s+", "", line[:LONGEST_LINE].strip())
    short = normalise.unlabelled(normalise.plain(re.sub(r"[*`]+", "", line)))
    if normalise.number(short) is not None or (short and not PROSE.search(line) and re.search(r"\w", short)):
        return _without_separators(_right_side(short))
    bold = [part for part in BOLD.findall(line) if re.search(r"\d", part)]
    formulas = [a or b or c for a, b, c in FORMULA.findall(line)]
    formulas = [f for f in formulas if not PROSE.search(re.sub(r"\\text\{[^{}]*\}", "", f)) and re.search(r"\w", f)]
    if not bold and formulas and not re.fullmatch(r"[\d.,{}$%\\ ]*", formulas[-1]):
        return _without_separators(_right_side(normalise.unlabelled(normalise.plain(formulas[-1])))) or None
    return _amount(" ".join(bold) if bold and not TOTAL.search(line) else line, above, phrase)


def _amount(prose: str, above: str, phrase: bool = False) -> str | None:
    """Return the amount in the last sentence, after a phrase in the first; or its few words if it has no amount."""
    prose = re.sub(r"[*`]+", "", prose)
    shorter = ASIDE.sub("", prose)
    sentences = [each for each in re.split(r"(?<=[^\s\d][.!?])\s+|(?<=\d\.)\s+(?=[A-Z])", shorter) if _amounts(each)]
    sentence = sentences[0 if phrase else -1] if sentences else prose
    if _amounts(main := SUBORDINATE.sub("", sentence)):
        sentence = main
    if total := TOTAL.search(sentence):
        sentence = sentence[total.end() :]
    amounts = _amounts(sentence)
    time = normalise.DURATION.search(sentence)
    if time and normalise.duration(time[0]) and not _amounts(sentence[: time.start()]):
        return " ".join(time[0].split())
    if not amounts:
        words = normalise.plain(prose)
        return words if normalise.is_words(words) and len(words.split()) <= 3 else None
    if right := [_amounts(part)[:1] for part in EQUALS.split(sentence)[1:] if _amounts(part)]:
        return right[-1][0]
    results = [number for result in RESULT.findall(above[-RESULTS_IN:]) for number in _amounts(result)[:1]]
    rounded = [_without_zeros(number) for number in amounts]
    for result in reversed(results[-3:]):
        if _without_zeros(result) in rounded:
            return amounts[rounded.index(_without_zeros(result))]
    return amounts[0] if phrase or re.match(r"\W*\d", sentence) else amounts[-1]


def _right_side(short: str) -> str:
    """Return the number that a chain of calculations ends in; an equation with letters on its right stays whole."""
    right = re.split(r"(?<![<>!\\])=", short)[-1]
    return right if normalise.number(right) is not None else short


def _without_zeros(number: str) -> str:
    return number.rstrip("0").removesuffix(".") if "." in number else number


def _without_separators(short: str) -> str:
    return short.replace(",", "") if normalise.NUMBER.fullmatch(short) else short


def _amounts(line: str) -> list[str]:
    """Return the numbers in a line of prose, without separators."""
    line = CURRENCY.sub("", line.replace("{,}", ",").replace("\\!", "")).replace("\\,", " ")
    line = re.sub(r"(?<=\d)[\u00a0\u202f\u2009 ](?=\d{3}(?!\d))", "", line.replace("\u2212", "-"))
    return [match[0].replace(",", "") for match in AMOUNT.finditer(line)]
