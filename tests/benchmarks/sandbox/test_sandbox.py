"""The sandbox: hostile programs never pass and leave nothing behind; plain data keeps its types; limits hold.

tests/hostile holds the programs. Their first line says how a script may end, with namespaces and without; a script that
got what it wanted prints GOT. A function must not pass its tests: answer(3) == 7919 and answer(4) == [1, (2,)].
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from places import TESTS
from typer.testing import CliRunner

from lowtax.benchmarks.sandbox.run import GroupOutcome, Limits, check, run
from lowtax.benchmarks.sandbox.server import Server
from lowtax.benchmarks.sandbox.values import NotPlain, Opaque, packed, unpacked
from lowtax.cli import sandbox
from lowtax.common.errors import UserError

PROGRAMS = sorted((TESTS / "hostile").glob("*.txt"))
SCRIPTS = [path for path in PROGRAMS if path.read_text().startswith("# script")]
FUNCTIONS = [path for path in PROGRAMS if path.read_text().startswith("# function")]
TIGHT = Limits(wall_s=2, cpu_s=2, memory_mb=256, file_mb=8, processes=8, output_bytes=100_000)
TESTS = {"base": {"setup": "", "source": "assert answer(3) == 7919\nassert answer(4) == [1, (2,)]"}}
MODES = ("auto", "plain")
PASSED = {"base": GroupOutcome("passed")}
LOOPS = ("alarm_off", "error_without_end", "excepthook", "traced", "thread_outlives", "recursion", "endless_errors")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    monkeypatch.setenv("LOWTAX_SANDBOX", request.param)
    monkeypatch.setenv("SECRET", "SECRET_OF_THE_CALLER")
    return Server.running().mode


def left_running(server: Server) -> list[psutil.Process]:
    """What still runs below the server a moment later."""
    for _ in range(100):
        found = [p for p in psutil.Process(server.process.pid).children(recursive=True) if p.is_running()]
        if not found:
            return []
        time.sleep(0.01)
    return found


def test_there_are_enough_hostile_programs():
    assert len(SCRIPTS) >= 30
    assert len(FUNCTIONS) >= 25


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_hostile_script(path, mode):
    first = path.read_text().splitlines()[0].removeprefix("# script ")
    if mode == "plain" and path.stem in LOOPS:
        pytest.skip("a loop in the interpreter, which namespaces have nothing to do with")
    usual, _, plain = first.partition(" | plain ")
    expected = (plain or usual).split() if mode == "plain" else usual.split()
    if mode == "plain" and path.stem == "write_outside" and os.geteuid():
        expected = ["failed"]
    limits = replace(TIGHT, wall_s=0.2) if "timeout" in expected else TIGHT
    began = time.monotonic()
    outcome = run(path.read_text(), limits)
    assert time.monotonic() - began < limits.wall_s + 2.5
    assert outcome.status in expected, outcome
    if not (mode == "plain" and plain):
        assert "GOT" not in outcome.stdout
    assert len(outcome.stdout) + len(outcome.stderr) <= TIGHT.output_bytes
    assert left_running(Server.running()) == []
    assert run("print(6 * 7)", TIGHT).stdout == "42\n"


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.stem)
def test_a_hostile_function(path):
    began = time.monotonic()
    wrong, _ = check(path.read_text(), "answer", TESTS, replace(TIGHT, wall_s=0.4))
    assert wrong["base"].kind != "passed"
    assert wrong["base"].text
    assert time.monotonic() - began < 3
    assert left_running(Server.running()) == []


def test_the_right_function_passes(mode):
    right = "def answer(x):\n    print('noise')\n    return 7919 if x == 3 else [1, (2,)]\n"
    assert check(right, "answer", TESTS, TIGHT)[0] == PASSED


def test_groups_of_tests_are_told_apart(mode):
    inputs = [packed([3]), packed([5])]
    plus = {"inputs": inputs, "expected": [packed(7919), packed(1.0)], "oracle": "", "tolerance": 0}
    wrong, _ = check("def answer(x):\n    return 7919 if x == 3 else x\n", "answer", {**TESTS, "plus": plus}, TIGHT)
    assert wrong == {
        "base": GroupOutcome("failed", "call 2: AssertionError"),
        "plus": GroupOutcome("failed", "call 2: AssertionError: 5 instead of 1.0"),
    }
    wrong, _ = check("def answer(x):\n    return 7919 if x == 3 else 1 + 1e-9\n", "answer", {"plus": plus}, TIGHT)
    assert wrong == {"plus": GroupOutcome("passed")}


def test_what_ended_a_function_is_said(mode):
    endless = "def answer(x):\n    while True: pass\n"
    late = check(endless, "answer", TESTS, replace(TIGHT, wall_s=0.3))[0]["base"]
    assert late == GroupOutcome("ended", "call 1: the program ended (longer than 0.3 s)")
    gone = check("import os\ndef answer(x): os._exit(0)\n", "answer", TESTS, TIGHT)[0]["base"]
    assert gone == GroupOutcome("ended", "call 1: the program ended (exit code 0)")
    absent = check("def other(x): pass\n", "answer", TESTS, TIGHT)[0]["base"]
    assert absent == GroupOutcome("unloadable", "KeyError: 'no answer in the program'")
    broken = check("def answer(:\n", "answer", TESTS, TIGHT)[0]["base"]
    assert broken.kind == "unloadable"
    assert "SyntaxError" in broken.text


def test_the_words_of_an_error_do_not_decide_how_a_group_ended(mode):
    for words in ("the program ended", "program: ended"):
        program = f"def answer(x): raise RuntimeError({words!r})\n"
        result = check(program, "answer", TESTS, TIGHT)[0]["base"]
        assert result == GroupOutcome("failed", f"call 1: RuntimeError: {words}")


def test_an_error_arrives_as_its_kind(mode):
    source = (
        "try:\n    answer(0)\nexcept ZeroDivisionError as error:\n    assert 'zero' in str(error)\nelse:\n    assert 0"
    )
    group = {"base": {"setup": "", "source": source}}
    assert check("def answer(x): return 1 / x\n", "answer", group, TIGHT)[0] == PASSED
    assert check("def answer(x): return 1\n", "answer", group, TIGHT)[0]["base"].kind == "failed"


def test_tests_that_never_call_the_function_do_not_pass(mode):
    group = {"base": {"setup": "", "source": "def checks(candidate):\n    assert candidate(1)\n"}}
    assert "never called" in check("def answer(x): return 1\n", "answer", group, TIGHT)[0]["base"].text


SAME = {  # the body of a function, and what its call is in every way of isolation
    "pool": ("    from multiprocessing import Pool\n    with Pool(2) as p:\n        return p.map(abs, [-x])", [3]),
    "queue": (
        "    from multiprocessing import Process, Queue\n    q = Queue()\n    p = Process(target=q.put, args=(x,))\n"
        "    p.start()\n    y = q.get()\n    p.join()\n    return y", 3,
    ),
    "threads": (
        "    from concurrent.futures import ThreadPoolExecutor as E\n    with E(8) as e:\n"
        "        return list(e.map(abs, [-x]))",
        [3],
    ),
    "another program": (
        "    import subprocess, sys\n    try:\n        subprocess.run([sys.executable, '-c', ''])\n"
        "    except OSError:\n        return 'refused'", "refused",
    ),
    "a shell": ("    import os\n    return os.system('true') == 0", False),
    "another package": ("    try:\n        import pydantic\n    except ImportError:\n        return 'none'", "none"),
    "numpy": ("    import numpy.linalg as a\n    return float(a.norm([x, 4]))", 5.0),
    "time zone": ("    import time\n    return time.strftime('%H', time.localtime(0))", "00"),
    "exit": ("    try:\n        exit()\n    except SystemExit:\n        return 'left'", "left"),
}  # fmt: skip


def test_a_program_has_the_same_grade_in_every_mode(mode):
    limits = replace(TIGHT, wall_s=10, cpu_s=10, memory_mb=1024, processes=16)
    wrong = {}
    for name, (body, value) in SAME.items():
        source = f"value = answer(3)\nassert value == {value!r}, value"
        group = {"base": {"setup": "", "source": source}}
        found, _ = check(f"def answer(x):\n{body}\n", "answer", group, limits)
        if found != PASSED:
            wrong[name] = found["base"].text
    assert wrong == {}


def test_a_script_in_full(mode):
    outcome = run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nopen('x', 'w').write('y')\n", TIGHT)
    assert (outcome.status, outcome.returned, outcome.stdout, outcome.stderr) == ("passed", 0, "out\n", "err\n")
    assert outcome.isolation == mode
    assert 0 < outcome.seconds < TIGHT.wall_s
    failed = run("def f():\n    raise ValueError('no')\nf()\n", TIGHT)
    assert (failed.status, failed.returned) == ("failed", 1)
    assert 'File "program.py", line 2, in f' in failed.stderr
    assert "sandbox" not in failed.stderr
    assert run("import sys; sys.exit(7)", TIGHT).returned == 7


def test_scripts_see_neither_each_other_nor_a_trace_of_each_other(mode):
    assert run("open('kept', 'w').write('x')", TIGHT).status == "passed"
    seen = run(
        "import os; print(os.listdir('.'), dict(os.environ), os.listdir('/tmp') if os.getcwd() == '/tmp' else [])"
    )
    assert seen.stdout == "[] {} []\n"


def test_every_program_is_a_user_of_its_own_when_root_starts_them(monkeypatch):
    if os.geteuid():
        pytest.skip("only root can start programs as other users")
    for name in MODES:
        monkeypatch.setenv("LOWTAX_SANDBOX", name)
        users = {run("import os; print(os.getuid())", TIGHT).stdout for _ in range(3)}
        assert len(users) == 3
        assert "0\n" not in users


def test_many_at_once(mode):
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: run(f"print({n} ** 2)", TIGHT).stdout, range(40)))
    assert found == [f"{n**2}\n" for n in range(40)]
    assert time.monotonic() - began < 10


def test_nothing_outlives_lowtax(tmp_path):
    code = (
        "import threading, time; from lowtax.benchmarks.sandbox.run import Limits, Server, run\n"
        "threading.Thread(target=run, args=('while True: pass', Limits(wall_s=60, cpu_s=60))).start()\n"
        "print(Server.running().process.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        server = psutil.Process(int(process.stdout.readline()))
        below = [server]
        while len(below) < 3:  # server, keeper, program
            below = [server, *server.children(recursive=True)]
            time.sleep(0.01)
        process.kill()
    _, alive = psutil.wait_procs(below, timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_server_that_was_killed_is_started_again(mode):
    first = Server.running()
    first.process.kill()
    first.process.wait()
    assert run("print(1)", TIGHT).stdout == "1\n"
    assert Server.running() is not first


def test_without_namespaces_it_says_so_once_and_loudly():
    code = "from lowtax.benchmarks.sandbox.run import run; run('pass'); run('pass')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "LOWTAX_SANDBOX": "plain"}
    )
    assert done.stderr.count("WARNING: the sandbox has NO namespaces") == 1


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("LOWTAX_SANDBOX", "loose")
    with pytest.raises(UserError, match="auto, root, user or plain"):
        run("pass")


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)  # fmt: skip


def same(a: object, b: object) -> bool:
    return repr(a) == repr(b)


@settings(deadline=None)
@given(VALUES)
def test_plain_data_crosses_with_its_types(value):
    assert same(unpacked(json.loads(json.dumps(packed(value)))), value)


@pytest.mark.parametrize("value", [
    {1, 2}, frozenset({3}), (1, [2, (3,)]), {(1, 2): "x"}, range(3), Decimal("1.10"), Fraction(1, 3), 10**5000,
    -(2**63), True, 1, 1.0, b"\x00", "\ud800", math.inf, {None: ()}, -0.0,
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_rarer_plain_data_crosses(value):
    found = unpacked(json.loads(json.dumps(packed(value))))
    assert type(found) is type(value)
    assert found == value


def test_classes_cross_as_the_data_they_are_made_of_or_not_at_all():
    point = namedtuple("point", "x y")
    assert unpacked(packed(Counter("aab"))) == {"a": 2, "b": 1}
    assert unpacked(packed(OrderedDict(a=1))) == {"a": 1}
    assert unpacked(packed(point(1, 2))) == (1, 2)
    assert unpacked(packed({1: 2}.keys())) == {1}
    assert isinstance(unpacked(packed(object())), Opaque)
    assert isinstance(unpacked(packed(print)), Opaque)
    assert math.isnan(unpacked(json.loads(json.dumps(packed(math.nan)))))


@pytest.mark.parametrize("value", [
    {"code": "x"}, {"tuple": 1}, {"a": [], "b": []}, {}, {"Decimal": "1" * 20_000}, {"Fraction": "1e999999999"},
    {"set": "ab"},
], ids=str)  # fmt: skip
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(NotPlain):
        unpacked(value)


def test_threads_share_one_server(mode):
    found = []
    threads = [threading.Thread(target=lambda: found.append(Server.running())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_the_command_prints_the_outcome_as_json(tmp_path):
    app = typer.Typer()
    app.command()(sandbox.sandbox)
    path = tmp_path / "program.py"
    path.write_text("print('hello')\nimport time\ntime.sleep(60)\n")
    done = CliRunner().invoke(app, [str(path), "--timeout", "0.3", "--memory", "256"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (found["status"], found["returned"], found["limits"]["memory_mb"]) == ("timeout", None, 256)
    with pytest.raises(UserError, match="cannot be read"):
        sandbox.sandbox(tmp_path / "missing.py")
    for seconds in (math.inf, -math.inf, math.nan, 0.0, 1e9):
        with pytest.raises(UserError, match="--timeout is"):
            sandbox.sandbox(path, timeout=seconds)
    for limit in ({"memory": 10**5_000}, {"files": 10**12}, {"processes": 10**30}, {"output": 10**20}):
        with pytest.raises(UserError, match="give a number from"):
            sandbox.sandbox(path, **limit)
    path.write_text("x = '" + "a" * 34_000_000 + "'")
    with pytest.raises(UserError, match="too long for the sandbox"):
        sandbox.sandbox(path)
    with pytest.raises(UserError, match="too long for the sandbox"):
        sandbox.sandbox(Path("/dev/zero"))


def test_a_program_that_is_too_long_is_wrong_and_stops_nothing():
    long = "def answer(x):\n    return 1\n#" + "a" * 34_000_000
    assert check(long, "answer", TESTS, TIGHT)[0]["base"].kind == "unloadable"
    assert check(long, "answer", {**TESTS, "plus": TESTS["base"]}, TIGHT)[0]["plus"].text.startswith(
        "the program is too"
    )
    for limit in ({"wall_s": math.inf}, {"wall_s": math.nan}, {"cpu_s": 0}, {"memory_mb": -1}):
        with pytest.raises(UserError, match="give a number from"):
            replace(TIGHT, **limit)
