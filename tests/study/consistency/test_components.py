"""Variance components: a slow oracle, known layouts, and what a simulation says of their intervals."""

from statistics import fmean, variance

import numpy as np
import pytest

from lowtax.common import stats
from lowtax.study.consistency.components import component, simulate


def oracle(table: list[list[list[float]]]) -> float:
    """Squared sd by the definition of the two-way layout, number by number, before it is cut at zero."""
    squares = []
    for arm in table:
        levels, prompts = len(arm), len(arm[0])
        of_level = [fmean(row) for row in arm]
        of_prompt = [fmean(row[p] for row in arm) for p in range(prompts)]
        mean = fmean(of_level)
        left = [arm[i][p] - of_level[i] - of_prompt[p] + mean for i in range(levels) for p in range(prompts)]
        flips = sum(x * x for x in left) / ((levels - 1) * (prompts - 1))
        squares.append(variance(of_level) - flips / prompts)
    return fmean(squares)


def test_the_value_is_that_of_the_definition():
    rng = np.random.default_rng(1)
    for shape in ((1, 2, 5), (2, 3, 20), (3, 5, 9)):
        shares = rng.uniform(0, 1, size=(shape[0], shape[1], 1))
        table = (rng.uniform(size=shape) < shares).astype(float)
        result = component(table)
        assert result.sd == pytest.approx(max(0.0, oracle(table.tolist())) ** 0.5, abs=1e-12)
        assert result.low <= result.sd <= result.high
        assert (result.levels, result.prompts) == shape[1:]


def test_difficulty_of_prompts_cancels():
    """Two levels on prompts that are all the same for both, but for the last ten, which only the second refuses."""
    one = [float(p % 2) for p in range(90)] + [0.0] * 10
    two = [float(p % 2) for p in range(90)] + [1.0] * 10
    result = component(np.array([[one, two]]))
    assert result.range == pytest.approx(0.1)
    assert result.observed == pytest.approx(0.1 / 2**0.5)
    assert 0 < result.low < result.sd < result.observed < result.high
    harder = component(np.array([[[0.0] * 90 + one[90:], [0.0] * 90 + two[90:]]]))
    assert (harder.sd, harder.low, harder.high) == pytest.approx((result.sd, result.low, result.high))


def test_no_flip_at_all_is_no_certainty():
    same = component(np.tile([[float(p % 2) for p in range(40)]], (1, 3, 1)))
    assert (same.sd, same.low) == (0, 0)
    assert 0 < same.high <= stats.wilson(0, 40)[1]
    assert component(np.ones((1, 1, 9))) is None
    assert component(np.ones((1, 3, 1))) is None
    all_move = component(np.array([[[0.0] * 40, [1.0] * 40]]))
    assert all_move.sd == pytest.approx(0.5**0.5)
    assert all_move.low < all_move.sd < all_move.high


@pytest.mark.parametrize("levels", [2, 4])
def test_levels_that_do_not_differ_have_intervals_that_begin_at_zero(levels):
    held, at_zero, bias = simulate(levels, 0.0, studies=150, seed=levels)
    assert held >= 0.94
    assert at_zero >= 0.94
    assert bias < 0.0015  # what is cut at zero


def test_the_interval_holds_a_spread_that_is_there():
    held, at_zero, _ = simulate(3, 0.12, studies=150, arms=2, seed=5)
    assert held >= 0.9
    assert at_zero < 0.3
