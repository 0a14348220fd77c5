"""Fingerprints of models: what a base is follows from its weights and configuration, not from the name of its folder.

    fingerprint("models/qwen")              # 64 hex digits; the same for a copy, another spelling, a hub snapshot
    identity("models/qwen")                 # part of the ids of stored rows

A fingerprint covers the bytes of the weight files and the fields of config.json that decide what the model computes.
The hash of a file is kept in the user's cache by path, size and time, so that a model is read once. A tokenizer and its
chat template have a fingerprint of their own (`text_fingerprint`), since an adapter fits whatever the template is.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowtax.common.cards import BaseRecord, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import read_json, write_json
from lowtax.common.records import row_id
from lowtax.models import embedded, file_hashes, loading

RECORD = "base.json"
RESTORE = "it says which model the results are of: restore it from a copy, or choose another --out"
# Fields of config.json that change nothing of what the model computes.
COSMETIC = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "_attn_implementation",
    "attn_implementation",
}
BEGUN = (RECORD, "replies", "answers", "replies.jsonl", "arms", "points.jsonl")
"""Names of which every folder of results has one."""
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model", "vocab.json")


def fingerprint(ref: str) -> str | None:
    """Return the SHA-256 of a model's weights and configuration, or None for a hub id that is not on this machine.

    Raises:
        UserError: a local model has no weights, or they cannot be read.
    """
    if ref.startswith("builtin:"):
        return hashlib.sha256(embedded.version(ref.removeprefix("builtin:")).encode()).hexdigest()
    where = local(ref)
    if where is None:
        return None
    if where.is_file():
        return file_hashes.sha256(where)
    digest = hashlib.sha256(json.dumps(_decisive(where), sort_keys=True).encode())
    for file in weight_files(where):
        digest.update(f"{file.name}:{file_hashes.sha256(file)}".encode())
    return digest.hexdigest()


def text_fingerprint(ref: str) -> str | None:
    """Return the SHA-256 of a model's tokenizer and chat template, or None if its folder is not on this machine."""
    where = Path(loading.resolve(ref)) if ref.startswith("builtin:") else local(ref)
    if where is None or where.is_file():
        return None
    digest = hashlib.sha256()
    for name in TEXT_FILES:
        if (where / name).is_file():
            digest.update(f"{name}:{hashlib.sha256((where / name).read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def identity(ref: str) -> str:
    """Return the part of a row's id that says which weights a reference names.

    The versioned folder of a built-in model, the name of a hub model, and the fingerprint of a local one, whose rows
    thus stay valid when its folder is copied, moved or touched.
    """
    where = Path(loading.resolve(ref))
    if ref.startswith("builtin:"):
        return where.name
    if not where.exists():
        return ref
    return f"sha256:{fingerprint(ref)}"


def local(ref: str) -> Path | None:
    """Return the folder or file of a reference on this machine, a hub model's in the hub's cache; None if absent."""
    where = Path(loading.resolve(ref))
    if where.exists():
        return where
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, options = loading.source(ref)
    try:
        folder = Path(snapshot_download(name, revision=options.get("revision"), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if weight_files(folder) else None


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model's folder by name: those of the index, else all safetensors files.

    Raises:
        UserError: the index is damaged.
    """
    if (folder / loading.INDEX).is_file():
        return [folder / name for name in loading.indexed(folder)]
    return sorted(folder.glob("*.safetensors"))


def _decisive(folder: Path) -> Any:
    """Return the content of config.json without what changes nothing."""
    config = read_json(folder / "config.json", "copy the model again") if (folder / "config.json").is_file() else {}

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items() if key not in COSMETIC}
        return value

    return cleaned(config)


@dataclass(frozen=True)
class Base:
    """The base of a folder of results: its reference, the id of its weights in row ids, and its fingerprints."""

    model: str
    made_by: str
    weights: str | None
    text: str | None


def base_in(out: Path, ref: str, *, same: bool = False) -> Base:
    """Return the base of the results in a folder, whose rows stay valid when the base's folder moves.

    Args:
        out: a study, or the output folder of `sample`, `evaluate` or `landscape`.
        ref: the model reference.
        same: the user's word that the model is the one that the results were made with.

    Raises:
        UserError: the results in the folder were made with other weights, or with another tokenizer or chat template.
    """
    record = out / RECORD
    try:
        stored = read_card(record, BaseRecord, RESTORE) if record.is_file() else None
        old = _has_rows(out)  # of a version without fingerprints: the ids in its rows have names, sizes and times
    except OSError:  # a path that cannot be one; the lock of the folder says so
        stored, old = None, False
    if stored is None:
        made_by = row_id(ref, _by_times(ref)) if old else row_id(*_named(ref))
        return Base(ref, made_by, fingerprint(ref), text_fingerprint(ref))
    if loading.is_gone(ref):  # stored rows can be read without it; what loads it says so
        return Base(ref, stored["made_by"], stored.get("weights"), stored.get("text"))
    now = Base(ref, stored["made_by"], fingerprint(ref), text_fingerprint(ref))
    if not same:
        _require_unchanged(out, stored, now)
    return now


def record_base(out: Path, base: Base) -> None:
    """Write the base of a folder of results into it, once."""
    if not (out / RECORD).is_file():
        write_json(out / RECORD, asdict(base))


def _require_unchanged(out: Path, stored: dict[str, Any], now: Base) -> None:
    """Check that a base is that of a folder's results. A model that is not on this machine cannot be compared."""
    what = {"weights": "other weights", "text": "another tokenizer or chat template"}
    for part, changed in what.items():
        before, after = stored.get(part), getattr(now, part)
        if before is not None and after is not None and before != after:
            raise UserError(
                f"{out} was made with {changed} than {now.model!r} has now: give the model as it was, choose another "
                "--out, or add --base-is-the-same if the difference changes nothing."
            )


def _named(ref: str) -> tuple[str, ...]:
    """Return what the id of a base is made of: the fingerprint of a local model, and else the name and its version."""
    where = Path(loading.resolve(ref))
    return (identity(ref),) if where.exists() and not ref.startswith("builtin:") else (ref, identity(ref))


def _has_rows(out: Path) -> bool:
    """Return True if a folder has results of an earlier version, which recorded no base."""
    return any((out / name).exists() for name in BEGUN[1:])


def _by_times(ref: str) -> str:
    """Return what earlier versions used for `identity`: names, sizes and times of a local model's files."""
    where = Path(loading.resolve(ref))
    if ref.startswith("builtin:") or not where.exists():
        return identity(ref)
    kinds = (".json", ".safetensors", ".jinja")
    files = [where] if where.is_file() else sorted(p for p in where.iterdir() if p.suffix in kinds)
    return " ".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)
