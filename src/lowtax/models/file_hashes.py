"""Hashes of large files, kept in the user's cache by path, size and time, so that a model is read once for them."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from lowtax.common.borders import parse_json, read_bytes, require_regular
from lowtax.common.errors import UserError
from lowtax.common.files import write_json
from lowtax.common.log import say
from lowtax.models import embedded

CACHE = "fingerprints.json"
LARGE = 5e9  # bytes, whose hash takes seconds


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, from the cache if neither its size nor its time has changed.

    Raises:
        UserError: it cannot be read.
    """
    blob = file.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name  # the hub's cache names large files by their hash
    try:
        require_regular(file)
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        cache = embedded.cache() / CACHE
        stored = _cached(cache)
        if key not in stored:
            if status.st_size > LARGE:
                say(f"  reading {file.name} once, for its fingerprint")
            stored = _cached(cache) | {key: of_bytes(file)}
            _keep(cache, stored)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): download or copy it again.") from error
    return stored[key]


def of_bytes(file: Path) -> str:
    """Return the SHA-256 of a file, which is read."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _cached(cache: Path) -> dict[str, str]:
    """Return the cached hashes; none if the cache is absent or damaged, since it can be made again."""
    try:
        stored = parse_json(read_bytes(cache))
    except (OSError, ValueError, UserError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {key: digest for key, digest in stored.items() if isinstance(digest, str)}


def _keep(cache: Path, stored: dict[str, str]) -> None:
    """Write the cache; a folder that may not be written costs time at the next start only."""
    with suppress(OSError):
        write_json(cache, stored)
