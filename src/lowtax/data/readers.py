"""Readers of tables: a file, a folder of files or a data set of the Hugging Face hub becomes a list of rows.

A data set of the hub is first a folder, the snapshot in the hub's own cache. The name of that folder is the commit, so
that a card can record what was read, and a snapshot that is in the cache is read without a network.
"""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from lowtax.common.errors import UserError, did_you_mean

Row = dict[str, Any]
FORMATS = (".jsonl", ".ndjson", ".json", ".csv")  # of a data set of the hub; also compressed, as .gz
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DOWNLOADED = ["*.parquet", "*.arrow", *(f"*{end}{gz}" for end in FORMATS for gz in ("", ".gz")), "README.md"]
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..+)")
LOCAL_COPY = ", or give a local copy as `path`"
csv.field_size_limit(1 << 30)  # a long thought exceeds csv's own limit of 131,072 characters


class DataNotAvailable(UserError):
    """A data set that cannot be read on this machine as things are.

    source: the id on the hub, or the name, of the data set.
    kind: gated: its terms are not accepted, or nobody is logged in; offline: it is not in the cache, and the hub
        cannot be reached; missing: the hub has no such data set, revision or file.
    reason: the sentence for people, without its end.
    remedy: the end of that sentence: what to do instead of what `reason` suggests.
    """

    def __init__(
        self, source: str, kind: Literal["gated", "offline", "missing"], reason: str, remedy: str = LOCAL_COPY
    ) -> None:
        super().__init__(source, kind, reason, remedy)
        self.source, self.kind, self.reason, self.remedy = source, kind, reason, remedy

    def __str__(self) -> str:
        return f"{self.reason}{self.remedy}."


@dataclass(frozen=True)
class Table:
    """Rows in file order, and where they are from.

    origin: the name of the file or folder, or the hub's id.
    revision: the commit, if it is a data set of the hub.
    """

    rows: list[Row]
    origin: str
    revision: str | None = None


def load(source: str, subset: str | None = None, split: str | None = None, revision: str | None = None) -> Table:
    """Read a file, a folder or a data set of the hub. `split` is `train` by default, and all rows of a file.

    Raises:
        DataNotAvailable: The data set is not on this machine and cannot be downloaded.
        UserError: The source cannot be read, or has no such subset or split.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Table(read_folder(path, subset, split), path.name)
    if path.is_file() or not is_hub_id(source):
        if subset or revision:
            raise UserError(f"{source!r} is a file: `subset` and `revision` are for folders and data sets of the hub.")
        rows = read_table(path)
        return Table([row for row in rows if row.get("split") == split] if split else rows, path.name)
    folder = snapshot(source, revision)
    return Table(read_folder(folder, subset, split, source), source, folder.name)


def is_hub_id(source: str) -> bool:
    """Return whether a source that is no local file has the form owner/name."""
    formats = (*FORMATS, ".tsv", ".parquet")
    return bool(HUB_ID.fullmatch(source)) and not source.startswith(".") and _format(Path(source)) not in formats


def _format(path: Path) -> str:
    """Return the suffix that decides how a file is read; `.gz` does not count."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def read_table(path: Path) -> list[Row]:
    """Read a .csv, .tsv, .json (a list of objects) or .parquet file; any other has one JSON object a line.

    Raises:
        UserError: The file cannot be read, is malformed or has no rows.
    """
    try:
        if path.suffix == ".parquet":
            rows = _parquet(path)
        else:
            with _open(path) as handle:
                rows = _parse(handle, path)
    except UnicodeDecodeError as error:
        raise UserError(f"The data file {str(path)!r} is not UTF-8 text.") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"The data file {str(path)!r} cannot be read: {why}.") from error
    if not rows:
        raise UserError(f"The data file {str(path)!r} has no rows.")
    return rows


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", newline="", encoding="utf-8"))
    return path.open(newline="", encoding="utf-8")


def _parse(handle: IO[str], path: Path) -> list[Row]:
    kind = _format(path)
    if kind in (".csv", ".tsv"):
        return list(csv.DictReader(handle, delimiter="\t" if kind == ".tsv" else ","))
    text = handle.read()
    if kind == ".json" and text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not valid JSON ({error}); correct it.") from error
        return [_object(row, f"{path}, item {number}") for number, row in enumerate(rows, 1)]
    return [_json_line(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json_line(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number} is not valid JSON ({error.msg}); correct that line.") from error
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
    """Read a folder of data files, in the hub's layout or written by `save_to_disk`. `name` is for errors.

    Raises:
        UserError: The folder cannot be read, lacks shards, or has no such subset, split or rows.
    """
    import datasets

    name = name or str(folder)
    _check_shards(name, (path.name for path in folder.rglob("*-of-*")))
    try:
        if {"state.json", "dataset_dict.json"} & {path.name for path in folder.iterdir()}:
            splits: Any = datasets.load_from_disk(str(folder))
        else:
            # Streaming reads the files themselves and leaves no copy of them in a second cache.
            splits = datasets.load_dataset(str(folder), subset, streaming=True)
        rows = [dict(row) for row in _of_split(splits, split, name)]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"The data of {name} cannot be read: {_first_line(error)}") from error
    if not rows:
        raise UserError(f"{name} has no rows.")
    return rows


def _of_split(splits: Any, split: str | None, name: str) -> Iterable[Any]:
    """Return the rows of a split; by default of `train`, or of the only one."""
    if not isinstance(splits, dict):
        return cast(Iterable[Any], splits)
    chosen = split or ("train" if len(splits) > 1 else next(iter(splits)))
    if chosen not in splits:
        raise UserError(f"{name} has no split {chosen!r}; {did_you_mean(chosen, splits)}")
    return cast(Iterable[Any], splits[chosen])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".") + "."


def _check_shards(name: str, files: Iterable[str]) -> None:
    """Refuse a folder with missing shards, which would otherwise be read as if it were complete."""
    shards = [match.groups() for file in files if (match := SHARD.fullmatch(file))]
    counts = Counter((stem, total, end) for stem, _, total, end in shards)
    for (stem, total, end), number in counts.items():
        if number < int(total):
            raise UserError(
                f"Of {name}, only {number} of the {int(total)} files {stem}-*{end} are here: repeat the download "
                f"(`hf download --repo-type dataset {name}`)."
            )


def snapshot(name: str, revision: str | None = None) -> Path:
    """Return the folder of a data set in the hub's cache, downloading it if necessary; its name is the commit.

    Raises:
        DataNotAvailable: It is neither in the cache nor can it be downloaded.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=DOWNLOADED))
    except hub.GatedRepoError as error:
        reason = f"The data set {name} is gated: {terms(name)}"
        raise DataNotAvailable(name, "gated", reason) from error
    except hub.RepositoryNotFoundError as error:
        reason = f"The hub has no data set {name!r} that this account may see: check its spelling, or log in with "
        raise DataNotAvailable(name, "missing", f"{reason}`hf auth login` if it is private") from error
    except hub.RevisionNotFoundError as error:
        reason = f"The data set {name} has no revision {revision!r}: {_page(name)}/commits/main lists them"
        raise DataNotAvailable(name, "missing", reason, remedy="") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        if isinstance(error.__cause__, hub.HfHubHTTPError):
            why += f" ({_first_line(error.__cause__).removesuffix('.')})"
        reason = (
            f"The data set {f'{name} at {revision}' if revision else name} is not completely in this machine's cache, "
            f"and {why}: run `{download_command(name, revision)}` where there is a network and bring its cache to "
            f"{constants.HF_HUB_CACHE}"
        )
        raise DataNotAvailable(name, "offline", reason) from error
    except hub.HFValidationError as error:
        reason = f"{name!r} cannot be the name of a data set of the hub: write owner/name"
        raise DataNotAvailable(name, "missing", reason) from error
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # a proxy, a broken line, a full disk
        reason = f"The data set {name} cannot be downloaded: {_first_line(error).removesuffix('.')}"
        raise DataNotAvailable(name, "offline", reason, remedy="") from error


def snapshot_file(name: str, file: str, folder: Path) -> Path:
    """Return a file that `snapshot` does not download, at the commit of `folder`.

    Raises:
        DataNotAvailable: It is neither in the cache nor can it be downloaded.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=folder.name))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        command = download_command(f"{name} {file}", folder.name)
        reason = f"The file {file} of {name} is not here: run `{command}` where there is a network"
        raise DataNotAvailable(name, "offline", reason, remedy="") from error


def _page(name: str) -> str:
    return f"https://huggingface.co/datasets/{name}"


def terms(name: str) -> str:
    """Return what opens a gated data set, for a sentence."""
    return f"accept its terms at {_page(name)} and log in with `hf auth login`"


def download_command(name: str, revision: str | None = None) -> str:
    """Return the command that brings a data set into the hub's cache."""
    return f"hf download --repo-type dataset {name}" + (f" --revision {revision}" if revision else "")


def find_column(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return the row's spelling of the first of these columns that it has, ignoring case; None if it has none."""
    by_name = {str(column).lower(): str(column) for column in row}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def require_column(row: Row, names: Iterable[str], where: str, hint: str = "") -> str:
    """Return `find_column`, or raise an error that ends with `hint`.

    Raises:
        UserError: The row has none of the columns.
    """
    names = list(names)
    column = find_column(row, names)
    if column is None:
        raise UserError(
            f"{where} has no column {' or '.join(names)}; its columns are {', '.join(map(str, row))}{hint}."
        )
    return column


def cell(row: Row, names: Iterable[str], where: str) -> Any:
    """Return the value in the first of these columns that the row has, ignoring case.

    Raises:
        UserError: The row has none of the columns, or the value is missing.
    """
    column = require_column(row, names, where)
    if row[column] is None:
        raise UserError(f"{where}: the column {column!r} is empty.")
    return row[column]


def text(row: Row, column: str, where: str) -> str:
    """Return the value in the column of exactly this name, as text.

    Raises:
        UserError: The row has no such column, or the value is missing.
    """
    if row.get(column) is None:
        columns = ", ".join(map(str, row))
        problem = "is empty" if column in row else f"is not there; its columns are {columns}"
        raise UserError(f"{where}: the column {column!r} {problem}.")
    return str(row[column])


def cell_text(value: Any) -> str:
    """Return a value of a table as text, as a CSV file would hold it; lone surrogates are replaced."""
    if value is None:
        return ""
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
