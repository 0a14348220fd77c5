"""Programs that nobody has read, run under limits. docs/sandbox.md says what this does not protect from.

    run(program, limits)                    a script: how it ended, what it wrote
    check(program, entry, groups, limits)   a function: which groups of tests it passes

`check` keeps the tests, the expected values and the verdict in a second sandbox; the program's side only ever receives
arguments and sends plain data back. So a program can end itself, redefine equality or read all of its own memory, and
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

from lowtax.errors import UserError
from lowtax.sandbox_plain import NotPlain, receive
from lowtax.sandbox_server import GRACE, Server

Status = Literal["passed", "exited", "failed", "timeout", "killed", "output"]


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds by the clock, and for each of its processes seconds of CPU and MB of memory;
    MB of files in all; processes and threads at once; bytes of output on stdout and stderr together."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mb: int = 1024
    file_mb: int = 64
    processes: int = 16
    output_bytes: int = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    status: passed if it ran to its end; exited if it ended itself before that with code 0; failed with an error or
    another code; timeout; killed by a signal; output if it wrote too much.
    returned: its exit code, or minus the signal that ended it; None where a limit did.
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


def _ended(control: socket.socket) -> dict[str, Any]:
    """The keeper's report; one that says nothing was killed together with its program."""
    try:
        found: dict[str, Any] = receive(control)
        return found
    except (EOFError, NotPlain, TimeoutError, OSError):
        return {"timed_out": False, "code": -9, "seconds": 0.0, "cpu_s": 0.0, "peak_mb": 0.0}


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run a program as a script."""
    limits = limits or Limits()
    server, token = Server.running(), secrets.token_hex(16)
    ours, theirs = socket.socketpair()
    pipes = [os.pipe(), os.pipe()]
    began = time.monotonic()
    with ours, theirs:
        job = {"program": program, "token": token}
        control = server.start("script", job, asdict(limits), [pipes[0][1], pipes[1][1], theirs.fileno()])
        theirs.close()
        for _, end in pipes:
            os.close(end)
        with control:
            deadline = began + limits.wall_s + GRACE
            texts, too_much = _read([pipes[0][0], pipes[1][0]], limits.output_bytes, deadline)
            if too_much:
                control.shutdown(socket.SHUT_WR)
            report = _ended(control)
        reached = _reached_end(ours, token)
    stdout, stderr = (text.decode(errors="replace") for text in texts)
    outcome = _outcome(report, reached, too_much, limits)
    seconds = report["seconds"] or round(time.monotonic() - began, 4)
    return replace(outcome, stdout=stdout, stderr=stderr, seconds=seconds, isolation=server.mode)


def _read(ends: Sequence[int], most: int, deadline: float) -> tuple[list[bytes], bool]:
    """What was written until the pipes closed, the deadline passed or it was too much; and whether it was too much."""
    texts = {end: bytearray() for end in ends}
    left = most
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map() and left >= 0 and (wait := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(wait):
                part = os.read(key.fd, 65536)
                if not part:
                    selector.unregister(key.fd)
                texts[key.fd] += part[: max(0, left)]
                left -= len(part)
    for end in ends:
        os.close(end)
    return [bytes(texts[end]) for end in ends], left < 0


def _reached_end(channel: socket.socket, token: str) -> bool:
    channel.setblocking(False)
    try:
        return bool(receive(channel) == {"token": token})
    except (EOFError, NotPlain, BlockingIOError, OSError):
        return False


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
) -> tuple[dict[str, str], Outcome]:
    """What is wrong in each group of tests, "" for nothing; and how the program's process ended.

    groups: by name, either `setup` and `source`, Python code that calls the function or defines `check(candidate)`; or
    `inputs` and `expected`, both as `sandbox_plain.packed` writes them, with `oracle` and `tolerance`.
    """
    limits = limits or Limits()
    found, outcome = _joined("test", {"groups": dict(groups), "entry": entry}, program, entry, limits)
    why = " ".join(outcome.notes) or f"exit code {outcome.returned}"
    if not isinstance(found, dict):
        return dict.fromkeys(groups, f"the tests did not end: {why}"), outcome
    texts = {name: str(found.get(name, "no verdict")) for name in groups}
    return {
        name: f"{text} ({why})" if text.endswith("the program ended") else text for name, text in texts.items()
    }, outcome


def outputs(program: str, entry: str, inputs: Sequence[Any], limits: Limits | None = None) -> list[Any]:
    """What a trusted function returns for each input, both as `sandbox_plain.packed` writes them."""
    limits = limits or Limits()
    found, outcome = _joined("values", {"inputs": list(inputs)}, program, entry, limits)
    if not isinstance(found, dict) or "values" not in found:
        why = found.get("error") if isinstance(found, dict) else outcome.status
        raise UserError(
            f"The solution of {entry} that came with the tests does not run on its own inputs here ({why}): "
            "take another version of the file, or leave this problem out."
        )
    return list(found["values"])


def _joined(
    role: str, job: Mapping[str, Any], program: str, entry: str, limits: Limits
) -> tuple[dict[str, Any] | None, Outcome]:
    """A program in one sandbox, its caller in another: what the caller found, and how the program ended."""
    server = Server.running()
    verdict, channel = socket.socketpair()
    mine, other = socket.socketpair()
    with verdict, channel, mine, other, open(os.devnull, "wb") as null:
        quiet = [null.fileno(), null.fileno()]
        caller_limits = replace(limits, wall_s=limits.wall_s + GRACE / 2, processes=1)
        asked = server.start("serve", {"program": program, "entry": entry}, asdict(limits), [*quiet, other.fileno()])
        other.close()
        caller = server.start(role, job, asdict(caller_limits), [*quiet, channel.fileno(), mine.fileno()])
        mine.close()
        channel.close()
        with asked, caller:
            verdict.settimeout(limits.wall_s + 3 * GRACE)  # if its process ends, this ends at once
            try:
                found = receive(verdict)
            except (EOFError, NotPlain, TimeoutError):
                found = None
            caller.shutdown(socket.SHUT_WR)
            report = _ended(asked)
    return found, replace(_outcome(report, True, False, limits), isolation=server.mode)
