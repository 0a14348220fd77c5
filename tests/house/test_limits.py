"""Limits on the tail of the code: a smell detector. When one bites, look for the missing idea, never squeeze lines."""

import ast
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

SOURCE = ROOT / "src" / "lowtax"
MODULES = sorted(SOURCE.rglob("*.py"))
LEFT_OUT = {
    ".git",
    ".venv",
    ".venv-vllm",
    "runs",
    "build",
    "dist",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
}
FAILED = "# row recorded as failed"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def p95(values: list[int]) -> int:
    return sorted(values)[int(0.95 * (len(values) - 1))]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions() -> Iterator[tuple[str, Function]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def length(function: Function) -> int:
    """Lines of a function without its signature: a command has a line for each of its options."""
    return (function.end_lineno or function.lineno) - function.body[0].lineno + 1


def test_there_is_something_to_measure():
    assert len(MODULES) > 10
    assert len(list(functions())) > 50


def test_length_of_files():
    counts = {path.name: lines(path) for path in MODULES}
    assert {name: n for name, n in counts.items() if n > 700} == {}
    assert p95(list(counts.values())) <= 400, sorted(counts.items(), key=lambda item: item[1])[-5:]


def test_length_of_functions():
    counts = {name: length(node) for name, node in functions()}
    assert {name: n for name, n in counts.items() if n > 70} == {}
    assert p95(list(counts.values())) <= 36, sorted(counts.items(), key=lambda item: item[1])[-5:]


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "bench").glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_function_is_annotated():
    bare = []
    for name, node in functions():
        taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        taken += [a for a in (node.args.vararg, node.args.kwarg) if a]
        if node.returns is None or any(a.annotation is None and a.arg not in ("self", "cls") for a in taken):
            bare.append(name)
    assert bare == []


def catches_all(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds)


def swallowing(path: Path) -> list[str]:
    """Handlers of any exception that neither re-raise nor record a row as failed."""
    text = path.read_text()
    handlers = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ExceptHandler) and catches_all(n.type)]
    return [
        f"{path.name}:{handler.lineno}"
        for handler in handlers
        if not any(isinstance(n, ast.Raise) for part in handler.body for n in ast.walk(part))
        and FAILED not in text.splitlines()[handler.lineno - 1]
    ]


def test_no_exception_is_swallowed():
    assert [place for path in MODULES for place in swallowing(path)] == []


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        ("except:", True),
        ("except Exception:", True),
        ("except (ValueError, BaseException) as error:", True),
        (f"except Exception as error:  {FAILED}", False),
        ("except ValueError:", False),
    ],
)
def test_a_swallowed_exception_would_be_found(tmp_path: Path, handler: str, found: bool):
    path = tmp_path / "x.py"
    path.write_text(f"try:\n    pass\n{handler}\n    pass\n")
    assert swallowing(path) == (["x.py:3"] if found else [])
    path.write_text(f"try:\n    pass\n{handler}\n    raise\n")
    assert swallowing(path) == []


def test_nothing_is_asked_whether_it_has_an_attribute():
    calls = re.compile(r"\bhasattr\(")
    assert [path.name for path in MODULES if calls.search(path.read_text())] == []


def files() -> Iterator[Path]:
    for folder, names, found in os.walk(ROOT):
        names[:] = [n for n in names if n not in LEFT_OUT and not n.endswith(".egg-info")]
        yield from (Path(folder) / name for name in found if name not in LEFT_OUT)


def test_no_path_of_the_place_where_it_was_written():
    forbidden = [part.encode() for part in ("/wo" + "rk/", ".lib" + "rary")]
    found = [str(path.relative_to(ROOT)) for path in files() if any(word in path.read_bytes() for word in forbidden)]
    assert found == []


HELP = """
import sys
sys.argv = ["lowtax", *sys.argv[1:]]
from lowtax.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "peft", "numpy", "matplotlib"} & set(sys.modules)
    assert not heavy, f"--help imported {heavy}"
"""


def run_help(*command: str) -> tuple[float, str]:
    """Return the seconds of processor time, since others take those of the clock, and what was printed."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP, *command, "--help"], capture_output=True, text=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    return seconds, done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "train",
        "sample",
        "judge",
        "attack",
        "evaluate",
        "grade",
        "sandbox",
        "analyze",
        "edit",
        "compare",
        "consistency",
        "calibrate",
        "export",
    ],
)
def test_help_of_a_command_is_light_and_shows_an_example(command: str):
    _, shown = run_help(command)
    assert f"lowtax {command} " in shown[shown.index("Example") :]


def test_help_takes_under_half_a_second():
    run_help()  # the first reads the disk
    assert min(run_help()[0] for _ in range(3)) < 0.5
