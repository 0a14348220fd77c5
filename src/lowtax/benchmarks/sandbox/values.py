"""Send values from one process to another: plain data with its types, as JSON, in frames.

A tuple stays a tuple, True is not 1; sets, bytes, complex numbers, Decimals and Fractions cross as themselves. A value
of any other class crosses as the plain data it is made of (a Counter as a dict), or else as `Opaque`, which equals
nothing: no code and no `__eq__` of a program ever crosses. Standard library only: this also runs inside the sandbox.
"""

import json
import math
import socket
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEPTH = 100
LARGEST = 32 * 2**20
EXACT = 2**63  # larger integers cross as hexadecimal digits, which are read in linear time


class Opaque:
    """A value that cannot cross: it has a kind and a truth value, and equals only itself."""

    def __init__(self, kind: str, truth: bool = True) -> None:
        self.kind, self.truth = kind, truth

    def __bool__(self) -> bool:
        return self.truth

    def __repr__(self) -> str:
        return f"<a value of type {self.kind}>"


class NotPlain(ValueError):
    """Raised for a value or a text that is not plain data."""


def packed(value: Any, depth: int = 0) -> Any:
    """Return the value in a form that JSON can hold."""
    if depth > DEPTH:
        raise NotPlain(f"nested more than {DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -EXACT < number < EXACT else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    return _collection(value, depth)


def _collection(value: Any, depth: int) -> Any:
    inner = depth + 1
    if isinstance(value, list):
        return [packed(item, inner) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [packed(item, inner) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[packed(key, inner), packed(item, inner)] for key, item in dict.items(value)]}
    if isinstance(value, (set, type({}.keys()))):
        return {"set": [packed(item, inner) for item in value]}
    if isinstance(value, frozenset):
        return {"frozenset": [packed(item, inner) for item in frozenset.__iter__(value)]}
    if isinstance(value, range):
        return {"range": [packed(part, inner) for part in (value.start, value.stop, value.step)]}
    return _rare(value, inner)


def _rare(value: Any, depth: int) -> Any:
    kind = type(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [complex(value).real, complex(value).imag]}
    if kind is Decimal or kind is Fraction:
        return {kind.__name__: str(value)}
    if str(kind.__module__) == "numpy" and kind.__name__ != "ndarray":  # numpy's numbers are compared as Python's
        return packed(value.item(), depth)
    return {"opaque" if value else "falsy": str(kind.__name__)[:60]}


def unpacked(value: Any, depth: int = 0) -> Any:
    """Return the value that `packed` got. Raises NotPlain for anything that `packed` does not make."""
    if depth > 2 * DEPTH:
        raise NotPlain("nested too deep")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [unpacked(item, depth + 1) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise NotPlain("not one of the known kinds")
    [(kind, parts)] = value.items()
    return _from_parts(kind, parts, depth + 1)


def _from_parts(kind: str, parts: Any, depth: int) -> Any:
    if isinstance(parts, str):
        return _from_text(kind, parts)
    if not isinstance(parts, list):
        raise NotPlain(f"{kind} without parts")
    items = [unpacked(part, depth) for part in parts]
    if kind == "tuple":
        return tuple(items)
    if kind == "set":
        return set(items)
    if kind == "frozenset":
        return frozenset(items)
    if kind == "dict":
        return dict(items)
    if kind == "range":
        return range(*items)
    if kind == "complex":
        return complex(*items)
    raise NotPlain(f"unknown kind {kind[:20]}")


def _from_text(kind: str, text: str) -> Any:
    if kind == "int":
        return int(text, 16)
    if kind == "bytes":
        return bytes.fromhex(text)
    if kind == "Decimal" and len(text) < 10_000:
        return Decimal(text)
    if kind == "Fraction" and len(text) < 4_000 and "e" not in text.lower():
        return Fraction(text)
    if kind in ("opaque", "falsy"):
        return Opaque(text, kind == "opaque")
    raise NotPlain(f"unknown kind {kind[:20]}")


def frame(message: Any) -> bytes:
    """Return the frame of a message: four bytes of length, then JSON. Raises NotPlain if it is too large."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > LARGEST:
        raise NotPlain(f"{len(text) / 2**20:.1f} MiB, more than {LARGEST // 2**20} MiB")
    return struct.pack(">I", len(text)) + text


def send(end: socket.socket, message: Any) -> None:
    """Send one frame."""
    end.sendall(frame(message))


def receive(end: socket.socket) -> Any:
    """Return the next frame. Raises EOFError if the other side is closed, NotPlain if it wrote anything else."""
    size = struct.unpack(">I", _exactly(end, 4))[0]
    if size > LARGEST:
        raise NotPlain("a frame that is too large")
    try:
        return json.loads(_exactly(end, size))
    except (ValueError, RecursionError) as error:
        raise NotPlain("not JSON") from error


def _exactly(end: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = end.recv(min(size - len(parts), 1 << 20))
        except ConnectionError as error:
            raise EOFError("the other side is closed") from error
        if not part:
            raise EOFError("the other side is closed")
        parts += part
    return bytes(parts)


def close(value: float, expected: float, tolerance: float) -> bool:
    """Return |value - expected| <= tolerance + 1e-7 |expected|, as `numpy.allclose`; NaN is close to nothing."""
    if math.isinf(value) or math.isinf(expected):
        return value == expected
    return abs(value - expected) <= tolerance + 1e-7 * abs(expected)
