"""The one place where safetensors files are read: an absent, empty, cut or foreign file is one sentence.

A header lists the name, the precision and the shape of every tensor, and where its bytes are. A download that was
interrupted, and the pointer that git leaves in place of a large file, are thus told apart from weights in no time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common.borders import border, parse_json, reason, require_regular
from lowtax.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

POINTER = b"version https://git-lfs"
LARGEST_HEADER = 100 * 2**20  # bytes, the limit of the safetensors library
LONGEST = 2**63  # no file has more bytes, and no tensor more entries
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it; `dtype` is torch's name of a floating precision, else safetensors' own."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of entries."""
        return prod(self.shape)


def header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, in the order of the file; no tensor is read.

    Raises:
        UserError: the file is absent, empty, a pointer of Git LFS, cut, or no safetensors file.
    """
    entries, end = _entries(file)
    if (size := file.stat().st_size) != end:
        state = "is cut" if size < end else "has more bytes than its header describes"
        raise UserError(f"{file} {state} ({size:,} of {end:,} bytes): download or copy it again.")
    return {
        name: Stored(PRECISIONS.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
        for name, entry in entries.items()
    }


def _entries(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries of a header, and the length that the file must have."""
    try:
        require_regular(file)
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(len(POINTER))
            if start == POINTER:
                raise UserError(
                    f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder, or download "
                    "the model with `hf download`."
                )
            if not start:
                raise UserError(f"{file} is empty: download or copy it again.")
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > LARGEST_HEADER:
                raise UserError(f"{file} is not a safetensors file: download or copy it again.")
            if length > size - 8:
                raise UserError(f"{file} is cut inside of its header ({size:,} bytes): download or copy it again.")
            handle.seek(8)
            text = handle.read(length)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): download or copy it again.") from error
    try:
        entries = parse_json(text)
        entries.pop("__metadata__", None)
        end = max((_end(entry) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a safetensors file: its header cannot be read ({reason(error)}).") from error
    return entries, 8 + length + end


def _end(entry: dict[str, Any]) -> int:
    """Return where the bytes of a tensor end.

    Raises:
        ValueError, KeyError, TypeError: the entry does not describe a tensor.
    """
    begin, end = entry["data_offsets"]
    numbers = [begin, end, *entry["shape"]]
    if not all(type(n) is int and 0 <= n < LONGEST for n in numbers) or prod(entry["shape"]) >= LONGEST:
        raise ValueError("a shape or a place is not made of numbers")
    if not isinstance(entry["dtype"], str) or not isinstance(entry["shape"], list) or begin > end:
        raise ValueError("a tensor has no precision or no place")
    return int(end)


def tensors(file: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, "Tensor"]]:
    """Yield the tensors of a safetensors file with their names, one at a time; all in its order, or those named.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import safe_open

    chosen = header(file) if names is None else names
    sentence, advice = f"{file} cannot be read", "download or copy it again"
    with border(sentence, advice):
        opened = safe_open(file, framework="pt")
    with opened:
        for name in chosen:
            with border(sentence, advice):
                tensor: Tensor = opened.get_tensor(name)  # type: ignore[no-untyped-call]
            yield name, tensor


def tensor(file: Path, name: str) -> "Tensor":
    """Return one tensor of a safetensors file.

    Raises:
        UserError: the file is damaged.
    """
    [(_, value)] = tensors(file, [name])
    return value
