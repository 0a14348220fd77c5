"""Intervals for rates and their differences, pass@k, and the frontier of two goods.

A rate of 1.0 on 30 prompts is not known to be 1.0. Wilson's interval says so and never leaves [0, 1];
where one prompt was answered several times (seeds, samples), its answers are drawn together, because
they resemble each other and count for less than as many prompts.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

Point = tuple[float, float]

Outcomes = Mapping[str, Sequence[float]]  # question -> outcomes over samples

NAN = float("nan")


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for k successes in n independent trials; nan, nan if n is 0."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials")
    if n == 0:
        return NAN, NAN
    z, p = NormalDist().inv_cdf((1 + level) / 2), k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave 1e-17 and exclude the observed rate.
    return 0.0 if k == 0 else middle - half, 1.0 if k == n else middle + half


def newcombe_paired(pairs: Sequence[tuple[float, float]], level: float = 0.95) -> tuple[float, float]:
    """Newcombe's interval (1998, paired data, method 10) for the difference of two rates on the same items.

    A pair is what two subjects did on an item, 0 or 1 each. Where they never differed it still has a width.
    """
    n = len(pairs)
    if n == 0:
        return NAN, NAN
    one, two, both = sum(a == 1 for a, _ in pairs), sum(b == 1 for _, b in pairs), sum(a == b == 1 for a, b in pairs)
    p, q = one / n, two / n
    (low_p, high_p), (low_q, high_q) = wilson(one, n, level), wilson(two, n, level)
    together: float = both * n - one * two  # the difference of the table's products of diagonals
    together = max(together - n / 2, 0.0) if together > 0 else together
    spread = math.sqrt(one * (n - one) * two * (n - two))
    phi = together / spread if spread else 0.0
    return p - q - _apart(p - low_p, high_q - q, phi), p - q + _apart(high_p - p, q - low_q, phi)


def _apart(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p value of items where only the first, or only the second succeeded, if both were as likely."""
    n, least = first + second, min(first, second)
    return min(1.0, float(2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n))


def cluster_interval(
    clusters: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean and interval of outcomes from 0 to 1, given as prompt -> its outcomes over seeds and samples.

    One outcome of 0 or 1 a prompt: Wilson. Else a bootstrap that draws prompts with all their outcomes. Where all
    outcomes are 0 or all are 1 a bootstrap would claim certainty, so there it is Wilson with as many trials as prompts.
    """
    sums = np.array([sum(values) for values in clusters.values() if values], dtype=float)
    sizes = np.array([len(values) for values in clusters.values() if values], dtype=float)
    if not len(sums):
        return NAN, NAN, NAN
    n, mean = len(sums), float(sums.sum() / sizes.sum())
    if mean in (0.0, 1.0) or (sizes.max() == 1 and set(sums.tolist()) <= {0.0, 1.0}):
        return mean, *wilson(round(mean * n), n, level)
    draws = _draws(n, seed, resamples)
    return mean, *_percentiles((draws @ sums) / (draws @ sizes), level)


def mean_interval(rates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of several independent (value, low, high), with an interval: the distances to the ends add in squares."""
    return _summed(rates, 0.0) if rates else (NAN, NAN, NAN)


def _summed(found: Sequence[tuple[float, float, float]], least: float) -> tuple[float, float, float]:
    mean = sum(value for value, _, _ in found) / len(found)
    below = math.hypot(*(value - low for value, low, _ in found)) / len(found)
    above = math.hypot(*(high - value for value, _, high in found)) / len(found)
    return mean, max(least, mean - below), min(1.0, mean + above)


Task = tuple[Mapping[int, Outcomes], Mapping[int, Outcomes]]  # two subjects by training seed, on the same questions


def tax(
    tasks: Sequence[tuple[Outcomes, Mapping[int, Outcomes]]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """What an arm lost: mean over tasks of base minus arm on the same questions, with an interval (`difference`).

    A task is (base, arm by training seed), both as question -> outcomes over samples.
    """
    pairs = [(dict.fromkeys(arm, base), arm) for base, arm in tasks]
    return difference(pairs, seed=seed, resamples=resamples, level=level)


def difference(
    tasks: Sequence[Task], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over tasks of one subject minus another on the same questions, with an interval.

    The estimate: the outcomes of a question are averaged, those of the second are subtracted from those of the first,
    seed by seed, and these differences are averaged over seeds and questions, then over tasks. Seeds that lack a task
    are left out, as are questions that one side or one of the seeds did not answer; where nothing is left, all three
    are nan.

    Of one seed and one sample a question, the interval is Newcombe's (`newcombe_paired`), and over tasks the distances
    to its ends add in squares. Else it is a bootstrap. A resample draws the training seeds with replacement, for all
    tasks together, and inside them, for each task, the questions with all their samples; the same questions for both
    sides and for all drawn seeds, because a question is hard for all of them. Draws of n things are widened by
    sqrt(n / (n - 1)), so that their variance is not short of the true one (Rao and Wu 1988); the interval is the
    percentiles'. A task on which nothing ever differed, of which a bootstrap would claim certainty, adds what Wilson's
    interval says of no change in as many questions. With one seed only questions are drawn: how much another training
    seed would change is then not covered.
    """
    rng = np.random.default_rng(seed)
    common = [sorted(s for s in one.keys() & two.keys() if one[s] and two[s]) for one, two in tasks]
    seeds = sorted(set(common[0]).intersection(*common)) if common else []
    drawn, values, draws = _weights(len(seeds), rng, resamples), [], np.zeros(resamples)
    exact, unchanged = list[tuple[float, float, float]](), list[float]()
    for one, two in tasks:
        lost = [_lost(one[s], two[s]) for s in seeds]
        questions = sorted(set.intersection(*map(set, lost))) if lost else []
        if not questions:
            return NAN, NAN, NAN
        table = np.array([[found[q] for q in questions] for found in lost])
        values.append(float(table.mean()))
        draws += np.einsum("rq,rq->r", drawn @ table, _weights(len(questions), rng, resamples)) / table.size
        if len(seeds) == 1 and (pairs := _single(one[seeds[0]], two[seeds[0]], questions)):
            exact.append((values[-1], *newcombe_paired(pairs, level)))
        if not table.any():
            unchanged.append(wilson(0, len(questions), level)[1])
    if not values:
        return NAN, NAN, NAN
    value = sum(values) / len(values)
    if len(exact) == len(values):
        return _summed(exact, -1.0)
    low, high = _percentiles(draws / len(values), level)
    more = math.hypot(*unchanged) / len(values)
    return value, max(-1.0, value - math.hypot(value - low, more)), min(1.0, value + math.hypot(high - value, more))


def _single(one: Outcomes, two: Outcomes, questions: Sequence[str]) -> list[tuple[float, float]]:
    """What both did on each question, where each answered it once, rightly or not; else nothing."""
    found = [(*one[q], *two[q]) for q in questions]
    return found if all(len(pair) == 2 and {*pair} <= {0, 1} for pair in found) else []  # type: ignore[return-value]


def _lost(one: Outcomes, two: Outcomes) -> dict[str, float]:
    """One minus two for every question that both answered."""
    both = [q for q in one if one[q] and two.get(q)]
    return {q: sum(one[q]) / len(one[q]) - sum(two[q]) / len(two[q]) for q in both}


def _weights(n: int, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """What each of n things weighs in each resample, (resamples, n): how often it is drawn, widened about 1."""
    if n < 2:
        return np.ones((resamples, n))
    return 1 + math.sqrt(n / (n - 1)) * (rng.multinomial(n, [1 / n] * n, size=resamples) - 1)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate that one of k samples is right, from n samples of which c are (Chen et al. 2021)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs at least {k} samples; there are {n}, of which {c} right")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def nondominated(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats: at least as good in both, better in one. More is better."""
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(u >= x and v >= y and (u, v) != (x, y) for u, v in points)
    ]  # fmt: skip


def hypervolume(points: Sequence[Point]) -> float:
    """Area between (0, 0) and the frontier of points in the positive quadrant: 1 is perfect in both."""
    area, height = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        area += max(0.0, x) * max(0.0, y - height)
        height = max(height, y)
    return area


@lru_cache(maxsize=4)  # a table draws from the same few numbers of questions again and again
def _draws(n: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of n items is drawn, (resamples, n)."""
    drawn = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=resamples)
    drawn.setflags(write=False)
    return drawn


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
