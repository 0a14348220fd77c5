"""Folders of data sets, which strangers may have written: what is read stays inside of the folder.

The README of a folder may name its data files, and so does the record of a folder that `save_to_disk` wrote. The
library that reads them would follow absolute paths, `..` and addresses on the network, and open the files that rows
name as pictures.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

from lowtax.common.borders import DEEPEST, border, read_text
from lowtax.common.errors import UserError
from lowtax.common.files import read_mapping
from lowtax.common.names import below
from lowtax.common.yaml_files import FRONT_MATTER, parse_yaml
from lowtax.data import compression, tables

STRING, BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL), re.compile(rb"[\[\]{}]")
PLACES = ("data_files", "data_dir")  # fields of a configuration that become paths


def require_patterns_inside(folder: Path) -> None:
    """Check the data files that the metadata of a folder names, before anything looks for them.

    Raises:
        UserError: one is an absolute path, leads out of the folder, or is on the network.
    """
    for text in _named_in(folder):
        parts = text.replace("\\", "/").split("/")
        if "://" in text or "::" in text or parts[0] in ("", "~") or ".." in parts or ":" in parts[0]:
            raise _outside(folder, text)


def _named_in(folder: Path) -> Iterator[str]:
    """Yield the paths and patterns in the configurations of a data set's README and `.huggingface.yaml`."""
    from huggingface_hub import DatasetCard

    try:
        if (folder / "README.md").is_file():
            _require_bounded(folder / "README.md")
            yield from _texts(DatasetCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("configs"))
        if (folder / ".huggingface.yaml").is_file():
            content = parse_yaml(read_text(folder / ".huggingface.yaml"))
            yield from _texts(content.get("configs") if isinstance(content, dict) else None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The metadata of the data in {folder} cannot be read ({shorten(reason, 200)}).") from error


def _require_bounded(readme: Path) -> None:
    """Refuse front matter that the library would read for ever.

    Raises:
        ValueError: it is no YAML, or too large.
    """
    if match := FRONT_MATTER.match(readme.read_text("utf-8-sig", "replace")):
        parse_yaml(match[1])


def _texts(configs: Any) -> Iterator[str]:
    """Yield every text under the fields that become paths; a value that aliases repeat is visited once."""
    seen = set[int]()
    waiting = [config.get(place) for config in configs or () if isinstance(config, dict) for place in PLACES]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def require_saved_inside(folder: Path) -> None:
    """Check the files that a folder written by `save_to_disk` lists.

    Raises:
        UserError: one is outside of the folder, or the list is damaged.
    """
    splits = [folder]
    if (folder / "dataset_dict.json").is_file():
        names = read_mapping(folder / "dataset_dict.json", "splits")["splits"]
        splits = [below(folder, name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    for split in splits:
        if not (split / "state.json").is_file():
            continue
        files = read_mapping(split / "state.json").get("_data_files")
        for file in files if isinstance(files, list) else ():
            name = file.get("filename") if isinstance(file, dict) else None
            if not isinstance(name, str):
                raise UserError(f"{split / 'state.json'} is damaged: save the data set again.")
            require_inside(folder, [below(split, name)])


def require_inside(folder: Path, files: Iterable[str | os.PathLike[str]]) -> None:
    """Check that files, and what they link to, are in a folder; the hub's cache has them beside its snapshots.

    Raises:
        UserError: one is not.
    """
    roots = [os.path.realpath(folder)]
    if folder.parent.name == "snapshots":
        roots.append(os.path.realpath(folder.parent.parent / "blobs"))
    for file in files:
        path = os.path.realpath(file)
        if not any(path.startswith(root.rstrip(os.sep) + os.sep) for root in roots):
            raise _outside(folder, str(file))


def require_shallow(files: Iterable[str | os.PathLike[str]]) -> None:
    """Check JSON files for brackets that are nested deeply: they end the process in the parser of `datasets`.

    Raises:
        UserError: one has them, or cannot be read.
    """
    for path in map(Path, files):
        if tables.format_of(path) not in (".json", ".jsonl", ".ndjson"):
            continue
        with border(f"The data file {str(path)!r} cannot be read", "download or copy it again"):
            data = compression.content(path)
        lines = data.split(b"\n")
        # Brackets that lines open and do not close are those of a document over several lines.
        closed = all(_openings(line) == line.count(b"]") + line.count(b"}") for line in lines)
        texts = lines if closed else [*lines, data]
        if any(_openings(text) > DEEPEST and _depth(text) > DEEPEST for text in texts):
            raise UserError(f"The data file {str(path)!r} has brackets that are nested too deeply: correct it.")


def _openings(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _depth(text: bytes) -> int:
    """Return how many brackets of a JSON text are inside each other."""
    depth = deepest = 0
    for bracket in BRACKET.findall(STRING.sub(b"", text)):
        depth = max(0, depth + (1 if bracket in b"[{" else -1))
        deepest = max(deepest, depth)
    return deepest


def as_stored(rows: Any) -> Any:
    """Return the rows of a data set with pictures and sounds as they are stored: opening them reads what they name."""
    import datasets

    if isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset()
    return rows.decode(False) if isinstance(rows, datasets.IterableDataset) and rows.features else rows


def _outside(folder: Path, name: str) -> UserError:
    return UserError(
        f"The data set in {folder} names {shorten(name, 200)}, which is not in its folder: lowtax reads nothing else, "
        "so copy the file into the folder, and correct the README."
    )
