"""Read the value that a sentence states: "The largest $n$ is 34.", "the roots are 2, 3 and -5", "x = \\u221a5".

The verb decides, not the last number: what follows the last "is", "are", "=" or ":" of the main clause is the value, if
an expression stands there. All rules are linear in the length of the sentence, which is limited by the caller.
"""

# ruff: noqa: RUF001  # mathematical signs

import re

from lowtax.benchmarks.grading import languages, normalise

FORMULA = re.compile(
    r"(?<!\\)\$\$?(?=\S)(?P<a>[^$\n]+?)(?<=[^\s\\])\$\$?(?!\d)|(?<!\\)\$\s(?P<e>[^$\n]{1,200}?)\s\$(?!\d)"
    r"|\\\((?P<b>.+?)\\\)|\\\[(?P<c>.+?)\\\]",
    re.DOTALL,
)
FUNCTION = r"(?:arcsin|arccos|arctan|sin|cos|tan|cot|log|ln|exp|sqrt|pi)(?![A-Za-z])"
SIGNS = r"[-+*/^=×·÷−–!%°²³⁰¹⁴⁵⁶⁷⁸⁹⁻⁺ⁿ₀₁₂₃₄₅₆₇₈₉√∛π∞θαβ½¼¾⅓⅔<>≤≥±∪∈:|'′]"
TOKEN = re.compile(
    r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
    rf"|\\(?:begin|end)\{{[a-z]+\}}|\\(?:text|mathrm|textbf)\{{[^{{}}]*\}}|\\[A-Za-z]+|\\[{{}},;!%$]|{FUNCTION}"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z'’])|[(\[{}\])_&]|\\\\|\$(?=\d)|[€£¥₹](?=\s?\d)"
    rf"|{SIGNS}"
)
SPACE = re.compile(r"[ \t\u00a0\u202f]*")
STRONG = re.compile(languages.STATES, re.IGNORECASE)
FILLER = re.compile(
    r"(?:\s|\*|at|then|thus|therefore|hence|indeed|exactly|only|just|simply|precisely|now|always|at (?:most|least)"
    r"|equal to|equals|given by"
    r"|approximately|about|around|roughly|clearly|also|still|both|either|numbers?|values?|points?"
    r"|the (?:ordered )?(?:pairs?|numbers?|values?|points?|intervals?|sets?|integers?|matrix|vector|fraction"
    r"|triples?|equation|expression|polynomial)"
    r"|genau|also|somit|daher|igual a|égale? à|pari a|uguale a|ровно|±?:|the final answer|it)*",
    re.IGNORECASE,
)
SUBORDINATE = re.compile(
    r"\b(?:when|if|where|since|because|for which|for all|for every|such that|so that|as long as|while|although"
    r"|whenever|which|that|whose|who"
    r"|wenn|weil|cuando|porque|quand|car|quando|perché|когда|если|так как)\b",
    re.IGNORECASE,
)
TAIL = re.compile(
    r"[,;]?\s+(?:at|when|where|if|since|because|for|with|which|as|occurring|attained|achieved|obtained|and this"
    r"|in the|on the)\s.*$",
    re.DOTALL | re.IGNORECASE,
)
NAMED = r"(?<![A-Za-z\\])[A-Za-z]\s?=\s?[-−]?[\d./]+"
AT_LETTER = re.compile(r"\b(?:at|when|where|if|for|with|since)\s+[A-Za-z]\s*$")
SYSTEM = re.compile(rf"({NAMED}(?:\s?(?:,|and|,\s?and)\s?{NAMED})+)\W*$")
AND_BETWEEN = re.compile(r"\s?,?\s?and\s?|\s?,\s?")
CONDITION = re.compile(r",?\s+(?:if|when|because|since)\s.*$", re.IGNORECASE | re.DOTALL)
OPERATION = re.compile(
    r"\s+(?:(?:times|plus|minus|divided by|multiplied by|out of)\s+\$?\d|(?:more|less|fewer) than\b|percent of\b"
    r"|% of\b)"
)
PER = re.compile(r"\s+per\s+\d[\d,.]*(?:\s+\w+)?(?=[.\s]|$)")
CLOCK_TIME = re.compile(r"\s+(?:by|before|until|after|from|at)\s+\d{1,2}(?::\d\d)?\s*[ap]\.?m\b\.?", re.IGNORECASE)
PLURAL = re.compile(
    r"\b(?:are|were|values|solutions|roots|zeros|zeroes|numbers|answers|pairs|dimensions|primes|factors|integers"
    r"|points|intercepts|asymptotes"
    r"|sind|son|sont|sono|são|lösungen|soluciones|solutions|soluzioni|soluções|корни|решения|равны)\b|解为|解是|分别",
    re.IGNORECASE,
)
SEPARATOR = re.compile(r"\s*(?:,\s*(?:and|or)\b|,|\band\b|\bor\b|;|和|或|与|及|und|oder|y|et|ou|e|и|или)\s*")
VERB_SIGN = re.compile(r"[<>=≤≥]|\\[lgn]eq?(?![a-z])")
AND = re.compile(r"(?:and|or|und|oder|y|et|ou|e|и|или|和|或)")


def value(sentence: str) -> str | None:
    """Return the value that the main clause of a sentence states, as it is written, or None."""
    if system := SYSTEM.search(sentence):
        return AND_BETWEEN.sub(", ", system[1])
    formulas = [match.span() for match in FORMULA.finditer(sentence)]
    spare = None
    plural = bool(PLURAL.search(FORMULA.sub("", sentence)))
    subordinate = [match.start() for match in SUBORDINATE.finditer(sentence)]
    for verb in reversed([match for match in STRONG.finditer(sentence) if not _inside(match.start(), formulas)]):
        before = sentence[: verb.start()]
        if verb[0] == "=" and AT_LETTER.search(before):
            continue
        clause = max(before.rfind(", "), before.rfind("; "), before.rfind(". "), -1)
        below = verb[0] not in "=:" and any(clause < start < verb.start() for start in subordinate)
        if below and not _outer(before, subordinate, verb.start()):
            spare = spare or leading(sentence[verb.end() :], plural)
            continue
        if (stated := leading(sentence[verb.end() :], plural)) is not None:
            return stated
        if re.search(r"\d|\$", sentence[verb.end() :]):
            return spare if re.match(r"\s*not\b", sentence[verb.end() :]) else None
    return None


def _outer(before: str, subordinate: list[int], verb: int) -> bool:
    """Return True if the subject's own clause ends before a verb: "the number that $A$ has is 5"."""
    last = max(start for start in subordinate if start < verb)
    words = before[last:].split()
    verbs = [
        word
        for word in words[1:]
        if STRONG.fullmatch(word.strip(",")) or word.endswith(("s", "ed")) or VERB_SIGN.search(word)
    ]
    return bool(verbs) and words[0].lower() in ("that", "which", "who", "whose", "when", "if", "where", "such", "for")


def leading(text: str, plural: bool = False) -> str | None:
    """Return the value, or the list of values, with which a text begins, after words such as "exactly"."""
    start = FILLER.match(text)
    place = start.end() if start else 0
    one = _one(text, place)
    if one is None or OPERATION.match(text, one[1]):
        return None
    values, place = [one[0]], one[1]
    while len(values) < 12 and (mark := SEPARATOR.match(text, place)):
        following = _one(text, mark.end())
        if following is None or not (plural or AND.search(mark[0]) or _closed_list(text, mark.start())):
            break
        if not plural and AND.search(mark[0]) and not _closed_list(text, mark.start()):
            break
        values.append(following[0])
        place = following[1]
    return ", ".join(values) if len(values) > 1 else values[0]


def _closed_list(text: str, start: int) -> bool:
    """Return True if nothing but values follow to the end of the sentence."""
    rest = FORMULA.sub("1", text[start : start + 200]).strip().rstrip(".")
    return bool(re.fullmatch(r"(?:\s|,|\band\b|\bor\b|;|和|或|[-−–+]?[\d./√π]+|\b[A-Za-z]\s*=)*", rest))


def _one(text: str, place: int) -> tuple[str, int] | None:
    """Return the formula or expression at a place, and where it ends."""
    formula = FORMULA.match(text, place)
    if formula:
        inside = formula["a"] or formula["b"] or formula["c"] or formula["e"]
        return (inside.strip(), formula.end()) if re.search(r"\w", inside) else None
    written = _run(text, place)
    written = re.sub(r"(?:[-+*/^=×·÷−–:<>|'(\[{\s]|(?<=[\d)}%°²³])\s+[A-Za-z]|(?<=\d)')+$", "", written)
    written = re.sub(r"^\s*[)\]}:=]+\s*", "", written)
    if not re.search(r"[\dπ∞√½¼¾]|\\[a-z]|^[-−]?[A-Za-z]$|[A-Za-z]\s*[=^+*/]", written):
        return None
    if re.fullmatch(r"\s*[AaIi]\s*", written):
        return None
    if unit := re.fullmatch(
        r"(\s*[-−]?[\d,.]+)\s?[mgLlhsk](?:[²³]|\^\{?[23]\}?)?(?:/[a-z](?:[²³]"
        r"|\^\{?[23]\}?)?)?",
        written,
    ):
        written = unit[1]
    written = _balanced(written)
    return (written.strip(), place + len(written)) if written.strip() else None


def _run(text: str, start: int) -> str:
    """Return the longest text at a place that is made of signs of mathematics; commas count inside of brackets."""
    end, depth = start, 0
    while True:
        space = SPACE.match(text, end)
        place = space.end() if space else end
        if depth > 0 and text[place : place + 1] in (",", ";"):
            end = place + 1
            continue
        match = TOKEN.match(text, place)
        if not match:
            return text[start:end]
        depth += (match[0] in "([{") - (match[0] in ")]}")
        end = match.end()


def _balanced(text: str) -> str:
    """Cut a text before the first closing bracket that nothing opened."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return text[:place]
    return text


def _inside(place: int, spans: list[tuple[int, int]]) -> bool:
    return any(start < place < end for start, end in spans)


def main_clause(sentence: str) -> str:
    """Return a sentence without what follows "at", "when" or "for", if a number is left."""
    for aside in (CLOCK_TIME, CONDITION, PER):
        shorter = aside.sub("", sentence)
        sentence = shorter if re.search(r"\d", shorter) else sentence
    shorter = TAIL.sub("", sentence) if FORMULA.search(sentence) else sentence
    return shorter if re.search(r"\d", normalise.plain(shorter)) else sentence
