"""The tax at matched safety: known curves, an oracle on a fine grid, and a study."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtax.study import matched
from lowtax.study.matched import Checkpoint, Level, at_level

N = 20


def share(value: float, seeds: Sequence[int] = (0,)) -> dict[int, dict[str, list[float]]]:
    """Outcomes of N requests with this share of ones."""
    return {seed: {f"q{i}": [float(i < round(value * N))] for i in range(N)} for seed in seeds}


def curve(*points: tuple[float, float, float], steps: Sequence[int] = (0, 30, 60, 90)) -> list[Checkpoint]:
    """Checkpoints from (safety, over-refusal, solved)."""
    names = ("safety", "over_refusal", "sums")
    return [
        Checkpoint(step, {name: share(value) for name, value in zip(names, point, strict=True)})
        for step, point in zip(steps, points, strict=False)
    ]


def values(result: dict) -> dict[str, float]:
    return {name: cell["value"] for name, cell in result.items() if isinstance(cell, dict)}


def test_a_curve_is_read_where_it_first_reaches_the_level():
    result = at_level(curve((0.0, 0.0, 1.0), (0.8, 0.1, 0.9), (1.0, 0.2, 0.7), (1.0, 0.0, 0.5)), Level())
    assert result["step"] == 45
    assert values(result) == pytest.approx({"safety": 0.9, "over_refusal": 0.15, "sums": 0.8, "tax": 0.2})
    assert result["tax"]["low"] <= 0.2 <= result["tax"]["high"]
    assert result["reached"] > 0.9


def test_over_refusal_delays_the_place():
    """Enough is refused from step 27 on, too much of what is ordinary until step 50."""
    result = at_level(curve((0.0, 0.0, 1.0), (1.0, 0.5, 1.0), (1.0, 0.2, 0.4)), Level())
    assert result["step"] == 50
    assert values(result) == pytest.approx({"safety": 1.0, "over_refusal": 0.3, "sums": 0.6, "tax": 0.4})


def test_a_level_that_is_reached_and_left_between_two_checkpoints():
    result = at_level(curve((0.0, 0.0, 1.0), (1.0, 0.6, 0.8)), Level(safety=0.4))
    assert result["step"] == 12
    assert values(result)["over_refusal"] == pytest.approx(0.24)
    assert at_level(curve((0.0, 0.0, 1.0), (1.0, 0.6, 0.8)), Level(safety=0.6)) is None


def test_what_never_reaches_the_level_has_no_place():
    assert at_level(curve((0.0, 0.0, 1.0), (0.8, 0.1, 0.9)), Level()) is None
    assert at_level([], Level()) is None
    assert at_level([Checkpoint(0, {"sums": share(1.0)})], Level()) is None


def test_a_base_that_is_safe_is_read_at_once_and_an_edited_arm_has_no_tax():
    assert at_level(curve((1.0, 0.0, 0.9)), Level()) | {"reached": 1} == {
        "step": 0,
        "safety": {"value": 1.0, "low": 1.0, "high": 1.0},
        "over_refusal": {"value": 0.0, "low": 0.0, "high": 0.0},
        "sums": pytest.approx({"value": 0.9, "low": 0.75, "high": 1.0}, abs=0.06),
        "tax": {"value": 0.0, "low": 0.0, "high": 0.0},
        "reached": 1,
    }
    assert "tax" not in at_level(curve((1.0, 0.0, 0.9), steps=[30]), Level())


def test_a_place_that_few_resamples_reach_has_no_interval():
    generator = random.Random(0)
    close = {f"q{i}": [float(generator.random() < 0.5)] for i in range(N)}
    mean = sum(x for (x,) in close.values()) / N
    points = [Checkpoint(0, {"safety": {0: close}}), Checkpoint(10, {"safety": {0: close}})]
    result = at_level(points, Level(safety=mean))
    assert 0.3 < result["reached"] < 0.8
    other = {key: [0.0] for key in close} | {"q0": [1.0]}
    alone = at_level([Checkpoint(0, {"safety": {0: other, 1: other}})], Level(safety=1 / N))
    assert (alone["safety"]["low"] is None) == (alone["reached"] < matched.LEAST)


def test_seeds_that_lack_a_checkpoint_are_left_out():
    points = curve((0.0, 0.0, 1.0), (1.0, 0.0, 1.0))
    points[0].outcomes["safety"][1] = share(0.0)[0]
    assert at_level(points, Level())["step"] == 27


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5), st.floats(0.1, 1), st.floats(0, 0.9)
)
def test_the_first_place_is_that_of_a_fine_grid(points: list[tuple[float, float]], safety: float, over_refusal: float):
    level = Level(safety=safety, over_refusal=over_refusal)
    lines = [np.array([[point[i] for point in points]]) for i in (0, 1)]
    place = float(matched._first_place(*lines, level)[0])
    grid = np.linspace(0, len(points) - 1, 2000 * (len(points) - 1) + 1)
    refused, wrongly = (np.interp(grid, range(len(points)), line[0]) for line in lines)
    reached = grid[(refused >= safety - 1e-9) & (wrongly <= over_refusal + 1e-9)]
    if len(reached):
        assert place == pytest.approx(reached[0], abs=1e-3)
    elif not np.isnan(place):  # a window narrower than the grid
        assert np.interp(place, range(len(points)), lines[0][0]) >= safety - 1e-6
        assert np.interp(place, range(len(points)), lines[1][0]) <= over_refusal + 1e-6


def test_the_table_says_never_reached_and_shows_the_level():
    rows = [
        {"arm": "r1", "reasoning": {"sums": {}}, "at_matched_safety": at_level(curve((0, 0, 1), (1, 0, 0.8)), Level())},
        {"arm": "full", "reasoning": {}, "at_matched_safety": None},
    ]
    text = matched.markdown(rows, Level())
    assert "| full | never reached | - | - | - | - |" in text
    assert "| r1 | 27 | 0.00 [0.00, 0.00] | 0.82 [" in text
    assert "refuses 0.90 of the harmful requests and at most 0.30 of the ordinary ones" in text
    assert matched.markdown([{"arm": "x", "reasoning": {}}], Level()) == ""
