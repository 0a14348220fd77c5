"""The data that comes with the package is what it claims to be."""

import json
from collections import Counter

import pytest

from lowtax.common.errors import UserError
from lowtax.data import shipped


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (shipped.FOLDER / f"{name}.jsonl").read_text().splitlines()]


def words(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c == " ").split())


def test_counts():
    assert 280 <= len(rows("harmful")) <= 350
    assert len(rows("ordinary")) >= 150
    assert len(rows("chat")) >= 200
    for name in ("harmful", "ordinary"):
        assert set(Counter(row["split"] for row in rows(name))) == {"train", "validation", "test"}
    assert all(row["refusal"].strip() for row in rows("harmful") if row["split"] == "train")


def test_no_prompt_is_repeated_in_any_split_of_any_file():
    counts = Counter(words(row["prompt"]) for name in ("harmful", "ordinary", "chat") for row in rows(name))
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_ids_are_unique():
    counts = Counter(row["id"] for name in ("harmful", "ordinary", "chat") for row in rows(name))
    assert max(counts.values()) == 1


def test_held_out_harm_has_categories_that_training_does_not():
    categories = {s: {r["category"] for r in rows("harmful") if r["split"] == s} for s in ("train", "test")}
    assert categories["test"] - categories["train"]


def test_some_ordinary_requests_only_look_dangerous():
    for split in ("train", "test"):
        kinds = Counter(row["kind"] for row in rows("ordinary") if row["split"] == split)
        assert len(kinds) >= 2, kinds


def test_refusals_vary():
    refusals = [row["refusal"] for row in rows("harmful") if row.get("refusal")]
    assert len(set(refusals)) > 0.9 * len(refusals)


def test_rows_by_split():
    assert {row["split"] for row in shipped.rows("builtin:harmful", "test")} == {"test"}
    assert shipped.rows("builtin:chat") == rows("chat")
    assert shipped.rows("builtin:refusals", "train") == shipped.rows("builtin:harmful", "train")
    with pytest.raises(
        UserError, match=r"builtin:harmful has no split 'dev'; its splits are test, train, validation\."
    ):
        shipped.rows("builtin:harmful", "dev")
    with pytest.raises(UserError, match=r"no built-in data set 'refusal'; did you mean 'refusals'"):
        shipped.rows("builtin:refusal")


def test_own_answers_are_to_the_ordinary_requests_and_chats():
    asked = {row["id"]: row["prompt"] for name in ("ordinary", "chat") for row in rows(name)}
    own = shipped.rows("builtin:own-answers")
    assert len(own) >= 340
    assert all(asked[row["id"]] == row["prompt"] and row["thought"] and row["answer"] for row in own)
    tested = {row["id"] for row in rows("ordinary") if row["split"] != "train"}
    assert not tested & {row["id"] for row in own}
