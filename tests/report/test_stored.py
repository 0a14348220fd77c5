"""Studies under way, of other versions, damaged or hostile: the page is made, and says what is missing."""

import json
import shutil
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.report import bundle, stored


@pytest.fixture
def study(made_study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_study, tmp_path / "study"))


def notes_of(study: Path) -> str:
    page = bundle.write([study], study.parent / "page")
    text = (page.path.parent / "data" / "overview.js").read_text()
    value = json.loads(text[text.index("{") : text.rindex("'")].replace("\\u0027", "'").replace("\\\\", "\\"))
    return "\n".join([*value["warnings"], *value["studies"][0]["notes"]])


def test_a_whole_study_has_no_note(study: Path):
    assert "missing" not in notes_of(study)
    assert stored.read(study).notes == []


def test_a_study_under_way(study: Path):
    for name in ("table.json", "card.json"):
        (study / name).unlink()
    shutil.rmtree(study / "arms" / "arm_1")
    shutil.rmtree(study / "answers")
    notes = notes_of(study)
    assert "There is no table yet" in notes
    assert "Not finished: arm_1." in notes
    assert "No reasoning was measured" in notes


def test_damaged_files_are_named(study: Path):
    (study / "table.json").write_text('{"rows": [{"arm": ')
    path = study / "replies" / "harmful.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"id": "old version", "prompt": 1}', *lines[2:-1], lines[-1][:40]]))
    notes = notes_of(study)
    assert "table.json cannot be read" in notes
    assert "replies/harmful.jsonl: 2 damaged lines are left out" in notes


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '{"rows": 3}', '{"rows": [1, {"arm": 1}, {"arm": "a", "step": 1, "checkpoint": "../../x"}]}',
     '{"rows": [{"arm": "a", "step": 1, "checkpoint": null, "safety": {}, "over_refusal": 1, "reasoning": []}]}',
     '{"rows": [{"arm": "a", "step": 1, "checkpoint": null, "safety": {"value": 1, "low": null, "high": null},'
     ' "over_refusal": {"value": null, "low": null, "high": null, "n": "x"}, "reasoning": {}}]}',
     '{"rows": [], "frontier": 1, "matched_safety": 2, "seeds": 3}', '{"seeds": {"a": NaN}, "rows": []}'],
)  # fmt: skip
@pytest.mark.parametrize("name", ["table.json", "card.json", "geometry.json", "landscape.json"])
def test_files_of_another_form_are_no_crash(study: Path, name: str, content: str):
    (study / name).write_text(content)
    assert bundle.write([study], study.parent / "page").replies > 0


@pytest.mark.parametrize(
    "text", ["", "- a", "arms: 3", "arms: [1]\nseeds: x\nname: [2]", "{", "name: \x01", "arms: {../..: 1}"]
)
def test_recipes_of_another_form_are_no_crash(study: Path, text: str):
    (study / "recipe.yaml").write_text(text)
    assert bundle.write([study], study.parent / "page").replies > 0


def test_a_judge_is_missing_and_replies_have_no_verdict(study: Path):
    (study / "verdicts" / "harmful.refusal.jsonl").unlink()
    assert "The verdicts of refusal, whose rates the table has, are missing for harmful." in notes_of(study)
    shutil.rmtree(study / "verdicts")
    shutil.rmtree(study / "grades")
    notes = notes_of(study)
    assert "No verdicts are stored on the replies of harmful, ordinary: `lowtax compare` makes them." in notes
    assert "No grades are stored for the answers to sums" in notes


def test_a_folder_without_a_study_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no study"):
        stored.read(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        stored.read(tmp_path / "none")
