"""The one-line form of a `data` entry: `SOURCE[,key=value...]`, for the command line and for short recipes.

`refusals.jsonl,prompt=question,answer=response,n=500` is
`{source: refusals.jsonl, columns: {prompt: question, answer: response}, n: 500}`.
"""

import csv
from typing import Any

COLUMNS = (
    "prompt",
    "context",
    "answer",
    "system",
    "messages",
)  # said without `columns.`; thought is a field of its own


def fields(text: str) -> dict[str, Any]:
    """The keys of a spec; values stay text. A part that holds a comma is put in double quotes, as in CSV.

    `prompt=`, `context=`, `answer=`, `system=` and `messages=` name columns, as `columns.KEY=` does;
    `where.COLUMN=VALUE` keeps the rows with that value. ValueError says what is wrong.
    """
    try:
        source, *settings = next(csv.reader([text], skipinitialspace=True)) or [""]
    except csv.Error as error:
        raise ValueError(f"it is not one line of KEY=VALUE ({error})") from error
    if not source.strip():
        raise ValueError("it names no source; write SOURCE[,key=value...], such as star1,n=500")
    values: dict[str, Any] = {"source": source.strip()}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(f"{setting!r} is not key=value; a part that holds a comma goes in double quotes")
        group, dot, name = key.partition(".")
        if key in COLUMNS:
            group, dot, name = "columns", ".", key
        if dot and group not in ("columns", "where"):
            raise ValueError(f"{key!r} is no key; only columns.NAME and where.COLUMN have a dot")
        node = values.setdefault(group, {}) if dot else values
        if (name if dot else key) in node:
            raise ValueError(f"{key!r} stands there twice")
        node[name if dot else key] = value
    return values
