"""The results of a cell: outcomes of every arm at its last checkpoint, curves over checkpoints, and coherence."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowtax.benchmarks import examine
from lowtax.common import stats
from lowtax.common.cards import StudyCard, read_card
from lowtax.common.files import read_rows
from lowtax.common.names import file_name
from lowtax.common.records import Grade, Subject
from lowtax.common.tables import Cell as Rate
from lowtax.common.tables import rate_over_seeds
from lowtax.engines.sampling import replies_of
from lowtax.judges.coherence import coherence
from lowtax.study import matched
from lowtax.study.consistency.cells import SETS
from lowtax.study.outcomes import Outcomes, measures
from lowtax.study.study import Study

REFUSED = {kind: f"{kind} refused" for kind in SETS}  # prompt set -> name of its measure; that of a task is the task's


@dataclass(frozen=True)
class Results:
    """The results of a cell.

    outcomes: arm -> measure -> outcomes of its last checkpoint. arms: those that are not the base.
    curves: by arm, for the reading at matched safety, at `level`.
    coherent: arm -> prompt set or task -> shares of incoherent replies.
    hardware: of the machine on which the cell was made.
    """

    outcomes: Mapping[str, Mapping[str, Outcomes]]
    curves: Mapping[str, list[matched.Checkpoint]]
    level: matched.Level
    coherent: Mapping[str, Mapping[str, Mapping[str, Any]]]
    hardware: Mapping[str, Any]

    @property
    def arms(self) -> list[str]:
        """The trained and edited arms; the base if there are none."""
        return [arm for arm in self.outcomes if arm != examine.BASE] or [*self.outcomes]

    @property
    def measures(self) -> list[str]:
        """The measures, refusals first."""
        return list(dict.fromkeys(name for by_measure in self.outcomes.values() for name in by_measure))

    def rate(self, arm: str, measure: str) -> Rate:
        """Return the rate of an arm, with its interval."""
        by_seed = self.outcomes[arm][measure]
        seeds = list(by_seed)[:1] if arm == examine.BASE else list(by_seed)  # the base is repeated for every seed
        rows = [(seed, q, value) for seed in seeds for q, values in by_seed[seed].items() for value in values]
        return rate_over_seeds(rows)

    def of_seed(self, seed: int) -> "Results":
        """Return the results of one training seed."""

        def one(outcomes: Mapping[int, Any]) -> dict[int, Any]:
            return {seed: outcomes[seed]} if seed in outcomes else {}

        outcomes = {arm: {name: one(each) for name, each in of.items()} for arm, of in self.outcomes.items()}
        curves = {
            arm: [
                replace(point, outcomes={name: one(each) for name, each in point.outcomes.items()}) for point in curve
            ]
            for arm, curve in self.curves.items()
        }
        return replace(self, outcomes=outcomes, curves=curves)


def read(folder: Path, same: bool = False) -> Results:
    """Return the results of a finished cell. Nothing is graded again."""
    work = Study.open(folder, same, trust=True)
    subjects = work.subjects()
    verdicts, answers = work.judge(), _grades(work, subjects)
    refusals, solved = measures(verdicts, answers, work.recipe.seeds)
    by_name = {REFUSED[kind]: measure for kind, measure in refusals.items()} | solved
    last = _last(subjects)
    outcomes = {arm: {name: measure(subject) for name, measure in by_name.items()} for arm, subject in last.items()}
    card = read_card(folder / "card.json", StudyCard)
    return Results(
        outcomes,
        work.curves(verdicts, answers),
        work.level(),
        _coherence(work, subjects, last),
        card.get("hardware", {}),
    )


def _last(subjects: list[Subject]) -> dict[str, Subject]:
    """Return the last checkpoint of every arm; one that all seeds have is preferred."""
    last: dict[str, tuple[tuple[int, int], Subject]] = {}
    for group in examine.by_checkpoint(subjects):
        key = (len(group), group[0].step)
        if group[0].arm not in last or key > last[group[0].arm][0]:
            last[group[0].arm] = (key, group[0])
    return {arm: subject for arm, (_, subject) in last.items()}


def _grades(work: Study, subjects: list[Subject]) -> dict[str, examine.TaskResult]:
    """Return the stored grades, as `Study.grade` does that makes them."""
    results: dict[str, examine.TaskResult] = {}
    for name, sheet in work.answer_sheets().items():
        rows = read_rows(work.out / "grades" / f"{file_name(name)}.jsonl", Grade)
        by_reply = {grade.reply_id: grade for grade in rows.values()}
        stored = replies_of(sheet, subjects, work.engine)
        results[name] = {id_: (ask, (by_reply.get(id_), reply)) for id_, (ask, reply) in stored.items()}
    return results


def _coherence(work: Study, subjects: list[Subject], last: Mapping[str, Subject]) -> dict[str, dict[str, Any]]:
    """Return the shares of incoherent replies, of the last checkpoint of every arm."""
    shares: dict[str, dict[str, Any]] = {arm: {} for arm in last}
    for name, sheet in (work.reply_sheets() | work.answer_sheets()).items():
        stored = replies_of(sheet, subjects, work.engine)
        for arm, subject in last.items():
            of_arm = [
                reply
                for ask, reply in stored.values()
                if (ask.subject.arm, ask.subject.checkpoint) == (arm, subject.checkpoint)
            ]
            if (share := coherence(of_arm)) is not None:
                shares[arm][name] = asdict(share)
    return shares


def rates(levels: list[Results], arms: list[str], measure: str) -> np.ndarray | None:
    """Return mean outcomes, (arms, levels, prompts), on the prompts that every level and arm has; None without any.

    The mean is over samples, and over the training seeds that answered the prompt.
    """
    tables = [[_means(level.outcomes.get(arm, {}).get(measure, {})) for level in levels] for arm in arms]
    prompts = sorted(set.intersection(*({*table} for row in tables for table in row))) if tables and levels else []
    if not prompts:
        return None
    return np.array([[[table[prompt] for prompt in prompts] for table in row] for row in tables])


def _means(outcomes: Outcomes) -> dict[str, float]:
    joined: dict[str, list[float]] = {}
    for by_prompt in outcomes.values():
        for prompt, values in by_prompt.items():
            joined.setdefault(prompt, []).extend(values)
    return {prompt: sum(values) / len(values) for prompt, values in joined.items() if values}


def difference(one: Outcomes, two: Outcomes) -> tuple[float, float, float]:
    """Return the rate of one minus that of two with its paired interval (`stats.difference`)."""
    return stats.difference([(one, two)])
