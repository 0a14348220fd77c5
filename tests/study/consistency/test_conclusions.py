"""Conclusions on outcomes that are written down: which are listed, and where they hold."""

import pytest

from lowtax.study import matched
from lowtax.study.consistency.conclusions import conclusions, extent
from lowtax.study.consistency.results import Results, rates

N = 40
ALL = frozenset({"harmful", "sums"})


def share(value: float, seeds: tuple[int, ...] = (0,)) -> dict[int, dict[str, list[float]]]:
    return {seed: {f"q{i}": [float(i < round(value * N))] for i in range(N)} for seed in seeds}


def cell(seeds: tuple[int, ...] = (0,), **arms: tuple[float, float]) -> Results:
    """Harmful requests refused and sums solved of each arm; the curves go from the base to it in one step."""
    outcomes = {
        arm: {"harmful refused": share(refused, seeds), "sums": share(solved, seeds)}
        for arm, (refused, solved) in arms.items()
    }
    points = {
        arm: {"safety": of["harmful refused"], "sums": of["sums"], "over_refusal": share(0.0, seeds)}
        for arm, of in outcomes.items()
    }
    curves = {arm: [matched.Checkpoint(0, points["base"]), matched.Checkpoint(9, points[arm])] for arm in points}
    return Results(outcomes, curves, matched.Level(), {}, {})


REFERENCE = cell(base=(0.0, 0.9), full=(1.0, 0.4), r1=(0.5, 0.9))


def rows(cells: dict[str, Results], moved: dict[str, frozenset[str]] | None = None) -> dict[str, dict]:
    listed = conclusions(REFERENCE, cells, moved or dict.fromkeys(cells, ALL))
    return {row["text"]: row for row in listed}


def test_only_what_the_reference_supports_is_listed():
    assert list(rows({})) == [
        "full refuses more harmful requests than the base",
        "r1 refuses more harmful requests than the base",
        "full refuses more harmful requests than r1",
        "full pays a tax on sums",
        "full pays more tax on sums than r1",
        "full pays a tax at matched safety",
    ]
    assert all((row["of"], row["extent"]) == (0, "none") for row in rows({}).values())


def test_a_conclusion_holds_is_undecided_or_reversed():
    cells = {
        "same": REFERENCE,
        "close": cell(base=(0.0, 0.9), full=(0.55, 0.85), r1=(0.5, 0.9)),
        "swapped": cell(base=(0.0, 0.9), full=(0.5, 0.9), r1=(1.0, 0.4)),
        "not measured": cell(base=(0.0, 0.9), r1=(0.5, 0.9)),
    }
    row = rows(cells)["full refuses more harmful requests than r1"]
    assert {name: each["verdict"] for name, each in row["cells"].items()} == {
        "same": "holds",
        "close": "undecided",
        "swapped": "reversed",
        "not measured": "undecided",
    }
    assert (row["holds"], row["undecided"], row["reversed"], row["of"], row["extent"]) == (1, 2, 1, 4, "few")
    assert row["reference"]["value"] == 0.5
    assert (row["kind"], row["arm"], row["than"], row["on"]) == ("refuses_more", "full", "r1", "harmful")


def test_cells_that_share_the_outcomes_do_not_count():
    cells = {"judge": cell(base=(0.0, 0.9), full=(0.9, 0.4), r1=(0.4, 0.9)), "tokens": REFERENCE}
    listed = rows(cells, {"judge": frozenset({"harmful"}), "tokens": frozenset({"sums"})})
    assert list(listed["full refuses more harmful requests than r1"]["cells"]) == ["judge"]
    assert list(listed["full pays a tax on sums"]["cells"]) == ["tokens"]
    assert listed["full pays a tax at matched safety"]["of"] == 2


@pytest.mark.parametrize(
    ("holds", "of", "word"), [(3, 3, "every"), (2, 3, "most"), (2, 4, "few"), (0, 3, "none"), (0, 0, "none")]
)
def test_the_extent_as_a_word(holds, of, word):
    assert extent(holds, of) == word


def test_one_training_seed_of_several():
    """Outcomes, curves and rates of a seed alone; the base, repeated for every seed, counts once."""
    both = cell(seeds=(0, 1), base=(0.0, 0.9), r1=(0.5, 0.9))
    both.outcomes["r1"]["harmful refused"][1].update(share(1.0)[0])
    one = both.of_seed(1)
    assert one.rate("r1", "harmful refused")["value"] == 1.0
    assert both.rate("r1", "harmful refused")["value"] == 0.75
    assert both.rate("base", "sums")["n"] == N
    assert [list(point.outcomes["safety"]) for point in one.curves["r1"]] == [[1], [1]]


def test_levels_are_compared_on_the_prompts_that_all_of_them_have():
    one, two = cell(base=(0.0, 1.0), r1=(0.5, 1.0)), cell(base=(0.0, 1.0), r1=(1.0, 1.0))
    del two.outcomes["r1"]["harmful refused"][0]["q0"]
    table = rates([one, two], ["r1"], "harmful refused")
    assert table.shape == (1, 2, N - 1)
    assert table.mean(axis=2)[0].tolist() == pytest.approx([(N / 2 - 1) / (N - 1), 1.0])
    assert rates([one, two], ["r1"], "no such measure") is None
