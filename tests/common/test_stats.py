import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtax.common import stats

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


def pairs(both, first, second, neither):
    return [(1, 1)] * both + [(1, 0)] * first + [(0, 1)] * second + [(0, 0)] * neither


def test_newcombe_paired_known_values():
    # Newcombe (1998), Statistics in Medicine 17, 2635, method 10.
    assert stats.newcombe_paired(pairs(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert all(math.isnan(x) for x in stats.newcombe_paired([]))


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_newcombe_paired_is_symmetric_and_never_certain(counts):
    both, first, second, neither = counts
    low, high = stats.newcombe_paired(pairs(*counts))
    value = (first - second) / sum(counts)
    assert -1 <= low <= value <= high <= 1
    assert high - low > 0
    turned = stats.newcombe_paired(pairs(both, second, first, neither))
    assert turned == pytest.approx((-high, -low))


@pytest.mark.parametrize(("n", "lost", "won"), [(30, 0.03, 0.01), (30, 0.1, 0.0), (100, 0.03, 0.01), (100, 0.05, 0.02)])
def test_a_paired_interval_covers_the_truth_where_few_answers_change(n, lost, won):
    luck, held = random.Random(7), 0
    for _ in range(400):
        found = []
        for _ in range(n):
            right = luck.random() < 0.9
            found.append((right, luck.random() >= lost if right else luck.random() < won * 9))
        base, arm = ({str(i): [float(pair[k])] for i, pair in enumerate(found)} for k in (0, 1))
        _, low, high = stats.tax([(base, {0: arm})], resamples=2)
        held += low <= 0.9 * lost - 0.9 * won <= high
    assert held / 400 >= 0.94


def test_mcnemar():
    assert stats.mcnemar(0, 0) == 1
    assert stats.mcnemar(8, 0) == pytest.approx(2 / 256)
    assert stats.mcnemar(1, 12) == stats.mcnemar(12, 1) == pytest.approx(2 * 14 / 2**13)
    assert stats.mcnemar(5, 5) == 1
    assert 0.9 < stats.mcnemar(5120, 5130) < 1
    assert stats.mcnemar(0, 5000) == 0  # less than any float


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


def draw(rates, luck, samples):
    return {str(i): [float(luck.random() < rate) for _ in range(samples)] for i, rate in enumerate(rates)}


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.04), (8, 0.04)])
def test_the_tax_interval_covers_the_true_tax(seeds, spread):
    """The true tax is 0.1 on every question; training seeds differ by `spread` (standard deviation)."""
    luck, held = random.Random(4), 0
    for trial in range(200):
        rates = [luck.uniform(0.25, 0.85) for _ in range(60)]
        base = draw(rates, luck, 2)
        arm = {}
        for seed in range(seeds):
            off = luck.gauss(0.1, spread)
            arm[seed] = draw([rate - off for rate in rates], luck, 2)
        _, low, high = stats.tax([(base, arm)], seed=trial, resamples=400)
        held += low <= 0.1 <= high
    assert 0.91 <= held / 200 <= 1.0, held


def test_the_seeds_widen_the_tax_interval():
    luck = random.Random(0)
    rates = [0.7] * 200
    base = draw(rates, luck, 4)
    alike = {s: draw([0.6] * 200, luck, 4) for s in range(4)}
    apart = {s: draw([0.6 + off] * 200, luck, 4) for s, off in enumerate((-0.2, -0.1, 0.1, 0.2))}
    widths = [high - low for _, low, high in (stats.tax([(base, arm)]) for arm in (alike, apart))]
    assert widths[1] > 1.5 * widths[0]
    both = stats.tax([(base, apart), (base, apart)])
    assert both[2] - both[1] > 0.8 * widths[1]  # a seed is good or bad in all tasks: two tasks do not average it out


def test_the_tax_does_not_depend_on_order():
    luck = random.Random(1)
    base, arm = draw([0.6] * 30, luck, 3), {s: draw([0.5] * 30, luck, 3) for s in range(3)}
    turned = {s: dict(reversed(arm[s].items())) for s in reversed(arm)}
    assert stats.tax([(dict(reversed(base.items())), turned)]) == stats.tax([(base, arm)])


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(0, 999))
def test_an_arm_like_the_base_has_no_tax_and_a_tax_is_bounded(questions, seeds, samples, number):
    luck = random.Random(number)
    base = draw([0.5] * questions, luck, samples)
    value, low, high = stats.tax([(base, dict.fromkeys(range(seeds), base))], resamples=50)
    assert value == 0
    assert low == pytest.approx(-high)
    assert low < 0  # that no answer changed does not say that none can
    arm = {s: draw([0.5] * questions, luck, samples) for s in range(seeds)}
    value, low, high = stats.tax([(base, arm)], resamples=50)
    assert -1 <= value <= 1
    assert -1 <= low <= high <= 1
    half, *_ = stats.tax([(base, dict.fromkeys(range(seeds), base)), (base, arm)], resamples=50)
    assert half == pytest.approx(value / 2)


def test_the_tax_of_nothing_is_no_number():
    assert all(math.isnan(x) for x in stats.tax([]))
    assert all(math.isnan(x) for x in stats.tax([({"a": [1.0]}, {})]))
    assert all(math.isnan(x) for x in stats.tax([({"a": [1.0]}, {0: {"b": [1.0]}})]))


def test_what_a_seed_lacks_is_left_out_of_the_tax():
    base = {"a": [1.0], "b": [1.0], "c": [1.0, 0.0]}
    arm = {0: {"a": [0.0], "b": [1.0], "c": [1.0]}, 1: {"a": [0.0], "c": [0.0, 0.0]}, 2: {}}
    assert stats.tax([(base, arm)])[0] == pytest.approx((1 - 0.5 + 1 + 0.5) / 4)


def test_fractions_are_no_trials():
    """Of questions with one pass@k each, between 0 and 1, Wilson's interval would be that of coin tosses."""
    half = {str(i): [0.5] for i in range(20)}
    assert stats.cluster_interval(half) == (0.5, 0.5, 0.5)


def test_holm_on_a_known_example():
    """p values of four tests; the second smallest is raised to the first's."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_one_seed_has_the_interval_of_its_prompts():
    outcomes = {f"q{i}": [float(i % 3 == 0), float(i % 2)] for i in range(30)}
    assert stats.seeds_interval({7: outcomes}) == stats.cluster_interval(outcomes)
    assert stats.seeds_interval({0: {}, 7: outcomes}) == stats.cluster_interval(outcomes)
    assert all(math.isnan(x) for x in stats.seeds_interval({}))
    certain = {seed: {f"q{i}": [1.0] for i in range(30)} for seed in range(3)}
    assert stats.seeds_interval(certain) == (1.0, *stats.wilson(30, 30))


def test_intervals_over_seeds_hold_the_truth_where_those_over_prompts_do_not():
    """3 seeds that differ by 0.6 in the logit, 80 prompts: 0.94 and 0.67 of 400 cases; here 120 of them."""
    generator = np.random.default_rng(0)

    def probability(logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-logits))

    truth = probability(generator.normal(size=200_000) * 0.6 + generator.normal(size=200_000)).mean()
    held = [0, 0]
    for case in range(120):
        logits = 0.6 * generator.normal(size=(3, 1)) + generator.normal(size=(1, 80))
        drawn = (generator.random((3, 80)) < probability(logits)).astype(float)
        seeds = {s: {str(q): [drawn[s, q]] for q in range(80)} for s in range(3)}
        prompts = {str(q): list(drawn[:, q]) for q in range(80)}
        for i, (mean, low, high) in enumerate(
            (
                stats.seeds_interval(seeds, seed=case, resamples=300),
                stats.cluster_interval(prompts, seed=1, resamples=300),
            )
        ):
            assert mean == pytest.approx(drawn.mean())
            held[i] += low <= truth <= high
    assert held[0] >= 107  # 0.89
    assert held[1] <= 96  # 0.8


def test_a_resampling_in_parts_has_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(0)
    one, two = ({s: {str(q): [float(rng.random() < p)] for q in range(90)} for s in (0, 1)} for p in (0.6, 0.5))
    whole = stats.difference([(one, two)])
    monkeypatch.setattr(stats, "LARGEST", 90 * 7)
    assert stats.difference([(one, two)]) == whole
