"""One grading process: a benchmark and answers come in, scores go out, one line each. Started by grading.py only.

What it writes are JSON lines and nothing else, whatever the benchmark prints. It ends when its parent does.
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

from lowtax import registry
from lowtax.errors import UserError

MEMORY = 4 << 30  # bytes
CRASHED = "the grader crashed on it"


def main() -> None:
    """Grade what comes in until there is no more."""
    source, out = _channels()
    _end_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    where = pickle.load(source)
    if where["file"]:
        registry.resolve("task", f"{where['file']}:{where['name']}", {})
    importlib.import_module(where["module"])
    benchmark = pickle.loads(where["benchmark"])
    _say(out, "ready")
    while source.peek(1):
        for row, answer in pickle.load(source):
            _say(out, _graded(benchmark, row, answer))


def _graded(benchmark: Any, row: Any, answer: str) -> list[Any] | dict[str, str]:
    try:
        score = benchmark.grade(row, answer)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001  # row recorded as failed
        return [False, None, f"{CRASHED}: {type(error).__name__}"]
    return [score.correct, score.extracted, score.rule]


def _say(out: BinaryIO, what: Any) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


def _channels() -> tuple[Any, BinaryIO]:
    """The pipes to the parent; standard input is then empty and standard output goes nowhere."""
    source, out = io.BufferedReader(io.FileIO(os.dup(0), "rb")), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return source, out


def _end_with_parent() -> None:
    """Ctrl-C is the parent's affair; where the kernel can, a killed parent takes this process with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
