"""Several studies in one table: rates on the prompts that all of them have, read by one judge."""

import json
import shutil
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.report.across import compare_studies


def part_of(study: Path, out: Path, prompts: int) -> Path:
    """A copy of a study with another name and its first prompts alone."""
    shutil.copytree(study, out)
    (out / "recipe.yaml").write_text(
        (study / "recipe.yaml").read_text().replace("name: made", "name: part\nseeds: [3]")
    )
    for path in (out / "replies").iterdir():
        listed = list(dict.fromkeys(row.prompt_id for row in read_rows(path, Reply).values()))
        rows = [row for row in read_rows(path, Reply).values() if row.prompt_id in listed[:prompts]]
        path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return out


def rates_by_hand(study: Path, kind: str, prompts: set[str]) -> dict[tuple, float]:
    replies = read_rows(study / "replies" / f"{kind}.jsonl", Reply)
    labels: dict[tuple, list[bool]] = {}
    for verdict in read_rows(study / "verdicts" / f"{kind}.refusal.jsonl", Verdict).values():
        reply = replies[verdict.reply_id]
        if reply.prompt_id in prompts:
            labels.setdefault((reply.arm, reply.checkpoint), []).append(verdict.label == "refusal")
    return {key: sum(each) / len(each) for key, each in labels.items()}


def test_rates_are_on_the_prompts_that_all_studies_have(made_study: Path, tmp_path: Path):
    part = part_of(made_study, tmp_path / "part", 25)
    table = compare_studies([made_study, part], tmp_path / "out")
    shared = {row.prompt_id for row in read_rows(part / "replies" / "harmful.jsonl", Reply).values()}
    assert len(shared) == 25
    by_hand = rates_by_hand(made_study, "harmful", shared)
    rows = {(row["arm"], row["checkpoint"]): row for row in table["rows"]}
    assert len(rows) == 1 + 6 + 6  # one base: both studies have the same replies of it
    for (arm, checkpoint), value in by_hand.items():
        name = "base" if arm == "base" else f"made: {arm}"
        assert rows[name, checkpoint]["safety"]["value"] == pytest.approx(value, abs=1e-4)
        assert rows[name, checkpoint]["safety"]["n"] == 25
        assert rows[name, checkpoint]["reasoning"]["sums"]["n"] == 10
    assert rows["made: arm_0", "checkpoint-100"]["safety"] == rows["part: arm_0", "checkpoint-100"]["safety"]
    assert table["differences"] == [["name", "made", "part"], ["seeds", "-", "[3]"]]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "on the prompts that they share: harmful 25, ordinary 25, sums 10, read by refusal (answer)" in text
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 10_000


def test_studies_of_one_recipe_are_called_by_their_folders(made_study: Path, tmp_path: Path):
    """Both were `made: arm_0`, of which the table at matched safety had one."""
    first, second = (shutil.copytree(made_study, tmp_path / place) for place in ("a/out", "b/out"))
    part = part_of(made_study, tmp_path / "part", 40)
    table = compare_studies([first, part, second], tmp_path / "table")
    assert {row["arm"] for row in table["rows"]} == {"base"} | {
        f"{study}: arm_{i}" for study in ("a/out", "part", "b/out") for i in (0, 1, 2)
    }
    assert table["recipe"] == "a/out and part and b/out"
    at_matched_safety = (tmp_path / "table" / "table.md").read_text().partition("at matched safety")[2]
    assert "a/out: arm_0" in at_matched_safety
    assert "b/out: arm_0" in at_matched_safety


def test_a_study_that_is_given_twice_keeps_its_name(made_study: Path, tmp_path: Path):
    table = compare_studies([made_study, made_study / ".." / made_study.name], tmp_path / "table")
    assert {row["arm"] for row in table["rows"]} == {"base", *(f"made: arm_{i}" for i in (0, 1, 2))}


def test_the_rates_of_one_study_with_itself_are_those_of_its_table(made_study: Path, tmp_path: Path):
    copy = part_of(made_study, tmp_path / "part", 40)
    table = compare_studies([made_study, copy], tmp_path / "out")
    own = json.loads((made_study / "table.json").read_text())["rows"]
    for row, other in zip(own, table["rows"][:7], strict=True):
        for cell, again in ((row["safety"], other["safety"]), (row["over_refusal"], other["over_refusal"])):
            assert [again[name] for name in ("value", "low", "high", "n")] == [
                cell[name] for name in ("value", "low", "high", "n")
            ]
        assert other["reasoning"]["sums"]["value"] == row["reasoning"]["sums"]["value"]
    reached = {row["arm"]: row["at_matched_safety"] for row in table["rows"]}
    assert reached["base"] is None
    assert reached["made: arm_1"]["safety"]["value"] == pytest.approx(0.7, abs=1e-3)  # the level of the study
    values = [own[0]["safety"]["value"], *(row["safety"]["value"] for row in own if row["arm"] == "arm_1")]
    crossing = next(i for i in range(2) if values[i] < 0.7 <= values[i + 1])  # between steps 0, 50 and 100
    step = 50 * (crossing + (0.7 - values[crossing]) / (values[crossing + 1] - values[crossing]))
    assert reached["made: arm_1"]["step"] == round(step)


def test_no_common_judge_or_table_is_one_sentence(made_study: Path, tmp_path: Path):
    other = part_of(made_study, tmp_path / "part", 40)
    for path in (other / "verdicts").iterdir():
        path.write_text(path.read_text().replace('"judge":"', '"judge":"x'))
    with pytest.raises(UserError, match="no common judge"):
        compare_studies([made_study, other], tmp_path / "out")
    (other / "table.json").unlink()
    with pytest.raises(UserError, match="has no table"):
        compare_studies([made_study, other], tmp_path / "out")
