"""Run programs that nobody has read, under limits. docs/explanation/sandbox.md says what this does not protect from.

    run(program, limits)                    a script: how it ended and what it wrote
    check(program, entry, groups, limits)   a function: the groups of tests that it passes

`check` keeps the tests, the expected values and the verdict in a second sandbox; the program's side only receives
arguments and sends plain data back. So a program can end itself, redefine equality or read all its memory, and
still passes only by returning the right values.
"""

import os
import secrets
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lowtax.common.errors import UserError

from .roles import value_text
from .server import GRACE, Server
from .values import NotPlain, receive

Status = Literal["passed", "exited", "failed", "timeout", "killed", "output"]
Kind = Literal["passed", "failed", "ended", "unloadable", "undecided"]

LONGEST = 1_000_000  # seconds
BOUNDS = {
    "wall_s": (0.01, LONGEST), "cpu_s": (1, LONGEST + 1), "memory_mb": (1, 2**24), "file_mb": (1, 2**24),
    "processes": (1, 2**22), "output_bytes": (0, 2**40),
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Limits of a program: seconds by the clock; for each of its processes seconds of CPU and MB of memory; MB of files
    in all; processes and threads at once; bytes of output on stdout and stderr together. Raises UserError for one that
    is not within BOUNDS."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mb: int = 1024
    file_mb: int = 64
    processes: int = 16
    output_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        for name, (lowest, highest) in BOUNDS.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:  # NaN fails too
                number = value_text(value)
                raise UserError(
                    f"The sandbox's limit {name} is {number}: give a number from {lowest:g} to {highest:g}."
                )


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    status: passed if it ran to its end; exited if it ended itself before that with code 0; failed with an error or
        another code; timeout; killed by a signal; output if it wrote too much.
    returned: its exit code, or minus the signal that ended it; None where a limit ended it.
    """

    status: Status
    returned: int | None
    stdout: str
    stderr: str
    seconds: float
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    isolation: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GroupOutcome:
    """The result of one group of tests.

    kind: passed; failed, by a wrong value or an error; ended if the program's process ended before its tests did;
        unloadable if the program raises an error as it is loaded or lacks the function; undecided if the tests
        themselves did not end.
    text: the first call that failed and its error, for people; empty if passed.
    """

    kind: Kind
    text: str = ""


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run a program as a script."""
    limits = limits or Limits()
    server, token = Server.running(), secrets.token_hex(16)
    ours, theirs = socket.socketpair()
    pipes = [os.pipe(), os.pipe()]
    began = time.monotonic()
    with ours, theirs:
        job = {"program": program, "token": token}
        try:
            control = server.start("script", job, asdict(limits), [pipes[0][1], pipes[1][1], theirs.fileno()])
        except NotPlain as error:
            for end, _ in pipes:
                os.close(end)
            raise UserError(f"The program is too long for the sandbox ({error}): give a shorter one.") from error
        finally:
            for _, end in pipes:
                os.close(end)
        theirs.close()
        with control:
            deadline = began + limits.wall_s + GRACE
            texts, too_much = _read([pipes[0][0], pipes[1][0]], limits.output_bytes, deadline)
            if too_much:
                control.shutdown(socket.SHUT_WR)
            report = _report(control)
        reached = _reached_end(ours, token)
    stdout, stderr = (text.decode(errors="replace") for text in texts)
    outcome = _outcome(report, reached, too_much, limits)
    seconds = report["seconds"] or round(time.monotonic() - began, 4)
    return replace(outcome, stdout=stdout, stderr=stderr, seconds=seconds, isolation=server.mode)


def _read(ends: Sequence[int], most: int, deadline: float) -> tuple[list[bytes], bool]:
    """Read until the pipes close, the deadline passes or it is too much; return the texts, and True if too much."""
    texts = {end: bytearray() for end in ends}
    remaining = most
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map() and remaining >= 0 and (wait := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(wait):
                part = os.read(key.fd, 65536)
                if not part:
                    selector.unregister(key.fd)
                texts[key.fd] += part[: max(0, remaining)]
                remaining -= len(part)
    for end in ends:
        os.close(end)
    return [bytes(texts[end]) for end in ends], remaining < 0


def _reached_end(channel: socket.socket, token: str) -> bool:
    channel.setblocking(False)
    try:
        return bool(receive(channel) == {"token": token})
    except (EOFError, NotPlain, BlockingIOError, OSError):
        return False


def _report(control: socket.socket) -> dict[str, Any]:
    """Return the keeper's report; a keeper without one was killed together with its program."""
    try:
        report: dict[str, Any] = receive(control)
        return report
    except (EOFError, NotPlain, TimeoutError, OSError):
        return {"timed_out": False, "code": -9, "seconds": 0.0, "cpu_s": 0.0, "peak_mb": 0.0}


def _outcome(report: Mapping[str, Any], reached: bool, too_much: bool, limits: Limits) -> Outcome:
    code, notes = int(report["code"]), []
    status: Status
    if too_much:
        status, notes = "output", [f"more than {limits.output_bytes:,} bytes of output"]
    elif report["timed_out"]:
        status, notes = "timeout", [f"longer than {limits.wall_s:g} s"]
    elif code == -24 or (code == -9 and report["cpu_s"] >= limits.cpu_s):
        status, notes = "timeout", [f"more than {limits.cpu_s} s of CPU"]
    elif code < 0:
        status, notes = "killed", [f"signal {-code}"]
    else:
        status = "failed" if code else "passed" if reached else "exited"
    returned = None if too_much or report["timed_out"] else code
    return Outcome(status, returned, "", "", report["seconds"], report["cpu_s"], report["peak_mb"], notes=notes)


def check(
    program: str, entry: str, groups: Mapping[str, Any], limits: Limits | None = None
) -> tuple[dict[str, GroupOutcome], Outcome]:
    """Run the tests of a function.

    groups: by name, either `setup` and `source`, Python code that calls the function or defines `check(candidate)`; or
        `inputs` and `expected`, both as `values.packed` writes them, with `oracle` and `tolerance`.

    Returns:
        The result of each group, and the end of the program's process.
    """
    limits = limits or Limits()
    try:
        report, outcome = _joined("test", {"groups": dict(groups), "entry": entry}, program, entry, limits)
    except TooLong as error:
        failed = GroupOutcome("unloadable", f"the program is too long: {error}")
        return dict.fromkeys(groups, failed), Outcome("failed", None, "", "", 0.0, isolation=Server.running().mode)
    why = " ".join(outcome.notes) or f"exit code {outcome.returned}"
    if not isinstance(report, dict):
        return dict.fromkeys(groups, GroupOutcome("undecided", f"the tests did not end: {why}")), outcome
    results = {name: GroupOutcome(*report.get(name, ("undecided", "no verdict"))) for name in groups}
    return {
        name: replace(result, text=f"{result.text} ({why})") if result.kind == "ended" else result
        for name, result in results.items()
    }, outcome


def outputs(program: str, entry: str, inputs: Sequence[Any], limits: Limits | None = None) -> list[Any]:
    """Return what a trusted function returns for each input, both as `values.packed` writes them."""
    limits = limits or Limits()
    try:
        report, outcome = _joined("values", {"inputs": list(inputs)}, program, entry, limits)
    except TooLong as error:
        raise UserError(f"The solution of {entry} is too long for the sandbox ({error}): leave it out.") from error
    if not isinstance(report, dict) or "values" not in report:
        why = report.get("error") if isinstance(report, dict) else outcome.status
        raise UserError(
            f"The solution of {entry} that came with the tests does not run on its own inputs here ({why}): "
            "take another version of the file, or leave this problem out."
        )
    return list(report["values"])


class TooLong(ValueError):
    """Raised for a program that is too long to be sent."""


def _joined(
    role: str, job: Mapping[str, Any], program: str, entry: str, limits: Limits
) -> tuple[dict[str, Any] | None, Outcome]:
    """Run a program in one sandbox and its caller in another; return the caller's report and the end of the program."""
    server = Server.running()
    verdict, channel = socket.socketpair()
    mine, other = socket.socketpair()
    with verdict, channel, mine, other, open(os.devnull, "wb") as null:
        quiet = [null.fileno(), null.fileno()]
        caller_limits = replace(limits, wall_s=limits.wall_s + GRACE / 2, processes=1)
        try:
            callee = server.start(
                "serve", {"program": program, "entry": entry}, asdict(limits), [*quiet, other.fileno()]
            )
        except NotPlain as error:
            raise TooLong(str(error)) from error
        other.close()
        try:
            caller = server.start(role, job, asdict(caller_limits), [*quiet, channel.fileno(), mine.fileno()])
        except NotPlain as error:
            callee.close()
            raise UserError(f"The tests of {entry} are too long for the sandbox ({error}): leave it out.") from error
        mine.close()
        channel.close()
        with callee, caller:
            verdict.settimeout(limits.wall_s + 3 * GRACE)  # returns at once if the process ends
            try:
                report = receive(verdict)
            except (EOFError, NotPlain, TimeoutError):
                report = None
            caller.shutdown(socket.SHUT_WR)
            ended = _report(callee)
    return report, replace(_outcome(ended, True, False, limits), isolation=server.mode)
