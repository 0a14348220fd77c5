"""Extract the letter of the option that a reply chooses. All rules are linear in the length of the text."""

# ruff: noqa: RUF001  # words and signs of many scripts

import re
import string
import unicodedata
from collections.abc import Sequence
from enum import StrEnum

from lowtax.benchmarks.grading import expressions, languages, mathematics, structured
from lowtax.benchmarks.grading.extract import CLOSING_LINE, boxed
from lowtax.benchmarks.grading.normalise import has_words, normalise

SEARCHED = 20_000  # characters at the end in which a letter is looked for outside of a box

WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mathcal|mathbb|boldsymbol|bm|bf|rm|mbox|hbox"
    r"|left|right|displaystyle|Large|large|quad|qquad)(?![A-Za-z])"
    r"|\\[,;!: ()\[\]]|\\(?=\s)|[{}$*`\"“”]|(?<!\w)_+|_+(?!\w)"
)
QUOTED = re.compile(r"['\u2018\u2019\u00ab\u201e]\s?([A-Za-z])\s?['\u2018\u2019\u00bb\u201c]|<([A-Z])>")
SUFFIXED = re.compile(r"(?<=\b[A-Z])['\u2019][dt][i\u0131u\u00fc]r\b")  # Turkish
SCRIPT = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0590-\u06ff\u0980-\u09ff\u0b80-\u0bff\u0e00-\u0e7f\u0900-\u097f"
BESIDE = re.compile(rf"(?<=[{SCRIPT}])(?=[A-Za-z(\[])|(?<=[A-Za-z)\]])(?=[{SCRIPT}])")
LOOKALIKE = re.compile(r"(?<!\w)[АВСЕΑΒΕ](?!\w)(?!\s+[а-яА-Яα-ω])")
WORD = r"(?!['\u2019]?\w)"  # no word continues here
LETTER = rf"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Z])\s*\]|\b([A-Z]){WORD}(?![-+=^/]\w))"
LEAD = re.compile(
    r"\s*(?:(?:the\s+)?(?:correct\s+|best\s+|final\s+)?(?:options?|choices?|letters?|answers?)(?:\s+is)?\s*:?\s*)?"
    rf"(?:(?:(?:la|el|die|der|das|le|il|lo|a|o)\s+)?(?:{languages.OPTION})\s*:?\s*|(?:la|el|l['’]|die|der|il|o"
    rf"|a)\s+(?=(?-i:[A-Z])\b))?"
    rf"{LETTER}(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
SEVERAL = re.compile(
    rf"\s*(?:,|;|/|&|and\b|or\b|y\b|o\b|et\b|ou\b|und\b|oder\b|e\b|и\b|или\b|和|或|と)+\s*(?:and\b|or\b|option\b)?\s*"
    rf"\(?([A-Z])\)?{WORD}(?!\s+[a-z])",
)
CONNECTED = (
    r"because|since|as|is|for|with|due|which|where|based|in|given|from|by|and|not|but|that|according|so|would|has"
    r"|was|here"
    r"|weil|da|denn|porque|ya|car|parce|puisque|perché|pois|así|rather|seçene\w*|şık\w*"
)
ARTICLE = re.compile(rf"\s+(?!(?:{CONNECTED})\b)[a-z]")
REJECTED = re.compile(
    r"\s*(?:\?|(?:is|are|was)\s+(?:not|wrong|incorrect|false|impossible|out|ruled|excluded|eliminated|unlikely)\b"
    r"|(?:is|does|can)n['’]t\b|cannot\b|fails\b|不对|不正确|错)"
)
CHANGED = re.compile(
    r"^[^\n]{0,12}?(?:\bno\b|\bwait\b|\bactually\b|\bcorrection\b|\bsorry\b"
    r"|\brather\b)[^\n]{0,30}?\(?\b([A-Z])\b\)?"
    r"\s*[.!]?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
ASIDES = (
    r"(?:,?\s+(?:therefore|thus|then|hence|clearly|indeed|of course|definitely|likely|most likely|probably|by \w+"
    r"|as shown"
    r"|however|obviously)\b,?)"
)
PHRASE = re.compile(
    r"\b(?:(?:answer|ans|choice|option|solution|selection|conclusion|correct)s?(?:\s+(?:choice|option|letter|here"
    r"|above|is therefore))?"
    r"(?:\s+(?:to|for|from|among|of)\s+(?:this|the)\s+[\w ]{1,30}?)?"
    rf"{ASIDES}?\s*"
    r"(?::|=|→|⇒|➜|[\u2013\u2014]|\s-\s|\b(?:is|would be|must be|should be|will be|has to be|seems to be"
    r"|appears to be|turns out to be)\b"
    rf"|\b(?:must|should|has to|will|would){ASIDES}\s*be\b|(?=\bisn['’]t\b))"
    rf"{ASIDES}?"
    r"|(?:I|we|to|should|would|will|['’]d|['’]ll|['’]m|am)\s+(?:choose|select|pick|go(?:ing)? with"
    r"|say))[\s:]*(?=\S)([^\n]{1,400})",
    re.IGNORECASE,
)
CLAUSE = (
    r"(?:(?<=^)|(?<=[.,;:!?]\s)|(?<=\n)|(?<=[(\[])|(?<=\bthat\s)|(?<=\bso\s)|(?<=\bthus\s)|(?<=\bhence\s)"
    r"|(?<=\band\s)|(?<=\boption\s)"
    r"|(?<=\bOption\s)|(?<=\bchoice\s)|(?<=\bChoice\s)|(?<=\banswer\s)|(?<=\bAnswer\s)|(?<=\btherefore\s)"
    r"|(?<=\bTherefore\s)|(?<=\bbelieve\s)"
    r"|(?<=\bthink\s)|(?<=\bonly\s)|(?<=\bOnly\s)|(?<=\bletter\s)|(?<=\bThus\s)|(?<=\bHence\s)|(?<=\bSo\s)"
    r"|(?<=\bbut\s)|(?<=\boptions\s))"
)
STATED = re.compile(
    rf"{CLAUSE}{LETTER}(?:(?!\b[A-Z]\b)[^.\n]){{0,80}}?\b(?:is|would be|must be)\s+(?:the\s+|my\s+)?(?:only\s+"
    rf"|most\s+|best\s+|final\s+)?"
    r"(?:correct|right|best|accurate|true|answer|choice|one|option)\b",
    re.MULTILINE,
)
STATED_ELSEWHERE = re.compile(
    rf"(?:(?:{languages.OPTION})\s*:?\s*)?{LETTER}\s*(?:[-\u2014]\s*)?(?:(?:{languages.OPTION})\s*)?(?:{languages.RIGHT})"
)
CHOSEN = re.compile(
    rf"\b(?:choose|select|pick|go with|choosing|selecting|picking|going with)\s+(?:option\s+|choice\s+"
    rf"|answer\s+)?{LETTER}"
    rf"|(?:{languages.CHOOSE})\s*(?:是|为|為|:)?\s*(?:(?:{languages.OPTION})\s*)?{LETTER}(?=\W*(?:选项\W*)?(?:$|\n|[.,;]))",
    re.MULTILINE,
)
LEFT = re.compile(
    rf"\b(?:leaving|leaves|left with|leave)\s+(?:us\s+with\s+|only\s+|just\s+|us\s+|behind\s+)*(?:option\s+"
    rf"|choice\s+|answer\s+)?{LETTER}"
    rf"(?=\W*(?:$|\n|[.,;]|as\b|which\b))"
    rf"|\b[Oo]nly\s+(?:option\s+|choice\s+)?{LETTER}\s+(?:remains|is left|survives|works|fits|holds|is consistent"
    rf"|is possible)"
    rf"|(?:^|[.,;]\s|option\s|so\s){LETTER}\s+(?:is the only (?:one|option|choice)|remains\b(?! to))",
    re.MULTILINE,
)
CONCLUDED = re.compile(
    rf"(?:(?:^|[.;,!]\s+)(?:so|thus|therefore|hence|conclusion|in conclusion|finally|overall"
    rf"|consequently)\b[,:]?\s*|(?:=>|⇒|→|➜|∴|->)\s*)"
    rf"(?:it\s+(?:is|must be)\s+|it['’]s\s+)?(?:option\s+|choice\s+|answer\s+|the answer\s+)?{LETTER}\s*[.!]?\s*$"
    rf"|\b(?:it|that|this|which|one|choice|answer|option)(?:\s+(?:is|must be|has to be|should be|would be)"
    rf"|['’]s)\s+(?:therefore\s+|clearly\s+|definitely\s+)?"
    rf"(?:option\s+|choice\s+|answer\s+)?{LETTER}\s*[.!]?\s*$"
    rf"|\b(?:answer|choice|option|verdict|decision)\s+{LETTER}\s*[.!]?\s*$"
    rf"|\b(?:statement|description|explanation|conclusion|interpretation"
    rf"|reason)s?\b[^.\n]{{0,60}}?\bis\s+(?:option\s+)?{LETTER}\s*[.!]?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
DENIED = re.compile(r"(?:\b(?:not|cannot|never)|n['\u2019]t)\s+(?:\w+\s+)?$")
UNIT = re.compile(r"(?<=[\d})])\s*(?:\\(?:text|mathrm)\{\s*)?[A-Za-z/]{1,5}\}?\$?$")
DOUBLE = re.compile(r"\[\[\s*\(?([A-Z])\)?\s*\]\]")
FINAL = re.compile(
    r"^\W*(?:(?:so|thus|therefore|hence|wait|actually|correction|no|finally|and)\b[,:.]?\s*)*(?:(?:the|my)\s+)?"
    r"(?:(?:final|correct|right|best|actual)\s+)*(?:answer|ans|option|choice)s?(?:\s+(?:choice|option|letter))?\s*"
    r"(?::|=|\bis\b|\bshould be\b|\bmust be\b|[\u2013\u2014-])\s*(?P<rest>.+)$",
    re.IGNORECASE,
)
PARENTHESES = re.compile(r"\(\s*([A-Z])\s*\)|\b[Oo]ption\s+([A-Z])\b")
SIGNS = re.compile(r"[=+^_<>\\*/]")


class Rule(StrEnum):
    """The rule that found a letter, or the reason why there is none; its value is the prose of a grade."""

    TAG = "answer tag"
    FIELD = "answer field"
    DOUBLE = "[[letter]]"
    FINAL = "final statement after the box"
    BOX = "last box"
    TEXT_IN_BOX = "option text in the box"
    VALUE_IN_BOX = "option value in the box"
    OPTION_TEXT = "option text"
    OPTION_VALUE = "option value"
    PHRASE = "phrase"
    STATEMENT = "statement"
    CONCLUSION = "conclusion"
    LAST_LINE = "last line"
    ONLY_LETTER = "last resort: the only letter in the last line"
    SEVERAL = "several letters"
    OUT_OF_RANGE = "letter out of range"
    NOTHING = "no letter"

    @property
    def boxed(self) -> bool:
        """True if the letter was in a box."""
        return self in (Rule.BOX, Rule.TEXT_IN_BOX, Rule.VALUE_IN_BOX)


Reading = tuple[str | None, Rule | None]


def letter(text: str, choices: Sequence[str] = ()) -> tuple[str | None, Rule]:
    """Return the letter of the option that a reply chooses, and the rule that found it or the reason for None.

    The first rule that finds something counts: an `<answer>` tag, the `answer` field of a JSON object at the end, or
    `[[C]]`, unless a box follows; the last box, unless the last line is an explicit statement such as "Answer: C"; the
    last phrase such as "the answer is", in many languages; the last statement such as "(C) is correct"; a last line
    that is an option and nothing else; a conclusion such as "leaving C" or "Therefore C."; finally the only letter in
    parentheses in the last line. Within a rule the last match counts. Without `choices` the options are A to D.
    """
    options = _Options(choices)
    box = boxed(text)
    start = text.rfind("\\boxed")
    for find, rule in ((structured.tagged, Rule.TAG), (structured.field, Rule.FIELD), (_doubled, Rule.DOUBLE)):
        place = find(text)
        if place and place[1] > start:
            name, why = options.chosen(place[0])
            if name or why:
                return name, rule if name else why or rule
    if box is not None:
        after = text[text.rfind("box") :]
        name, why = options.final(after) if "\n" in after else (None, None)
        if name:
            return name, Rule.FINAL
        name, why = options.chosen(box)
        if name or why:
            return name, why or Rule.BOX
    plain = _plain(structured.unfenced(text[-SEARCHED:]))
    for rule, read in (
        (Rule.PHRASE, options.phrase),
        (Rule.STATEMENT, options.statement),
        (Rule.LAST_LINE, options.last_line),
        (Rule.CONCLUSION, options.conclusion),
    ):
        name, why = read(plain)
        if name or why:
            return name, why or rule
    lines = [line for line in plain.split("\n") if line.strip()]
    denied = lines and re.search(rf"{languages.NOT}|\b(?:incorrect|wrong|false)\b", lines[-1], re.IGNORECASE)
    single = {a or b for a, b in PARENTHESES.findall(lines[-1])} if lines and not denied else set()
    if len(single) == 1 and (only := single.pop()) in options.letters:
        return only, Rule.ONLY_LETTER
    return None, Rule.NOTHING


def _doubled(text: str) -> tuple[str, int] | None:
    last = None
    for match in DOUBLE.finditer(text):
        last = match
    return (last[1], last.start()) if last else None


def _plain(text: str) -> str:
    """Remove LaTeX wrappers and Markdown emphasis; full-width and look-alike letters become plain ones."""
    text = LOOKALIKE.sub(lambda match: match[0].translate(languages.LOOKALIKES), languages.western(_narrow(text)))
    text = WRAPPER.sub(lambda match: " " if match[0][:2] in ("\\q", "\\ ", "\\,") else "", text)
    text = SUFFIXED.sub("", text)
    return QUOTED.sub(lambda match: match[1] or match[2], text if text.isascii() else BESIDE.sub(" ", text))


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
        self.choices = tuple(choices)
        keys = [_key(choice) for choice in choices]
        self.by_text = {key: name for key, name in zip(keys, self.letters, strict=False) if keys.count(key) == 1}

    def chosen(self, content: str) -> Reading:
        """Read the content of a box, tag or field: a letter, an option's text, or its value."""
        if "box" in content:
            content = boxed(content) or content
        name, why = self.read(_plain(content), in_box=True)
        if name or why or "\n" in content.strip():
            return name, why
        name = self.by_value(content)
        return name, Rule.VALUE_IN_BOX if name else None

    def by_value(self, content: str) -> str | None:
        """Return the one option that has the value of a content: "32" is "32 degrees"."""
        if not self.choices or len(content) > 200:
            return None
        value = normalise(content)
        if not value.text or has_words(value.text):
            return None
        options = [choice if re.search("[A-Za-z]", value.text) else UNIT.sub("", choice) for choice in self.choices]
        named = zip(self.letters, options, strict=False)
        equal = [name for name, option in named if _equal(value.text, normalise(option).text)]
        return equal[0] if len(equal) == 1 else None

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
        alone = rest.startswith(")") or (in_box and not rest.strip(" ."))
        if not lead[1] and not name.isupper() and not alone:  # lower case counts in parentheses, or alone
            return None, None
        name = name.upper()
        if REJECTED.match(rest) or (not lead[1] and ARTICLE.match(rest) and not self._begins(name, rest)):
            return None, None
        second = SEVERAL.match(rest)
        if second and second[1] in self.letters and second[1] != name:
            return None, Rule.SEVERAL
        if in_box and rest.strip() and not self._belongs(name, rest):
            return None, None
        changed = CHANGED.match(rest)
        return self._in_range(changed[1].upper() if changed else name)

    def _begins(self, name: str, rest: str) -> bool:
        """Return True if what follows a letter is the beginning of its option's text."""
        place = string.ascii_uppercase.index(name)
        return place < len(self.choices) and _key(self.choices[place]).startswith(_key(rest)[:12]) and bool(_key(rest))

    def _belongs(self, name: str, rest: str) -> bool:
        """Return True if the rest of a box is an explanation of its letter, not a formula that begins with it."""
        if self.by_text.get(_key(rest.lstrip(" .:)-\u2013\u2014"))) == name or self._begins(
            name, rest.lstrip(" .:)-\u2013\u2014")
        ):
            return True
        if re.match(r"\s*[.:)](?:\s|\d|$)|\s*,\s", rest):
            return True
        return bool(re.match(r"\s*[-\u2013\u2014(]", rest)) and not SIGNS.search(rest) and has_words(rest)

    def _in_range(self, name: str) -> Reading:
        return (name, None) if name in self.letters else (None, Rule.OUT_OF_RANGE)

    def final(self, after: str) -> Reading:
        """Read an explicit statement that is the last line of a text, such as "Answer: C"."""
        lines = [line for line in after.split("\n")[1:] if not CLOSING_LINE.fullmatch(line)]
        line = _plain(lines[-1][:500]) if lines else ""
        match = FINAL.match(line) or languages.STATEMENT.match(line.strip())
        if not match:
            return None, None
        name, why = self.read(match["rest"])
        return (name, None) if name and not why else (None, None)

    def phrase(self, text: str) -> Reading:
        """Read the last "answer is", "Answer:" or "I choose" that an option follows, in any language."""
        matches = [*PHRASE.finditer(text), *languages.STATEMENT.finditer(text)]
        for match in sorted(matches, key=lambda each: each.start(), reverse=True):
            rest = match[1]
            while deeper := PHRASE.search(rest):
                name, why = self.read(_corrected(deeper[1]))
                if name or why:
                    return name, why
                rest = deeper[1]
            rest = _corrected(match[1])
            name, why = self.read(rest)
            if not name and not why and re.fullmatch(r"[a-z]\W*", rest) and ":" in match[0]:
                name, why = self._in_range(rest[0].upper())
            if not name and not why:
                first = re.split(r"(?<=\w)[.;,](?:\s|$)", rest)[0]
                name = self.by_text.get(_key(first))
                why = Rule.OPTION_TEXT if name else None
                if not name and len(first) < 60 and (name := self.by_value(first)):
                    why = Rule.OPTION_VALUE
            if name or why:
                return name, why
        return None, None

    def statement(self, text: str) -> Reading:
        """Read the last "C is correct" or "choose C"; "not correct" does not match."""
        matches = [
            *STATED.finditer(text),
            *CHOSEN.finditer(text),
            *STATED_ELSEWHERE.finditer(text),
            *LEFT.finditer(text),
        ]
        for match in sorted(matches, key=lambda each: each.start(), reverse=True):
            name = next(group for group in match.groups() if group).upper()
            negated = re.search(rf"{languages.NOT}|\b(?:neither|incorrect|wrong)\b", match[0]) or DENIED.search(
                text[max(0, match.start() - 30) : match.start()]
            )
            if (
                not negated
                and name in self.letters
                and not (name in "AI" and re.match(r"[AI]\s+(?!is\b|would\b|must\b)[a-z]+\s", match[0]))
            ):
                return name, None
        return None, None

    def conclusion(self, text: str) -> Reading:
        """Read "Therefore C.", "=> C" or "it must be C" at the end of one of the last three lines."""
        lines = [line.strip() for line in text.split("\n") if line.strip() and not CLOSING_LINE.fullmatch(line)]
        for line in reversed(lines[-3:]):
            line = _corrected(line[-400:])
            matches = list(CONCLUDED.finditer(line))
            match = matches[-1] if matches else None
            name = next((group for group in match.groups() if group), "") if match else ""
            if match and name.isupper() and name in self.letters and not re.search(languages.NOT, match[0]):
                return name, None
        return None, None

    def last_line(self, text: str) -> Reading:
        """Read a last line, or a whole reply, that is an option: "C", "(C)", "C) its text", its text."""
        lines = [line.strip() for line in text.split("\n") if line.strip() and not CLOSING_LINE.fullmatch(line)]
        last = lines[-1].removeprefix("> ").strip() if lines else ""
        if re.fullmatch(r"[(\[]?\s*[A-Za-z]\s*[)\]]?\s*[.:]?", last) and (last[0] in "([" or last[0].isupper()):
            return self._in_range(last.strip("()[].: \t").upper())
        headed = re.match(r"\(?([A-Z])[).:]\s+\S", last)
        if headed and headed[1] in self.letters:
            return headed[1], None
        return self.by_text.get(_key(last)), None


def _corrected(rest: str) -> str:
    """Return what follows "but" in "not A but C"; a text that only denies is left empty."""
    for negation, correction in languages.NOT_BUT:
        match = (
            re.search(
                rf"{negation}\W*(?:\w+\W+){{0,2}}?\(?[A-Z]\b.{{0,60}}?(?:{correction})\s*(.+)", rest, re.IGNORECASE
            )
            if correction
            else None
        )
        if match and re.search(r"\b[A-Z]\b", match[1]):
            return str(match[1])
    match = re.search(r"\b[A-Z]\b\)?\s*(?:ではなく|[이가] 아니라)[,\s]*(.+)", rest)
    return match[1] if match else rest


def _equal(text: str, gold: str) -> bool:
    """Compare a value with an option's by spelling and numbers, or by the values of expressions."""
    if not gold or has_words(gold):
        return False
    answer = normalise(text)
    try:
        with mathematics.no_algebra():
            return mathematics.equal(answer, normalise(gold))
    except mathematics.Undecided:
        return bool(expressions.equal(text, gold))
