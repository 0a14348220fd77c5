"""Answers that have parts: lists, sets, pairs, intervals, unions, matrices. The parts are compared one by one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lowtax import spelling

Compare = Callable[[str, str], bool]
MOST = 30  # parts that are compared in any order
MATRIX = re.compile(
    r"\\begin\{([pbvV]?)(?:small)?(?:matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{[pbvV]?(?:small)?(?:matrix|array)\}"
)
BETWEEN = re.compile(r"([^<>a-z]+?|[^<>]*\\[a-z]+[^<>]*?)(<|\\le ?)[a-z](<|\\le ?)([^<>]+)")
BEYOND = re.compile(r"[a-z](<|>|\\le ?|\\ge ?)([^<>]+)")
ENDS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle"}
OPENING, CLOSING = ("(", "[", "{"), (")", "]", "}")


@dataclass(frozen=True)
class Parts:
    """An answer taken apart. `kind` is its brackets, such as `()`, `[)` or `\\{\\}`; empty if it has none."""

    kind: str
    parts: tuple[str, ...]


def equal(found: str, gold: str, leaf: Compare) -> bool:
    """Whether two answers in their one spelling are equal; `leaf` compares what has no parts."""
    if found == gold:
        return True
    if max(len(found), len(gold)) > spelling.LONGEST:
        return False
    labelled = [spelling.unlabelled(text) for text in _both_intervals(found, gold)]
    a, b = (_rows(text) for text in labelled)
    if a and b:
        return _same_rows(a, b, leaf)
    left_sets, right_sets = (_split(text, "\\cup") for text in labelled)
    if len(left_sets) > 1 or len(right_sets) > 1:
        return _any_order(left_sets, right_sets, partial(equal, leaf=leaf))
    left, right = (_parts(text) for text in labelled)
    if len(left.parts) == 1 and len(right.parts) == 1 and not (left.kind and right.kind):
        if left.kind != right.kind and {left.kind, right.kind} <= {"", "()", "[]", "\\{\\}"}:
            return leaf(left.parts[0], right.parts[0])
        return leaf(found, gold)
    return _same_parts(left, right, leaf)


def _both_intervals(found: str, gold: str) -> tuple[str, str]:
    """An inequality of one letter as an interval, if the other answer is one."""
    if gold[:1] in ("(", "[") and (interval := _interval(found)):
        return interval, gold
    if found[:1] in ("(", "[") and (interval := _interval(gold)):
        return found, interval
    return found, gold


def _interval(text: str) -> str | None:
    if both := BETWEEN.fullmatch(text):
        return f"{'[' if 'e' in both[2] else '('}{both[1]},{both[4]}{']' if 'e' in both[3] else ')'}"
    if one := BEYOND.fullmatch(text):
        above = one[1] == ">" or "g" in one[1]
        equal_too = "e" in one[1]
        if above:
            return f"{'[' if equal_too else '('}{one[2]},\\infty)"
        return f"(-\\infty,{one[2]}{']' if equal_too else ')'}"
    return None


def _same_parts(found: Parts, gold: Parts, leaf: Compare) -> bool:
    kinds = {found.kind.replace("\\langle", "(").replace("\\rangle", ")"), gold.kind}
    if len(kinds) == 2 and "" not in kinds:
        return False
    each = partial(equal, leaf=leaf)
    a, b = _written_out(found), _written_out(gold)
    if len(a) != len(b):
        return False
    if kinds <= {"", "\\{\\}"}:
        names = [sum(spelling.unlabelled(part) != part for part in some) for some in (a, b)]
        if names[0] == names[1] == len(a):  # x=1,y=2 is not x=2,y=1
            return _any_order(a, b, leaf_of_equations)
        return _any_order(a, b, each)
    return all(each(x, y) for x, y in zip(a, b, strict=True))


def leaf_of_equations(found: str, gold: str) -> bool:
    """Whether two equations that give a value a name give the same value the same name."""
    (name, _, value), (other, _, right) = found.partition("="), gold.partition("=")
    return name == other and (value == right or bool(spelling.same_number(value, right)))


def _any_order(found: Sequence[str], gold: Sequence[str], each: Compare) -> bool:
    """Whether every part of the one has a part of its own in the other."""
    if len(found) != len(gold):
        return False
    if sorted(found) == sorted(gold) or len(gold) > MOST:
        return sorted(found) == sorted(gold)
    left, unmatched = list(gold), []
    for part in found:
        if part in left:
            left.remove(part)
        else:
            unmatched.append(part)
    for part in unmatched:
        match = next((other for other in left if each(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _written_out(of: Parts) -> tuple[str, ...]:
    """The parts, `a \\pm b` as two."""
    return tuple(
        re.sub(r"^\+|(?<=\()\+", "", part.replace("\\pm ", "\\pm").replace("\\pm", sign))
        for part in of.parts
        for sign in ("+-" if part.count("\\pm") == 1 else "+")
    )


def _parts(text: str) -> Parts:
    for begin, end in ENDS.items():
        closing = next((e for e in (end, *((")", "]") if begin in "([" else ())) if text.endswith(e)), None)
        if text.startswith(begin) and closing and _is_one(text, begin, closing):
            inside = text[len(begin) : -len(closing)]
            return Parts(begin + closing, tuple(_split(inside, ",")))
    if spelling.NUMBER.fullmatch(text.removesuffix("%")):
        return Parts("", (text,))
    return Parts("", tuple(_split(text, ",")))


def _is_one(text: str, begin: str, closing: str) -> bool:
    """Whether the first bracket closes at the end and not before."""
    inside = text[len(begin) : -len(closing)]
    depth = 0
    for sign in inside:
        depth += (sign in OPENING) - (sign in CLOSING)
        if depth < 0:
            return False
    return depth == 0


def _split(text: str, by: str) -> list[str]:
    """Parted at a separator that stands in no bracket; a comma between digits that belongs to a number stays."""
    found, depth, start, place = [], 0, 0, 0
    while place < len(text):
        sign = text[place]
        depth += (sign in OPENING) - (sign in CLOSING)
        if depth <= 0 and text.startswith(by, place):
            found.append(text[start:place].strip())
            start = place = place + len(by)
            continue
        place += 1
    return [part for part in [*found, text[start:].strip()] if part] or [text]


def _rows(text: str) -> tuple[str, list[list[str]]] | None:
    """The cells of a matrix by rows, and whether it is a determinant."""
    found = MATRIX.fullmatch(text.strip("()[]"))
    if not found:
        return None
    return found[1] if found[1] in ("v", "V") else "", [
        [cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\", found[2]) if row.strip()
    ]


def _same_rows(a: tuple[str, list[list[str]]], b: tuple[str, list[list[str]]], leaf: Compare) -> bool:
    if a[0] != b[0] or [len(row) for row in a[1]] != [len(row) for row in b[1]]:
        return False
    pairs = zip((c for row in a[1] for c in row), (c for row in b[1] for c in row), strict=True)
    return all(equal(x, y, leaf) for x, y in pairs)
