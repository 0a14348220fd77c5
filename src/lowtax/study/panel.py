"""Several judges of one study: the rates by each, their agreement with the headline judge, and where they differ.

Judges of refusals and of harm are compared by one question: does the judge count the reply as safe (a refusal, in full
or in part, or safe)? Replies without a verdict of both are left out and counted; unfinished ones reach no judge.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowtax.benchmarks import examine
from lowtax.common.records import Subject, Verdict
from lowtax.common.tables import Cell, rate
from lowtax.engines.sampling import Ask
from lowtax.judges import agreement as measures
from lowtax.judges import rates

if TYPE_CHECKING:
    from lowtax.study.study import Study

Judged = Mapping[str, tuple[Ask, Verdict]]  # by reply id
BySet = Mapping[str, Judged]  # prompt set -> its verdicts
COLUMNS = {"harmful": "safety", "ordinary": "over_refusal"}
WITHOUT = ("unfinished", *rates.APART)  # labels that are no opinion of a judge
MOST = 20  # requests on which judges differ, in the table


@dataclass(frozen=True)
class Pair:
    """Two verdicts on one reply: the set of its prompt, the id and text of the plain request, headline judge first."""

    set: str
    request: str
    text: str
    first: Verdict
    second: Verdict

    def without(self) -> bool:
        """Return True if one of the two has no opinion."""
        return bool({self.first.label, self.second.label} & {*WITHOUT})


def verdicts(study: "Study", headline: BySet) -> dict[str, dict[str, Judged]]:
    """Return the verdicts of the further judges of a study, by judge and prompt set."""
    names = [name for name in dict.fromkeys(study.recipe.judges) if name != study.recipe.judge]
    judged: dict[str, dict[str, Judged]] = {}
    for name in names:
        judged[name] = {kind: all_ for kind, all_ in study.judge(name).items() if kind in headline}
    return judged


def of_row(subject: Subject, headline: BySet, others: Mapping[str, BySet]) -> dict[str, Any]:
    """Return the field `judges` of a row of the table; nothing if there is one judge.

    Returns:
        By judge, the cells `safety` and `over_refusal` as of the headline judge, and its `agreement` with it
        (`compared`).
    """
    cells: dict[str, Any] = {}
    for name, sets in others.items():
        of_judge: dict[str, Any] = {
            COLUMNS[kind]: rates.cell(examine.by_seed(all_, subject.arm, subject.checkpoint))
            for kind, all_ in sets.items()
        }
        own = {kind: {id_: pair for id_, pair in headline[kind].items() if _is_of(pair[0], subject)} for kind in sets}
        cells[name] = of_judge | {"agreement": compared(own, sets)}
    return {"judges": cells} if cells else {}


def agreement(headline: BySet, others: Mapping[str, BySet]) -> dict[str, Any]:
    """Return, by judge, its agreement with the headline judge over all models, and the requests on which they differ.

    Returns:
        `compared` of all prompt sets, and `sets`, of each; `differ`, the requests with most replies on which the two
        differ, with set, number of such replies, number of all, and one of the replies (`reply`) with both labels.
    """
    return {
        name: compared(headline, sets)
        | {"sets": {kind: compared({kind: headline[kind]}, sets) for kind in sets}, "differ": differing(headline, sets)}
        for name, sets in others.items()
    }


def compared(first: BySet, second: BySet) -> Cell:
    """Return the agreement of two judges on the replies of the first mapping (`agree`)."""
    return agree(_pairs(first, second))


def agree(pairs: Sequence[Pair]) -> Cell:
    """Return the agreement of two judges.

    Returns:
        `value`, `low`, `high` and `n` of the share of replies on which both say the same, with an interval over
        requests; `kappa`, likewise; `only_first` and `only_second`, the replies that one alone counts as safe;
        `without`, the replies without an opinion of both.
    """
    with_both = [pair for pair in pairs if not pair.without()]
    safe = [(p.request, p.first.label in rates.SAFE, p.second.label in rates.SAFE) for p in with_both]
    counts: dict[str, np.ndarray] = {}
    for id_, one_safe, two_safe in safe:
        counts.setdefault(id_, np.zeros((2, 2)))[int(not one_safe), int(not two_safe)] += 1
    value, low, high = measures.kappa_over_requests(list(counts.values()))
    kappa = {"value": value, "low": low, "high": high}
    return rate((id_, float(one_safe == two_safe)) for id_, one_safe, two_safe in safe) | {
        "kappa": {key: None if np.isnan(x) else round(float(x), 4) for key, x in kappa.items()},
        "only_first": sum(one_safe and not two_safe for _, one_safe, two_safe in safe),
        "only_second": sum(two_safe and not one_safe for _, one_safe, two_safe in safe),
        "without": len(pairs) - len(with_both),
    }


def differing(first: BySet, second: BySet) -> list[dict[str, Any]]:
    """Return the requests on which two judges differ (`differ`)."""
    return differ(_pairs(first, second))


def differ(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return the requests on which two judges differ, those with most such replies first, at most `MOST`."""
    all_, apart, example = Counter[tuple[str, str]](), Counter[tuple[str, str]](), dict[tuple[str, str], Pair]()
    for pair in pairs:
        if pair.without():
            continue
        key = (pair.set, pair.request)
        all_[key] += 1
        if (pair.first.label in rates.SAFE) != (pair.second.label in rates.SAFE):
            apart[key] += 1
            example.setdefault(key, pair)
    rows = []
    for key, number in apart.most_common(MOST):
        pair = example[key]
        rows.append(
            {"set": pair.set, "prompt": pair.text, "prompt_id": pair.request, "differ": number, "n": all_[key]}
            | {"reply": pair.first.reply_id, "labels": [pair.first.label, pair.second.label]}
        )
    return rows


def _pairs(first: BySet, second: BySet) -> list[Pair]:
    """Return the verdicts on the replies that both judged."""
    return [
        Pair(kind, ask.prompt.id, ask.prompt.goal or ask.prompt.text, one, second[kind][id_][1])
        for kind, all_ in first.items()
        for id_, (ask, one) in all_.items()
        if kind in second and id_ in second[kind]
    ]


def _is_of(ask: Ask, subject: Subject) -> bool:
    return (ask.subject.arm, ask.subject.checkpoint) == (subject.arm, subject.checkpoint)
