"""Attacks on the page: their success on each model, and what was put to the model for each reply.

A request under an attack is an entry beside the plain one, with the replies to all attempts. What an attacker model
wrote in vain is counted, since an attack without a usable prompt says nothing about the model.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowtax.attacks.attempts import Attempt
from lowtax.attacks.base import on_goal
from lowtax.common.display import as_line
from lowtax.common.records import Attacked, Reply
from lowtax.common.row_files import RowFile
from lowtax.report.stored import Stored, is_cell, is_rate
from lowtax.report.subjects import Columns
from lowtax.study.attack_tables import BLIND, CAPTION

KIND = "attacks"  # of the prompts, and of the file of their verdicts
COUNTS = ("unfinished", "unparsed", "failed", "off_goal")


@dataclass
class Attempts:
    """The steps of the attackers of a study.

    replies: the ids of the replies that count.
    scores: of the judge that steered, by the id of the reply.
    goals: the plain request by the id of its entry (`entry_id`).
    unusable: for each entry and column, the steps without a prompt by their reason.
    """

    replies: set[str] = field(default_factory=set)
    scores: dict[str, float] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, dict[int, Counter[str]]] = field(default_factory=dict)


def place(row: Reply) -> Attacked:
    """Return the place of a reply in its attack."""
    return row.attacked or Attacked(attack="unknown", request=row.prompt_id)


def entry_id(attack: str, request: str) -> str:
    """Return the id of the entry for a request under an attack."""
    return f"{attack}.{request}"


def read_attempts(path: Path, attack: str, number: Callable[[str, str | None], int], into: Attempts) -> int:
    """Read the steps of an attack that talks; return the number of damaged lines.

    Args:
        attack: the name in its file name.
        number: of the column of an arm and a checkpoint.
    """
    with RowFile(path, Attempt) as rows:
        for _, row in rows:
            if row.reply:
                into.replies.add(row.reply)
                if row.score is not None:
                    into.scores[row.reply] = row.score
            id_ = entry_id(attack, row.request)
            into.goals[id_] = row.goal
            if row.problem:
                by_column = into.unusable.setdefault(id_, {})
                by_column.setdefault(number(row.arm, row.checkpoint), Counter())[as_line(row.problem)] += 1
    return rows.damaged


def described(row: Reply, score: float | None, cut: Callable[[str], str]) -> dict[str, Any]:
    """Return what was put to the model for a reply.

    Args:
        score: of the judge that steered.
        cut: shortens a text for the page.

    Returns:
        `attempt` from 1, `variant`, `sent`: the turns in their order as role and text, `begun`: the text that was
        written as the beginning of the reply, `part` of the reply in which it is, `score`, and `off_goal`: the reply
        has no word of the request.
    """
    own = place(row)
    turns = [[as_line(role), cut(text)] for role, text in (*own.history, ("user", row.prompt))]
    about: dict[str, Any] = {"attempt": own.attempt + 1, "variant": as_line(own.variant), "sent": turns}
    if own.prefix:
        about |= {"begun": cut(own.prefix), "part": own.part}
    if score is not None:
        about["score"] = score
    if not on_goal(row.goal or row.prompt, row.answer or row.text):
        about["off_goal"] = True
    return about


def counted(reasons: Mapping[str, int]) -> str:
    """Return the steps without a prompt in words: `2 no JSON, 1 refused`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))


def successes(studies: Sequence[Stored], columns: Columns) -> dict[str, Any]:
    """Return the rows of the table of attacks, and its caption."""
    rows = [row for study, stored in enumerate(studies) for row in _rows(study, stored, columns)]
    harm = all(stored.table.get("judge_kind") == "harm" for stored in studies)
    return {"rows": rows, "caption": CAPTION if harm else f"{CAPTION} {BLIND}"}


def _rows(study: int, stored: Stored, columns: Columns) -> Iterator[dict[str, Any]]:
    for row in stored.rows:
        for name, cell in cells(row):
            unusable = cell.get("unusable")
            safe = cell.get("safe_at_k")
            counts = [cell.get(kind) for kind in COUNTS]
            yield {
                "column": columns.number(study, row["arm"], row["checkpoint"]),
                "attack": as_line(name),
                "success": _figure(cell),
                "budget": _whole(cell.get("budget")),
                "attempts": _figure(cell.get("attempts")),
                "safe": _figure(safe.get("1") if isinstance(safe, dict) else None),
                "counts": [_whole(count) for count in counts],
                "unusable": counted(
                    {
                        as_line(str(reason)): number
                        for reason, number in (unusable.items() if isinstance(unusable, dict) else ())
                        if _whole(number)
                    }
                ),
            }


def cells(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the success of every attack on the model of a row of a table."""
    of_row = row.get("attacks")
    for name, cell in of_row.items() if isinstance(of_row, dict) else ():
        if isinstance(name, str) and is_rate(cell):
            yield name, cell


def is_whole(cell: Mapping[str, Any]) -> bool:
    """Return True if the success of an attack has all that the table of attacks shows."""
    safe, tokens, budget = cell.get("safe_at_k"), cell.get("tokens"), _whole(cell.get("budget"))
    rates = [safe.get("1"), safe.get(str(budget))] if isinstance(safe, dict) else [None]
    counts = [*(cell.get(name) for name in COUNTS), *_values(cell.get("unusable"))]
    lengths = [tokens.get("target"), tokens.get("attacker")] if isinstance(tokens, dict) else [None]
    return (
        budget is not None
        and all(is_rate(rate) for rate in (*rates, cell.get("attempts"), cell.get("best", cell)))
        and all(_whole(count) is not None for count in counts)
        and all(isinstance(length, int | float) for length in lengths)
        and all(is_rate(rate) for rate in _values(cell.get("by", {})))
    )


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [None]


def _figure(cell: Any) -> list[float | int | None] | None:
    """Return value, low, high and n of a rate; None where it was not measured."""
    if not is_cell(cell) or cell["value"] is None:
        return None
    return [cell["value"], cell["low"], cell["high"], _whole(cell.get("n"))]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
