"""Extract the final answer that a text states: its last box, what follows "the answer is", what its last line states.

The text alone decides: the gold answer is not known here, and nothing is computed. All rules are linear in its length.
"""

# words and signs of many scripts

import re
from enum import StrEnum

from lowtax.benchmarks.grading import languages, normalise, stated, structured

BOX = re.compile(r"\\{1,3}(?:boxed|fbox)(?![A-Za-z])|\x08oxed(?=\s*\{)|\\.|[{}]", re.DOTALL)
UNBRACED = re.compile(r"[ \t]*((?=[-+(\d.]|\\[A-Za-z{(]|[A-Za-z](?![A-Za-z]))(?:(?!\\[)\]])[^\n$])+)")
BRACE = re.compile(r"\s*\{")
SEARCHED = 8_000  # characters at the end in which an answer is looked for outside of a box
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;!: ]|\\q?quad|\\(?:text|mathrm)\{[^{}]{0,30}\}|and|or|und|oder|y|et|ou|e|и|или|和|或|与"
    r"|\\(?:land|lor|wedge|vee)(?![a-z])|[a-z](?:_\{?\d\}?)?\s*=)*"
)
JOINING = re.compile(r"and|or|,|;|und|oder|\by\b|\bet\b|\bou\b|и|和|或|与|\\land|\\lor|\\wedge|\\vee")
UNCLOSED = re.compile(r"\\(?:boxed|fbox)\s*\{(?!\s*\})")
HASHES = re.compile(r"####\s*([^\n]+)")
LETTER_A = re.compile(r"(?:^|\n)\s*A:\s*([^\n]+)\s*$")
PHRASE = re.compile(
    r"(?:(?<![\w\u2011-])(?<!to )(?:final\s+)?(?:answer|ans\b\.?)|\bresult|\bconclusion(?=\**:))\**"
    r"(?:\s+(?:to|of|for)\s[^\n.:]{1,60}?)?\s*"
    r"(?::|=|\bis\b|\bwould be\b|\bmust be\b|\bshould be\b|(?<=[*#_])\s*\n)(?:[\s:*#]|- )*([^\n]+)",
    re.IGNORECASE,
)
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
AMOUNT = re.compile(
    r"(?<![A-Za-z0-9_.^{])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?: ?\d+/\d+|/\d+|:\d\d(?!\d))?(?![A-Za-z_]*\d)"
)
DISPLAY = re.compile(
    r"\\\[.{1,1500}?\\\]|\$\$.{1,1500}?\$\$|\\begin\{([a-zA-Z]+)\*?\}.{1,1500}?\\end\{\1\*?\}", re.DOTALL
)
QUOTED = re.compile(r"^[ \t]*>+[ \t]+", re.MULTILINE)
CLOSING_LINE = re.compile(
    r"\s*(?:I hope (?:it|this)|hope (?:it|this)|let me know|feel free|if you have|please let|thank|confidence\b"
    r"|is there anything"
    r"|have a |good luck|q\.?e\.?d|this (?:completes|concludes)|would you like).*|[\s\W_]*",
    re.IGNORECASE,
)
FINAL = re.compile(
    r"\s*(?:[-*_#>]|\d\.)*\s*(?:(?:so|thus|therefore|hence|wait|actually|correction|no|finally|and"
    r"|in conclusion)\b[,:.]?\s*)*"
    r"(?:(?:the|my)\s+)?(?:(?:final|correct|right|actual|corrected|revised)\s+)*(?:answer|ans\b\.?)\**\s*"
    r"(?::|=|is\b|should be\b|must be\b|therefore\b)\**[\s:]*(?P<rest>.+)",
    re.IGNORECASE,
)
HOPED = re.compile(r"[Tt]he final answer is:?\s*([^\n]{1,300}?)\.?\s*I hope it is correct")
ROUNDED = re.compile(
    r"\b(?:about|approximately|roughly|around|nearly|almost|above|below|shown)\b|≈|\\approx", re.IGNORECASE
)
PROSE = re.compile(rf"(?<![\\\w{{])[A-Za-z]{{2,}}[ ,:]|{normalise.LONG_WORD.pattern}")
NAMES = re.compile(r"\\(?:begin|end|text|textbf|mathrm|operatorname|left|right)\*?\{[^{}]*\}")
RESULT = re.compile(r"(?:=|\\approx|≈)\s*&?\s*([^=≈\n]{1,60})")
NAMED = re.compile(r"[A-Za-z](?:_\{?\w\}?)? ?=[^=]+")
DECIMAL_COMMA = re.compile(r"(?<![\d,.(\[{])(\d+),(\d{1,2})(?![\d,)\]}.])")
EQUALS = re.compile(r"=|≈|\bequals\b|\\approx")
ASIDE = re.compile(r"\([^()]*\)|,? which (?:is|equals) .*|,? or about .*")
REMARK = re.compile(r"\([A-Z][a-z].*\)\.?")
ARROW = re.compile(r"=>|⇒|⟹|-->|->")
SUBORDINATE = re.compile(r"^\W*(?:Since|After|For|With|In|Over|If|Because|Given|Of|At|By|During|When)\b.*?,\s")
SENTENCE = re.compile(r"(?<=\$\$)\s+(?=[A-Z])|(?<=\\\])\s+(?=[A-Z])|(?<=[^\s\d][.!?])\s+(?=\S)|(?<=\d[.!?])\s+(?=\D)")
TOTAL = re.compile(r"\bfor an? (?:\w+ )?total of\b(?=.*\d)")
TAKES = re.compile(r"\b(?:takes?|took|needs?|requires?|lasts?|costs)\s+((?:\S+\s+){1,3}?)(?:for|to)\s", re.IGNORECASE)
RESULTS_IN = 2_000  # characters above a conclusion in which its calculation is looked for
CURRENCY = re.compile(r"\\?\$\s*|\\text\{\s*\$\s*\}")
LONGEST_LINE = 2_000


class Rule(StrEnum):
    """The rule that found an answer, or the reason why there is none; its value is the prose of a grade."""

    BOX = "last box"
    BOXED_SENTENCE = "sentence in the last box"
    OPEN_BOX = "box not closed"
    HASHES = "####"
    TAG = "answer tag"
    FIELD = "answer field"
    LETTER_A = "A:"
    PHRASE = "phrase"
    FINAL = "final statement after the box"
    ANSWER_ALONE = "the answer itself"
    LAST_LINE = "last line"
    NOTHING = "no answer"

    @property
    def boxed(self) -> bool:
        """True if the answer was in a box."""
        return self in (Rule.BOX, Rule.BOXED_SENTENCE)


IN_WORDS = re.compile(
    r"\b(?:is|are|equals|exactly|only|answer:?)\s+(?:exactly\s+|only\s+)?"
    + f"({'|'.join(normalise.NUMBERS)})"
    + r"\b(?!\s+(?:of|more)\b)|\b(no (?:real |integer |positive )?(?:solutions?|roots?))\b"
)
YES_OR_NO = re.compile(r"(yes|no|true|false)\b(?=[,.;!]|$)", re.IGNORECASE)
IS_ANSWER = re.compile(
    r"(?:^|\n|[,.;:]\s|\b(?:so|thus|hence|therefore)\s)(\S[^\n,;]{0,60}?)\s+"
    r"is (?:the|my|our) (?:final |correct )?answer\b",
    re.IGNORECASE,
)
LINES = (
    (HASHES, Rule.HASHES),
    (LETTER_A, Rule.LETTER_A),
    (PHRASE, Rule.PHRASE),
    (languages.STATEMENT, Rule.PHRASE),
    (IS_ANSWER, Rule.PHRASE),
)
WITHOUT_DIGITS = re.compile(IN_WORDS.pattern + r"|[π∞√]|\\(?:pi|infty|text|frac|sqrt|emptyset)|\$[^$]+\$|\*\*[^*]+\*\*")


def final_answer(text: str) -> tuple[str | None, Rule]:
    """Return the final answer of a reply and the rule that found it.

    The first rule that finds something counts, and within a rule the last match: an `<answer>` tag or the `answer`
    field of a JSON object that ends the reply, unless a box follows; a box (the last ones together if only "and", "or"
    or a comma is between them), unless the last line is an explicit statement such as "Final answer: 18"; `#### 18`; a
    last line `A: 18`; a phrase such as "the answer is", in many languages; a reply that is an answer and nothing else;
    what the last lines state: the value after "is" or "=", a bold part, an amount, and of several amounts the result of
    the last calculation above.
    """
    start = text.rfind("\\boxed")
    for read, rule in ((structured.tagged, Rule.TAG), (structured.field, Rule.FIELD)):
        place = read(text)
        if place and place[1] > start:
            return _content(place[0]), rule
    box = boxes(text)
    if box is not None and (final := _final_statement(text, box)) is not None:
        return final, Rule.FINAL
    if box is not None and "\\text" in box and len(re.findall(r"[A-Za-z]{2,}", normalise.plain(box))) >= 5:
        sentence = re.sub(r"\\text\{([^{}]*)\}", r"\1", box)
        return _amount(sentence, text[:start]) or box, Rule.BOXED_SENTENCE
    if box is not None:
        return box, Rule.BOX
    if UNCLOSED.search(text):
        return None, Rule.OPEN_BOX
    return _unboxed_answer(_tidy(text))


def _unboxed_answer(end: str) -> tuple[str | None, Rule]:
    """Return the answer of a reply without a box, tag or field."""
    for pattern, rule in LINES:
        for match in reversed(list(pattern.finditer(end))):
            rest = match["rest"] if "rest" in pattern.groupindex else match[1]
            if (value := _value(rest, end[: match.start()], phrase=True)) is not None:
                return value, rule
    lines = [line.strip()[:LONGEST_LINE] for line in end.split("\n") if re.search(r"\w", line)]
    if len(lines) == 1 and (whole := _answer_alone(lines[0])) is not None:
        return whole, Rule.ANSWER_ALONE
    for line in reversed([line for line in lines if not ASIDE.fullmatch(line) and not REMARK.fullmatch(line)][-3:]):
        above = end[: end.rfind(line)]
        if (re.search(r"\d", line) or WITHOUT_DIGITS.search(line)) and (value := _value(line, above)) is not None:
            return value, Rule.LAST_LINE
    return None, Rule.NOTHING


def _tidy(text: str) -> str:
    """Return the end of a reply without fences, quotation marks of Markdown and closing courtesies, in ASCII marks."""
    end = ARROW.sub(" → ", structured.unfenced(languages.western(text[-SEARCHED:]))).strip()
    end = QUOTED.sub("", DISPLAY.sub(_one_line, end))
    lines = end.split("\n")
    while len(lines) > 1 and CLOSING_LINE.fullmatch(lines[-1]):
        lines.pop()
    return "\n".join(lines).strip()


def _one_line(match: re.Match[str]) -> str:
    line = " ".join(match[0].split())
    return f"$${line[2:-2].strip()}$$" if line.startswith("$$") else line


def _content(text: str) -> str:
    """Return the answer in a tag or field: its box, a value, or its words."""
    if (inside := boxed(text)) is not None:
        return inside
    formula = stated.FORMULA.fullmatch(text.strip())
    if formula:
        return str(formula["a"] or formula["b"] or formula["c"] or formula["e"]).strip()
    short = normalise.plain(text)
    if not normalise.has_words(re.sub(r"\\text\{[^{}]*\}", "", short)) or len(text.split()) <= 3:
        return text.strip()
    value, _ = _unboxed_answer(_tidy(text))
    return text.strip() if value is None else value


def _final_statement(text: str, box: str) -> str | None:
    """Return the value of a last line such as "Final answer: 18" that follows the last box and says something else."""
    after = text[text.rfind("boxed") :]
    if "I hope it is correct" in after and (match := HOPED.search(after)):
        return _value(match[1], "", phrase=True)
    if "\n" not in after:
        return None
    lines = [line for line in after[-SEARCHED:].split("\n")[1:] if not CLOSING_LINE.fullmatch(line)]
    match = FINAL.fullmatch(languages.western(lines[-1])[:LONGEST_LINE]) if lines else None
    if not match or ROUNDED.search(match["rest"]) or len(re.findall(r"[A-Za-z]{3,}", match["rest"])) > 6:
        return None
    value = _value(match["rest"], "", phrase=True)
    if value is None or (normalise.is_words(normalise.plain(value)) and not normalise.is_words(normalise.plain(box))):
        return None
    return value


def boxed(text: str) -> str | None:
    """Return the content of the last box that is closed, `\\boxed{5}`, `\\boxed 5` or `\\fbox{5}`, or None."""
    closed, unbraced = _closed(text)
    last = max(closed, key=lambda box: box[1], default=None)
    if unbraced > (last[1] if last else -1) and (match := UNBRACED.match(text, unbraced)):
        content = match[1].strip().removesuffix(".").strip()
        return content if content and content.count("{") == content.count("}") else None
    return text[last[1] + 1 : last[2]].strip() if last else None


def _closed(text: str) -> tuple[list[tuple[int, int, int]], int]:
    """Return the closed boxes that are not empty, and the end of the last command without a brace, or -1.

    A box is the place of its command, of its opening and of its closing brace.
    """
    opened: list[tuple[int, int]] = []  # a brace and the command before it, or -1
    closed: list[tuple[int, int, int]] = []
    unbraced = command = expected = -1
    for token in BOX.finditer(text):
        mark = token[0]
        if len(mark) > 2 or mark[0] == "\x08":
            brace = BRACE.match(text, token.end())
            command, expected = token.start(), brace.end() - 1 if brace else -1
            unbraced = unbraced if brace else token.end()
        elif mark == "{":
            opened.append((token.start(), command if token.start() == expected else -1))
        elif mark == "}" and opened:
            start, owner = opened.pop()
            if owner >= 0 and text[start + 1 : token.start()].strip():
                closed.append((owner, start, token.start()))
    return closed, unbraced


def unboxed(answer: str) -> str:
    """Return an answer without the box around it."""
    return (boxed(answer) or answer) if "box" in answer else answer


def boxes(text: str) -> str | None:
    """Return the content of the last box, or of the last boxes that are one answer, joined by commas."""
    last = boxed(text)
    if last is None or text.count("\\boxed") < 2:
        return last
    contents, start = [last], text.rfind("\\boxed")
    for command, opening, closing in sorted(_closed(text)[0], reverse=True):
        if closing >= start or len(contents) == 10:
            continue
        between = text[closing + 1 : start]
        if len(between) > 60 or not BETWEEN_BOXES.fullmatch(between) or not JOINING.search(between):
            break
        contents.insert(0, text[opening + 1 : closing].strip())
        start = command
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
    """Return the answer in a last line, or after a phrase: what it states, a formula, something bold, an amount, words.

    above: the text before it; of several amounts, the result of the last calculation in that text counts.
    """
    line = re.sub(r"^[-•]\s+(?!\d)", "", line[:LONGEST_LINE].strip())
    line = _not_but(line)
    if phrase and (formula := stated.FORMULA.match(line)) and not re.search(r"[\d$\\=,]", line[formula.end() :]):
        line = formula[0] if len(line) - formula.end() < 12 else line
    short = normalise.unlabelled(normalise.plain(re.sub(r"[*`]+", "", line)))
    if normalise.number(short) is not None or (
        short and not PROSE.search(NAMES.sub("", line)) and re.search(r"\w", short)
    ):
        return _without_separators(_right_side(short))
    if short.startswith("(-\\infty"):
        return short
    if phrase and not re.search(r"\d", line) and (answered := YES_OR_NO.match(line)):
        return answered[1]
    if not re.search(r"\d", line) and (worded := IN_WORDS.search(line)):
        return worded[1] or worded[2]
    bold = [part for part in BOLD.findall(line) if re.search(r"\d", part)]
    if not bold:
        line = line if stated.FORMULA.search(line) else DECIMAL_COMMA.sub(r"\1.\2", line)
        sentence = _last_sentence(line, phrase)
        value = (stated.leading(sentence) if phrase else None) or stated.value(sentence)
        if value is not None:
            return _without_separators(_right_side(normalise.unlabelled(normalise.plain(value)))) or None
        line = line if TOTAL.search(line) else stated.main_clause(line)
    last = _last_sentence(line, phrase)
    formulas = [match["a"] or match["b"] or match["c"] or match["e"] for match in stated.FORMULA.finditer(last)]
    formulas = [f for f in formulas if not normalise.has_words(NAMES.sub("", f)) and re.search(r"\w", f)]
    if len(formulas) > 1 and re.fullmatch(r"\s*[A-Za-z]\s*", formulas[-1]):
        formulas = [each for each in formulas if re.search(r"\d", each)] or formulas
    if not bold and formulas and not re.fullmatch(r"[\d.,{}$%\\ ]*", formulas[-1]):
        last = ", ".join(_equations(line)) or str(formulas[-1])
        return _without_separators(_right_side(normalise.unlabelled(normalise.plain(last)))) or None
    words: list[str] = [part.strip(" .:") for part in BOLD.findall(line)]
    if words and not re.search(r"\d", line) and normalise.is_words(words[-1]) and len(words[-1].split()) <= 3:
        return words[-1]
    return _amount(" ".join(bold) if bold and not TOTAL.search(line) else line, above, phrase)


def _equations(line: str) -> list[str]:
    """Return the equations that end a line with only "or", "and" or commas between them, as in `$x=5$ or $x=-5$`."""
    matches = list(stated.FORMULA.finditer(line))
    last: list[str] = []
    end = len(line.rstrip(" .*"))
    for match in reversed(matches[-10:]):
        inside = (match["a"] or match["b"] or match["c"] or match["e"]).strip()
        between = line[match.end() : end]
        if not NAMED.fullmatch(inside) or (between.strip() and not stated.SEPARATOR.fullmatch(between)):
            break
        last.insert(0, inside)
        end = match.start()
    return last if len(last) > 1 else []


def _not_but(line: str) -> str:
    """Return what follows "but" in "not 20 but 18"."""
    for negation, correction in languages.NOT_BUT:
        if correction and (match := re.search(rf"{negation}.{{1,40}}?(?:{correction})\s*(.+)", line, re.IGNORECASE)):
            return match[1]
    return line


def _last_sentence(line: str, first: bool) -> str:
    """Return the last sentence with something to read in it, or the first one after a phrase."""
    sentences = [each for each in SENTENCE.split(line) if re.search(r"\d|\$|\\|[π√∞]", each)]
    return (sentences[0] if first else sentences[-1]) if sentences else line


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
    if (taken := TAKES.search(sentence)) and (amount := _amounts(taken[1])[:1]):
        return amount[0]
    return amounts[0] if phrase or re.match(r"\W*\d", sentence) else amounts[-1]


def _right_side(short: str) -> str:
    """Return the number that a chain of calculations ends in; an equation with letters on its right stays whole."""
    if re.search(r"=[^=]*,[^=]*=", short):
        return short
    left, _, right = short.rpartition("=")
    variables = set(re.findall(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])", left))
    if "=" not in left and (len(variables) > 1 or (variables and right == "0")) and re.search(r"[-+*^]", left):
        return short  # an equation, not a result
    return right if normalise.number(right) is not None else short


def _without_zeros(number: str) -> str:
    return number.rstrip("0").removesuffix(".") if "." in number else number


def _without_separators(short: str) -> str:
    return short.replace(",", "") if normalise.NUMBER.fullmatch(short) else short


def _amounts(line: str) -> list[str]:
    """Return the numbers in a line of prose, without separators; `2,74` is a number with a decimal comma."""
    line = DECIMAL_COMMA.sub(r"\1.\2", line)
    line = CURRENCY.sub("", line.replace("{,}", ",").replace("\\!", "")).replace("\\,", " ")
    line = re.sub(r"(?<=\d)[\u00a0\u202f\u2009 ](?=\d{3}(?!\d))", "", line.replace("\u2212", "-"))
    return [match[0].replace(",", "") for match in AMOUNT.finditer(line)]
