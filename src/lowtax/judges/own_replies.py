"""Replies that lowtax did not draw: any file with a column of requests and one of replies.

Ids, order and texts are those of the file. A reply is split into thought and answer like one of ours.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lowtax.common.borders import parse_json, require_regular
from lowtax.common.log import say
from lowtax.common.records import Reply, row_id
from lowtax.data import columns as cells
from lowtax.data.prompt_sets import ANY_COLUMNS, IDS, other_columns
from lowtax.data.readers import cell_text, read_table
from lowtax.data.rendering import opened_note, split_stored
from lowtax.data.tables import Row, is_turn

PROMPTS = (*ANY_COLUMNS["prompt"], "request", "query", "user", "input", "doc", "messages", "conversation")
REPLIES = (
    *(
        "reply",
        "response",
        "completion",
        "output",
        "generation",
        "answer",
        "model_output",
        "prediction",
        "resps",
        "text",
    ),
    *("messages", "conversation"),
)
OURS = {"arm", "prompt_id", "finish", "closed", "thought", "answer"}  # columns of replies.jsonl
USERS = ("user", "human")  # roles of the turns that ask


@dataclass(frozen=True)
class Columns:
    """The columns of a file, as paths; None is the first usual name that the file has. `source` tells models apart.

    thinking_tags, opened: how thoughts are told from answers, as in `rendering.split_stored`.
    """

    prompt: str | None = None
    reply: str | None = None
    id: str | None = None
    category: str | None = None
    source: str | None = None
    thinking_tags: str | None = None
    opened: bool | None = None

    @property
    def named(self) -> bool:
        """True if a user set one of them."""
        return any(value is not None for value in vars(self).values())


def is_ours(path: Path) -> bool:
    """Return whether a file has the replies that `lowtax sample` writes."""
    require_regular(path)
    with path.open("rb") as file:
        first = file.readline()
    try:
        row = parse_json(first)
    except ValueError:
        return False
    return isinstance(row, dict) and row.keys() >= OURS


def read(path: Path, columns: Columns) -> list[Reply]:
    """Read the replies of a CSV, JSON, JSONL or parquet file, in its order. A list of texts has samples.

    Raises:
        UserError: The file cannot be read or lacks a column.
    """
    rows = read_table(path)
    cells.require(rows, (columns.id, columns.category, columns.source), path)
    prompt = cells.usual(rows, columns.prompt, PROMPTS, "prompt", path)
    reply = cells.usual(rows, columns.reply, REPLIES, "reply", path)
    key = columns.id or cells.first_of(rows, IDS)
    category = columns.category or cells.first_of(rows, (*ANY_COLUMNS["category"], "type"))
    texts = [cells.texts(cells.value(row, reply)) for row in rows]
    every = [text for several in texts for text in several]
    if columns.opened is None and (note := opened_note(every, columns.thinking_tags)):
        say(note)
    used = {path.partition(".")[0] for path in (prompt, reply, key, category, columns.source) if path}
    replies, ids = list[Reply](), set[str]()
    samples = Counter[tuple[str, str]]()
    for number, (row, several) in enumerate(zip(rows, texts, strict=True), 1):
        request, own = _request(cells.value(row, prompt)), _cell(row, key)
        subject = (_cell(row, columns.source) or path.stem, own or row_id(request))
        for text in several:
            parts = split_stored(text, columns.thinking_tags, columns.opened)
            id_ = _unused(own or str(number), ids)
            ids.add(id_)
            replies.append(
                Reply(
                    id=id_,
                    arm=subject[0],
                    seed=None,
                    checkpoint=None,
                    source=path.name,
                    prompt_id=subject[1],
                    prompt=request,
                    sample=samples[subject],
                    text=text,
                    thought=parts.thought,
                    answer=parts.answer,
                    closed=parts.closed,
                    finish="stop" if parts.closed else "length",
                    tokens=0,
                    category=_cell(row, category),
                    columns=other_columns(row, used),
                )
            )
            samples[subject] += 1
    return replies


def _unused(name: str, ids: set[str]) -> str:
    """Return an id, or with several rows or samples of one id, `id#2` and so on."""
    return name if name not in ids else next(each for n in count(2) if (each := f"{name}#{n}") not in ids)


def _cell(row: Row, column: str | None) -> str:
    return cell_text(cells.value(row, column)).strip() if column else ""


def _request(cell: Any) -> str:
    """Return the request in a cell: a text, or the last turn of the user in a conversation."""
    if isinstance(cell, list) and cell and all(map(is_turn, cell)):
        return _last_of_user(cell)
    return cells.texts(cell)[-1]


def _last_of_user(turns: Sequence[dict[str, Any]]) -> str:
    users = [turn for turn in turns if str(turn.get("role", turn.get("from", ""))).lower() in USERS]
    turn = (users or list(turns))[-1]
    return cells.texts(turn.get("content", turn.get("value", "")))[-1]
