"""Agreement with stored results: the interval holds what it says, and one rate that differs is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_study import FOLDER

from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.study import expected

TABLE = json.loads((FOLDER / "study" / "table.json").read_text())


def stored(tmp_path: Path, shift: float = 0.0, recipe: str = TABLE["recipe"]) -> Path:
    """Write results like the golden study's own, those of arm r1 shifted."""
    rates = []
    for rate in expected.last_rates(TABLE):
        middle = np.mean(list(rate["seeds"].values())) + shift * (rate["arm"] == "r1")
        values = {f"{i}": float(np.clip(middle + (i - 2) * 0.005, 0, 1)) for i in range(5)}
        rates.append({key: rate[key] for key in ("arm", "step", "measure")} | {"values": {"float32": values}})
    path = tmp_path / "expected.json"
    path.write_text(json.dumps({"recipe": recipe, "rates": rates}))
    return path


@pytest.mark.parametrize(("freedom", "quantile"), [(2, 4.3027), (3, 3.1824), (8, 2.3060), (26, 2.0555), (1000, 1.9623)])
def test_quantiles_of_student(freedom: int, quantile: float):
    assert stats.student_t(0.95, freedom) == pytest.approx(quantile, rel=0.01)


@pytest.mark.parametrize(("n", "size"), [(3, 1), (9, 3), (27, 3)])
def test_the_interval_of_a_prediction_holds_95_of_100(n: int, size: int):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = stats.prediction_interval(rng.normal(0.7, 0.1, n).tolist(), size)
        held += low <= rng.normal(0.7, 0.1, size).mean() <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_a_study_agrees_with_results_like_its_own(tmp_path: Path):
    rows = expected.agreement(TABLE, stored(tmp_path))
    assert {row.arm for row in rows} == {row["arm"] for row in TABLE["rows"]}
    assert all(row.agrees for row in rows)
    assert f"{len(rows)} of {len(rows)} rates agree." in expected.markdown(rows)


def test_an_arm_that_differs_is_named(tmp_path: Path):
    rows = expected.agreement(TABLE, stored(tmp_path, shift=0.4))
    assert {row.arm for row in rows if not row.agrees} == {"r1"}
    line = next(line for line in expected.markdown(rows).splitlines() if line.startswith("| r1 "))
    assert "DIFFERS" in line


def test_results_without_spread_allow_one_prompt(tmp_path: Path):
    path = stored(tmp_path)
    content = json.loads(path.read_text())
    for rate in content["rates"]:
        mine = next(r for r in expected.last_rates(TABLE) if all(r[k] == rate[k] for k in ("arm", "step", "measure")))
        same = float(np.mean(list(mine["seeds"].values()))) + 0.9 / mine["n"]
        rate["values"] = {"float32": dict.fromkeys("012", min(same, 1.0))}
    path.write_text(json.dumps(content))
    assert all(row.agrees for row in expected.agreement(TABLE, path))


def test_results_of_another_recipe_or_of_other_steps_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="has results of the recipe 'other'"):
        expected.agreement(TABLE, stored(tmp_path, recipe="other"))
    path = stored(tmp_path)
    path.write_text(path.read_text().replace('"step": ', '"step": 9'))
    with pytest.raises(UserError, match="no rate of an arm and a last step of this study"):
        expected.agreement(TABLE, path)
    path.write_text('{"recipe": "golden", "rates": [{"arm": "r1", "step": 4, "measure": "safety", "values": 3}]}')
    with pytest.raises(UserError, match="damaged or forged"):
        expected.agreement(TABLE, path)
