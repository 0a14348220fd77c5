"""Rows as they lie in a file, a folder or a Hugging Face data set, before anyone knows what they mean.

A data set of the hub becomes a folder first, the snapshot in the hub's own cache, whose name is the commit: what was
read is thereby known, and what the cache holds is read without a network.
"""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from lowtax.errors import UserError, did_you_mean

Row = dict[str, Any]
TEXT = (".jsonl", ".ndjson", ".json", ".csv")  # these also as .gz
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ["*.parquet", "*.arrow", *(f"*{end}{gz}" for end in TEXT for gz in ("", ".gz")), "README.md"]
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..+)")
csv.field_size_limit(1 << 30)  # a long thought is longer than csv's own limit of 131,072 characters


@dataclass(frozen=True)
class Table:
    """Rows in file order. `revision` is the commit, for a data set of the hub."""

    rows: list[Row]
    revision: str | None = None


def load(source: str, subset: str | None = None, split: str | None = None, revision: str | None = None) -> Table:
    """The rows of a file, of a folder (train unless `split` says otherwise) or of a data set of the hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        return Table(read_folder(path, subset, split))
    if path.is_file() or not is_hub_id(source):
        if subset or revision:
            raise UserError(f"{source!r} is a file: `subset` and `revision` are for folders and data sets of the hub.")
        rows = read_table(path)
        return Table([r for r in rows if r.get("split") == split] if split else rows)
    folder = snapshot(source, revision)
    return Table(read_folder(folder, subset, split, source), folder.name)


def is_hub_id(source: str) -> bool:
    """Whether a source that is no local file has the form owner/name."""
    return (
        bool(HUB_ID.fullmatch(source)) and not source.startswith(".") and _kind(Path(source)) not in (*TEXT, ".parquet")
    )


def _kind(path: Path) -> str:
    """The suffix that says how a file is read, `.gz` aside."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def read_table(path: Path) -> list[Row]:
    """The rows of a .csv, .json (a list of objects) or .parquet file; any other name means one JSON object a line."""
    try:
        if path.suffix == ".parquet":
            rows = _parquet(path)
        else:
            with _opened(path) as handle:
                rows = _parsed(handle, path)
    except UnicodeDecodeError as error:
        raise UserError(f"The data file {str(path)!r} is not UTF-8 text.") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"The data file {str(path)!r} cannot be read: {why}.") from error
    if not rows:
        raise UserError(f"The data file {str(path)!r} has no rows.")
    return rows


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", newline="", encoding="utf-8"))
    return path.open(newline="", encoding="utf-8")


def _parsed(handle: IO[str], path: Path) -> list[Row]:
    kind = _kind(path)
    if kind == ".csv":
        return list(csv.DictReader(handle))
    text = handle.read()
    if kind == ".json" and text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not valid JSON ({error}); put it right.") from error
        return [_object(row, f"{path}, item {number}") for number, row in enumerate(rows, 1)]
    return [_json_line(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json_line(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number} is not valid JSON ({error.msg}); put that line right.") from error
    return _object(row, f"{path}, line {number}")


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object; every row must be one.")
    return row


def _parquet(path: Path) -> list[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with path.open("rb") as handle:
            return cast(list[Row], pyarrow.parquet.read_table(handle).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"The data file {str(path)!r} is not a parquet file: {_first_line(error)}") from error


def read_folder(folder: Path, subset: str | None = None, split: str | None = None, name: str = "") -> list[Row]:
    """The rows of a folder of data files, laid out as data sets of the hub are, or written by `save_to_disk`."""
    import datasets

    name = name or str(folder)
    _check_shards(name, (path.name for path in folder.rglob("*-of-*")))
    try:
        if {"state.json", "dataset_dict.json"} & {path.name for path in folder.iterdir()}:
            found: Any = datasets.load_from_disk(str(folder))
        else:
            # Streaming reads the files themselves and leaves no copy of them in a second cache.
            found = datasets.load_dataset(str(folder), subset, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"The data of {name} cannot be read: {_first_line(error)}") from error
    if isinstance(found, dict):
        asked = split or ("train" if len(found) > 1 else next(iter(found)))
        if asked not in found:
            raise UserError(f"{name} has no split {asked!r}; {did_you_mean(asked, found)}")
        found = found[asked]
    try:
        rows = [dict(row) for row in found]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"The data of {name} cannot be read: {_first_line(error)}") from error
    if not rows:
        raise UserError(f"{name} has no rows.")
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".") + "."


def _check_shards(name: str, files: Iterable[str]) -> None:
    """Refuse a folder of which a download left some shards out: the rest would be read as if it were all."""
    shards = [match.groups() for file in files if (match := SHARD.fullmatch(file))]
    have = Counter((stem, total, end) for stem, _, total, end in shards)
    for (stem, total, end), number in have.items():
        if number < int(total):
            raise UserError(
                f"Of {name}, only {number} of the {int(total)} files {stem}-*{end} are here: repeat the download "
                f"(`hf download --repo-type dataset {name}`)."
            )


def snapshot(name: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache that holds a data set, downloaded if need be; its name is the commit."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    page, local = f"https://huggingface.co/datasets/{name}", "or give a local copy as `path`"
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=WANTED))
    except hub.GatedRepoError as error:
        raise UserError(
            f"The data set {name} is gated: accept its terms at {page} and log in with `hf auth login`, {local}."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"The hub has no data set {name!r} that this account may see: check its spelling, or log in with "
            f"`hf auth login` if it is private, {local}."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"The data set {name} has no revision {revision!r}: {page}/commits/main lists them.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        if isinstance(error.__cause__, hub.HfHubHTTPError):
            why += f" ({_first_line(error.__cause__).removesuffix('.')})"
        which = f"{name} at {revision}" if revision else name
        command = f"hf download --repo-type dataset {name}" + (f" --revision {revision}" if revision else "")
        raise UserError(
            f"The data set {which} is not, or not wholly, in this machine's cache, and {why}: run `{command}` where "
            f"there is a network and bring its cache to {constants.HF_HUB_CACHE}, {local}."
        ) from error
    except hub.HFValidationError as error:
        raise UserError(f"{name!r} cannot be the name of a data set of the hub: write owner/name, {local}.") from error
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # a proxy, a broken line, a full disk
        raise UserError(f"The data set {name} cannot be downloaded: {_first_line(error)}") from error
