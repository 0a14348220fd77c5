"""Every checkpoint of a study beside one of its arms, request by request: who refuses or solves what another does not.

Two arms that answer the same requests are told apart far better in pairs than by two rates with their intervals.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from lowtax import examine, reasoning, safety, stats
from lowtax.cells import markdown_table
from lowtax.errors import UserError, did_you_mean
from lowtax.files import write_json
from lowtax.records import Verdict
from lowtax.sample import Ask, Subject
from lowtax.study import Study

Outcomes = dict[int, dict[str, list[float]]]  # training seed -> question -> 1 or 0 for each sample
Found = Mapping[str, tuple[Ask, Any]]  # by reply id
Row = dict[str, Any]


def against(work: Study, arm: str) -> list[Row]:
    """What each checkpoint did and the last one of `arm` did not: a row for each measure and checkpoint.

    Writes `against.ARM.json`. A row has `measure`, `arm`, `checkpoint`, `step`; `value`, `low` and `high` of the rate
    minus that of `arm` (`stats.difference`); `only_it` and `only_against`, how often just one of the two refused (or
    solved); `p`, McNemar's exact test of these two, None where a request was answered more than once; and `n`.

    Raises:
        UserError: The study has no such arm.
    """
    groups = examine.by_checkpoint(work.subjects())
    subjects, own = [group[0] for group in groups], [group for group in groups if group[0].arm == arm]
    if not own:
        names = list(dict.fromkeys(subject.arm for subject in subjects))
        raise UserError(f"The study has no arm {arm!r}; {did_you_mean(arm, names)}")
    last = max(own, key=lambda group: (len(group), group[0].step))[0]  # of those that all seeds have
    rows = [
        _row(measure, subject, found(subject), found(last))
        for measure, found in _measures(work).items()
        for subject in subjects
        if subject != last
    ]
    write_json(work.out / f"against.{arm}.json", rows)
    return rows


def markdown(rows: Sequence[Row], arm: str) -> str:
    """The rows for people: a GitHub table and a caption."""
    lines = [["measure", "arm", "step", f"minus {arm}", "only it", f"only {arm}", "p"]]
    for row in rows:
        p = "-" if row["p"] is None else f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001"
        where = [row["measure"], row["arm"], f"{row['step']:,}"]
        lines.append([*where, reasoning.tax_shown(row), f"{row['only_it']:,}", f"{row['only_against']:,}", p])
    return (
        f"{markdown_table(lines, left=2)}\n\nDifferences of rates with 95 % intervals, on the same requests. Only it: "
        "requests that it alone of the two refused (or solved). p: McNemar's exact test of these two numbers, for one "
        f"reply a request. {len(rows)} comparisons, for whose number nothing is corrected.\n"
    )


def _measures(work: Study) -> Mapping[str, Callable[[Subject], Outcomes]]:
    """Name -> what a checkpoint did. The base, which was not trained, did the same beside every seed."""

    def of(subject: Subject, found: Found, outcomes: Callable[[Any], Outcomes]) -> Outcomes:
        did = outcomes(examine.by_seed(found, subject.arm, subject.checkpoint))
        return dict.fromkeys(work.recipe.seeds, did.get(0, {})) if subject.arm == examine.BASE else did

    refusals = {f"{kind} refused": partial(of, found=found, outcomes=_refused) for kind, found in work.judge().items()}
    return refusals | {
        task: partial(of, found=found, outcomes=reasoning.outcomes) for task, found in work.grade().items()
    }


def _refused(verdicts: Mapping[int, Mapping[safety.Key, Verdict]]) -> Outcomes:
    found: Outcomes = {}
    for seed, asked in verdicts.items():
        for (prompt, _), verdict in asked.items():
            if verdict.label not in safety.APART:
                found.setdefault(seed, {}).setdefault(prompt, []).append(float(verdict.label in safety.SAFE))
    return found


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
        "n": len(both),
    }
