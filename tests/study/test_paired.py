"""Arms beside an arm, request by request: counted again from the files of the study."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_study import write_recipe

from lowtax.common import stats
from lowtax.common.errors import UserError
from lowtax.common.records import Subject
from lowtax.study import paired, recipe, study

ARMS = {"r1": {"mode": "lora_up_proj_only_r1"}, "r2": {"mode": "lora_mlp_r2"}}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, study.Study]:
    """Studies of one and of two training seeds, whose replies are a hash of request and adapter."""
    from tiny import make_model

    root = tmp_path_factory.mktemp("paired")
    model, found = make_model(root / "model"), {}
    for seeds in (1, 2):
        (root / str(seeds)).mkdir()
        ask = [{"source": "builtin:harmful", "split": "test", "n": 30}]
        changes: dict[str, Any] = {"seeds": list(range(seeds)), "arms": ARMS, "engine": "fake", "harmful": ask}
        more = {"tasks": {"arithmetic": {"n": 20}}, "sampling": {"max_new_tokens": 99}}
        path = write_recipe(root / str(seeds), model, **changes, **more)
        found[seeds] = study.Study(recipe.load(path), root / str(seeds) / "out")
        found[seeds].run()
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusals(out: Path) -> dict[tuple[str, str | None, int | None], dict[str, bool]]:
    """(arm, checkpoint, seed) -> prompt -> whether it refused, from the files alone."""
    labels = {row["reply_id"]: row["label"] for row in rows_of(out / "verdicts" / "harmful.refusal_words.jsonl")}
    found: dict[tuple[str, str | None, int | None], dict[str, bool]] = {}
    for row in rows_of(out / "replies" / "harmful.jsonl"):
        who = (row["arm"], row["checkpoint"], row["seed"])
        found.setdefault(who, {})[row["prompt_id"]] = labels[row["id"]] in ("refusal", "partial")
    return found


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("arm", ["r1", "base"])
def test_counts_are_those_of_the_files(studies: dict[int, study.Study], seeds: int, arm: str):
    work = studies[seeds]
    rows = paired.against(work, arm)
    said, measures = refusals(work.out), {row["measure"] for row in rows}
    assert measures == {"harmful refused", "ordinary refused", "arithmetic"}
    others = {("base", 0), ("r1", 2), ("r1", 4), ("r2", 2), ("r2", 4)} - {("r1", 4) if arm == "r1" else ("base", 0)}
    assert {(row["arm"], row["step"]) for row in rows} == others
    for row in (row for row in rows if row["measure"] == "harmful refused"):
        pairs = []
        for seed in range(seeds):
            one, two = (
                said[who, f"checkpoint-{step}" if step else None, None if who == "base" else seed]
                for who, step in ((row["arm"], row["step"]), (arm, 4 if arm == "r1" else 0))
            )
            pairs += [(one[prompt], two[prompt]) for prompt in one]
        first, second = (sum(pair[i] > pair[1 - i] for pair in pairs) for i in (0, 1))
        assert (row["only_it"], row["only_against"], row["n"]) == (first, second, 30 * seeds)
        assert row["value"] == pytest.approx((first - second) / (30 * seeds))
        assert -1 <= row["low"] < row["value"] < row["high"] <= 1
        assert row["p"] == (stats.mcnemar(first, second) if seeds == 1 else None)
    assert sum(row["only_it"] for row in rows) > 5  # the arms do differ
    assert json.loads((work.out / f"against.{arm}.json").read_text()) == rows


def test_the_table_has_a_line_a_comparison(studies: dict[int, study.Study]):
    rows = paired.against(studies[1], "r2")
    lines = paired.markdown(rows, "r2").splitlines()
    assert lines[0] == "| measure | arm | step | minus r2 | only it | only r2 | p | p of 12 |"
    assert len([line for line in lines if line.startswith("| ")]) == len(rows) + 2
    assert "corrected for 12 tests by Holm's method. 12 comparisons" in lines[-1]
    assert all(row["p"] <= row["p_corrected"] <= 1 for row in rows)
    assert min(row["p_corrected"] for row in rows) == min(1.0, 12 * min(row["p"] for row in rows))


def test_an_arm_that_is_not_there(studies: dict[int, study.Study]):
    with pytest.raises(UserError, match="no arm 'r3'; known are: base, r1, r2"):
        paired.against(studies[1], "r3")


def row(one: paired.Outcomes, two: paired.Outcomes) -> paired.Row:
    return paired._row("m", Subject("a", 0, "checkpoint-1", 1, "m", None, ""), one, two)


def test_unequal_numbers_of_samples_are_compared_by_their_means():
    found = row({0: {"a": [1.0, 1.0], "b": [1.0, 0.0]}}, {0: {"a": [1.0], "b": [0.0]}})
    assert (found["only_it"], found["only_against"], found["p"]) == (1, 0, None)
    assert found["value"] == 0.25


def test_what_one_side_lacks_is_left_out():
    one = {0: {"a": [1.0], "b": [1.0]}, 1: {"a": [1.0]}}
    found = row(one, {0: {"a": [0.0], "b": [1.0], "c": [1.0]}, 1: {"a": [1.0], "b": [0.0]}})
    assert (found["value"], found["n"], found["only_it"], found["only_against"]) == (0.5, 2, 1, 0)
    alone = row(one, {1: {"a": [0.0]}})
    assert (alone["n"], alone["p"]) == (1, 1.0)
    nothing = row(one, {2: {"a": [0.0]}})
    assert (nothing["value"], nothing["low"], nothing["p"], nothing["n"]) == (None, None, None, 0)
    assert "| - | 0 | 0 |" in paired.markdown([nothing], "b")
