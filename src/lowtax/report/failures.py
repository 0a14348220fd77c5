"""Arms that failed: a run leaves them out of its table, which has their seed and the reason."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lowtax.common.display import as_line

LONGEST = 500  # characters of a reason that are shown
MOST = 5  # arms of which the warnings give the reason; the table has all
FORM = (("arm", str), ("seed", int), ("reason", str))
Table = Mapping[str, Any]


def listed(table: Table) -> list[dict[str, Any]]:
    """Return the entries of a table's `failed` that have the form of one: `arm`, `seed` and `reason`."""
    rows = table.get("failed")
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in FORM)
    ]


def shown(table: Table) -> list[dict[str, Any]]:
    """Return these entries with texts of one line for people."""
    return [
        {"arm": as_line(row["arm"]), "seed": row["seed"], "reason": as_line(row["reason"])[:LONGEST]}
        for row in listed(table)
    ]


def of_studies(studies: Sequence[tuple[str, Table]]) -> list[dict[str, Any]]:
    """Return the entries of all studies, each a name and a table; of several, an arm begins with the name."""
    return [
        row | {"arm": f"{name}: {row['arm']}" if len(studies) > 1 else row["arm"]}
        for name, table in studies
        for row in shown(table)
    ]


def warnings(table: Table) -> Iterator[str]:
    """Yield a sentence for each of the first arms that failed, and one on the number of the others."""
    rows = shown(table)
    for row in rows[:MOST]:
        yield f"{row['arm']} with seed {row['seed']} failed, and is in no number: {row['reason']}"
    if len(rows) > MOST:
        yield f"{len(rows) - MOST:,} more arms failed: they are at the end of the table."
