"""A judge against people: it reads replies that somebody labelled, and the two are compared.

Positive is what the judge is for: a refusal, in full or in part, for a refusal judge; unsafe for a harm judge; and
among people's labels those that the user names. Rates are over the rows that the judge gave a verdict on. Unparsed and
failed ones are neither right nor wrong and are counted apart, as are rows without a text to judge and those without a
label. Intervals take the rows to be independent: they are too narrow where many rows share a prompt.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowtax import agreement
from lowtax.errors import UserError
from lowtax.files import write_json, write_text
from lowtax.judges import Judge, Kind, Opinion
from lowtax.labelled import Case
from lowtax.records import Row

POSITIVE = {"refusal": ("refusal", "partial"), "harm": ("unsafe",)}
LABELS = {"refusal": ["refusal", "partial", "compliance"], "harm": ["unsafe", "safe"]}
NO_VERDICT = ["unparsed", "failed"]
SHOWN = 1500  # characters of a reply in disagreements.md


@dataclass(frozen=True)
class Judged:
    """A case and what the judge said of it."""

    case: Case
    opinion: Opinion


class Calibrated(Row):
    """A line of rows.jsonl: `id` is the row's number in the file, `label` people's, `judge_label` the judge's."""

    source: str
    label: str
    positive: bool
    judge_label: str
    score: float | None
    category: str
    detail: str


def ask(judge: Judge, cases: Sequence[Case]) -> list[Judged]:
    """The judge's opinion of every case that has a label and a text."""
    asked = [case for case in cases if case.label and case.text]
    if not asked:
        raise UserError("No row has both a label and a text to judge: check --reply, --label and --on.")
    opinions = judge.judge([case.prompt for case in asked], [case.text for case in asked])
    return [Judged(*pair) for pair in zip(asked, opinions, strict=True)]


def report(kind: Kind, judged: Sequence[Judged], cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """All figures, over the rows with a verdict; `by_source` has those of each source. What has no value is None.

    Returns:
        n, accuracy, precision, recall, f1, kappa, unparsed (with failed ones), and more: rows, failed, empty and
        unlabelled rows, intervals, the confusion of all labels, and the calibration of the scores where there are any.
    """
    whole = _figures(kind, judged, cases, seed)
    sources = sorted({case.source for case in cases if case.source})
    apart = {
        name: _figures(kind, [j for j in judged if j.case.source == name], [c for c in cases if c.source == name], seed)
        for name in sources
    }
    return whole | ({"by_source": apart} if apart else {})


def _figures(kind: Kind, judged: Sequence[Judged], cases: Sequence[Case], seed: int) -> dict[str, Any]:
    valid = [each for each in judged if each.opinion.label not in NO_VERDICT]
    said: list[str] = [each.opinion.label for each in judged]
    counts = agreement.binary([j.case.positive for j in valid], [j.opinion.label in POSITIVE[kind] for j in valid])
    rates: tuple[Callable[[Any], Any], ...] = (agreement.accuracy, agreement.precision, agreement.recall)
    intervals = {rate.__name__: agreement.rate_interval(rate, counts) for rate in rates}
    for statistic in (agreement.f1, agreement.kappa):
        intervals[statistic.__name__] = agreement.bootstrap_interval(statistic, counts, seed=seed)
    columns = list(dict.fromkeys([*LABELS[kind], *said, *NO_VERDICT]))
    people = sorted({each.case.label for each in judged})
    matrix = agreement.matrix([each.case.label for each in judged], said, people, columns)
    return {
        "n": len(valid),
        **{name: _number(value) for name, (value, _, _) in intervals.items()},
        "unparsed": sum(said.count(label) for label in NO_VERDICT),
        "failed": said.count("failed"),
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


def _calibration(valid: Sequence[Judged]) -> dict[str, Any] | None:
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


def write(out: Path, found: dict[str, Any], judged: Sequence[Judged]) -> None:
    """Write calibration.json, and rows.jsonl with every row that the judge was asked about."""
    write_json(out / "calibration.json", found)
    write_text(out / "rows.jsonl", "".join(_row(each).model_dump_json() + "\n" for each in judged))


def _row(each: Judged) -> Calibrated:
    case, opinion = each.case, each.opinion
    return Calibrated(
        id=case.id,
        source=case.source,
        label=case.label,
        positive=case.positive,
        judge_label=opinion.label,
        score=opinion.score,
        category=opinion.category,
        detail=opinion.detail,
    )


def disagreements(kind: Kind, judged: Sequence[Judged], n: int, seed: int) -> str:
    """Some rows on which the judge and people disagree, drawn by seed, as Markdown for a reader."""
    apart = [
        each
        for each in judged
        if each.opinion.label not in NO_VERDICT and (each.opinion.label in POSITIVE[kind]) != each.case.positive
    ]
    drawn = sorted(random.Random(seed).sample(apart, min(n, len(apart))), key=lambda each: int(each.case.id))
    head = f"# {len(drawn)} of {len(apart)} disagreements (seed {seed})\n"
    return "\n".join([head, *map(_shown, drawn)])


def _shown(each: Judged) -> str:
    case, opinion = each.case, each.opinion
    score = "" if opinion.score is None else f", score {opinion.score:.3f}"
    source = f", {case.source}" if case.source else ""
    parts = [f"## Row {case.id}{source}: people {case.label}, judge {opinion.label}{score}\n"]
    for name, text in (("Prompt", case.prompt), ("Reply", case.text), ("The judge wrote", opinion.detail)):
        if text:
            cut = text[:SHOWN] + (f" ... ({len(text) - SHOWN} more characters)" if len(text) > SHOWN else "")
            quoted = "\n".join(f"    {line}" for line in cut.splitlines())  # indented: its own Markdown stays text
            parts.append(f"{name}:\n\n{quoted}\n")
    return "\n".join(parts)
