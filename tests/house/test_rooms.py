"""The ground plan: rooms, what lies in them, and that tests mirror them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import LONGEST, ROOT, TESTS

SOURCE = ROOT / "src" / "lowtax"
ROOMS = sorted(folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").exists())
# Folders of tests that are not a room: what they hold has no single place in the source.
BESIDE_ROOMS = {"support", "oracles", "house", "hostile", "golden", "zoo", "fuzz"}
# Tests named after a topic of their room and not after a module.
TOPICS = {
    "benchmarks": {"exams"},
    "benchmarks/grading": {"pipeline"},
    "judges": {"attacks", "guards", "judges", "refusal_judge"},
    "methods": {"alignment", "commands", "edits"},
    "models": {"nf4", "quantised", "strangers", "updates"},
    "engines": {"hf", "hf_adapters", "hf_batch", "hf_prefill"},
    "training": {"loop_details", "nf4", "imports", "options", "resuming", "rounding"},
    "cli": {"train_command"},
    "report": {"size"},
    "data": {"pairs"},
    "study": {"kills", "stored_study"},
}


def test_few_files_and_rooms_at_the_top():
    assert sorted(path.name for path in SOURCE.glob("*.py")) == ["__init__.py", "__main__.py"]
    assert len(ROOMS) <= 14


def private_imports(path: Path) -> Iterator[str]:
    """Names with an underscore that a file takes from another room."""
    room = path.relative_to(SOURCE).parts[0]
    modules = {}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowtax."):
            foreign = node.module.split(".")[1] != room
            for alias in node.names:
                if foreign and alias.name.startswith("_"):
                    yield f"{node.module}.{alias.name}"
                if foreign:
                    modules[alias.asname or alias.name] = node.module
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules):
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__"):
            yield f"{modules[node.value.id]}.{node.value.id}.{node.attr}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_private_name_crosses_a_room(room: str):
    places = {str(path.relative_to(SOURCE)): list(private_imports(path)) for path in (SOURCE / room).rglob("*.py")}
    assert {place: names for place, names in places.items() if names} == {}


def test_the_order_of_rooms():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_tests(room: str):
    assert list((TESTS / room).glob("test_*.py")), f"tests/{room} is empty"


def test_tests_lie_where_their_module_lies():
    lost = []
    for path in TESTS.rglob("test_*.py"):
        folder, topic = path.relative_to(TESTS).parent, path.stem.removeprefix("test_")
        if folder.parts[0] in BESIDE_ROOMS or topic in TOPICS.get(str(folder), set()):
            continue
        here = SOURCE / folder
        named = {p.stem for p in here.glob("*.py")} | {p.name for p in here.iterdir() if p.is_dir()} | {here.name}
        if not here.is_dir() or topic not in named:
            lost.append(str(path.relative_to(TESTS)))
    assert lost == []


def test_the_longest_files_of_tests_are_there():
    assert [name for name in LONGEST if not (TESTS / f"{name}.py").is_file()] == []
