"""What a reply concludes: the content of its last box, and the letter of the option that it chooses.

All rules are linear in the length of the text. Each has a name, which is stored with the grade.
"""

import re
import string
import unicodedata
from collections.abc import Sequence

from lowtax import reference_rules

BOX = re.compile(r"\\{1,3}(?:boxed|fbox)(?![A-Za-z])|\x08oxed(?=\s*\{)|\\.|[{}]", re.DOTALL)
UNBRACED = re.compile(r"[ \t]*((?=[-+(\d.]|\\[A-Za-z{(]|[A-Za-z](?![A-Za-z]))(?:(?!\\[)\]])[^\n$])+)")
BRACE = re.compile(r"\s*\{")
SEARCHED = 20_000  # characters at the end in which a letter is looked for outside of a box

WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mathcal|mathbb|boldsymbol|bm|bf|rm|mbox|hbox"
    r"|left|right|displaystyle|Large|large|quad|qquad)(?![A-Za-z])"
    r"|\\[,;!: ()\[\]]|\\(?=\s)|[{}$*`\"“”]|(?<!\w)_+|_+(?!\w)"
)
WORD = r"(?!['\u2019]?\w)"  # no word goes on here
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


def boxed(text: str) -> str | None:
    """The content of the last box that is closed, `\\boxed{5}`, `\\boxed 5` or `\\fbox{5}`; None if there is none."""
    opened: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    bare = -1
    due = -1  # where the brace of a box stands
    for token in BOX.finditer(text):
        mark = token[0]
        if len(mark) > 2 or mark[0] == "\x08":
            brace = BRACE.match(text, token.end())
            due = brace.end() - 1 if brace else -1
            bare = bare if brace else token.end()
        elif mark == "{":
            opened.append((token.start(), token.start() == due))
        elif mark == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (best is None or start > best[0]) and text[start + 1 : token.start()].strip():
                best = (start, token.start())
    if bare > (best[0] if best else -1) and (found := UNBRACED.match(text, bare)):
        inside = found[1].strip().removesuffix(".").strip()
        return inside if inside and inside.count("{") == inside.count("}") else None
    return text[best[0] + 1 : best[1]].strip() if best else None


def reference_letter(text: str) -> str | None:
    """The option A to D that the reference project finds."""
    return reference_rules.letter(text)


def letter(text: str, choices: Sequence[str] = ()) -> tuple[str | None, str]:
    """The letter of the option that a reply chooses, and the name of the rule that found it or says why there is none.

    Rules, the first that finds something counts: the last box; the last phrase such as "the answer is"; the last
    statement such as "(C) is correct"; a last line that is an option and nothing else; last, the only letter in
    parentheses in the last line. Inside a rule the last finding counts. Without `choices` the options are A to D.
    """
    options = _Options(choices)
    box = boxed(text)
    if box is not None:
        found, said = options.read(_plain(box), in_box=True)
        if found or said:
            return found, said or "last box"
    plain = _plain(text[-SEARCHED:])
    for rule, read in (("phrase", options.phrase), ("statement", options.statement), ("last line", options.last_line)):
        found, said = read(plain)
        if found or said:
            return found, said or rule
    lines = [line for line in plain.split("\n") if line.strip()]
    single = {a or b for a, b in PARENTHESES.findall(lines[-1])} if lines else set()
    if len(single) == 1 and (only := single.pop()) in options.letters:
        return only, "last resort: the only letter in the last line"
    return None, "no letter"


def _plain(text: str) -> str:
    """Text without LaTeX wrappers and Markdown emphasis, full-width letters as plain ones."""
    return WRAPPER.sub(lambda found: " " if found[0][:2] in ("\\q", "\\ ", "\\,") else "", _narrow(text))


def _narrow(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _key(text: str) -> str:
    """A text such that those which say the same as an option are equal."""
    return re.sub(r"[\s.,;:!?]+", " ", _plain(text)).strip().casefold()


class _Options:
    """The options of one question. Every reader gives (letter, ""), (None, why it counts as none) or (None, "")."""

    def __init__(self, choices: Sequence[str]) -> None:
        self.letters = string.ascii_uppercase[: len(choices) or 4]
        keys = [_key(choice) for choice in choices]
        self.by_text = {key: name for key, name in zip(keys, self.letters, strict=False) if keys.count(key) == 1}

    def read(self, text: str, in_box: bool = False) -> tuple[str | None, str]:
        """The option in a text that holds little else: its letter, its letter and text, or its own text."""
        own = self.by_text.get(_key(text)) if len(text) < 2000 else None
        short = text.strip(" .:;,()[]\n\t").removesuffix("\\")
        if in_box and len(short) == 1 and short.isalpha():
            return self._in_range(short.upper())
        lead = LEAD.match(text[:2000])
        if own and not (lead and not lead["rest"].strip(" .")):
            return own, "option text in the box" if in_box else "option text"
        if not lead:
            return None, ""
        name = lead[1] or lead[2] or lead[3]
        rest = lead["rest"]
        if not lead[1] and not name.isupper():  # lower case counts in parentheses, or alone
            if rest.strip(" .") or not in_box:
                return None, ""
            name = name.upper()
        name = name.upper()
        if not lead[1] and name in "AI" and ARTICLE.match(rest):
            return None, ""
        other = SEVERAL.match(rest)
        if other and other[1] in self.letters and other[1] != name:
            return None, "several letters"
        if in_box and not lead[1] and rest.strip() and not re.match(r"\s*[.:),\-\u2013\u2014]|\s*\(", rest):
            named = self.by_text.get(_key(rest))
            return (name, "") if named == name else (None, "")
        return self._in_range(name)

    def _in_range(self, name: str) -> tuple[str | None, str]:
        return (name, "") if name in self.letters else (None, "letter out of range")

    def phrase(self, text: str) -> tuple[str | None, str]:
        """The last "answer is", "Answer:" or "I choose" that an option follows."""
        for found in reversed(list(PHRASE.finditer(text))):
            rest = found[1]
            while deeper := PHRASE.search(rest):
                name, said = self.read(deeper[1])
                if name or said:
                    return name, said
                rest = deeper[1]
            name, said = self.read(found[1])
            if not name and not said and re.fullmatch(r"[a-z]\W*", found[1]) and ":" in found[0]:
                name, said = self._in_range(found[1][0].upper())
            if not name and not said:
                first = re.split(r"(?<=\w)[.;,](?:\s|$)", found[1])[0]
                name = self.by_text.get(_key(first))
                said = "option text" if name else ""
            if name or said:
                return name, said
        return None, ""

    def statement(self, text: str) -> tuple[str | None, str]:
        """The last "C is correct" or "choose C"; "not correct" does not match."""
        both = [*STATED.finditer(text), *CHOSEN.finditer(text)]
        for found in sorted(both, key=lambda each: each.start(), reverse=True):
            name = (found[1] or found[2] or found[3]).upper()
            negated = re.search(r"\b(?:not|n't|neither|incorrect|wrong)\b|n['\u2019]t\b", found[0])
            if (
                not negated
                and name in self.letters
                and not (name in "AI" and re.match(r"[AI]\s+(?!is\b|would\b|must\b)[a-z]+\s", found[0]))
            ):
                return name, ""
        return None, ""

    def last_line(self, text: str) -> tuple[str | None, str]:
        """A last line, or a whole reply, that is an option: "C", "(C)", "C) its text", its text."""
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        last = lines[-1] if lines else ""
        if re.fullmatch(r"[(\[]?\s*[A-Za-z]\s*[)\]]?\s*[.:]?", last) and (last[0] in "([" or last[0].isupper()):
            return self._in_range(last.strip("()[].: \t").upper())
        headed = re.match(r"\(?([A-Z])[).:]\s+\S", last)
        if headed and headed[1] in self.letters:
            return headed[1], ""
        return self.by_text.get(_key(last)), ""
