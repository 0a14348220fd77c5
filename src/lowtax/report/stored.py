"""A study as its files show it, for the page: whatever is missing or damaged is a note, and not an error.

No model is opened and no class of a recipe is loaded, so that the page of a stranger's study runs nothing of theirs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowtax.common.borders import parse_json, read_text
from lowtax.common.display import as_line
from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.common.names import file_name, is_checkpoint
from lowtax.common.yaml_files import parse_yaml
from lowtax.report import failures
from lowtax.study.stored_recipe import stored_in

KINDS = ("harmful", "ordinary")
TALKED = ".replies.jsonl"  # after an attack's name, of the replies in its conversations
LARGEST = 32 * 2**20  # bytes of a JSON file that is read as a whole


@dataclass(frozen=True)
class Stored:
    """The content of a study's files, but for the replies.

    name: the recipe's name, or that of the folder; of several studies with one name, the end of the folder's path.
    recipe_text, recipe: as it is in the file, and its values.
    table, card: the contents of these files; empty if they are absent.
    requests, questions: the files of replies by prompt set, and of answers by task.
    attacks: the files of replies to attacks, which may be none; `attempts_file` belongs to one of an attack that talks.
    notes: sentences on what is missing or damaged.
    """

    folder: Path
    name: str
    recipe_text: str
    recipe: dict[str, Any]
    table: dict[str, Any]
    card: dict[str, Any]
    requests: dict[str, Path]
    questions: dict[str, Path]
    attacks: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table."""
        return list(self.table.get("rows", []))

    def verdict_files(self, kind: str) -> list[Path]:
        """Return the files of verdicts on the replies to a prompt set."""
        return sorted((self.folder / "verdicts").glob(f"{kind}.*.jsonl"))

    def grade_file(self, task: str) -> Path:
        """Return the file of the grades of a task."""
        return self.folder / "grades" / f"{task}.jsonl"


def read(folder: Path) -> Stored:
    """Read the files of a study, but for the replies.

    Raises:
        UserError: the folder has neither a recipe nor replies.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the --out folder of `lowtax run`.")
    notes: list[str] = []
    text, recipe = _recipe(folder, notes)
    requests = _files(folder / "replies")
    questions = _files(folder / "answers")
    if not text and not requests and not questions:
        raise UserError(f"{folder} holds no study (no recipe.yaml and no replies): start one with `lowtax run`.")
    talked = sorted((folder / "attacks").glob(f"*{TALKED}"))
    table = _table(folder, notes)
    card = _mapping(folder / "card.json", notes)
    if not requests:
        notes.append("No replies are stored yet.")
    if not questions:
        notes.append("No reasoning was measured: there are no answers to tasks.")
    notes += _without_results(folder, requests, questions, table)
    if missing := _unfinished_arms(folder, recipe, table):
        notes.append(f"Not finished: {', '.join(missing)}.")
    name = recipe.get("name")
    return Stored(
        folder=folder,
        name=as_line(name if isinstance(name, str) and name else folder.resolve().name),
        recipe_text=text,
        recipe=recipe,
        table=table,
        card=card,
        requests={kind: path for kind, path in requests.items() if kind in KINDS},
        questions=questions,
        attacks=[path for path in [folder / "replies" / "attacks.jsonl", *talked] if path.is_file()],
        notes=notes,
    )


def read_all(folders: Sequence[Path]) -> list[Stored]:
    """Read several studies. Those of one recipe in different folders are called by the ends of their paths.

    Raises:
        UserError: a folder holds no study.
    """
    studies, places = [read(folder) for folder in folders], [folder.resolve() for folder in folders]
    names = [study.name for study in studies]
    of_recipes = Counter(dict(zip(places, names, strict=True)).values())
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        if len(set(names)) == len(set(places)):
            break
        names = [
            study.name if of_recipes[study.name] == 1 else as_line("/".join(place.parts[-depth:]))
            for study, place in zip(studies, places, strict=True)
        ]
    return [replace(study, name=name) for study, name in zip(studies, names, strict=True)]


def _recipe(folder: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    if (path := stored_in(folder)) is None:
        notes.append("The folder has no recipe.")
        return "", {}
    try:
        text = read_text(path)
        values = parse_yaml(text)
    except (UserError, ValueError) as error:
        notes.append(f"The recipe cannot be read: {as_line(str(error))}")
        return "", {}
    return text, values if isinstance(values, dict) else {}


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.jsonl")) if path.is_file()}


def _table(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return the table, with the rows that have the form of one."""
    if not (folder / "table.json").exists():
        notes.append("There is no table yet: the study is under way, or `lowtax compare` was not run.")
        return {}
    table = _mapping(folder / "table.json", notes)
    rows = table.get("rows")
    whole = [row for row in rows if _is_row(row)] if isinstance(rows, list) else []
    if not isinstance(rows, list) or len(whole) < len(rows):
        notes.append("table.json has rows that cannot be read: `lowtax compare` writes it again.")
    return table | {"rows": whole}


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("arm"), str) or not isinstance(row.get("step"), int):
        return False
    cells = [row.get("safety"), row.get("over_refusal")]
    reasoning = row.get("reasoning")
    if not isinstance(reasoning, dict) or not (row.get("checkpoint") is None or is_checkpoint(row["checkpoint"])):
        return False
    return all(is_rate(cell) for cell in [*cells, *reasoning.values()])


def is_rate(cell: Any) -> bool:
    """Return True if a value is a rate with an interval and n, or one that was not measured."""
    if not is_cell(cell) or not isinstance(cell.get("n", 0), int):
        return False
    return cell["value"] is None or (cell["low"] is not None and cell["high"] is not None)


def is_cell(cell: Any) -> bool:
    """Return True if a value is a rate of a table: `value`, `low` and `high`, which are numbers or None."""
    return isinstance(cell, dict) and all(
        name in cell and (cell[name] is None or _is_number(cell[name])) for name in ("value", "low", "high")
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; empty, with a note, if there is none."""
    value = read_or_note(path, notes)
    if value is not None and not isinstance(value, dict):
        notes.append(f"{path.name} is damaged: it holds no object.")
    return value if isinstance(value, dict) else {}


def read_or_note(path: Path, notes: list[str]) -> Any:
    """Return the content of a JSON file; None if it is absent, and also, with a note, if it cannot be read."""
    if not path.exists():
        return None
    try:
        if path.stat().st_size > LARGEST:
            notes.append(f"{path.name} is too large for the page and was left out.")
            return None
        return read_json(path)
    except (UserError, OSError) as error:
        notes.append(f"{path.name} cannot be read: {as_line(str(error).replace(str(path), path.name))}")
        return None


def _without_results(
    folder: Path, requests: dict[str, Path], questions: dict[str, Path], table: dict[str, Any]
) -> list[str]:
    """Return notes on replies that no judge has read, or not the table's own one, and on answers without grades."""
    notes = []
    judge = table.get("judge")
    files = {kind: [path.name for path in (folder / "verdicts").glob(f"{kind}.*.jsonl")] for kind in requests}
    unread = [as_line(kind) for kind, names in files.items() if not names]
    if unread:
        notes.append(f"No verdicts are stored on the replies of {', '.join(unread)}: `lowtax compare` makes them.")
    if isinstance(judge, str) and judge:
        own = f"{file_name(judge)}.jsonl"
        lacking = [as_line(kind) for kind, names in files.items() if names and f"{kind}.{own}" not in names]
        if lacking:
            listed = ", ".join(lacking)
            notes.append(f"The verdicts of {as_line(judge)}, whose rates the table has, are missing for {listed}.")
    ungraded = [as_line(task) for task in questions if not (folder / "grades" / f"{task}.jsonl").exists()]
    if ungraded:
        notes.append(f"No grades are stored for the answers to {', '.join(ungraded)}: `lowtax compare` makes them.")
    return notes


def is_finished(folder: Path) -> bool:
    """Return True if a run of the study in a folder has ended, with every arm of its recipe made, or failed.

    Raises:
        UserError: the folder holds no study.
    """
    study = read(folder)
    return bool(study.card and study.rows) and not _unfinished_arms(folder, study.recipe, study.table)


def _unfinished_arms(folder: Path, recipe: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """Return the arms of a recipe that are not made for every seed; those that failed are not in it."""
    sections = [recipe[key] for key in ("arms", "edited") if isinstance(recipe.get(key), dict)]
    arms = [name for section in sections for name in section if isinstance(name, str)]
    seeds = recipe.get("seeds")
    numbers = [seed for seed in seeds if isinstance(seed, int)] if isinstance(seeds, list) else [0]
    failed = {(row["arm"], row["seed"]) for row in failures.listed(table)}
    return [
        as_line(arm)
        for arm in arms
        if not all((arm, seed) in failed or _is_done(folder / "arms" / arm / f"seed-{seed}") for seed in numbers)
    ]


def _is_done(folder: Path) -> bool:
    try:
        return (folder / "card.json").exists()
    except (OSError, ValueError):
        return False


def read_lines(path: Path, most: int) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file of figures; lines that are damaged are left out, and those beyond `most`."""
    rows: list[dict[str, Any]] = []
    with path.open("rb") as handle:
        for line in handle:
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                rows.append(value)
            if len(rows) >= most:
                break
    return rows
