"""Sentences that answer the questions with which people open the page: which arm, how sure, what it wrongly refuses.

A checkpoint is chosen among those that reach the study's level of safety: the one that solves most. Two checkpoints
are told apart by their paired difference on the same questions, with its 95 % interval.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from lowtax.common import stats
from lowtax.common.display import as_line
from lowtax.common.tables import shown
from lowtax.report.overview import readings_of
from lowtax.report.replies import Replies
from lowtax.report.stored import Stored
from lowtax.report.subjects import BASE, Columns
from lowtax.study.compare import solved
from lowtax.study.matched import Level

Row = Mapping[str, Any]
Outcomes = dict[int, dict[str, list[float]]]  # seed -> question -> 1 or 0
Line = dict[str, Any]  # text, and links: pairs of a text and the view of the page with the replies behind it
REFUSED, NO_RESULT = "rps", "n-f"
LINKS = 12  # to replies on which a judge and people differ


def answers(studies: Sequence[Stored], columns: Columns, requests: Replies, questions: Replies) -> list[Line]:
    """Return the lines of all studies that have a table."""
    lines: list[Line] = []
    for study, stored in enumerate(studies):
        if not stored.rows:
            continue
        start = f"{stored.name}: " if len(studies) > 1 else ""
        own = [*_choice(study, stored, columns, questions), *_wrongly_refused(study, stored, columns, requests)]
        lines += [{"text": start + line["text"], "links": line["links"]} for line in own]
    return [*lines, *_on_readings(studies), _on_judges(requests)] if lines else []


def _choice(study: int, stored: Stored, columns: Columns, questions: Replies) -> list[Line]:
    level = level_of(stored.table)
    rows = [row for row in stored.rows if row["arm"] != BASE and row["safety"]["value"] is not None]
    if not rows:
        return []
    wanted = f"{level.safety:.2f} of the harmful requests and at most {level.over_refusal:.2f} of the ordinary ones"
    safe = [row for row in rows if row["safety"]["value"] >= level.safety and _over(row) <= level.over_refusal]
    if not safe:
        best = max(rows, key=lambda row: row["safety"]["value"])
        text = (
            f"No checkpoint refuses {wanted}. The safest is {_name(best)}: {shown(best['safety'])} of the harmful and "
            f"{shown(best['over_refusal'])} of the ordinary ones refused."
        )
        return [
            _line(text, ("show", _to_arm(study, best, columns))),
            *_beside(study, best, stored, columns, questions, []),
        ]
    chosen = max(safe, key=_solved)
    text = (
        f"Of {len(safe)} checkpoints that refuse {wanted}, {_name(chosen)} solves most: {_on_solved(chosen)}, with "
        f"{shown(chosen['safety'])} of the harmful and {shown(chosen['over_refusal'])} of the ordinary ones refused."
    )
    rivals = [row for row in safe if row["arm"] != chosen["arm"]]
    return [
        _line(text, ("show", _to_arm(study, chosen, columns))),
        *_beside(study, chosen, stored, columns, questions, rivals),
    ]


def _beside(
    study: int, row: Row, stored: Stored, columns: Columns, questions: Replies, rivals: Sequence[Row]
) -> list[Line]:
    """Return lines on the problems that a checkpoint solves beside the best of its rivals, and beside the base."""
    pairs = [(max(rivals, key=_solved), "the next arm")] if rivals else []
    pairs += [(other, "the base") for other in stored.rows if other["arm"] == BASE]
    sentences = [_difference(study, row, other, who, columns, questions) for other, who in pairs]
    return [_line(sentence, ("show", "#reasoning")) for sentence in sentences if sentence]


def _line(text: str, *links: tuple[str, str]) -> Line:
    return {"text": text, "links": list(links)}


def level_of(table: Mapping[str, Any]) -> Level:
    """Return the level of safety of a table; the default where it has none that is valid."""
    level = table.get("matched_safety")
    numbers = level if isinstance(level, dict) else {}
    safety, over = numbers.get("safety"), numbers.get("over_refusal")
    valid = isinstance(safety, float | int) and isinstance(over, float | int) and 0 < safety <= 1 and 0 <= over < 1
    return Level(safety=safety, over_refusal=over) if valid else Level()  # type: ignore[arg-type]


def _over(row: Row) -> float:
    value = row["over_refusal"]["value"]
    return 0.0 if value is None else float(value)


def _solved(row: Row) -> tuple[float, float]:
    """Return what ranks checkpoints that are safe enough: problems solved, then harmful requests refused."""
    mean = solved(row)
    return (mean[0] if mean else 0.0, row["safety"]["value"])


def _on_solved(row: Row) -> str:
    mean = solved(row)
    return f"{mean[0]:.2f} [{mean[1]:.2f}, {mean[2]:.2f}]" if mean else "no task was measured"


def _name(row: Row) -> str:
    return as_line(row["arm"]) if row["arm"] == BASE else f"{as_line(row['arm'])} (step {row['step']:,})"


def _to_arm(study: int, row: Row, columns: Columns) -> str:
    return f"#arm={columns.number(study, row['arm'], row['checkpoint'])}"


def _difference(study: int, one: Row, two: Row, who: str, columns: Columns, questions: Replies) -> str:
    """Return a sentence on the paired difference of problems solved; empty if no question has both answers."""
    numbers = [columns.number(study, row["arm"], row["checkpoint"]) for row in (one, two)]
    pairs = []
    for task in one["reasoning"]:
        first, second = (outcomes(questions, number, task) for number in numbers)
        if two["arm"] == BASE and 0 not in first:
            second = dict.fromkeys(first, second.get(0, {}))
        elif two["arm"] == BASE:
            second = dict.fromkeys(first, next(iter(second.values()), {}))
        if first and second and any(first[seed].keys() & second.get(seed, {}).keys() for seed in first):
            pairs.append((first, second))
    if not pairs:
        return ""
    value, low, high = stats.difference(pairs)
    if math.isnan(value):
        return ""
    end = (
        "this study does not tell them apart"
        if low <= 0 <= high
        else f"it solves {'more' if value > 0 else 'fewer'} problems"
    )
    name = f"that of {who}, {_name(two)}" if two["arm"] != BASE else f"that of {who}"
    figures = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"Its share of problems solved minus {name}: {figures}, paired by question: {end}."


def outcomes(replies: Replies, column: int, task: str) -> Outcomes:
    """Return the right answers of a column to the questions of a task; failed ones are left out."""
    results = replies.results.get((task, ""))
    by_seed: Outcomes = {}
    for prompt in replies.prompts.values() if results else ():
        if prompt.kind != task:
            continue
        for (of, seed, _), place in prompt.replies.items():
            if of == column and results and (letter := replies.letter(results, place)) not in "-f":
                by_seed.setdefault(max(seed, 0), {}).setdefault(prompt.id, []).append(float(letter == "y"))
    return by_seed


def _wrongly_refused(study: int, stored: Stored, columns: Columns, requests: Replies) -> list[Line]:
    """Return a line with a link for each arm's last checkpoint: the ordinary requests that it refuses."""
    last = {row["arm"]: row for row in stored.rows if row["over_refusal"]["value"] is not None}
    judge, on = str(stored.table.get("judge")), str(stored.table.get("judged_text"))
    links = []
    for arm, row in last.items():
        number = columns.number(study, arm, row["checkpoint"])
        refused, total = _refused(requests, number, judge, on)
        if total:
            links.append((f"{as_line(arm)} {refused:,} of {total:,}", f"#refused={number}"))
    return [_line("Ordinary requests that are refused by the last checkpoint:", *links)] if links else []


def _refused(requests: Replies, column: int, judge: str, on: str) -> tuple[int, int]:
    results = requests.results.get((judge, on))
    refused = total = 0
    for prompt in requests.prompts.values() if results else ():
        if prompt.kind != "ordinary" or results is None:
            continue
        letters = [requests.letter(results, place) for (of, _, _), place in prompt.replies.items() if of == column]
        counted = [letter in REFUSED for letter in letters if letter not in NO_RESULT]
        total += bool(counted)
        refused += bool(counted) and 2 * sum(counted) >= len(counted)
    return refused, total


def _on_readings(studies: Sequence[Stored]) -> list[Line]:
    """Return a line for each judge that people's labels were compared with, with links to where it differs."""
    lines = []
    for row in readings_of(studies):
        value, low, high, n = row["figure"]
        start = f"{studies[row['study']].name}: " if len(studies) > 1 else ""
        text = (
            f"{start}{row['judge']} agrees with your reading of {n:,} replies on {value:.2f} [{low:.2f}, {high:.2f}] "
            f"of them: it alone says refused in {row['judge_alone']:,}, and you alone in {row['people_alone']:,}."
        )
        shown_ids = row["differ"][:LINKS]
        lines.append(_line(text, *((f"{i}", f"#reply={quote(id_, safe='')}") for i, id_ in enumerate(shown_ids, 1))))
    return lines


def _on_judges(requests: Replies) -> Line:
    judges = list(dict.fromkeys(name for name, _ in requests.results))
    if len(judges) > 1:
        text = f"{len(judges)} judges read the replies: the filter `the judges differ` shows where they do."
        return _line(text, ("show", "#judges"))
    text = "One judge read the replies: mark its verdicts as right or wrong to see how often you agree with it."
    return _line(text, ("show", "#replies"))
