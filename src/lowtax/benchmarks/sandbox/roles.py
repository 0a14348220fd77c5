"""Roles of a process in the sandbox: run a script, answer calls to a program's function, or test it from outside.

The function under test and its tests are in two sandboxes joined by a socket that carries plain data. The tests, the
expected values and the verdict exist in the second one only, so nothing that the program does to its own process (to
`__eq__`, to builtins, to frames, by `os._exit`) can make a wrong value right.
Standard library only: this runs inside the sandbox, where `lowtax` cannot be imported.
"""

import builtins
import math
import random
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from .values import NotPlain, Opaque, close, packed, receive, send, unpacked

SHOWN = 300  # characters of an error that are reported
ENDED = "the program ended"


def error_text(error: BaseException) -> str:
    """Return kind and text of an error, cut to `SHOWN` characters."""
    try:
        text = str(error)
    except BaseException as second:  # noqa: BLE001  # row recorded as failed
        text = f"(its text raises {type(second).__name__})"
    return f"{type(error).__name__}: {text}"[:SHOWN].rstrip(": ")


def module(name: str) -> dict[str, Any]:
    """Return the namespace of a new module in `sys.modules`, where dataclasses look for it."""
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name].__dict__


def script(job: dict[str, Any], channel: socket.socket) -> None:
    """Run a program as a script, and report when its end is reached."""
    token = job.pop("token")
    sys.argv = ["program.py"]
    exec(compile(job["program"], "program.py", "exec"), module("__main__"))
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    send(channel, {"token": token})


def serve(job: dict[str, Any], channel: socket.socket) -> None:
    """Load a program, then answer calls to its function until the other side closes."""
    names = module("program")
    try:
        exec(compile(job["program"], "program.py", "exec"), names)
        function = names[job["entry"]]
    except KeyError as error:
        missing = error.args == (job["entry"],)
        send(
            channel,
            {"error": f"no {job['entry']} in the program" if missing else error_text(error), "kind": "KeyError"},
        )
        return
    except BaseException as error:  # noqa: BLE001  # row recorded as failed
        send(channel, {"error": error_text(error), "kind": type(error).__name__})
        return
    send(channel, {"ready": True})
    while True:
        try:
            message = receive(channel)
        except EOFError:
            return
        answer = _answer(function, message)
        try:
            send(channel, answer)
        except NotPlain as error:
            send(channel, {"error": f"returned {error}", "kind": "NotPlain"})


def _answer(function: Callable[..., Any], message: dict[str, Any]) -> dict[str, Any]:
    try:
        names = {name: unpacked(value) for name, value in message.get("names", {}).items()}
        return {"value": packed(function(*(unpacked(value) for value in message["values"]), **names))}
    except BaseException as error:  # noqa: BLE001  # row recorded as failed
        return {"error": error_text(error), "kind": type(error).__name__}


class Remote:
    """The function under test as its tests see it: plain data in, plain data out."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.calls = 0
        self.ended = False
        self.answer()

    def answer(self) -> Any:
        """Return the value that the program sends next, or raise the error that it raised."""
        try:
            message = receive(self.channel)
            if "error" not in message:
                return unpacked(message.get("value"))
            text, kind = str(message["error"]), str(message["kind"])
        except EOFError:
            self.ended = True
            raise RuntimeError(ENDED) from None
        except (NotPlain, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise RuntimeError(f"the program sent no plain data ({error_text(error)})") from None
        named = None if kind.startswith("Stop") else getattr(builtins, kind, None)  # StopIteration would end a loop
        raised = named if isinstance(named, type) and issubclass(named, Exception) else RuntimeError
        try:
            exception = raised(text.removeprefix(f"{kind}: "))
        except TypeError:
            exception = RuntimeError(text)
        raise exception

    def __call__(self, *values: Any, **names: Any) -> Any:
        """Call the function; a value that cannot cross comes back as `Opaque`, which no comparison takes for right."""
        self.calls += 1
        if self.ended:
            raise RuntimeError(ENDED)
        message = {"values": [packed(value) for value in values], "names": {k: packed(v) for k, v in names.items()}}
        try:
            send(self.channel, message)
        except OSError:
            self.ended = True
            raise RuntimeError(ENDED) from None
        return self.answer()


def test(job: dict[str, Any], channel: socket.socket, program: socket.socket) -> None:
    """Run the groups of tests in order and report (kind, text) for each; one that fails does not stop the next one."""
    random.seed(0)
    report: dict[str, tuple[str, str]] = {}
    try:
        remote = Remote(program)
    except Exception as error:  # noqa: BLE001  # row recorded as failed
        send(channel, dict.fromkeys(job["groups"], ("unloadable", error_text(error))))
        return
    for name, group in job["groups"].items():
        remote.calls = 0
        try:
            _source(group, job["entry"], remote) if "source" in group else _compare(group, remote)
            report[name] = ("passed", "")
        except BaseException as error:  # noqa: BLE001  # row recorded as failed
            what = ENDED if remote.ended else error_text(error)
            report[name] = ("ended" if remote.ended else "failed", f"call {remote.calls}: {what}")
    send(channel, report)


def _source(group: dict[str, Any], entry: str, remote: Remote) -> None:
    """Run tests that are source code: their setup, then the code, in which the function's name is the remote one."""
    names: dict[str, Any] = {}
    exec(compile(group["setup"], "setup", "exec"), names)
    names[entry] = names["candidate"] = remote
    exec(compile(group["source"], "tests", "exec"), names)
    if names.get("check", remote) is not remote:  # the function under test may be called check, too
        names["check"](remote)
    if not remote.calls:
        raise NotPlain("the tests never called the function")


def values(job: dict[str, Any], channel: socket.socket, program: socket.socket) -> None:
    """Report what the function returns for each of the inputs, in order; for canonical solutions."""
    try:
        remote = Remote(program)
        results = [remote(*unpacked(inputs)) for inputs in job["inputs"]]
        report: dict[str, Any] = {"values": [packed(True if isinstance(x, Opaque) else x) for x in results]}
    except Exception as error:  # noqa: BLE001  # row recorded as failed
        report = {"error": error_text(error)}
    send(channel, report)


def _compare(group: dict[str, Any], remote: Remote) -> None:
    for packed_inputs, packed_value in zip(group["inputs"], group["expected"], strict=True):
        inputs, expected = unpacked(packed_inputs), unpacked(packed_value)
        value = remote(*inputs)
        if not right(value, expected, inputs, group["oracle"], group["tolerance"]):
            raise AssertionError(f"{value_text(value)} instead of {value_text(expected)}")


def value_text(value: Any) -> str:
    """Return a value as text for people, cut; integers may have any size."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = "a very large number"
    return text if len(text) < 80 else text[:77] + "..."


def right(value: Any, expected: Any, inputs: list[Any], oracle: str, tolerance: float) -> bool:
    """Return True if a value is right, as EvalPlus 0.3.1 decides it.

    oracle: "" for equality, within the tolerance where one is given or floats are expected; else one of its special
    rules: `root`, `set`, `some`, `any`, `or_zero`, `pyramid`, `digits`.
    """
    if oracle == "root":
        return bool(abs(sum(c * math.pow(value, power) for power, c in enumerate(inputs[0]))) <= tolerance)
    if oracle == "set":
        return bool(set(value) == set(expected))
    if oracle == "some":
        return bool((expected is not None) == (value if isinstance(value, bool) else value is not None))
    if isinstance(value, Opaque):
        return False
    if value == expected or oracle == "any" or (oracle == "or_zero" and value == 0):
        return True
    if oracle == "digits" and value == _digits(*inputs):
        return True
    if oracle == "pyramid" and abs(value - _pyramid(*inputs)) <= tolerance:
        return True
    if tolerance == 0 and _floats(expected):
        tolerance = 1e-6
    return tolerance != 0 and type(value) is type(expected) and near(value, expected, tolerance)


def near(value: Any, expected: Any, tolerance: float) -> bool:
    """Compare numbers, or lists and tuples of them of the same shape, within the tolerance."""
    if isinstance(expected, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(expected)
        return same and all(near(a, b, tolerance) for a, b in zip(value, expected, strict=True))
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return close(value, expected, tolerance)
    return value is None and expected is None


def _floats(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, float) for item in value)
    )


def _pyramid(base: float, height: float) -> int:
    """Return the surface of a square pyramid whose height is the perpendicular one (Mbpp/581)."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digits(first: int, second: int) -> int:
    """Return the sum of the differences of two numbers' digits, the shorter one filled with zeros (Mbpp/558)."""
    a, b = str(first), str(second)
    width = max(len(a), len(b))
    return sum(abs(int(x) - int(y)) for x, y in zip(a.zfill(width), b.zfill(width), strict=True))


ROLES: dict[str, Callable[..., None]] = {"script": script, "serve": serve, "test": test, "values": values}
