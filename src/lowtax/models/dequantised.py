"""Copies of GGUF models with plain weights, in the user's cache: a GGUF file is dequantised once in each precision.

transformers reads a GGUF file in minutes, and in several times the memory of its weights. What it makes of one is kept
as an ordinary Hugging Face folder, `gguf/NAME-HASH-PRECISION` in the cache of the embedded models (`LOWTAX_HOME`), with
the same bits. The hash is that of the file's content, so a copy serves whatever the file is called. A copy counts while
the versions of transformers and gguf and the hashes of its files are those that its record lists; otherwise it is made
again. Nothing ever deletes a copy of another file: remove the folder `gguf` to have its space back.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from lowtax.common.borders import parse_json, read_bytes
from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, write_json
from lowtax.common.log import say
from lowtax.models import embedded, file_hashes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDER, RECORD = "gguf", "dequantised.json"
DTYPES = ("bfloat16", "float32")
SPARE = 2**28  # bytes that stay free on the disk
PROBE = "Why? 12 + 30 = 42.\n\tÀ  naïve 漢字 🙂 <think>no</think>"


def place(file: Path, dtype: str) -> Path:
    """Return the folder of the copy of a GGUF file in a precision, whether or not it is there."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in file.stem)[:60]
    return embedded.cache() / FOLDER / f"{name}-{file_hashes.sha256(file)[:16]}-{dtype}"


def stored(file: Path, *dtypes: str) -> Path | None:
    """Return the folder of the whole copy of a GGUF file in the first of some precisions that has one, else None.

    Raises:
        UserError: the file cannot be read.
    """
    for dtype in dtypes:
        folder = place(file, dtype)
        if not (folder / RECORD).is_file():
            continue
        if _is_whole(folder, file):
            return folder
        say(f"  {folder} is damaged or of another version: {file.name} is dequantised again")
    return None


def store(
    file: Path, dtype: str, model: "PreTrainedModel", tokenizer: "Callable[[str], PreTrainedTokenizerBase]"
) -> None:
    """Keep a model that was read from a GGUF file, with its tokenizer, unless the disk has no room or may not be used.

    Args:
        tokenizer: loads the tokenizer of a reference. One that does not survive its own saving is not kept.
    """
    folder = place(file, dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < size + SPARE:
            say(f"  {file.name} is dequantised at every start: {size / 1e9:.1f} GB do not fit into {folder.parent}")
            return
        with atomic_folder(folder, replace=True) as work:
            model.save_pretrained(work)
            _save_tokenizer(tokenizer, file, work)
            hashes = {path.name: file_hashes.of_bytes(path) for path in sorted(work.iterdir())}
            write_json(work / RECORD, _record(file) | {"files": hashes})
    except (OSError, SafetensorError) as error:
        say(f"  {file.name} is dequantised at every start: {folder} cannot be written ({error})")
        return
    say(f"  {file.name} is dequantised once: {size / 1e9:.1f} GB in {folder}, which you may delete")


def _save_tokenizer(load: "Callable[[str], PreTrainedTokenizerBase]", file: Path, work: Path) -> None:
    """Save the tokenizer of a GGUF file, if it is the same when it is loaded again."""
    try:
        before = load(str(file))
    except UserError:  # whoever needs it gets the error
        return
    names = {path.name for path in work.iterdir()}
    before.save_pretrained(work)
    after = load(str(work))
    if not all(read(before) == read(after) for read in (_told, lambda each: each.get_vocab())):
        for path in work.iterdir():
            if path.name not in names:
                path.unlink()


def _told(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return what decides the ids of texts, beside the vocabulary."""
    special = (tokenizer.all_special_tokens, tokenizer.all_special_ids, tokenizer.eos_token_id, tokenizer.pad_token_id)
    ids = tokenizer(PROBE)["input_ids"], tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return special, ids, tokenizer.decode(ids[0]), tokenizer.chat_template, type(tokenizer)


def _is_whole(folder: Path, file: Path) -> bool:
    """Return True if a copy has all that its record lists, and was made of this file by these versions."""
    try:
        record = parse_json(read_bytes(folder / RECORD))
        files = record.pop("files")
        return bool(record == _record(file)) and all(
            Path(name).name == name and file_hashes.sha256(folder / name) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError, UserError):
        return False


def _record(file: Path) -> dict[str, str]:
    return {"sha256": file_hashes.sha256(file), **{name: metadata.version(name) for name in ("transformers", "gguf")}}


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep other processes from dequantising the same file meanwhile; they wait. Without a cache folder do nothing."""
    try:
        folder = embedded.cache() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / f"{file_hashes.sha256(file)[:16]}.lock").open("w")
    except OSError:
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
