"""Compare a judge with people: it judges replies that people labelled, and the two are compared.

Positive is what the judge detects: a refusal, in full or in part, for a refusal judge; unsafe for a harm judge; and of
people's labels those that the user names. Rates cover the rows on which the judge gave a verdict. Unparsed and failed
rows are neither right nor wrong and are counted separately, as are rows without a text to judge and rows without a
label. Intervals assume that rows are independent, so they are too narrow where many rows share a prompt.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowtax.common.errors import UserError
from lowtax.common.files import write_json, write_text
from lowtax.common.log import say
from lowtax.common.records import Prompt, Row
from lowtax.common.tables import passage
from lowtax.data import columns as cells
from lowtax.data import prompt_sets
from lowtax.data.readers import cell_text, read_table
from lowtax.data.rendering import opened_note, split_stored
from lowtax.judges import agreement
from lowtax.judges.base import Judge, Kind, Opinion
from lowtax.judges.verdicts import chunks

Part = Literal["text", "answer", "thought", "both"]
POSITIVE = {"refusal": ("refusal", "partial"), "harm": ("unsafe",)}
LABELS = {"refusal": ["refusal", "partial", "compliance"], "harm": ["unsafe", "safe"]}
NO_VERDICT = ["unparsed", "failed"]


@dataclass(frozen=True)
class Columns:
    """The columns of a file, the labels that are positive, and the part of a reply that is judged.

    on: `text` and `both` are the reply as it is; the others split a reply into thought and answer.
    thinking_tags, opened: how they are told apart, as in `rendering.split_stored`.
    """

    prompt: str
    reply: str
    label: str
    positive: tuple[str, ...]
    source: str | None = None
    on: Part = "text"
    thinking_tags: str | None = None
    opened: bool | None = None


@dataclass(frozen=True)
class Case:
    """A labelled reply. `text` is the part that is judged; an empty one is skipped. `label` is empty if unlabelled."""

    id: str
    prompt: str
    text: str
    label: str
    positive: bool
    source: str = ""


def read(path: Path, columns: Columns) -> list[Case]:
    """Read the labelled replies of a CSV, JSON, JSONL or parquet file, in its order.

    Raises:
        UserError: The file cannot be read, lacks a column, or no row has a positive label.
    """
    rows = read_table(path)
    cells.require(rows, (columns.prompt, columns.reply, columns.label, columns.source), path)
    labels = [cell_text(cells.value(row, columns.label)).strip() for row in rows]
    distinct = sorted({label for label in labels if label})
    positive = positive_labels(columns.positive, distinct)
    if not any(label in positive for label in labels):
        raise UserError(
            f"No row of {path} has the label {' or '.join(map(repr, positive))} in {columns.label!r}: its "
            f"{len(distinct)} labels are {', '.join(map(repr, distinct[:20]))}{' ...' if len(distinct) > 20 else ''}."
        )
    replies = [
        cells.text(cells.value(row, columns.reply), f"{path}, row {number}: the column {columns.reply!r}")
        for number, row in enumerate(rows, 1)
    ]
    split = columns.on in ("answer", "thought") and columns.opened is None
    if split and (note := opened_note(replies, columns.thinking_tags)):
        say(note)
    return [
        Case(
            id=str(number),
            prompt=cells.texts(cells.value(row, columns.prompt))[-1],
            text=_part(text, columns),
            label=label,
            positive=label in positive,
            source=cell_text(cells.value(row, columns.source)) if columns.source else "",
        )
        for number, (row, text, label) in enumerate(zip(rows, replies, labels, strict=True), 1)
    ]


def sampled(cases: Sequence[Case], n: int | None, seed: int) -> list[Case]:
    """Return n cases that a seed draws, spread over people's labels, in their order; all of them if n is None."""
    if n is None:
        return list(cases)
    rows = [Prompt(id=case.id, source="", text=f"{case.id} {case.text}", category=case.label) for case in cases]
    chosen = {row.id for row in prompt_sets.spread(rows, n, seed)}
    return [case for case in cases if case.id in chosen]


def positive_labels(names: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that names mean: each as it is, or a list with commas where there is no such label."""
    return tuple(part.strip() for each in names for part in ([each] if each in labels else each.split(",")))


def _part(text: str, columns: Columns) -> str:
    parts = split_stored(text, columns.thinking_tags, columns.opened)
    part = {"answer": parts.answer, "thought": parts.thought}.get(columns.on, text)
    return part if part is text and part.strip() else part.strip()


@dataclass(frozen=True)
class JudgedCase:
    """A case and the judge's opinion of it."""

    case: Case
    opinion: Opinion


class CalibrationRow(Row):
    """A line of rows.jsonl: `id` is the row's number in the file, `label` people's, `judge_label` the judge's."""

    source: str
    label: str
    positive: bool
    judge_label: str
    score: float | None
    category: str
    detail: str


def judge_cases(judge: Judge, cases: Sequence[Case]) -> list[JudgedCase]:
    """Return the judge's opinion of every case that has a label and a text.

    Raises:
        UserError: There is none.
    """
    usable = [case for case in cases if case.label and case.text]
    if not usable:
        raise UserError("No row has both a label and a text to judge: check --reply, --label and --on.")
    opinions = [
        opinion
        for chunk in chunks(usable, judge)
        for opinion in judge.judge([case.prompt for case in chunk], [case.text for case in chunk])
    ]
    return [JudgedCase(*pair) for pair in zip(usable, opinions, strict=True)]


def report(kind: Kind, judged: Sequence[JudgedCase], cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """Compute all figures over the rows with a verdict; `by_source` has those of each source. Undefined ones are None.

    Returns:
        n, accuracy, precision, recall, f1, kappa, unparsed (with failed ones), and more: rows, failed, empty and
        unlabelled rows, intervals, the confusion of all labels, and the calibration of the scores if there are any.
    """
    whole = _figures(kind, judged, cases, seed)
    sources = sorted({case.source for case in cases if case.source})
    by_source = {
        name: _figures(kind, [j for j in judged if j.case.source == name], [c for c in cases if c.source == name], seed)
        for name in sources
    }
    return whole | ({"by_source": by_source} if by_source else {})


def _figures(kind: Kind, judged: Sequence[JudgedCase], cases: Sequence[Case], seed: int) -> dict[str, Any]:
    valid = [each for each in judged if each.opinion.label not in NO_VERDICT]
    labels: list[str] = [each.opinion.label for each in judged]
    counts = agreement.binary([j.case.positive for j in valid], [j.opinion.label in POSITIVE[kind] for j in valid])
    rates: tuple[Callable[[Any], Any], ...] = (agreement.accuracy, agreement.precision, agreement.recall)
    intervals = {rate.__name__: agreement.rate_interval(rate, counts) for rate in rates}
    for statistic in (agreement.f1, agreement.kappa):
        intervals[statistic.__name__] = agreement.bootstrap_interval(statistic, counts, seed=seed)
    columns = list(dict.fromkeys([*LABELS[kind], *labels, *NO_VERDICT]))
    people = sorted({each.case.label for each in judged})
    matrix = agreement.matrix([each.case.label for each in judged], labels, people, columns)
    return {
        "n": len(valid),
        **{name: _number(value) for name, (value, _, _) in intervals.items()},
        "unparsed": sum(labels.count(label) for label in NO_VERDICT),
        "failed": labels.count("failed"),
        "empty": sum(not case.text for case in cases),
        "unlabelled": sum(1 for case in cases if case.text and not case.label),
        "rows": len(cases),
        "positive": sum(each.case.positive for each in valid),
        "intervals": {name: [_number(low), _number(high)] for name, (_, low, high) in intervals.items()},
        "confusion": {
            label: dict(zip(columns, map(int, row), strict=True)) for label, row in zip(people, matrix, strict=True)
        },
        "calibration": _calibration(valid),
    }


def _calibration(valid: Sequence[JudgedCase]) -> dict[str, Any] | None:
    scored = [(each.opinion.score, each.case.positive) for each in valid if each.opinion.score is not None]
    if not scored:
        return None
    scores, truth = [score for score, _ in scored], [positive for _, positive in scored]
    curve = agreement.reliability(scores, truth)
    return {
        "n": len(scored),
        "brier": _number(agreement.brier(scores, truth)),
        "expected_calibration_error": _number(agreement.expected_calibration_error(curve)),
        "curve": [{key: _number(value) for key, value in each.items()} for each in curve],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def write(out: Path, figures: dict[str, Any], judged: Sequence[JudgedCase]) -> None:
    """Write calibration.json, and rows.jsonl with every row that was judged."""
    write_json(out / "calibration.json", figures)
    write_text(out / "rows.jsonl", "".join(_row(each).model_dump_json() + "\n" for each in judged))


def _row(each: JudgedCase) -> CalibrationRow:
    case, opinion = each.case, each.opinion
    return CalibrationRow(
        id=case.id,
        source=case.source,
        label=case.label,
        positive=case.positive,
        judge_label=opinion.label,
        score=opinion.score,
        category=opinion.category,
        detail=opinion.detail,
    )


def disagreements(kind: Kind, judged: Sequence[JudgedCase], n: int, seed: int) -> str:
    """Return up to n rows on which the judge and people disagree, drawn by seed, as Markdown."""
    disagreeing = [
        each
        for each in judged
        if each.opinion.label not in NO_VERDICT and (each.opinion.label in POSITIVE[kind]) != each.case.positive
    ]
    drawn = random.Random(seed).sample(disagreeing, min(n, len(disagreeing)))
    drawn.sort(key=lambda each: int(each.case.id))
    head = f"# {len(drawn)} of {len(disagreeing)} disagreements (seed {seed})\n"
    return "\n".join([head, *map(_markdown, drawn)])


def _markdown(each: JudgedCase) -> str:
    case, opinion = each.case, each.opinion
    score = "" if opinion.score is None else f", score {opinion.score:.3f}"
    source = f", {case.source}" if case.source else ""
    head = f"Row {case.id}{source}: people {case.label}, judge {opinion.label}{score}"
    return passage(head, {"Prompt": case.prompt, "Reply": case.text, "The judge wrote": opinion.detail})
