import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtax import stats

rates = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
unit = st.floats(0, 1)
points = st.lists(st.tuples(unit, unit), max_size=8)


def test_wilson_known_values():
    """Newcombe 1998, Statistics in Medicine 17:857, table I."""
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert stats.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_of_nothing():
    assert all(math.isnan(x) for x in stats.wilson(0, 0))
    with pytest.raises(ValueError, match="3 successes in 2"):
        stats.wilson(3, 2)


@given(rates)
def test_wilson_holds_the_rate_and_mirrors(rate):
    k, n = rate
    low, high = stats.wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    assert stats.wilson(n - k, n) == pytest.approx((1 - high, 1 - low))
    assert stats.wilson(k, n, 0.99)[1] >= high
    more = stats.wilson(4 * k, 4 * n)
    assert more[1] - more[0] < high - low


def test_newcombe_known_values():
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10."""
    assert stats.newcombe_difference(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert stats.newcombe_difference(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert stats.newcombe_difference(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


@given(rates, rates)
def test_newcombe_changes_sign_with_the_order(one, two):
    low, high = stats.newcombe_difference(*one, *two)
    assert low - 1e-12 <= one[0] / one[1] - two[0] / two[1] <= high + 1e-12
    assert stats.newcombe_difference(*two, *one) == pytest.approx((-high, -low))


def test_paired_bootstrap_is_narrow_where_items_agree():
    rng = random.Random(0)
    a = [float(rng.random() < 0.5) for _ in range(200)]
    b = [x if i % 20 else 1 - x for i, x in enumerate(a)]
    low, high = stats.paired_bootstrap_difference(a, b, seed=1)
    wide_low, wide_high = stats.newcombe_difference(round(sum(a)), 200, round(sum(b)), 200)
    assert low <= (sum(a) - sum(b)) / 200 <= high
    assert high - low < 0.6 * (wide_high - wide_low)
    assert stats.paired_bootstrap_difference(a, b, seed=1) == (low, high)
    assert stats.paired_bootstrap_difference(a, b, seed=2, level=0.8)[0] > low


def test_paired_bootstrap_edges():
    assert stats.paired_bootstrap_difference([1, 1], [0, 0], seed=0) == (1, 1)
    assert all(math.isnan(x) for x in stats.paired_bootstrap_difference([], [], seed=0))
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.paired_bootstrap_difference([1], [1, 0], seed=0)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_chance_of_drawing_a_right_one(nck):
    n, c, k = nck
    miss = math.prod((n - c - i) / (n - i) for i in range(k))
    assert stats.pass_at_k(n, c, k) == pytest.approx(1 - max(0, miss))


def test_pass_at_k_known_values():
    assert stats.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert stats.pass_at_k(5, 2, 2) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="needs at least 3"):
        stats.pass_at_k(2, 1, 3)


def test_one_answer_a_prompt_is_wilson():
    clusters = {str(i): [float(i < 7)] for i in range(10)}
    assert stats.cluster_interval(clusters) == (0.7, *stats.wilson(7, 10))


def test_repeated_answers_count_for_less_than_new_prompts():
    same = {str(i): [float(i < 50)] * 4 for i in range(100)}
    mean, low, high = stats.cluster_interval(same)
    once = stats.wilson(50, 100)
    independent = stats.wilson(200, 400)
    assert mean == 0.5
    assert high - low == pytest.approx(once[1] - once[0], rel=0.15)
    assert high - low > 1.5 * (independent[1] - independent[0])
    assert stats.cluster_interval(same) == (mean, low, high)


def test_certainty_is_never_claimed():
    assert stats.cluster_interval({str(i): [1.0, 1.0] for i in range(10)}) == (1.0, *stats.wilson(10, 10))
    assert all(math.isnan(x) for x in stats.cluster_interval({}))
    assert all(math.isnan(x) for x in stats.cluster_interval({"a": []}))


def test_cluster_interval_covers_the_truth():
    rng, hits = random.Random(5), 0
    for trial in range(60):
        clusters = {}
        for i in range(60):
            p = rng.choice([0.2, 0.9])
            clusters[str(i)] = [float(rng.random() < p) for _ in range(3)]
        _, low, high = stats.cluster_interval(clusters, seed=trial, resamples=500)
        hits += low <= 0.55 <= high
    assert 52 <= hits <= 60


def test_mean_interval():
    assert stats.mean_interval([(0.5, 0.4, 0.7)]) == pytest.approx((0.5, 0.4, 0.7))
    mean, low, high = stats.mean_interval([(0.5, 0.4, 0.6), (0.9, 0.8, 1.0)])
    assert (mean, high - mean, mean - low) == pytest.approx((0.7, 0.1 / math.sqrt(2), 0.1 / math.sqrt(2)))
    assert all(math.isnan(x) for x in stats.mean_interval([]))


@given(points)
def test_frontier_points_are_not_beaten(cloud):
    best = [cloud[i] for i in stats.nondominated(cloud)]
    assert bool(best) == bool(cloud)
    for x, y in cloud:
        assert any(u >= x and v >= y for u, v in best)
    for x, y in best:
        assert not any(u >= x and v >= y and (u, v) != (x, y) for u, v in cloud)


def test_hypervolume_known_values():
    assert stats.hypervolume([]) == 0
    assert stats.hypervolume([(1, 1)]) == 1
    assert stats.hypervolume([(0.5, 1.0), (1.0, 0.5)]) == pytest.approx(0.75)
    assert stats.hypervolume([(0.5, 1.0), (1.0, 0.5), (0.4, 0.4)]) == pytest.approx(0.75)


@given(points, st.tuples(unit, unit))
def test_a_point_more_never_takes_area_away(cloud, more):
    assert stats.hypervolume([*cloud, more]) >= stats.hypervolume(cloud) - 1e-12
    assert stats.hypervolume([*cloud, more]) <= 1 + 1e-12
    frontier = [cloud[i] for i in stats.nondominated(cloud)]
    assert stats.hypervolume(frontier) == pytest.approx(stats.hypervolume(cloud))
