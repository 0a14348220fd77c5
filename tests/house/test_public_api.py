"""`import lowtax as lt`: which names it offers, that each of them loads, and that the import itself stays light."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import lowtax

VERBS = ["run", "train", "sample", "judge", "evaluate", "grade", "compare", "consistency", "edit", "merge", "analyze"]
VERBS += ["show_progress"]
NOUNS = [
    "Study",
    "Recipe",
    "load_recipe",
    "Placement",
    "parse_mode",
    "Job",
    "Prompt",
    "Reply",
    "Verdict",
    "Grade",
    "UserError",
]
TO_EXTEND = ["Method", "Edit", "State", "Probe", "Site", "Sites", "Factors", "Engine", "Request", "Completion"]
TO_EXTEND += ["Judge", "JudgeKind", "Opinion", "Benchmark", "Score", "Task"]
LIGHT = """
import sys, time
began = time.process_time()
import lowtax
seconds = time.process_time() - began
heavy = {"torch", "transformers", "peft", "numpy", "pydantic", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
print(seconds)
"""


def test_the_names_are_these():
    assert sorted(lowtax.__all__) == sorted(["__version__", *VERBS, *NOUNS, *TO_EXTEND])
    assert dir(lowtax) == sorted(lowtax.__all__)


@pytest.mark.parametrize("name", lowtax.__all__)
def test_every_name_loads(name: str):
    value = getattr(lowtax, name)
    assert vars(lowtax)[name] is value, "loaded once"
    if inspect.isfunction(value) or inspect.isclass(value):
        assert inspect.getdoc(value), f"{name} has no docstring"


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(lowtax.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    places = {name: f"lowtax.{place.replace(':', '.')}" for name, place in lowtax.PUBLIC.items()}
    assert seen == {name: place if ":" in lowtax.PUBLIC[name] else f"{place}.{name}" for name, place in places.items()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        lowtax.trian  # noqa: B018


def test_the_import_is_light():
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
    assert min(times) < 0.1


def test_types_are_shipped():
    assert (ROOT / "src" / "lowtax" / "py.typed").exists()


def test_the_reference_page_has_every_name():
    page = (ROOT / "docs/reference/python-api.md").read_text()
    shown = set(re.findall(r"^::: lowtax\.(\w+)$", page, flags=re.MULTILINE))
    aliases = {"State", "Sites", "JudgeKind", "load_recipe", "__version__"}  # types and a function under another name
    assert shown == set(lowtax.__all__) - aliases
