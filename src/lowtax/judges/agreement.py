"""Agreement of a judge with people: rates, Cohen's kappa, F1 and the calibration of its scores, with intervals.

A confusion matrix has people's labels as rows and the judge's as columns, (..., truth, judge); the positive label, if
there is one, comes first. Axes before these two are resamples, so that one formula serves a figure and its bootstrap.
An undefined figure is nan: the precision of a judge that found nothing, the kappa of raters who used one label only.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from lowtax.common.stats import NAN, wilson

Matrix = Float[np.ndarray, "*resamples truth judge"]
Values = Float[np.ndarray, "*resamples"]
Statistic = Callable[[Matrix], Values]
Interval = tuple[float, float, float]  # value, low, high
RESAMPLES = 2000
BINS = 10


def matrix(truth: Sequence[str], judged: Sequence[str], rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Count how often people gave the label `rows[i]` and the judge `columns[j]`."""
    counts = np.zeros((len(rows), len(columns)))
    for pair in zip(truth, judged, strict=True):
        counts[rows.index(pair[0]), columns.index(pair[1])] += 1
    return counts


def binary(truth: Sequence[bool], judged: Sequence[bool]) -> np.ndarray:
    """Return the matrix of a yes-or-no question, yes first."""
    counts = np.zeros((2, 2))
    for yes, judged_yes in zip(truth, judged, strict=True):
        counts[int(not yes), int(not judged_yes)] += 1
    return counts


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(part, whole))


def accuracy(counts: Matrix) -> Values:
    """Return the share of rows on which the two agree."""
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def precision(counts: Matrix) -> Values:
    """Return the share with the first label among the rows to which the judge gives it."""
    return _ratio(counts[..., 0, 0], counts[..., :, 0].sum(-1))


def recall(counts: Matrix) -> Values:
    """Return the share that the judge finds among the rows with the first label."""
    return _ratio(counts[..., 0, 0], counts[..., 0, :].sum(-1))


def f1(counts: Matrix) -> Values:
    """Return the harmonic mean of precision and recall of the first label: 2 TP / (2 TP + FP + FN)."""
    return _ratio(2 * counts[..., 0, 0], counts[..., :, 0].sum(-1) + counts[..., 0, :].sum(-1))


def kappa(counts: Matrix) -> Values:
    """Return Cohen's kappa (1960): (agreement - chance) / (1 - chance), where chance follows from the two margins."""
    n = counts.sum((-2, -1))
    agreeing = np.trace(counts, axis1=-2, axis2=-1)
    # Times n, in whole numbers: with a single label the denominator is then 0 and not 1e-17.
    chance = _ratio((counts.sum(-1) * counts.sum(-2)).sum(-1), n)
    return _ratio(agreeing - chance, n - chance)


def rate_interval(statistic: Statistic, counts: Matrix) -> Interval:
    """Return accuracy, precision or recall with Wilson's interval."""
    whole = {"accuracy": counts, "precision": counts[:, 0], "recall": counts[0]}[statistic.__name__]
    n, value = int(whole.sum()), float(statistic(counts))
    return value, *wilson(round(value * n) if n else 0, n)


def bootstrap_interval(
    statistic: Statistic,
    counts: Matrix,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Return a statistic with its percentile bootstrap interval; rows are drawn independently.

    If the two never disagree, or never agree on the first label, all resamples are alike and a bootstrap would claim
    certainty. The interval of F1 and kappa is then that of the agreement (Wilson), put through the formula.
    """
    value, n = float(statistic(counts)), int(counts.sum())
    if n == 0 or math.isnan(value):
        return value, NAN, NAN
    drawn = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=resamples)
    values = statistic(drawn.reshape(resamples, *counts.shape))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    if low == high:
        low, high = _without_spread(statistic, counts, value, level)
    return value, float(min(low, value)), float(max(high, value))


def _without_spread(statistic: Statistic, counts: Matrix, value: float, level: float) -> tuple[float, float]:
    if statistic is f1:  # 2 p / (1 + p), p = TP / (TP + FP + FN)
        n = counts[:, 0].sum() + counts[0].sum() - counts[0, 0]
        low, high = (2 * p / (1 + p) for p in wilson(int(counts[0, 0]), int(n), level))
        return low, high
    if statistic is kappa and value == 1:
        n = counts.sum()
        chance = float((counts.sum(0) * counts.sum(1)).sum() / n**2)
        return (wilson(int(n), int(n), level)[0] - chance) / (1 - chance), 1.0
    return value, value


def brier(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """Return the mean squared distance of the scores from the truth, 1 or 0; a constant score of 0.5 gives 0.25."""
    if not scores:
        return NAN
    return float(np.mean((np.asarray(scores, dtype=float) - np.asarray(truth, dtype=float)) ** 2))


def reliability(scores: Sequence[float], truth: Sequence[bool], bins: int = BINS) -> list[dict[str, float]]:
    """Return the non-empty bins of equal width: mean score, positive share with Wilson's interval, and n."""
    curve = []
    numbers = np.minimum((np.asarray(scores, dtype=float) * bins).astype(int), bins - 1)
    for number in sorted(set(numbers.tolist())):
        inside = [(score, yes) for score, yes, bin_ in zip(scores, truth, numbers, strict=True) if bin_ == number]
        n, positive = len(inside), sum(yes for _, yes in inside)
        low, high = wilson(positive, n)
        mean = sum(score for score, _ in inside) / n
        curve.append(
            {"from": number / bins, "to": (number + 1) / bins, "n": n, "score": mean}
            | {"positive": positive / n, "low": low, "high": high}
        )
    return curve


def expected_calibration_error(curve: Sequence[dict[str, float]]) -> float:
    """Return the mean distance of a bin's score from its share, weighted by rows (Naeini et al. 2015)."""
    n = sum(each["n"] for each in curve)
    return sum(each["n"] * abs(each["score"] - each["positive"]) for each in curve) / n if n else NAN


def kappa_over_requests(
    counts: Sequence[np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Return Cohen's kappa of two judges with its interval; requests are drawn, with all their replies.

    Replies to one request are alike, so that an interval over single replies would be too narrow. Where all resamples
    are alike, the interval is that of `bootstrap_interval` for as many replies as requests.

    Args:
        counts: a matrix for each request, (first judge, second judge).
    """
    if not counts:
        return NAN, NAN, NAN
    each = np.asarray(counts, dtype=float)
    whole, n = each.sum(0), len(each)
    value = float(kappa(whole))
    if math.isnan(value):
        return value, NAN, NAN
    drawn = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)
    values = kappa(np.tensordot(drawn, each, axes=1))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    if low == high:  # the two never disagree, or never agree
        of_requests = np.round(whole * n / whole.sum())
        _, low, high = bootstrap_interval(kappa, of_requests, seed=seed, resamples=resamples, level=level)
    return value, float(min(low, value)), float(max(high, value))
