"""Readers of tables: a file, a folder of files or a data set of the Hugging Face hub becomes a list of rows.

A data set of the hub is first a folder, the snapshot in the hub's own cache. The name of that folder is the commit, so
that a card can record what was read, and a snapshot that is in the cache is read without a network.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from lowtax.common.borders import border, brief, exists, expanded, reason
from lowtax.common.errors import UserError, did_you_mean
from lowtax.data import data_folders, tables
from lowtax.data.compression import COMPRESSED
from lowtax.data.tables import BINARY_FORMATS, TEXT_FORMATS, Row

LONGEST = 250  # characters of a source that does not exist
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DOWNLOADED = [
    *(f"*{end}" for end in BINARY_FORMATS),
    *(f"*{end}{compression}" for end in TEXT_FORMATS if end != ".tsv" for compression in ("", *COMPRESSED)),
    "README.md",
]
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..+)")
LOCAL_COPY = ", or give a local copy as `path`"


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
    layout, unreadable, replaced: of a file, as in `tables.FileRows`.
    """

    rows: list[Row]
    origin: str
    revision: str | None = None
    layout: str = ""
    unreadable: Counter[str] = field(default_factory=Counter)
    replaced: int = 0


def load(
    source: str,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    strict: bool = True,
) -> Table:
    """Read a file, a folder or a data set of the hub.

    Args:
        source: a path, or owner/name on the hub.
        subset: a configuration of a folder or data set.
        split: `train` by default, and all rows of a file.
        revision: a commit, tag or branch of a data set of the hub.
        strict: raise an error at the first line of a file that is no row; otherwise the table counts such lines.

    Raises:
        DataNotAvailable: The data set is not on this machine and cannot be downloaded.
        UserError: The source cannot be read, or has no such subset or split.
    """
    path = expanded(source)
    there = exists(path)
    if not there and (len(source) > LONGEST or not source.isprintable()):
        raise UserError(f"{brief(source)} cannot be a data set: give a file, a folder or owner/name on the hub.")
    if there and path.is_dir():
        return _folder(path, subset, split, path.name, strict=strict)
    if there or not is_hub_id(source):
        if subset or revision:
            raise UserError(f"{source!r} is a file: `subset` and `revision` are for folders and data sets of the hub.")
        file = tables.read(path, strict)
        rows = [row for row in file.rows if row.get("split") == split] if split else file.rows
        return Table(rows, path.name, None, file.layout, file.unreadable, file.replaced)
    folder = snapshot(source, revision)
    return _folder(folder, subset, split, source, folder.name, strict=strict)


def is_hub_id(source: str) -> bool:
    """Return whether a source that is no local file has the form owner/name."""
    file = tables.format_of(Path(source)) in (*TEXT_FORMATS, *BINARY_FORMATS)
    return bool(HUB_ID.fullmatch(source)) and not source.startswith(".") and not file


def read_table(path: Path) -> list[Row]:
    """Return the rows of a data file.

    Raises:
        UserError: The file cannot be read, is malformed or has no rows.
    """
    return tables.read(path).rows


def read_folder(folder: Path, subset: str | None = None, split: str | None = None, name: str = "") -> list[Row]:
    """Read a folder of data files, in the hub's layout or written by `save_to_disk`. `name` is for errors.

    Raises:
        UserError: The folder cannot be read, lacks shards, or has no such subset, split or rows.
    """
    return _folder(folder, subset, split, name or str(folder)).rows


def _folder(
    folder: Path, subset: str | None, split: str | None, name: str, revision: str | None = None, strict: bool = True
) -> Table:
    import datasets

    _check_shards(name, (path.name for path in folder.rglob("*-of-*")))
    saved = bool({"state.json", "dataset_dict.json"} & {path.name for path in folder.iterdir()})
    data_folders.require_saved_inside(folder) if saved else data_folders.require_patterns_inside(folder)
    try:
        if not saved and (files := _parquet(folder, subset, split, name)):
            table = Table([row for file in files for row in tables.columns(file)], name, revision)
        else:
            splits: Any = datasets.load_from_disk(str(folder)) if saved else _streamed(folder, subset)
            rows = data_folders.as_stored(_of_split(splits, split, name))
            table = Table([dict(row) for row in rows], name, revision)
    except UserError:
        raise
    except Exception as error:  # of any kind: scripts, archives and files that are not what their name says
        files = [] if saved else _files(folder, subset, split, name) or _other_files(folder, subset, split)
        if not files:
            raise UserError(f"The data of {name} cannot be read: {reason(error)}.") from error
        table = _file_by_file(files, name, revision, strict)
    if not table.rows:
        raise UserError(f"{name} has no rows.")
    return table


def _streamed(folder: Path, subset: str | None) -> Any:
    """Open the splits of a folder. Streaming reads the files themselves and leaves no copy of them in a cache."""
    import datasets

    builder = datasets.load_dataset_builder(str(folder), subset)
    files = [file for files in (builder.config.data_files or {}).values() for file in files]
    data_folders.require_inside(folder, files)
    data_folders.require_shallow(files)
    return builder.as_streaming_dataset()


def _parquet(folder: Path, subset: str | None, split: str | None, name: str) -> list[Path]:
    """Return the files of a split that has parquet files alone; none if another has.

    `datasets` reads them in threads that now and then abort the process when it ends
    (github.com/huggingface/datasets/issues/7566). Of others it makes one table, and says what is wrong with them.
    """
    files = _files(folder, subset, split, name)
    return files if all(tables.format_of(file) == ".parquet" for file in files) else []


def _files(folder: Path, subset: str | None, split: str | None, name: str) -> list[Path]:
    """Return the files of a split; none if they are not in the folder."""
    import datasets

    try:
        with border(f"The data of {name} cannot be read", "download it again"):
            files = datasets.load_dataset_builder(str(folder), subset).config.data_files or {}
    except UserError:
        return []
    paths = [Path(file) for file in _of_split({str(key): inner for key, inner in files.items()}, split, name)]
    data_folders.require_inside(folder, paths)
    return paths if all(path.is_file() for path in paths) else []


def _other_files(folder: Path, subset: str | None, split: str | None) -> list[Path]:
    """Return the data files of a folder whose suffixes `datasets` does not know, such as .pq or .feather."""
    if subset or split:
        return []
    known = (*TEXT_FORMATS, *BINARY_FORMATS)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and tables.format_of(path) in known)
    data_folders.require_inside(folder, paths)
    return paths


def _file_by_file(files: list[Path], name: str, revision: str | None, strict: bool) -> Table:
    """Read files that `datasets` cannot read as one table, since their columns differ or a line is no row."""
    parts = [tables.read(file, strict) for file in files]
    return Table(
        [row for part in parts for row in part.rows],
        name,
        revision,
        f"{len(files)} files" if len(files) > 1 else parts[0].layout,
        sum((part.unreadable for part in parts), Counter[str]()),
        sum(part.replaced for part in parts),
    )


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
    """Return the text in the column of exactly this name; a number as it is written.

    Raises:
        UserError: The row has no such column, or the value is missing or no text.
    """
    value = row.get(column)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and not is_missing(value):
        return str(value)
    if column not in row:
        problem = f"is not there; its columns are {', '.join(map(str, row))}"
    else:
        problem = "is empty" if is_missing(value) else f"holds {kind_of(value)}, not text"
    raise UserError(f"{where}: the column {column!r} {problem}.")


def is_missing(value: Any) -> bool:
    """Return whether a value of a table is none: null, or NaN, which pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def kind_of(value: Any) -> str:
    """Return the kind of a value of a table, with its article."""
    kinds: tuple[tuple[type, str], ...] = (
        (str, "a text"),
        (bool, "a truth value"),
        (int, "a number"),
        (float, "a number"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def cell_text(value: Any) -> str:
    """Return a value of a table as text, as a CSV file would hold it; lone surrogates are replaced."""
    if value is None:
        return ""
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
