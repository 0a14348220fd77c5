"""Compressed data files: their bytes, within bounds, since a small file may unpack to more than the memory holds."""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import Any

from lowtax.common.borders import read_bytes
from lowtax.common.errors import UserError

COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
LARGEST, MOST_PACKED = 1 << 28, 200  # bytes that a compressed file may unpack to, and times its own size


def content(path: Path) -> bytes:
    """Return the bytes of a file; the suffix, or else the first bytes, decide the compression.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: it cannot be read, or is damaged.
        UserError: it is no file, or unpacks to too much.
    """
    data = read_bytes(path)
    by_bytes = (suffix for suffix, magic in COMPRESSED.items() if data.startswith(magic))
    compression = path.suffix if path.suffix in COMPRESSED else next(by_bytes, "")
    if not compression:
        return data
    most = max(LARGEST, MOST_PACKED * len(data))
    try:
        with _unpacked(data, compression) as stream:
            unpacked = bytes(stream.read(most + 1))
    except ValueError as error:  # bz2's error for a file that was cut, and pyarrow's for all
        raise EOFError(str(error)) from error
    if len(unpacked) > most:
        raise UserError(
            f"The data file {str(path)!r} unpacks to more than {most:,} bytes, from {len(data):,}: unpack it yourself "
            "if you trust it."
        )
    return unpacked


def _unpacked(data: bytes, compression: str) -> Any:
    """Return a stream of the bytes in a compressed file."""
    if compression == ".zst":
        import pyarrow  # type: ignore[import-untyped]

        return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd")
    how: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return how[compression](io.BytesIO(data))
