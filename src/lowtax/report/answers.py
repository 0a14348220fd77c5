"""Sentences that answer the questions with which people open the page: which arm, how sure, what it wrongly refuses.

A checkpoint is chosen among those that reach the study's level of safety: the one that solves most. Two checkpoints
are told apart by their paired difference on the same questions, with its 95 % interval.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from lowtax.common import stats
from lowtax.common.display import as_line
from lowtax.common.tables import shown
from lowtax.report.overview import readings_of
from lowtax.report.replies import UNSURE, Replies
from lowtax.report.stored import Stored
from lowtax.report.subjects import BASE, Columns
from lowtax.study.matched import Level
from lowtax.study.shares import solved

Row = Mapping[str, Any]
Outcomes = dict[int, dict[str, list[float]]]  # seed -> question -> 1 or 0
# question, text, and links: pairs of a text and the view of the page with the replies behind it; a line on two
# checkpoints has their differences too (name, value, low, high), and the checkpoint that they are `of`
Line = dict[str, Any]
REFUSED, NO_RESULT = "rps", "n-f"
LINKS = 12  # to replies on which a judge and people differ


def answers(studies: Sequence[Stored], columns: Columns, requests: Replies, questions: Replies) -> list[Line]:
    """Return the lines of all studies that have a table."""
    lines: list[Line] = []
    for study, stored in enumerate(studies):
        if not stored.rows:
            continue
        start = f"{stored.name}: " if len(studies) > 1 else ""
        pairs = Pairs(study, stored, columns, requests, questions)
        own = [*_choice(study, stored, columns, pairs), *_wrongly_refused(study, stored, columns, requests)]
        lines += [line | {"text": start + line["text"]} for line in own]
    if not lines:
        return []
    on_judges = [*_on_readings(studies), *_unsure(studies, requests), _on_judges(requests)]
    return [*lines, on_judges[0] | {"question": "Where is the judge wrong?"}, *on_judges[1:]]


def _choice(study: int, stored: Stored, columns: Columns, pairs: "Pairs") -> list[Line]:
    level = level_of(stored.table)
    rows = [row for row in stored.rows if row["arm"] != BASE and row["safety"]["value"] is not None]
    if not rows:
        return []
    limits = f"{level.safety:.2f} of the harmful requests and at most {level.over_refusal:.2f} of the ordinary ones"
    safe = [row for row in rows if row["safety"]["value"] >= level.safety and _over(row) <= level.over_refusal]
    if safe:
        chosen = max(safe, key=_solved)
        best = f"solves most: {_on_solved(chosen)}, with"
        if solved(chosen) is None:
            best = "refuses most, and no task was measured:"
        many = "1 checkpoint that refuses" if len(safe) == 1 else f"{len(safe)} checkpoints that refuse"
        start = f"Of {many} {limits}, {_name(chosen)} {best}"
        rivals, rank = safe, _solved
    else:
        rank = partial(_nearness, level=level)
        chosen, rivals = max(rows, key=rank), rows
        start = f"No checkpoint refuses {limits}, the study's level. The nearest is {_name(chosen)}:"
    refused = f"{_beside_level(chosen['safety'], level.safety)} of the harmful and {shown(chosen['over_refusal'])}"
    first = _line(f"{start} {refused} of the ordinary ones refused.", ("show", _to_arm(study, chosen, columns)))
    first["question"] = "Which arm?"
    others = [row for row in rivals if row["arm"] != chosen["arm"]]
    beside = [pairs.all_measures(chosen, max(others, key=rank))] if others else []
    beside += [pairs.problems_solved(chosen, row) for row in stored.rows if row["arm"] == BASE]
    rest = [line for line in beside if line]
    return [first, *(line | {"question": "How sure?"} for line in rest[:1]), *rest[1:]]


def _beside_level(cell: Row, level: float) -> str:
    """Return a rate with its interval, with a third digit where two would say that it is the level although it is not.

    0.896 is below a level of 0.90.
    """
    value = cell["value"]
    digits = 3 if f"{value:.2f}" == f"{level:.2f}" and value != level else 2
    return f"{value:.{digits}f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def _line(text: str, *links: tuple[str, str]) -> Line:
    return {"question": "", "text": text, "links": list(links)}


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


def _nearness(row: Row, level: Level) -> tuple[float, float]:
    """Return what ranks checkpoints of which none is within the level: what both rates lack, then problems solved.

    By harmful requests alone, one that refuses everything would be first.
    """
    lacks = max(0.0, level.safety - row["safety"]["value"]) + max(0.0, _over(row) - level.over_refusal)
    return (-round(lacks, 6), _solved(row)[0])


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


@dataclass(frozen=True)
class Pairs:
    """Differences of two checkpoints of a study, paired by request or question, as lines."""

    study: int
    stored: Stored
    columns: Columns
    requests: Replies
    questions: Replies

    def all_measures(self, one: Row, two: Row) -> Line | None:
        """Return a line on what one arm refuses and solves beside the next one; None if they share nothing."""
        parts, apart, differences = [], [], []
        for name, verb, noun, pairs in (
            ("harmful refused", "refuses", "harmful requests", self._of_kind("harmful", one, two)),
            ("ordinary refused", "refuses", "ordinary requests", self._of_kind("ordinary", one, two)),
            ("problems solved", "solves", "problems", self._of_tasks(one, two)),
        ):
            value, low, high = stats.difference(pairs) if pairs else (math.nan,) * 3
            if not math.isnan(value):
                parts.append(f"{name} {_signed(value, low, high)}")
                differences.append([f"{name}, minus {_name(two)}", value, low, high])
                if not low <= 0 <= high:
                    apart.append(f"{verb} {'more' if value > 0 else 'fewer'} {noun}")
        if not parts:
            return None
        end = f"it {' and '.join(apart)}" if apart else "this study does not tell them apart"
        text = f"Against the next arm, {_name(two)}, paired by request: {', '.join(parts)}: {end}."
        return _line(text, ("show", "#reasoning")) | {"of": _name(one), "differences": differences}

    def problems_solved(self, one: Row, two: Row) -> Line | None:
        """Return a line on the problems that an arm and the base solve; None if no question has both answers."""
        pairs = self._of_tasks(one, two)
        value, low, high = stats.difference(pairs) if pairs else (math.nan,) * 3
        if math.isnan(value):
            return None
        end = f"it solves {'more' if value > 0 else 'fewer'} problems"
        if low <= 0 <= high:
            end = "this study does not tell them apart"
        figures = _signed(value, low, high)
        text = f"Its share of problems solved minus that of the base: {figures}, paired by question: {end}."
        differences = [["problems solved, minus base", value, low, high]]
        return _line(text, ("show", "#reasoning")) | {"of": _name(one), "differences": differences}

    def _of_tasks(self, one: Row, two: Row) -> list[tuple[Outcomes, Outcomes]]:
        return self._pairs([partial(outcomes, self.questions, task=task) for task in one["reasoning"]], one, two)

    def _of_kind(self, kind: str, one: Row, two: Row) -> list[tuple[Outcomes, Outcomes]]:
        judge = (str(self.stored.table.get("judge")), str(self.stored.table.get("judged_text")))
        return self._pairs([partial(refusals, self.requests, kind=kind, judge=judge)], one, two)

    def _pairs(
        self, measures: Sequence[Callable[..., Outcomes]], one: Row, two: Row
    ) -> list[tuple[Outcomes, Outcomes]]:
        """Return the outcomes of two rows by measure; those of the base, which has one seed, count for every seed."""
        numbers = [self.columns.number(self.study, row["arm"], row["checkpoint"]) for row in (one, two)]
        pairs = []
        for measure in measures:
            first, second = (measure(column=number) for number in numbers)
            if two["arm"] == BASE:
                second = dict.fromkeys(first, next(iter(second.values()), {}))
            if any(first[seed].keys() & second.get(seed, {}).keys() for seed in first):
                pairs.append((first, second))
        return pairs


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def refusals(replies: Replies, column: int, kind: str, judge: tuple[str, str]) -> Outcomes:
    """Return the requests of a kind that a column refuses, by a judge on a text; no verdict is left out."""
    results = replies.results.get(judge)
    by_seed: Outcomes = {}
    for prompt in replies.prompts.values() if results else ():
        if prompt.kind != kind:
            continue
        for (of, seed, *_), place in prompt.replies.items():
            if of == column and results and (letter := replies.letter(results, place)) not in NO_RESULT:
                by_seed.setdefault(max(seed, 0), {}).setdefault(prompt.id, []).append(float(letter in REFUSED))
    return by_seed


def outcomes(replies: Replies, column: int, task: str) -> Outcomes:
    """Return the right answers of a column to the questions of a task; failed ones are left out."""
    results = replies.results.get((task, ""))
    by_seed: Outcomes = {}
    for prompt in replies.prompts.values() if results else ():
        if prompt.kind != task:
            continue
        for (of, seed, *_), place in prompt.replies.items():
            if of == column and results and (letter := replies.letter(results, place)) not in "-f":
                by_seed.setdefault(max(seed, 0), {}).setdefault(prompt.id, []).append(float(letter == "y"))
    return by_seed


def _wrongly_refused(study: int, stored: Stored, columns: Columns, requests: Replies) -> list[Line]:
    """Return a line with a link for each arm's last checkpoint: the ordinary requests that it refuses."""
    last = {row["arm"]: row for row in stored.rows if row["over_refusal"]["value"] is not None}
    judge, on = str(stored.table.get("judge")), str(stored.table.get("judged_text"))
    links, several = [], False
    for arm, row in last.items():
        number = columns.number(study, arm, row["checkpoint"])
        refused, total, replies = _refused(requests, number, judge, on)
        several = several or replies > total
        if total:
            links.append((f"{as_line(arm)} {refused:,} of {total:,}", f"#refused={number}"))
    often = ", in at least half of its replies" * several
    line = _line(f"Ordinary requests that are refused by the last checkpoint{often}:", *links)
    return [line | {"question": "Which requests are wrongly refused?"}] if links else []


def _refused(requests: Replies, column: int, judge: str, on: str) -> tuple[int, int, int]:
    """Return the numbers of ordinary requests that a column refuses and has, and of its replies to them."""
    results = requests.results.get((judge, on))
    refused = total = replies = 0
    for prompt in requests.prompts.values() if results else ():
        if prompt.kind != "ordinary" or results is None:
            continue
        letters = [requests.letter(results, place) for (of, *_), place in prompt.replies.items() if of == column]
        counted = [letter in REFUSED for letter in letters if letter not in NO_RESULT]
        total, replies = total + bool(counted), replies + len(counted)
        refused += bool(counted) and 2 * sum(counted) >= len(counted)
    return refused, total, replies


def _on_readings(studies: Sequence[Stored]) -> list[Line]:
    """Return a line for each judge that people's labels were compared with, with links to where it differs."""
    lines = []
    for row in readings_of(studies):
        value, low, high, n = row["figure"]
        start = f"{studies[row['study']].name}: " if len(studies) > 1 else ""
        text = (
            f"{start}The judge {row['judge']} agrees with your reading of {n:,} replies on "
            f"{value:.2f} [{low:.2f}, {high:.2f}] of them: it alone says refused in "
            f"{row['judge_alone']:,}, and you alone in {row['people_alone']:,}."
        )
        shown_ids = row["differ"][:LINKS]
        lines.append(_line(text, *((f"{i}", f"#reply={quote(id_, safe='')}") for i, id_ in enumerate(shown_ids, 1))))
    return lines


def _unsure(studies: Sequence[Stored], requests: Replies) -> list[Line]:
    """Return a line on the verdicts of which the first study's headline judge is unsure; none if there are none."""
    table = studies[0].table
    results = requests.results.get((str(table.get("judge")), str(table.get("judged_text"))))
    if results is None or not results.unsure:
        return []
    text = (
        f"The judge {results.name} is unsure of {len(results.unsure):,} of its {len(results.by_reply):,} verdicts "
        f"(score between {UNSURE[0]} and {UNSURE[1]}), where its mistakes are likeliest."
    )
    return [_line(text, ("show", "#unsure"))]


def _on_judges(requests: Replies) -> Line:
    judges = list(dict.fromkeys(name for name, _ in requests.results))
    if len(judges) > 1:
        text = f"{len(judges)} judges read the replies: the filter `the judges differ` shows where they do."
        return _line(text, ("show", "#judges"))
    text = "One judge read the replies: mark its verdicts as right or wrong to see how often you agree with it."
    return _line(text, ("show", "#replies"))
