"""The formula of the rank budget against its limits, drawn tasks, and whole weights that are trained."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from lowtax.analysis.rank_budget import (
    Setting,
    draw,
    intrinsic_dimension,
    overshoot_rate,
    predicted,
    simulate,
    top_energy,
)
from lowtax.common.errors import UserError

START = Setting(base=64)
NEEDED = len(START.change)
EXCESS = 8
REGIMES = {
    "half shared": START,
    "all shared": replace(START, shared=32, needed_share=1.0),
    "half of the change shared": replace(START, needed_share=0.5),
    "at random": replace(START, shared=None, ambient=256),
    "strong directions shared": replace(START, decay=1.0),
    "nothing needed": replace(START, change=()),
    "wide": replace(START, outputs=256),
}
sides = st.integers(1, 40)


def rates(setting: Setting, runs: int) -> np.ndarray:
    """Base loss a rank too many, by run; the draws of one number of base dimensions are not those of another."""
    needed = len(setting.change)
    drawn = [simulate(setting, [needed, needed + EXCESS], [setting.base, run]).base_cost for run in range(runs)]
    return np.diff(drawn, axis=1)[:, 0] / EXCESS


def half_width(values: np.ndarray) -> float:
    """Of a 99.9 % interval of the mean."""
    return float(3.3 * values.std(ddof=1) / math.sqrt(len(values)))


@settings(deadline=None, max_examples=40)
@given(rows=sides, columns=sides)
def test_top_energy_has_its_exact_ends_and_falling_steps_within_the_spectrum(rows: int, columns: int):
    short = min(rows, columns)
    sums = np.array([top_energy(rows, columns, k) for k in range(short + 1)])
    steps = np.diff(sums)
    assert sums[0] == 0
    assert sums[-1] == rows * columns
    assert sums.tolist() == [top_energy(columns, rows, k) for k in range(short + 1)]
    assert (np.diff(steps) <= 1e-6 * rows * columns).all()
    edges = [(math.sqrt(rows) + sign * math.sqrt(columns)) ** 2 for sign in (-1, 1)]
    assert (steps > edges[0] - 1e-6 * rows * columns).all()
    assert (steps < edges[1] + 1e-6 * rows * columns).all()


@pytest.mark.parametrize(("rows", "columns"), [(30, 30), (100, 25), (25, 100)])
def test_top_energy_is_that_of_drawn_matrices(rows: int, columns: int):
    random = np.random.default_rng(0)
    sums = np.array([np.linalg.svd(random.standard_normal((rows, columns)), compute_uv=False) for _ in range(200)])
    sums = np.square(sums).cumsum(axis=1)
    for k in (1, 3, 10, 20):
        found = sums[:, k - 1]
        assert found.mean() == pytest.approx(top_energy(rows, columns, k), abs=half_width(found) + 0.02 * found.mean())


@pytest.mark.parametrize("name", REGIMES)
def test_the_price_of_overshooting_is_the_formulas(name: str):
    setting = REGIMES[name]
    found = rates(setting, 40)
    assert found.mean() == pytest.approx(overshoot_rate(setting, EXCESS), abs=half_width(found) + 0.02 * found.mean())


@pytest.mark.parametrize("name", REGIMES)
def test_full_rank_is_plain_least_squares(name: str):
    """Whose expectation is exact and owes nothing to random matrices' spectra."""
    setting, full = REGIMES[name], 32
    reads = {"all shared": 1 / 64, "half of the change shared": 0.5 / 64, "at random": 1 / 256}.get(name, 0.0)
    strength = sum(s * s for s in setting.change)
    exact = strength * reads + setting.error * setting.outputs * 32 * setting.exposure
    wanted = predicted(setting, [full])
    assert wanted.base_cost[0] == pytest.approx(exact, rel=1e-12)
    assert wanted.task_error[0] == pytest.approx(setting.error * setting.outputs, rel=1e-12)
    found = np.array([simulate(setting, [full], [9, run]).base_cost[0] for run in range(40)])
    assert found.mean() == pytest.approx(exact, abs=half_width(found))


def test_up_to_the_needed_rank_the_formula_holds_where_the_change_is_clear():
    setting, ranks = replace(START, examples=4000, needed_share=0.5), [0, 1, 2, 3]
    curves = [simulate(setting, ranks, run) for run in range(12)]
    wanted = predicted(setting, ranks)
    for name in ("base_cost", "task_error"):
        found = np.array([getattr(curve, name) for curve in curves])
        for rank, value in enumerate(getattr(wanted, name)):
            near = half_width(found[:, rank]) + 0.02 * value
            assert found[:, rank].mean() == pytest.approx(value, abs=near), (name, rank)
    for curve in [wanted, *curves]:
        assert curve.base_cost[0] == 0
        assert (np.diff(curve.task_error) < 0).all()


def test_a_rank_above_the_needed_one_worsens_both_tasks():
    ranks = range(33)
    for curve in (predicted(START, ranks), simulate(START, ranks, 0)):
        assert (np.diff(curve.base_cost) > 0).all()
        assert int(curve.task_error.argmin()) == NEEDED
    steps = np.diff(predicted(START, ranks).base_cost)
    assert steps[NEEDED] > 5 * steps[NEEDED - 1]
    assert (np.diff(steps[NEEDED:]) < 0).all()


def test_without_noise_ranks_above_the_needed_one_are_free():
    setting, ranks = replace(START, noise=0.0, needed_share=1.0), [NEEDED, NEEDED + 1, 32]
    for curve in (predicted(setting, ranks), simulate(setting, ranks, 0)):
        np.testing.assert_allclose(curve.base_cost, sum(s * s for s in START.change) / 64, rtol=1e-10)
        np.testing.assert_allclose(curve.task_error, 0, atol=1e-12)


def test_inputs_that_share_nothing_leave_the_base_task_alone():
    setting = replace(START, shared=0)
    assert predicted(setting, range(33)).base_cost.tolist() == simulate(setting, range(33), 0).base_cost.tolist()
    assert overshoot_rate(setting, EXCESS) == 0


def test_more_examples_less_noise_and_more_base_dimensions_make_it_cheaper():
    def rate(**changed: float) -> float:
        return overshoot_rate(replace(START, **changed), EXCESS)  # type: ignore[arg-type]

    for name, values in {"examples": (100, 500, 5000), "base": (32, 64, 10**6), "noise": (0.4, 0.2, 0.1)}.items():
        assert sorted((rate(**{name: value}) for value in values), reverse=True) == [
            rate(**{name: value}) for value in values
        ]
    assert rate(base=10**6) == pytest.approx(rate() * 64 / 10**6)
    assert rate(noise=0.4) == pytest.approx(4 * rate())


@pytest.mark.parametrize(
    ("changed", "exponent"),
    [({}, -1), ({"shared": 32, "needed_share": 1.0}, -1), ({"shared": None, "ambient": 512}, 0)],
    ids=["half shared", "all shared", "at random"],
)
def test_it_is_inversely_proportional_to_base_dimensions_only_where_the_share_stays(changed: dict, exponent: int):
    bases = (32, 64, 128, 256)
    found = np.array([rates(replace(START, base=base, **changed), 16) for base in bases])
    slopes = np.polyfit(np.log(bases), np.log(found), 1)[0]
    assert slopes.mean() == pytest.approx(exponent, abs=max(0.03, half_width(slopes)))
    assert half_width(slopes) < 0.1


def test_where_variances_decay_the_intrinsic_dimension_counts():
    few, many = (replace(START, base=base, decay=1.0) for base in (32, 4096))
    quotient = intrinsic_dimension(many.variances) / intrinsic_dimension(few.variances)
    assert 2 < quotient < 3
    assert overshoot_rate(few, EXCESS) / overshoot_rate(many, EXCESS) == pytest.approx(quotient)


@settings(deadline=None, max_examples=40)
@given(out=sides, inp=sides, seed=st.integers(0, 100), decay=st.floats(0, 3))
def test_no_update_costs_more_than_its_energy_by_the_intrinsic_dimension(out: int, inp: int, seed: int, decay: float):
    random = np.random.default_rng(seed)
    update, turn = random.standard_normal((out, inp)), np.linalg.qr(random.standard_normal((inp, inp))).Q
    variances = np.arange(1, inp + 1) ** -decay
    bound = variances.sum() / intrinsic_dimension(variances)
    cost = np.trace(update @ (turn * variances @ turn.T) @ update.T)
    assert cost <= np.square(update).sum() * bound * (1 + 1e-12)
    along = np.outer(update[:, 0], turn[:, 0])  # reads the strongest direction alone, and meets the bound
    assert np.trace(along @ (turn * variances @ turn.T) @ along.T) == pytest.approx(np.square(along).sum() * bound)


def test_intrinsic_dimension_of_known_spectra():
    assert intrinsic_dimension([0.2] * 7) == pytest.approx(7)
    assert intrinsic_dimension([3.0, 0.0, 0.0]) == 1
    assert intrinsic_dimension([4.0, 2.0, 2.0]) == 2


def test_a_lora_trained_on_whole_weights_pays_what_the_simulation_says():
    """Rotated inputs, a W without structure, targets with W in them, b and a over all inputs, sampled base inputs."""
    setting = Setting(24, 12, 6, outputs=20, examples=100, noise=0.4, change=(3.0, 2.0), needed_share=0.5)
    random, rank, ambient = np.random.default_rng(5), 5, 40
    data, turn = draw(setting, 3), np.linalg.qr(random.standard_normal((ambient, ambient))).Q
    F, P = turn[:, :12], np.concatenate([turn[:, :6], turn[:, 12:30]], axis=1)
    W = random.standard_normal((20, ambient)) / math.sqrt(20)  # E|W x|^2 is 1 where E|x|^2 is
    X = F @ data.inputs
    Y = W @ X + data.residuals
    a, b = 1e-3 * random.standard_normal((rank, ambient)), np.zeros((20, rank))
    for _ in range(4000):
        slope = ((W + b @ a) @ X - Y) @ X.T * 12 / 100
        a, b = a - 0.05 * b.T @ slope, b - 0.05 * slope @ a.T
    base_inputs = P @ random.standard_normal((24, 40000)) / math.sqrt(24)
    cost = np.square(b @ a @ base_inputs).sum() / 40000
    assert cost == pytest.approx(simulate(setting, [rank], 3).base_cost[0], rel=0.02)
    assert cost / (np.square(W @ base_inputs).sum() / 40000) == pytest.approx(cost, rel=0.25)


def test_one_seed_gives_the_same_bits_and_touches_no_global_generator():
    before = str(np.random.get_state())
    for setting in (START, replace(START, shared=None)):
        one, two, other = (simulate(setting, [1, 5], seed) for seed in ([1, 2], [1, 2], [1, 3]))
        assert one.base_cost.tolist() == two.base_cost.tolist()
        assert one.task_error.tolist() == two.task_error.tolist()
        assert not set(one.base_cost) & set(other.base_cost)
    assert str(np.random.get_state()) == before


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"base": 0}, "base, tuning, outputs >= 1"),
        ({"examples": 33}, "examples >= tuning \\+ 2"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"needed_share": 1.5}, "needed_share"),
        ({"shared": None, "decay": 1.0}, "decay 0"),
        ({"shared": None, "ambient": 40}, "ambient"),
        ({"shared": 33}, "shared in"),
        ({"shared": -1}, "shared in"),
        ({"change": (1.0, 2.0)}, "a decreasing change"),
        ({"change": (1.0, 0.0)}, "a decreasing change"),
        ({"change": (1.0,) * 3, "outputs": 2}, "a decreasing change"),
        ({"shared": 2, "needed_share": 0.5}, "shared to hold change"),
        ({"shared": 30}, "tuning - shared to hold change"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changed: dict, what: str):
    with pytest.raises(UserError, match=f"A setting needs .*{what}.*; found Setting\\("):
        replace(START, **changed)


def test_ranks_and_variances_that_cannot_be_are_refused():
    for ranks in ([], [33], [-1]):
        for ask in (predicted, lambda setting, ranks: simulate(setting, ranks, 0)):
            with pytest.raises(UserError, match="between 0 and 32"):
                ask(START, ranks)
    with pytest.raises(UserError, match="excess 0"):
        overshoot_rate(START, 0)
    with pytest.raises(UserError, match="between 0 and 3 for"):
        top_energy(3, 5, 4)
    for variances in ([], [0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(UserError, match="variances"):
            intrinsic_dimension(variances)


def test_the_guide_has_the_figures_of_the_bench():
    result, guide = (
        json.loads((ROOT / "bench/results/rank_budget.json").read_text()),
        (ROOT / "docs/explanation/theory.md").read_text(),
    )
    for row in result["regimes"]:
        found = row["exponent_in_base"]
        shown = "not defined" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found).replace("-0.00", "0.00")
        assert any(line.startswith(f"| {row['regime']} |") and shown in line for line in guide.splitlines()), shown
    for row in result["sensitivity"]:
        (name, value), found = next(iter(row["setting"].items())), row["quotient"]
        if found is not None and name in ("examples", "noise", "outputs"):
            assert (
                f"| {name} {value:,} | {row['clarity']:.1f} | {found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}] |"
                in guide
            )
