"""A grading process, started by `pool`: reads a benchmark and answers, writes one score a line.

It writes JSON lines and nothing else, whatever the benchmark prints. It ends with its parent.
"""

import ctypes
import importlib
import io
import json
import os
import pickle
import resource
import signal
import sys
from typing import Any, BinaryIO

from lowtax.common import registry
from lowtax.common.errors import UserError

MEMORY = 4 << 30  # bytes
CRASHED = "the grader crashed on it"


def main() -> None:
    """Grade until the input ends."""
    source, out = _channels()
    _end_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    setup = pickle.load(source)
    if setup["file"]:
        registry.resolve("task", f"{setup['file']}:{setup['name']}", {})
    importlib.import_module(setup["module"])
    benchmark = pickle.loads(setup["benchmark"])
    _write(out, "ready")
    while source.peek(1):
        for row, answer in pickle.load(source):
            _write(out, _score(benchmark, row, answer))


def _score(benchmark: Any, row: Any, answer: str) -> list[Any] | dict[str, str]:
    try:
        score = benchmark.grade(row, answer)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001  # row recorded as failed
        return [False, None, f"{CRASHED}: {type(error).__name__}"]
    return [score.correct, score.extracted, score.rule, score.checkable]


def _write(out: BinaryIO, message: Any) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _channels() -> tuple[Any, BinaryIO]:
    """Take the pipes to the parent; afterwards standard input is empty and standard output is discarded."""
    source, out = io.BufferedReader(io.FileIO(os.dup(0), "rb")), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return source, out


def _end_with_parent() -> None:
    """Ignore SIGINT (the parent handles it), and die with the parent where the kernel supports it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
