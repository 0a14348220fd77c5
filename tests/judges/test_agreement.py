"""Agreement: every statistic is compared with its definition, row by row, and intervals cover the truth."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax.common import stats
from lowtax.judges import agreement

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)
labels = st.sampled_from("abc")
scored = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def same(a: float, b: float | None) -> None:
    if b is None:
        assert math.isnan(a)
    else:
        assert float(a) == pytest.approx(b)


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@given(pairs)
def test_rates_are_their_definitions(rows):
    counts = agreement.binary([t for t, _ in rows], [j for _, j in rows])
    hits = sum(t and j for t, j in rows)
    precise, found = ratio(hits, sum(j for _, j in rows)), ratio(hits, sum(t for t, _ in rows))
    same(agreement.accuracy(counts), sum(t == j for t, j in rows) / len(rows))
    same(agreement.precision(counts), precise)
    same(agreement.recall(counts), found)
    if precise and found:
        same(agreement.f1(counts), 2 * precise * found / (precise + found))
    else:
        same(agreement.f1(counts), 0.0 if any(t or j for t, j in rows) else None)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=40))
def test_kappa_of_any_labels_is_its_definition(rows):
    """Chance agreement is that over all pairs of a row of one and a row of the other."""
    truth, judged = [t for t, _ in rows], [j for _, j in rows]
    seen = sum(t == j for t, j in rows) / len(rows)
    chance = sum(t == j for t in truth for j in judged) / len(rows) ** 2
    counts = agreement.matrix(truth, judged, "abc", "abc")
    same(agreement.kappa(counts), None if chance == 1 else (seen - chance) / (1 - chance))
    same(agreement.kappa(counts.T), None if chance == 1 else (seen - chance) / (1 - chance))
    assert counts.sum() == len(rows)
    together = Counter(rows)
    assert all(counts["abc".index(t), "abc".index(j)] == n for (t, j), n in together.items())


def test_known_values():
    """Cohen's kappa of the well-known table 20, 5, 10, 15: agreement 0.7, chance 0.5."""
    counts = np.array([[20.0, 5.0], [10.0, 15.0]])
    assert agreement.kappa(counts) == pytest.approx(0.4)
    assert agreement.precision(counts) == pytest.approx(20 / 30)
    assert agreement.recall(counts) == pytest.approx(20 / 25)
    assert agreement.f1(counts) == pytest.approx(40 / 55)


def test_many_tables_at_once_give_what_each_gives():
    tables = np.random.default_rng(0).integers(0, 9, size=(5, 3, 2, 2)).astype(float)
    for statistic in (agreement.accuracy, agreement.precision, agreement.recall, agreement.f1, agreement.kappa):
        assert statistic(tables).shape == (5, 3)
        assert statistic(tables)[3, 1] == pytest.approx(statistic(tables[3, 1]), nan_ok=True)


def test_matrix_of_a_label_that_no_row_has():
    with pytest.raises(ValueError, match="'d' is not in"):
        agreement.matrix(["d"], ["a"], ["a"], ["a"])


def test_intervals_of_rates_are_wilson_s():
    counts = np.array([[20.0, 5.0], [10.0, 15.0]])
    assert agreement.rate_interval(agreement.accuracy, counts) == (0.7, *stats.wilson(35, 50))
    assert agreement.rate_interval(agreement.precision, counts) == (20 / 30, *stats.wilson(20, 30))
    assert agreement.rate_interval(agreement.recall, counts) == (0.8, *stats.wilson(20, 25))
    nothing = np.array([[0.0, 5.0], [0.0, 15.0]])
    assert all(math.isnan(x) for x in agreement.rate_interval(agreement.precision, nothing))


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_the_bootstrap_interval_covers_the_value_and_is_reproducible(rows):
    counts = agreement.binary([t for t, _ in rows], [j for _, j in rows])
    for statistic in (agreement.f1, agreement.kappa):
        value, low, high = agreement.bootstrap_interval(statistic, counts, resamples=200)
        assert agreement.bootstrap_interval(statistic, counts, resamples=200) == pytest.approx(
            (value, low, high), nan_ok=True
        )
        if math.isnan(value):
            assert math.isnan(low)
            assert math.isnan(high)
        else:
            assert low <= value <= high


@pytest.mark.parametrize("statistic", [agreement.f1, agreement.kappa])
def test_bootstrap_covers_the_truth(statistic):
    rng, hits = random.Random(7), 0
    p = np.array([[0.3, 0.1], [0.15, 0.45]])
    truth = float(statistic(p))
    for trial in range(60):
        drawn = np.random.default_rng(rng.randrange(10**6)).multinomial(150, p.ravel()).reshape(2, 2).astype(float)
        _, low, high = agreement.bootstrap_interval(statistic, drawn, seed=trial, resamples=500)
        hits += low <= truth <= high
    assert 52 <= hits <= 60


@pytest.mark.parametrize(
    "counts", [[[5, 0], [0, 7]], [[0, 4], [3, 9]], [[6, 0], [0, 6]]], ids=["right", "none found", "even"]
)
def test_certainty_is_never_claimed(counts):
    table = np.array(counts, dtype=float)
    value, low, high = agreement.bootstrap_interval(agreement.f1, table)
    assert high - low > 0.1
    if value == 1:
        kappa, low, high = agreement.bootstrap_interval(agreement.kappa, table)
        assert (kappa, high) == (1, 1)
        assert low < 0.9


def test_more_rows_make_the_interval_narrower():
    few, many = np.array([[8.0, 2.0], [3.0, 12.0]]), np.array([[80.0, 20.0], [30.0, 120.0]])
    for statistic in (agreement.f1, agreement.kappa):
        _, low, high = agreement.bootstrap_interval(statistic, few)
        _, low10, high10 = agreement.bootstrap_interval(statistic, many)
        assert high10 - low10 < 0.5 * (high - low)


@given(scored)
def test_brier_and_calibration_error_are_their_definitions(rows):
    scores, truth = [s for s, _ in rows], [t for _, t in rows]
    same(agreement.brier(scores, truth), sum((s - t) ** 2 for s, t in rows) / len(rows))
    curve = agreement.reliability(scores, truth)
    assert sum(each["n"] for each in curve) == len(rows)
    error = 0.0
    for number in range(10):
        inside = [(s, t) for s, t in rows if number <= s * 10 < number + 1 or (number == 9 and s == 1)]
        if inside:
            error += abs(sum(s for s, _ in inside) - sum(t for _, t in inside)) / len(rows)
    same(agreement.expected_calibration_error(curve), error)
    for each in curve:
        assert each["from"] - 1e-9 <= each["score"] <= each["to"] + 1e-9
        assert 0 <= each["low"] <= each["positive"] <= each["high"] <= 1


def test_a_calibrated_judge():
    rng = random.Random(1)
    scores = [rng.random() for _ in range(4000)]
    truth = [rng.random() < s for s in scores]
    assert agreement.expected_calibration_error(agreement.reliability(scores, truth)) < 0.03
    sure = [float(s > 0.5) for s in scores]
    assert agreement.expected_calibration_error(agreement.reliability(sure, truth)) > 0.2
    assert agreement.brier(sure, truth) > agreement.brier(scores, truth)


def test_the_last_bin_has_the_scores_of_one():
    [last] = agreement.reliability([1.0, 0.95], [True, False])
    assert (last["from"], last["to"], last["n"], last["positive"]) == (0.9, 1.0, 2, 0.5)


def test_figures_of_no_rows_are_undefined():
    assert math.isnan(agreement.brier([], []))
    assert math.isnan(agreement.expected_calibration_error(agreement.reliability([], [])))
    assert all(math.isnan(x) for x in agreement.bootstrap_interval(agreement.kappa, np.zeros((2, 2))))


def test_kappa_over_requests_draws_whole_requests():
    """Ten equal replies to a request count as one draw: the interval is that of one reply for each, not of ten."""
    rng = np.random.default_rng(0)
    single = [np.eye(4)[rng.choice(4, p=[0.4, 0.1, 0.1, 0.4])].reshape(2, 2) for _ in range(40)]
    once = agreement.kappa_over_requests(single)
    tenfold = agreement.kappa_over_requests([10 * each for each in single])
    assert tenfold == pytest.approx(once)
    independent = agreement.bootstrap_interval(agreement.kappa, 10 * sum(single))
    assert once[0] == pytest.approx(independent[0])
    assert once[2] - once[1] > 2 * (independent[2] - independent[1])


def test_kappa_over_requests_claims_no_certainty():
    value, low, high = agreement.kappa_over_requests([np.diag([3.0, 0.0]), np.diag([0.0, 3.0])] * 5)
    assert (value, high) == (1, 1)
    assert low < 0.9
    assert all(np.isnan(agreement.kappa_over_requests([np.diag([1.0, 0.0])] * 5)))
    assert all(np.isnan(agreement.kappa_over_requests([])))
