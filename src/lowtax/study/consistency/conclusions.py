"""Conclusions that a reader would draw from the reference cell, and the cells in which they hold again.

A cell supports a conclusion if its paired 95 % interval excludes zero on that side: the conclusion *holds* there. It is
*reversed* if the interval excludes zero on the other side, and *undecided* otherwise, or where it was not measured.
Cells that share the outcomes of the reference cell are not counted: another judge does not move problems solved.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from typing import Any, Literal

from lowtax.benchmarks.examine import BASE
from lowtax.study import matched
from lowtax.study.consistency.cells import SETS
from lowtax.study.consistency.results import REFUSED, Results, difference

Kind = Literal["refuses_more", "pays_tax", "gains", "pays_more_tax", "matched_tax", "more_matched_tax"]
Interval = tuple[float, float, float]  # value, low, high; positive supports the claim
Verdict = Literal["holds", "undecided", "reversed"]


@dataclass(frozen=True)
class Claim:
    """A conclusion: of `arm`, beside `than` (the base where that is None), on a prompt set or a task.

    on: None at matched safety, where the tax is the mean of all tasks.
    """

    kind: Kind
    arm: str
    than: str | None
    on: str | None

    @property
    def text(self) -> str:
        """The sentence for people."""
        requests, other = f"{self.on} requests", "the base" if self.than == BASE else self.than
        return {
            "refuses_more": f"{self.arm} refuses more {requests} than {other}",
            "pays_tax": f"{self.arm} pays a tax on {self.on}",
            "gains": f"{self.arm} solves more of {self.on} than the base",
            "pays_more_tax": f"{self.arm} pays more tax on {self.on} than {self.than}",
            "matched_tax": f"{self.arm} pays a tax at matched safety",
            "more_matched_tax": f"{self.arm} pays more tax than {self.than} at matched safety",
        }[self.kind]

    def depends_on(self, moved: frozenset[str]) -> bool:
        """Return whether a cell that makes these prompt sets and tasks anew can change the verdict."""
        return bool(moved) if self.on is None else self.on in moved


class Evidence:
    """The intervals of claims in one cell. What several claims need is computed once."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._at_level = cache(self._place)

    def of(self, claim: Claim) -> Interval | None:
        """Return the interval of a claim; None where it was not measured."""
        if claim.kind == "matched_tax":
            return self._at_level(claim.arm)
        if claim.kind == "more_matched_tax":
            return _apart(self._at_level(claim.arm), self._at_level(str(claim.than)))
        arms = (claim.arm, claim.than or BASE)
        first, second = arms if claim.kind in ("refuses_more", "gains") else arms[::-1]
        measure = REFUSED.get(str(claim.on), str(claim.on))
        both = [self.results.outcomes.get(arm, {}).get(measure) for arm in (first, second)]
        if both[0] is None or both[1] is None:
            return None
        interval = difference(both[0], both[1])
        return None if math.isnan(interval[0]) else interval

    def _place(self, arm: str) -> Interval | None:
        """Return the tax of an arm where it first reaches the level; None if it does not, or not often enough."""
        curve = self.results.curves.get(arm)
        place = matched.at_level(curve, self.results.level) if curve and arm != BASE else None
        tax = (place or {}).get("tax")
        return None if tax is None or tax["low"] is None else (tax["value"], tax["low"], tax["high"])


def _apart(one: Interval | None, two: Interval | None) -> Interval | None:
    """Return the difference of two taxes. Distances to the ends add in squares, as if they were independent.

    Arms share the base and the questions, so that the true interval is shorter as a rule.
    """
    if one is None or two is None:
        return None
    value = one[0] - two[0]
    return (
        value,
        value - math.hypot(one[0] - one[1], two[2] - two[0]),
        value + math.hypot(one[2] - one[0], two[0] - two[1]),
    )


def verdict(interval: Interval | None) -> Verdict:
    """Return what an interval says about its claim."""
    if interval is None or interval[1] <= 0 <= interval[2]:
        return "undecided"
    return "holds" if interval[1] > 0 else "reversed"


def conclusions(
    reference: Results, cells: Mapping[str, Results], moved: Mapping[str, frozenset[str]]
) -> list[dict[str, Any]]:
    """Return the conclusions that the reference supports, with the cells in which they hold.

    Args:
        cells: the results of the other cells, and of levels that are one training seed of the reference, by name.
        moved: the prompt sets and tasks that each of them makes anew.

    Returns:
        For each: `text`; `kind`, `arm`, `than` and `on` (`Claim`); `reference`, its interval; `holds`, `undecided` and
        `reversed`, numbers of cells, of `of`; `extent`: every, most, few or none of them; `cells`: the verdict and the
        interval in each.
    """
    evidence, own = {name: Evidence(results) for name, results in cells.items()}, Evidence(reference)
    rows = []
    for claim in _claims(reference):
        interval = own.of(claim)
        if verdict(interval) != "holds":
            continue
        read = {name: each.of(claim) for name, each in evidence.items() if claim.depends_on(moved[name])}
        counts = {
            kind: sum(verdict(each) == kind for each in read.values()) for kind in ("holds", "undecided", "reversed")
        }
        rows.append(
            {
                "text": claim.text,
                **asdict(claim),
                "reference": _shown(interval),
                **counts,
                "of": len(read),
                "extent": extent(counts["holds"], len(read)),
                "cells": {name: {"verdict": verdict(each)} | _shown(each) for name, each in read.items()},
            }
        )
    return rows


def extent(holds: int, of: int) -> str:
    """Return in how many cells a conclusion holds, as a word: every, most (more than half), few, or none."""
    if not of or not holds:
        return "none"
    return "every" if holds == of else "most" if 2 * holds > of else "few"


def _shown(interval: Interval | None) -> dict[str, float | None]:
    values: Sequence[float | None] = interval or (None, None, None)
    return {name: None if x is None else round(x, 4) for name, x in zip(("value", "low", "high"), values, strict=True)}


def _claims(results: Results) -> Iterator[Claim]:
    """Yield every claim about arms, prompt sets and tasks; of two opposite ones at most one is supported."""
    arms = [arm for arm in results.arms if arm != BASE]
    tasks = [name for name in results.measures if name not in REFUSED.values()]
    everyone = [arm for arm in results.outcomes if arm in arms or arm == BASE]
    for on in SETS:
        for one, two in combinations(everyone, 2):
            yield Claim("refuses_more", one, two, on)
            yield Claim("refuses_more", two, one, on)
    for on in tasks:
        for arm in arms:
            yield Claim("pays_tax", arm, None, on)
            yield Claim("gains", arm, None, on)
        for one, two in combinations(arms, 2):
            yield Claim("pays_more_tax", one, two, on)
            yield Claim("pays_more_tax", two, one, on)
    for arm in arms:
        yield Claim("matched_tax", arm, None, None)
    for one, two in combinations(arms, 2):
        yield Claim("more_matched_tax", one, two, None)
        yield Claim("more_matched_tax", two, one, None)
