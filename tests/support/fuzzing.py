"""Damaged files by the thousand: mutations of good ones from a fixed seed, and a loop that bounds every input in time.

The property: a reader returns a value or raises a UserError. Anything else, or a second of silence, fails with the
input, so that it can become a row of a table.
"""

import copy
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lowtax.common.errors import UserError

COUNT = int(os.environ.get("LOWTAX_FUZZ", "1000"))  # inputs of each kind
SECONDS = 2.0  # for one input
MEMORY = 600 << 20  # bytes by which the process may grow with one kind
BYTES = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\n", b"\r\n", b"\n\n", b'"', b"'", b"\\", b"\\ud83d", b"\\u0000",
    b"[", b"]", b"{", b"}", b",", b":", b": ", b"- ", b"&a ", b"*a", b"<<: *a\n", b"!!python/object:os.system ",
    b"!!bool x", b"!!timestamp x", b"!!int ", b"!!binary x", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1",
    b"0", b"1e-400", b"9" * 25, b"9" * 5000, b"1:" * 50, b"2001-99-99", b"[" * 300, b'{"a":' * 300, b"<think>",
    b"</think>", b"<|im_end|>", b"../../x", b"/etc/passwd", b"~nobody/x", b"a" * 5000, b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80", b"\x1b[2J", b"\\boxed{", b"{" * 200, b"$" * 50, b"^" * 50, b"```python\n", b"\t", b" " * 200,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**9, 10**25, -(10**25), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "x",
    "a" * 5000, "\x00", "\ud83d", "../..", "/etc", "~nobody", "checkpoint-1", "checkpoint-1/../..", "(a+)+$", "(", "[",
    [], [None], [[]], {}, {"": None}, {"a": {"a": {"a": {}}}}, [1, 2, 3], ["a", "b"], "9" * 5000, [0] * 1000,
]  # fmt: skip


class Hung(BaseException):
    """The input took too long."""


def mutants(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged copies: flipped bits, cuts, insertions, repetitions, and two files mixed."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(7)
            if kind == 0 and data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            elif kind == 1 and data:
                data[at % len(data)] = rng.randrange(256)
            elif kind == 2:
                del data[at:]
            elif kind == 3:
                del data[at : at + rng.randrange(1, 20)]
            elif kind == 4:
                data[at:at] = rng.choice(BYTES)
            elif kind == 5:
                piece = data[at : at + rng.randrange(1, 40)]
                data[at:at] = bytes(piece) * rng.choice((1, 2, 50))
            else:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
        yield bytes(data)


def values(seeds: Sequence[Any], count: int, seed: int = 1) -> Iterator[Any]:
    """Yield copies of JSON values in which some part, or the whole, is another value, absent or moved."""
    rng = random.Random(seed)
    for _ in range(count):
        value = copy.deepcopy(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = _changed(value, rng)
        yield value


def _changed(value: Any, rng: random.Random) -> Any:
    places = [(None, None), *_places(value)]
    parent, key = rng.choice(places)
    if parent is None:
        return copy.deepcopy(rng.choice(VALUES)) if rng.random() < 0.5 else value
    kind = rng.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(rng.choice(VALUES))[:50]] = parent[key]
    elif kind == 2:
        other, name = rng.choice(places[1:])
        parent[key] = copy.deepcopy(other[name])
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(keys):
        yield value, key
        yield from _places(inner)


def documents(seeds: Sequence[Any], count: int) -> Iterator[bytes]:
    """Yield JSON files: half of them with another value somewhere, half with damaged bytes."""
    texts = [json.dumps(value).encode() for value in seeds]
    for value in values(seeds, count - count // 2):
        yield json.dumps(value).encode()
    yield from mutants(texts, count // 2)


def attack(read: Callable[[Any], Any], inputs: Iterator[Any], kinds: type | tuple[type, ...]) -> tuple[int, int]:
    """Give every input to a reader, and return how many it read and how many it refused.

    Args:
        read: the reader.
        inputs: files as bytes, or values.
        kinds: the types of what it returns.
    """
    read_, refused, number = 0, 0, -1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number, data in enumerate(inputs):
        try:
            with at_most(SECONDS):
                value = read(data)
            assert isinstance(value, kinds), f"returned {type(value).__name__}"
            read_ += 1
        except UserError as error:
            refused += bool(str(error).strip())
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"input {number}: {type(error).__name__}: {error}\n{_shown(data)}") from error
    assert read_ + refused == number + 1, "an error has no sentence"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < MEMORY, f"the process grew by {grown >> 20} MB"
    return read_, refused


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) < 3000 else f"{text[:2000]} ... {text[-900:]}"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `Hung` in the block after some seconds."""

    def ring(*_: object) -> None:
        raise Hung(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
