"""Safety after, on scripted outcomes: signs, pairs, seeds, and which rows are compared."""

from typing import Any

import pytest

from lowtax.common import stats
from lowtax.common.records import Subject
from lowtax.study import after, recipe
from lowtax.study.outcomes import Outcomes

RECIPE = recipe.build(
    {
        "model": "m",
        "arms": {"r2": {"mode": "lora_mlp_r2"}, "child": {"start": "r2"}},
        "edited": {
            "cut": {"of": "r2", "edits": [{"name": "subtract"}]},
            "half": {"of": "r2", "edits": [{"name": "scale", "by": 0.5}]},
        },
    },
    [],
    "test",
)
STEPS = {"r2": (20, 40), "child": (10,), "cut": (40,), "half": (40,)}
REFUSED: dict[str, dict[str, list[float]]] = {  # of the first seed and of the second, request by request
    "r2": {"0": [1, 1, 1, 1, 0, 1], "1": [1, 1, 1, 0, 1, 1]},
    "child": {"0": [1, 0, 0, 1, 0, 0], "1": [0, 0, 1, 0, 1]},
    "cut": {"0": [0] * 6, "1": [0] * 6},
    "half": {"0": [1] * 6, "1": [1] * 6},
}


def outcomes(subject: Subject) -> Outcomes:
    of_arm = REFUSED[subject.arm]
    return {int(seed): {f"q{i}": [value] for i, value in enumerate(values)} for seed, values in of_arm.items()}


def cell(arm: str) -> dict[str, Any]:
    values = [value for seed in REFUSED[arm].values() for value in seed]
    return {"value": sum(values) / len(values), "low": 0.0, "high": 1.0, "n": len(values), "seeds": {"0": 1, "1": 1}}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    names = [(arm, step) for arm, steps in STEPS.items() for step in steps]
    table = [
        {
            "arm": arm,
            "checkpoint": f"checkpoint-{step}",
            "step": step,
            "safety": cell(arm),
            "reasoning": {"sums": cell(arm)},
        }
        for arm, step in names
    ]
    subjects = [Subject(arm, seed, f"checkpoint-{s}", s, "m", None, "x") for arm, s in names for seed in (0, 1)]
    after.add(table, RECIPE, subjects, ({"harmful": outcomes}, {"sums": outcomes}))
    return table


def test_a_change_is_after_minus_before_on_the_same_requests_of_each_seed(rows):
    [last] = [row for row in rows if (row["arm"], row["step"]) == ("r2", 40)]
    child = last["after"]["child"]
    one, two = (outcomes(Subject(arm, 0, None, 0, "m", None, "x")) for arm in ("child", "r2"))
    value, low, high = stats.difference([(one, two)])
    for each in (child["safety"], child["reasoning"]["sums"]):
        assert each["difference"] == {
            "value": round(value, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": 11,  # the child answered one request less with its second seed
        }
        assert (each["before"]["value"], each["after"]["value"]) == (cell("r2")["value"], cell("child")["value"])
    assert child["safety"]["difference"]["value"] < -0.3
    assert "over_refusal" not in child


def test_the_last_checkpoint_has_what_became_of_it_and_edits_count_if_they_attack(rows):
    for row in rows:
        expected = {"child", "cut"} if (row["arm"], row["step"]) == ("r2", 40) else set()
        assert row.get("after", {}).keys() == expected
    parents = {row["arm"]: row.get("parent") for row in rows if row["arm"] != "r2"}
    assert parents == {"child": "r2@checkpoint-40", "cut": "r2@checkpoint-40", "half": None}


def test_the_table_shows_signs(rows):
    lines = after.markdown(rows).splitlines()
    assert len(lines) == 2 + 2 + 2
    assert lines[2].startswith("| r2 40 | child 10 | 0.83 [0.00, 1.00] | 0.36 [0.00, 1.00] | -0.")
    assert after.markdown([row for row in rows if row["arm"] != "r2"]) == ""
