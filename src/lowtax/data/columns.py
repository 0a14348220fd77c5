"""Values of a table by the path of a column, and the texts in a cell: what models wrote, in the forms of other tools.

resps                                          lm-evaluation-harness: a list of lists
response.body.choices.0.message.content        a batch of OpenAI: a number is a place in a list
response.body.choices.0.message                the same with the thought that is in another field
output                                         ZeroEval: a list of samples
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lowtax.common.borders import parse_json
from lowtax.common.errors import UserError
from lowtax.data.readers import cell_text, find_column
from lowtax.data.rendering import CLOSE, OPEN
from lowtax.data.tables import Row, is_turn

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a message, and types of its parts
TEXTS = ("content", "text", "message", "generated_text", "output_text", "value")
ANSWERS = ("assistant", "gpt", "model", "bot")  # roles of the turns that a model wrote


def require(rows: Sequence[Row], columns: Iterable[str | None], origin: object) -> None:
    """Refuse columns that no row has.

    Raises:
        UserError: there is such a column.
    """
    for column in filter(None, columns):
        if not any(column in row or value(row, column) is not None for row in rows):
            names = ", ".join(dict.fromkeys(str(key) for row in rows for key in row if key is not None))
            raise UserError(f"{origin} has no column {column!r}; its columns are {names}.")


def value(row: Any, column: str) -> Any:
    """Return the value of a column, or None if the row lacks it.

    A dot leads into a nested object, and a number in a path is a place in a list. An object or list may also be JSON
    text, as in CSV files.

    Raises:
        UserError: A text on the way begins like an object and is not JSON.
    """
    if isinstance(row, str) and row.lstrip().startswith(("{", "[")):
        try:
            row = parse_json(row)
        except ValueError as error:
            raise UserError(
                f"A value on the way to {column!r} is not the JSON text of an object: {row[:60]!r}."
            ) from error
    if isinstance(row, list):
        head, _, rest = column.partition(".")
        if not head.lstrip("-").isdecimal() or not -len(row) <= int(head) < len(row):
            return None
        return value(row[int(head)], rest) if rest else row[int(head)]
    if not isinstance(row, dict):
        return None
    if column in row:
        return row[column]
    parts = column.split(".")
    for end in range(1, len(parts)):  # names of columns may have dots, too
        head = ".".join(parts[:end])
        if head in row:
            return value(row[head], ".".join(parts[end:]))
    return None


def first_of(rows: Sequence[Row], names: Iterable[str]) -> str | None:
    """Return the first of these columns that a row has, in the row's spelling; None if none has one."""
    for name in names:
        for row in rows[:1]:
            if column := find_column(row, [name]):
                return column
    return None


def texts(cell: Any) -> list[str]:
    """Return the texts in a cell: one, or one for each sample of a list.

    The thought of a message that is in another field is put before its answer, in think tags.
    """
    if isinstance(cell, list) and cell and all(map(is_turn, cell)):
        return texts(next((turn for turn in reversed(cell) if _role(turn) in ANSWERS), cell[-1]))
    if isinstance(cell, list) and cell and all(isinstance(part, dict) and "type" in part for part in cell):
        thought = "".join(_text(part) for part in cell if part["type"] in THOUGHTS)
        return [_whole(thought, "".join(_text(part) for part in cell if part["type"] not in THOUGHTS))]
    if isinstance(cell, list) and _holds_text(cell):
        return [text for item in cell for text in texts(item)]
    if isinstance(cell, dict):
        name = next((name for name in TEXTS if name in cell), None)
        thought = next((_text(cell[name]) for name in THOUGHTS if cell.get(name)), "")
        if name is not None:
            return [_whole(thought, text) for text in texts(cell[name])]
        return [_whole(thought, "")] if thought else [cell_text(cell)]
    return [cell_text(cell) if cell != [] else ""]


def text(cell: Any, where: str) -> str:
    """Return the only text in a cell.

    Raises:
        UserError: It has several.
    """
    several = texts(cell)
    if len(several) > 1:
        raise UserError(f"{where} holds a list of {len(several)} texts; name one of them as COLUMN.0.")
    return several[0]


def _holds_text(cell: list[Any]) -> bool:
    return any(isinstance(item, str | dict) or (isinstance(item, list) and _holds_text(item)) for item in cell)


def _role(turn: dict[str, Any]) -> str:
    return str(turn.get("role", turn.get("from", ""))).lower()


def _text(part: Any) -> str:
    """Return the text of a part of a message, whatever its field is called."""
    if isinstance(part, list):
        return "".join(map(_text, part))
    if isinstance(part, dict):
        return _text(next((part[name] for name in (*TEXTS, *THOUGHTS) if part.get(name)), ""))
    return cell_text(part)


def _whole(thought: str, answer: str) -> str:
    if not thought.strip():
        return answer
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}" if answer.strip() else f"{OPEN}\n{thought}"


def usual(rows: Sequence[Row], column: str | None, names: Sequence[str], role: str, origin: Path) -> str:
    """Return the column that a user named, else the first of the usual names that the rows have.

    Raises:
        UserError: the rows do not have it.
    """
    if column is not None:
        require(rows, [column], origin)
        return column
    if (found := first_of(rows, names)) is None:
        listed = ", ".join(dict.fromkeys(str(key) for key in rows[0]))
        raise UserError(f"{origin} has none of the usual columns of {role}; name one with --{role}: {listed}.")
    return found
