"""Prompt sets by name: the published safety and over-refusal sets, any file, any data set of the hub.

A named set is read from the folder that LOWTAX_PROMPTS names if its file is there, else from the hub. Gated ones need
an account that accepted their terms; a copy of the file needs neither account nor network. No commit is pinned: the
one that was read is recorded. docs/prompt-sets.md has the table.
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lowtax import sources, tables
from lowtax.errors import UserError, did_you_mean
from lowtax.promptsets import NAMED, NamedPrompts, PromptList
from lowtax.records import Prompt, row_id
from lowtax.tables import Row, Table

FOLDER = "LOWTAX_PROMPTS"
SUFFIXES = (".csv", ".jsonl", ".json", ".csv.gz", ".jsonl.gz", ".json.gz", ".parquet", ".tsv")
ANY = NamedPrompts(
    hub="",
    rows=0,
    licence="",
    citation="",
    columns=("prompt", "forbidden_prompt", "goal", "question", "behavior", "instruction"),
    category=("category", "kind"),
)


def load(spec: str, split: str | None = None, n: int | None = None) -> PromptList:
    """The first n prompts of a set: a name, a file, a folder or owner/name, each with `:COLUMN` if need be.

    Raises:
        UserError: There is no such set, it cannot be had here, or it has no such split or column.
    """
    if spec.startswith("builtin:"):
        found = _built_in(spec, split)
    else:
        source, column = _parse(spec)
        layout = NAMED.get(source, ANY)
        layout = replace(layout, columns=(column,)) if column else layout
        if source in NAMED and split:
            raise UserError(f"The prompt set {source} is a split by itself: leave out the split {split!r}.")
        found = _named(source, layout) if source in NAMED else _unnamed(source, split, layout)
    return replace(found, prompts=found.prompts[:n])


def _parse(spec: str) -> tuple[str, str]:
    """Source and column of `SOURCE[:COLUMN]`; what exists as a file is one, whatever its name."""
    source, colon, column = spec.rpartition(":")
    return (source, column) if colon and not Path(spec).expanduser().exists() else (spec, "")


def _built_in(spec: str, split: str | None) -> PromptList:
    from lowtax.data import prompt_set  # data reads other sets through this module
    from lowtax.recipe import PromptSet

    return PromptList(spec, prompt_set(PromptSet(source=spec, split=split)), spec, licence="Apache-2.0")


def _unnamed(source: str, split: str | None, layout: NamedPrompts) -> PromptList:
    path = Path(source).expanduser()
    if not path.exists() and not path.suffix and "/" not in source:
        raise UserError(f"There is no prompt set and no file {source!r}; {did_you_mean(source, NAMED)}")
    table = Table(_file(path)) if path.suffix == ".tsv" else tables.load(source, split=split)
    if not table.rows:
        raise UserError(f"{source} has no prompts in split {split!r}.")
    prompts = _prompts(source, source, table.rows, layout)
    return PromptList(source, prompts, source if table.revision else path.name, revision=table.revision)


def _named(name: str, named: NamedPrompts) -> PromptList:
    local = _local(name, named)
    table = Table(_file(local)) if local else _downloaded(name, named)
    origin = local.name if local else named.hub
    rows = _counted(origin, table.rows, named)
    prompts = _prompts(name, origin, rows, named)
    notes = [f"{len(rows)} rows instead of the {named.rows} published"] if len(rows) != named.rows else []
    notes += [f"{len(rows) - len(prompts)} repeated, left out"] if len(rows) != len(prompts) else []
    return PromptList(name, prompts, origin, table.revision, named.licence, named.citation, "; ".join(notes))


def _local(name: str, named: NamedPrompts) -> Path | None:
    """The set's file in the folder that LOWTAX_PROMPTS names."""
    if not (given := os.environ.get(FOLDER)):
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"{FOLDER} is {given!r}, which is no folder: set it to the one that holds your prompt files.")
    paths = (folder / (stem + suffix) for stem in (name, *named.stems) for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _downloaded(name: str, named: NamedPrompts) -> Table:
    """The set's rows on the hub; the error says what can be done instead."""
    instead = f"put it as {name}.csv into a folder and set {FOLDER} to that, or give its file as FILE:COLUMN"
    if not named.hub:
        raise UserError(f"The prompt set {name} is not on the hub: get it from {named.page}, {instead}.")
    try:
        folder = tables.snapshot(named.hub)
    except UserError as error:
        why = str(error).partition(", or give a local copy")[0].removesuffix(".")
        terms = (
            f" (gated: accept its terms at https://huggingface.co/datasets/{named.hub} and log in with `hf auth login`)"
        )
        raise UserError(f"{why}{terms if named.gated and 'gated' not in why else ''}; or {instead}.") from error
    if named.file:
        return Table(_file(_fetched(named.hub, named.file, folder)), folder.name)
    return Table(tables.read_folder(folder, named.subset, named.split, named.hub), folder.name)


def _fetched(hub: str, file: str, folder: Path) -> Path:
    """A file that the snapshot leaves out, at the same commit."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(hub, file, repo_type="dataset", revision=folder.name))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        command = f"hf download --repo-type dataset {hub} {file} --revision {folder.name}"
        raise UserError(f"The file {file} of {hub} is not here: run `{command}` where there is a network.") from error


def _file(path: Path) -> list[Row]:
    if path.suffix != ".tsv":
        return tables.read_table(path)
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The data file {str(path)!r} cannot be read: {error}.") from error


def _counted(origin: str, rows: list[Row], named: NamedPrompts) -> list[Row]:
    """The rows that count. A copy of the set's own subset may lack the column that says so."""
    for wanted, value in named.where.items():
        if named.subset and not _present(rows[0], [wanted]):
            continue
        column = _column(rows[0], [wanted], origin)
        rows = [row for row in rows if str(row.get(column)).lower() == value]
        if not rows:
            raise UserError(f"{origin} has no rows with {column} = {value}.")
    return rows


def _prompts(name: str, origin: str, rows: list[Row], layout: NamedPrompts) -> list[Prompt]:
    """Prompts without repetitions; those with a context around them have a goal."""
    column, category = _column(rows[0], layout.columns, origin), _present(rows[0], layout.category)
    around = _column(rows[0], layout.context, origin) if layout.context else ""
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(rows, 1):
        goal = sources.cell(row, column, f"{origin}, row {number}")
        context = str(row.get(around) or "").strip()
        # As HarmBench's DirectRequest asks: context, a line of dashes, behaviour.
        text = f"{context}\n\n---\n\n{goal}" if context else goal
        kind = ":".join(str(row.get(part) or "") for part in category)
        about = goal if context else None
        prompt = Prompt(id=row_id(name, text), source=name, text=text, category=kind, goal=about)
        prompts.setdefault(prompt.id, prompt)
    return list(prompts.values())


def _present(row: Row, names: Iterable[str]) -> list[str]:
    """The row's own names of the first of these columns that it has; `a:b` are two columns."""
    have = {str(column).lower(): str(column) for column in row}
    found = ([have[part.lower()] for part in name.split(":") if part.lower() in have] for name in names)
    return next(
        (columns for name, columns in zip(names, found, strict=True) if len(columns) == name.count(":") + 1), []
    )


def _column(row: Row, names: Iterable[str], origin: str) -> str:
    """The row's name of the first of these columns, capitals aside."""
    if found := _present(row, names):
        return found[0]
    raise UserError(
        f"{origin} has no column {' or '.join(names)}; its columns are {', '.join(map(str, row))}: "
        "add the one that holds the prompts as :COLUMN."
    )
