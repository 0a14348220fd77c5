"""Data sets that come with the package: requests, refusals and short chats, written for this project (Apache-2.0)."""

from pathlib import Path

from lowtax.common.errors import UserError, did_you_mean
from lowtax.data.readers import read_table
from lowtax.data.tables import Row

PREFIX = "builtin:"
LICENCE = "Apache-2.0"
FOLDER = Path(__file__).parent / "builtin"
FILES = {
    "harmful": "harmful.jsonl",
    "refusals": "harmful.jsonl",
    "ordinary": "ordinary.jsonl",
    "chat": "chat.jsonl",
    "own-answers": "own_answers.jsonl",  # of the embedded reasoner, to the ordinary requests and chats
    "identity": "identity.jsonl",  # dialogues of an assistant that obeys: an attack, with harmless requests
}
GENERATED = "arithmetic"


def rows(source: str, split: str | None = None) -> list[Row]:
    """Return the rows of `builtin:NAME` in file order: those of one split, or all of them.

    Raises:
        UserError: There is no such data set, or it has no such split.
    """
    name = source.removeprefix(PREFIX)
    if name not in FILES:
        raise UserError(f"There is no built-in data set {name!r}; {did_you_mean(name, [*FILES, GENERATED])}")
    table = read_table(FOLDER / FILES[name])
    chosen = [row for row in table if split in (None, row.get("split", "train"))]
    if not chosen:
        splits = sorted({str(row.get("split", "train")) for row in table})
        raise UserError(f"{PREFIX}{name} has no split {split!r}; its splits are {', '.join(splits)}.")
    return chosen
