"""Shares of the labels that a judge with named grades gives: the risky patterns of thoughts as columns."""

from collections.abc import Iterable, Mapping
from typing import Any

from lowtax.common.records import Verdict
from lowtax.common.stats import wilson

NONE = "none"


def shares(verdicts: Iterable[Verdict], names: Mapping[float, str]) -> dict[str, dict[str, Any]]:
    """Return the share of each label among the replies with one, with its 95 % interval.

    Replies without a label (unfinished, unparsed, failed) are counted under `no_label` and are in no share.

    Args:
        verdicts: of a judge whose rubric names its grades.
        names: the words of the rubric, by grade.
    """
    verdicts = list(verdicts)
    labelled = [v.category for v in verdicts if v.label in ("safe", "unsafe") and v.category]
    cells: dict[str, dict[str, Any]] = {}
    for name in names.values():
        k, n = labelled.count(name), len(labelled)
        low, high = wilson(k, n) if n else (0.0, 1.0)
        cells[name] = {"value": k / n if n else None, "low": low, "high": high, "n": n}
    return cells | {"no_label": {"n": len(verdicts) - len(labelled)}}
