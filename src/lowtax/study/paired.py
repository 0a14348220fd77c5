"""Paired comparison: every checkpoint of a study against one of its arms, request by request.

Arms answer the same requests, so pairs of answers separate two arms far better than two rates with their intervals.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lowtax.benchmarks import examine
from lowtax.benchmarks import rates as reasoning
from lowtax.common import stats
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.files import write_json
from lowtax.common.records import Subject
from lowtax.common.tables import markdown_table
from lowtax.study.outcomes import Measure, Outcomes, measures
from lowtax.study.study import Study

Row = dict[str, Any]


def against(work: Study, arm: str) -> list[Row]:
    """Compare every checkpoint with the last one of `arm`, write `against.ARM.json`, and return its rows.

    Returns:
        A row for each measure and checkpoint, with `measure`, `arm`, `checkpoint` and `step`; `value`, `low` and `high`
        of its rate minus that of `arm` (`stats.difference`); `only_it` and `only_against`, the number of requests that
        only one of the two refused (or solved); `p`, McNemar's exact test of these two numbers, None if a request was
        answered more than once; `p_corrected`, the same corrected for the number of tests (`stats.holm`); and `n`.

    Raises:
        UserError: The study has no such arm.
    """
    groups = examine.by_checkpoint(work.subjects())
    subjects, of_arm = [group[0] for group in groups], [group for group in groups if group[0].arm == arm]
    if not of_arm:
        names = list(dict.fromkeys(subject.arm for subject in subjects))
        raise UserError(f"The study has no arm {arm!r}; {did_you_mean(arm, names)}")
    last = max(of_arm, key=lambda group: (len(group), group[0].step))[0]  # prefer checkpoints that all seeds have
    rows = [
        _row(measure, subject, outcomes(subject), outcomes(last))
        for measure, outcomes in _measures(work).items()
        for subject in subjects
        if subject != last
    ]
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, stats.holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = p
    write_json(work.out / f"against.{arm}.json", rows)
    return rows


def markdown(rows: Sequence[Row], arm: str) -> str:
    """Return the rows as a Markdown table with a caption."""
    tests = sum(row["p"] is not None for row in rows)
    lines = [
        ["measure", "arm", "step", f"minus {arm}", "only it", f"only {arm}", *["p", f"p of {tests}"] * bool(tests)]
    ]
    for row in rows:
        where = [row["measure"], row["arm"], f"{row['step']:,}"]
        p_values = [_p_shown(row["p"]), _p_shown(row["p_corrected"])] * bool(tests)
        lines.append([*where, reasoning.tax_shown(row), f"{row['only_it']:,}", f"{row['only_against']:,}", *p_values])
    about = f"; p of {tests}: corrected for {tests} tests by Holm's method" if tests else ""
    return (
        f"{markdown_table(lines, left=2)}\n\nDifferences of rates with 95 % intervals, on the same requests. Only it: "
        "requests that it alone of the two refused (or solved). p: McNemar's exact test of these two numbers, if there "
        f"is one reply a request{about}. {len(rows)} comparisons.\n"
    )


def _p_shown(p: float | None) -> str:
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _measures(work: Study) -> dict[str, Measure]:
    """Return a function for each measure, from a checkpoint to its outcomes."""
    refusals, solved = measures(work.judge(), work.grade(), work.recipe.seeds)
    return {f"{kind} refused": measure for kind, measure in refusals.items()} | solved


def _row(measure: str, subject: Subject, one: Outcomes, two: Outcomes) -> Row:
    seeds = one.keys() & two.keys()
    questions = set.intersection(*({*one[seed]} & {*two[seed]} for seed in seeds)) if seeds else set[str]()
    both = [(one[seed][question], two[seed][question]) for seed in seeds for question in questions]
    first, second = (sum(fmean(pair[i]) > fmean(pair[1 - i]) for pair in both) for i in (0, 1))
    single = len(seeds) == 1 and bool(both) and all(len(a) == len(b) == 1 for a, b in both)
    value, low, high = (None if math.isnan(x) else x for x in stats.difference([(one, two)]))
    return {
        "measure": measure,
        "arm": subject.arm,
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "value": value,
        "low": low,
        "high": high,
        "only_it": first,
        "only_against": second,
        "p": stats.mcnemar(first, second) if single else None,
        "p_corrected": None,
        "n": len(both),
    }
