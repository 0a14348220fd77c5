"""The outcomes of checkpoints, request by request: what paired comparisons and curves over checkpoints are made of."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lowtax.benchmarks import examine
from lowtax.benchmarks import rates as reasoning
from lowtax.common.records import Subject, Verdict
from lowtax.engines.sampling import Ask
from lowtax.judges import rates as safety

Outcomes = dict[int, dict[str, list[float]]]  # training seed -> request -> 1 or 0 for each sample
Results = Mapping[str, tuple[Ask, Any]]  # by reply id
Measure = Callable[[Subject], Outcomes]  # of a checkpoint, over all its seeds


def measures(
    verdicts: Mapping[str, Results], grades: Mapping[str, Results], seeds: Sequence[int]
) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """Return functions from a checkpoint to its outcomes: refusals of each prompt set, and solutions of each task.

    Args:
        seeds: those of the study; the base's outcomes are repeated for each of them.
    """
    refusals: dict[str, Measure] = {
        kind: partial(_of, results=all_, read=_refused, seeds=seeds) for kind, all_ in verdicts.items()
    }
    solved: dict[str, Measure] = {
        task: partial(_of, results=all_, read=reasoning.outcomes, seeds=seeds) for task, all_ in grades.items()
    }
    return refusals, solved


def _of(subject: Subject, results: Results, read: Callable[[Any], Outcomes], seeds: Sequence[int]) -> Outcomes:
    by_seed = read(examine.by_seed(results, subject.arm, subject.checkpoint))
    return dict.fromkeys(seeds, by_seed.get(0, {})) if subject.arm == examine.BASE else by_seed


def _refused(verdicts: Mapping[int, Mapping[safety.Key, Verdict]]) -> Outcomes:
    outcomes: Outcomes = {}
    for seed, by_key in verdicts.items():
        for (prompt, _), verdict in by_key.items():
            if verdict.label not in safety.APART:
                outcomes.setdefault(seed, {}).setdefault(prompt, []).append(float(verdict.label in safety.SAFE))
    return outcomes
