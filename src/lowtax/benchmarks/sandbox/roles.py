"""What a process inside the sandbox does: run a script, answer calls to a program's function, or test it from outside.

The function under test and its tests are in two sandboxes joined by a socket that carries plain data. The tests, the
expected values and the verdict exist only in the second, so nothing that the program does to its own process (to
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

from lowtax.sandbox_plain import NotPlain, Opaque, close, packed, receive, send, unpacked

SHOWN = 300  # characters of an error that are reported


def said(error: BaseException) -> str:
    """Kind and text of an error, cut."""
    try:
        text = str(error)
    except BaseException as second:  # noqa: BLE001  # row recorded as failed
        text = f"(its text raises {type(second).__name__})"
    return f"{type(error).__name__}: {text}"[:SHOWN].rstrip(": ")


def module(name: str) -> dict[str, Any]:
    """The namespace of a new module that `sys.modules` knows, as dataclasses need."""
    made = types.ModuleType(name)
    sys.modules[name] = made
    return made.__dict__


def script(job: dict[str, Any], channel: socket.socket) -> None:
    """Run a program as a script, and say so when its end is reached."""
    token = job.pop("token")
    sys.argv = ["program.py"]
    exec(compile(job["program"], "program.py", "exec"), module("__main__"))
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    send(channel, {"token": token})


def serve(job: dict[str, Any], channel: socket.socket) -> None:
    """Load a program, then answer calls to its function until the other side goes."""
    names = module("program")
    try:
        exec(compile(job["program"], "program.py", "exec"), names)
        function = names[job["entry"]]
    except KeyError as error:
        missing = error.args == (job["entry"],)
        send(channel, {"error": f"no {job['entry']} in the program" if missing else said(error), "kind": "KeyError"})
        return
    except BaseException as error:  # noqa: BLE001  # row recorded as failed
        send(channel, {"error": said(error), "kind": type(error).__name__})
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
        return {"error": said(error), "kind": type(error).__name__}


class Remote:
    """The function under test, seen from the tests: plain data in, plain data out."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.calls = 0
        self.ended = ""
        self.answer()

    def answer(self) -> Any:
        """What the program sent next, or the error that it raised."""
        try:
            message = receive(self.channel)
            if "error" not in message:
                return unpacked(message.get("value"))
            text, kind = str(message["error"]), str(message["kind"])
        except EOFError:
            self.ended = "the program ended"
            raise RuntimeError(self.ended) from None
        except (NotPlain, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise RuntimeError(f"the program sent no plain data ({said(error)})") from None
        found = None if kind.startswith("Stop") else getattr(builtins, kind, None)  # StopIteration would end a loop
        raised = found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError
        try:
            made = raised(text.removeprefix(f"{kind}: "))
        except TypeError:
            made = RuntimeError(text)
        raise made

    def __call__(self, *values: Any, **names: Any) -> Any:
        """A call; what cannot cross comes back as `Opaque`, which no comparison takes for right."""
        self.calls += 1
        if self.ended:
            raise RuntimeError(self.ended)
        message = {"values": [packed(value) for value in values], "names": {k: packed(v) for k, v in names.items()}}
        try:
            send(self.channel, message)
        except OSError:
            self.ended = "the program ended"
            raise RuntimeError(self.ended) from None
        return self.answer()


def test(job: dict[str, Any], channel: socket.socket, program: socket.socket) -> None:
    """Run the groups of tests in order; a group that fails does not stop the next one."""
    random.seed(0)
    report: dict[str, str] = {}
    try:
        remote = Remote(program)
    except Exception as error:  # noqa: BLE001  # row recorded as failed
        send(channel, dict.fromkeys(job["groups"], f"program: {said(error)}"))
        return
    for name, group in job["groups"].items():
        remote.calls = 0
        try:
            _source(group, job["entry"], remote) if "source" in group else _compare(group, remote)
            report[name] = ""
        except BaseException as error:  # noqa: BLE001  # row recorded as failed
            report[name] = f"call {remote.calls}: {remote.ended or said(error)}"
    send(channel, report)


def _source(group: dict[str, Any], entry: str, remote: Remote) -> None:
    """Tests as source code: what they need, then the code, in which the name of the function is the remote one."""
    names: dict[str, Any] = {}
    exec(compile(group["setup"], "setup", "exec"), names)
    names[entry] = names["candidate"] = remote
    exec(compile(group["source"], "tests", "exec"), names)
    if names.get("check", remote) is not remote:  # the function under test may be called check, too
        names["check"](remote)
    if not remote.calls:
        raise NotPlain("the tests never called the function")


def values(job: dict[str, Any], channel: socket.socket, program: socket.socket) -> None:
    """What the function returns for each of the inputs, in order; for canonical solutions."""
    try:
        remote = Remote(program)
        found: dict[str, Any] = {"values": [packed(_opaque_kept(remote(*unpacked(given)))) for given in job["inputs"]]}
    except Exception as error:  # noqa: BLE001  # row recorded as failed
        found = {"error": said(error)}
    send(channel, found)


def _opaque_kept(value: Any) -> Any:
    return True if isinstance(value, Opaque) else value


def _compare(group: dict[str, Any], remote: Remote) -> None:
    for given, wanted in zip(group["inputs"], group["expected"], strict=True):
        inputs, expected = unpacked(given), unpacked(wanted)
        found = remote(*inputs)
        if not right(found, expected, inputs, group["oracle"], group["tolerance"]):
            raise AssertionError(f"{remote_text(found)} instead of {remote_text(expected)}")


def remote_text(value: Any) -> str:
    """A value for people, cut; integers of any size."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = "a very large number"
    return text if len(text) < 80 else text[:77] + "..."


def right(found: Any, expected: Any, inputs: list[Any], oracle: str, tolerance: float) -> bool:
    """Whether a value is right, as EvalPlus 0.3.1 decides it.

    oracle: "" for equality, within the tolerance where one is given or floats are expected; else one of its special
    rules: `root`, `set`, `some`, `any`, `or_zero`, `pyramid`, `digits`.
    """
    if oracle == "root":
        return bool(abs(sum(c * math.pow(found, power) for power, c in enumerate(inputs[0]))) <= tolerance)
    if oracle == "set":
        return bool(set(found) == set(expected))
    if oracle == "some":
        wanted = expected is not None
        return bool(wanted == (found if isinstance(found, bool) else found is not None))
    if isinstance(found, Opaque):
        return False
    if found == expected or oracle == "any" or (oracle == "or_zero" and found == 0):
        return True
    if oracle == "digits" and found == _digits(*inputs):
        return True
    if oracle == "pyramid" and abs(found - _pyramid(*inputs)) <= tolerance:
        return True
    if tolerance == 0 and _floats(expected):
        tolerance = 1e-6
    return tolerance != 0 and type(found) is type(expected) and near(found, expected, tolerance)


def near(found: Any, expected: Any, tolerance: float) -> bool:
    """Numbers, or lists and tuples of them of the same shape, within the tolerance."""
    if isinstance(expected, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return same and all(near(a, b, tolerance) for a, b in zip(found, expected, strict=True))
    if isinstance(found, (int, float)) and isinstance(expected, (int, float)):
        return close(found, expected, tolerance)
    return found is None and expected is None


def _floats(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, float) for item in value)
    )


def _pyramid(base: float, height: float) -> int:
    """Surface of a square pyramid whose height is the perpendicular one (Mbpp/581)."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digits(first: int, second: int) -> int:
    """Sum of the differences of two numbers' digits, zeros put before the shorter one (Mbpp/558)."""
    a, b = str(first), str(second)
    width = max(len(a), len(b))
    return sum(abs(int(x) - int(y)) for x, y in zip(a.zfill(width), b.zfill(width), strict=True))


ROLES: dict[str, Callable[..., None]] = {"script": script, "serve": serve, "test": test, "values": values}
