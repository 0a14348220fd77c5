"""Arms that failed: the page and the table across studies name them, with seed and reason, and show the others."""

import json
import shutil
from pathlib import Path

import pytest
from injections import INJECTIONS
from watched_page import Watched

from lowtax.common.files import write_json
from lowtax.report import bundle, failures, stored
from lowtax.report.across import compare_studies
from lowtax.report.overview import overview, warnings
from lowtax.report.subjects import Columns

FAILED = [
    {"arm": "arm_3", "seed": 0, "reason": "UserError: the loss is not finite"},
    {"arm": "arm_1", "seed": 1, "reason": INJECTIONS[6]},
    {"arm": "arm_3", "seed": 1, "reason": "arm_0, from which it starts, failed"},
]
RECIPE = "arms:\n  arm_3: {mode: full}\n"


@pytest.fixture
def study(made_study: Path, tmp_path: Path) -> Path:
    """The made study, with an arm of which nothing was trained, and one that failed for a second seed."""
    out = Path(shutil.copytree(made_study, tmp_path / "study"))
    recipe = (out / "recipe.yaml").read_text().replace("arms:\n", RECIPE)
    (out / "recipe.yaml").write_text(recipe + "seeds: [0, 1]\n")
    for name in ("arm_0", "arm_2"):
        shutil.copytree(out / "arms" / name / "seed-0", out / "arms" / name / "seed-1")
    write_json(out / "table.json", json.loads((out / "table.json").read_text()) | {"failed": FAILED})
    return out


def test_they_are_warnings_and_not_called_unfinished(study: Path):
    read = stored.read(study)
    assert read.notes == []
    assert warnings(read)[:2] == [
        "arm_3 with seed 0 failed, and is in no number: UserError: the loss is not finite",
        f"arm_1 with seed 1 failed, and is in no number: {INJECTIONS[6]}",
    ]
    assert overview([read], Columns([read]))["failed"] == FAILED
    shutil.rmtree(study / "arms" / "arm_2" / "seed-1")
    assert stored.read(study).notes == ["Not finished: arm_2."]


@pytest.mark.parametrize("failed", [3, [1, {"arm": "x"}, {"arm": 1, "seed": 0, "reason": "y"}], {"arm": "x"}])
def test_entries_of_another_form_are_left_out(study: Path, failed: object):
    write_json(study / "table.json", json.loads((study / "table.json").read_text()) | {"failed": failed})
    assert failures.listed(stored.read(study).table) == []


def test_many_are_a_few_warnings(study: Path):
    many = [FAILED[0] | {"seed": seed} for seed in range(9)]
    write_json(study / "table.json", json.loads((study / "table.json").read_text()) | {"failed": many})
    lines = [line for line in warnings(stored.read(study)) if "failed" in line]
    assert len(lines) == 6
    assert lines[-1] == "4 more arms failed: they are at the end of the table."


def test_the_table_across_studies_has_them(study: Path, made_study: Path, tmp_path: Path):
    table = compare_studies([made_study, study], tmp_path / "out")
    names = [(row["arm"], row["seed"]) for row in table["failed"]]
    failed = f"{study.parent.name}/{study.name}"  # both are of one recipe, in folders of one name
    assert names == [(f"{failed}: arm_3", 0), (f"{failed}: arm_1", 1), (f"{failed}: arm_3", 1)]
    assert len(table["rows"]) == 13
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| failed, and not in any table | seed | reason |" in text
    assert f"| {failed}: arm_3 | 0 | UserError: the loss is not finite |" in text


def test_the_page_shows_them_and_goes_on_with_the_others(watched: Watched, study: Path, tmp_path: Path):
    page = watched.open(bundle.write([study], tmp_path / "page").path)
    listed = page.locator(".warnings li").all_inner_texts()
    assert listed[0] == "arm_3 with seed 0 failed, and is in no number: UserError: the loss is not finite"
    rows = page.locator("#view-overview table").last.locator("tbody tr")
    assert rows.count() == 7 + 3
    assert rows.nth(7).inner_text().split("\t") == ["arm_3, seed 0", "failed: UserError: the loss is not finite"]
    assert INJECTIONS[6] in rows.nth(8).inner_text()
    page.locator("#view-overview").get_by_role("button", name="harmful refused").click()
    assert rows.nth(8).locator("th").inner_text() == "arm_1, seed 1"  # sorting leaves them at the end
    assert page.locator("img").count() == 0
    assert page.locator(".point").count() == 7
