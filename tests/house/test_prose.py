"""The prose of docstrings and pages: plain openings, none of the phrases that readers stumble over, lines that fit.

Every test reports all places at once.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

SOURCE = ROOT / "src" / "lowtax"
GENERATED = ROOT / "docs" / "reference" / "architectures.md"  # sentences of libraries among ours
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {GENERATED})]
TEXTS = [*PAGES, *sorted(path for suffix in ("py", "md", "yaml") for path in SOURCE.rglob(f"*.{suffix}"))]
OPENING = re.compile(r"\s*(What|Whether|Who|How|Where|Which)\b")
PHRASES = {  # a phrase, and what to write instead
    r"\b(go|goes|going|gone|went)\s+on\s+with\b": "resume, continue",
    r"\bstands?\s+in\b": "is in",
    r"'s\s+affair\b": "ignored, or who decides it",
    r"\bat\s+hand\b": "available, here",
    r"\bis\s+told\b": "is given, is set",
    r"\bneed\s+be\b": "must be, has to be",
    r"\bof\s+its\s+own\b": "separate, its",
}
COLUMNS = 120


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, its classes and functions, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def openings(path: Path) -> list[str]:
    return [
        f"{path}:{line}: a docstring opens with {match[1]!r}: open with a verb, or with the noun that it describes"
        for line, text in docstrings(path)
        if (match := OPENING.match(text))
    ]


def phrases(path: Path) -> list[str]:
    text = path.read_text()
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r}: write {instead}"
        for phrase, instead in PHRASES.items()
        for match in re.finditer(phrase, text)
    ]


def long_lines(path: Path) -> list[str]:
    return [
        f"{path}:{number}: {len(line)} columns"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > COLUMNS and not line.startswith("|")
    ]


def report(places: list[str]) -> None:
    if places:
        pytest.fail(f"{len(places)} places:\n" + "\n".join(places).replace(f"{ROOT}/", ""), pytrace=False)


def test_docstrings_open_with_a_verb_or_a_noun():
    report([place for path in sorted(SOURCE.rglob("*.py")) for place in openings(path)])


def test_no_phrase_that_readers_stumble_over():
    report([place for path in TEXTS for place in phrases(path)])


def test_lines_of_pages_fit():
    report([place for path in PAGES for place in long_lines(path)])


def test_such_prose_would_be_found(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text('"""Whether it is."""\n\n\ndef f() -> None:\n    """Return what need\n    be, at hand."""\n')
    assert [place.rpartition("x.py:")[2].partition(":")[0] for place in openings(path)] == ["1"]
    assert [place.rpartition("x.py:")[2].split(": ")[:2] for place in phrases(path)] == [
        ["6", "'at hand'"],
        ["5", "'need be'"],
    ]
    path.write_text(f"{'x' * 121}\n| {'x' * 121} |\n")
    assert [place.rpartition("x.py:")[2] for place in long_lines(path)] == ["1: 121 columns"]
