"""Data: the built-in sets are what they claim to be, and a file of the user's is read or refused."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lowtax import builtin, data
from lowtax.errors import UserError
from lowtax.problems import problems
from lowtax.recipe import Data, PromptSet
from lowtax.records import Reply


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (builtin.DATA / f"{name}.jsonl").read_text().splitlines()]


def plain(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c == " ").split())


def test_counts():
    assert 280 <= len(rows("harmful")) <= 350
    assert len(rows("ordinary")) >= 150
    assert len(rows("chat")) >= 200
    for name in ("harmful", "ordinary"):
        assert set(Counter(row["split"] for row in rows(name))) == {"train", "validation", "test"}
    assert all(row["refusal"].strip() for row in rows("harmful") if row["split"] == "train")


def test_no_prompt_stands_twice_in_any_split_of_any_file():
    counts = Counter(plain(row["prompt"]) for name in ("harmful", "ordinary", "chat") for row in rows(name))
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_ids_are_unique():
    counts = Counter(row["id"] for name in ("harmful", "ordinary", "chat") for row in rows(name))
    assert max(counts.values()) == 1


def test_held_out_harm_brings_categories_that_training_never_saw():
    categories = {s: {r["category"] for r in rows("harmful") if r["split"] == s} for s in ("train", "test")}
    assert categories["test"] - categories["train"]


def test_some_ordinary_requests_only_look_dangerous():
    for split in ("train", "test"):
        kinds = Counter(row["kind"] for row in rows("ordinary") if row["split"] == split)
        assert len(kinds) >= 2, kinds


def test_refusals_vary():
    refusals = [row["refusal"] for row in rows("harmful") if row.get("refusal")]
    assert len(set(refusals)) > 0.9 * len(refusals)


@pytest.mark.parametrize("source", ["builtin:harmful", "builtin:ordinary"])
def test_what_is_trained_on_is_never_measured(source: str):
    trained = {p.text for p in data.self_prompts(Data(source=source, answers="self"), 0)}
    for split in ("validation", "test"):
        measured = {p.text for p in data.prompt_set(PromptSet(source=source, split=split))}
        assert measured
        assert not measured & trained
    refused = {c.prompt for c in data.conversations(Data(source="builtin:refusals"), 0)}
    assert not refused & {p.text for p in data.prompt_set(PromptSet(source="builtin:harmful", split="test"))}


def test_refusals_carry_the_reference_thought_or_the_recipe_s():
    assert {c.thought for c in data.conversations(Data(source="builtin:refusals"), 0)} == {data.REFERENCE_THOUGHT}
    own = data.conversations(Data(source="builtin:refusals", thought="No."), 0)
    assert {c.thought for c in own} == {"No."}


def test_arithmetic_rows_end_in_their_boxed_answer():
    found = data.conversations(Data(source="builtin:arithmetic", n=7), 5)
    assert [c.answer for c in found] == [rf"The answer is \boxed{{{p.answer}}}." for p in problems(7, "train", 5)]


def test_the_seed_chooses_and_orders():
    spec = Data(source="builtin:chat", n=20)
    assert data.conversations(spec, 1) == data.conversations(spec, 1)
    assert data.conversations(spec, 1) != data.conversations(spec, 2)
    whole = data.conversations(Data(source="builtin:chat"), 1)
    assert data.conversations(spec, 1) == whole[:20]
    assert Counter(whole) == Counter(data.conversations(Data(source="builtin:chat"), 2))


def test_more_rows_than_there_are():
    with pytest.raises(UserError, match="fewer than the 5000"):
        data.conversations(Data(source="builtin:chat", n=5000), 0)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("builtin:refusal", "'refusals'"),
        ("builtin:nothing-like-it", "known are"),
        ("builtin:ordinary", "answers: self"),
        ("builtin:harmful", "answers: self"),
        ("nowhere.jsonl", "cannot be read"),
    ],
)
def test_sources_that_cannot_be_trained_on(source: str, says: str):
    with pytest.raises(UserError, match=says):
        data.conversations(Data(source=source), 0)


def test_unknown_split_names_those_there_are():
    with pytest.raises(UserError, match="test, train, validation"):
        data.prompt_set(PromptSet(source="builtin:harmful", split="dev"))


def test_a_file_of_conversations(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": "b"}\n\n{"prompt": "c", "answer": "d", "thought": "e"}\n', encoding="utf-8"
    )
    found = data.conversations(Data(source=str(path)), 0)
    assert set(found) == {data.Conversation("a", None, "b"), data.Conversation("c", "e", "d")}
    found = data.conversations(Data(source=str(path), thought="t"), 0)
    assert set(found) == {data.Conversation("a", "t", "b"), data.Conversation("c", "e", "d")}


def test_prompts_of_a_csv_file(tmp_path: Path):
    path = tmp_path / "set.csv"
    path.write_text('id,request,category\n1,"How, then?",x\n2,"Two\nlines",y\n3,"How, then?",x\n', encoding="utf-8")
    found = data.prompt_set(PromptSet(source=str(path), column="request"))
    assert [(p.text, p.category) for p in found] == [("How, then?", "x"), ("Two\nlines", "y")]
    assert data.prompt_set(PromptSet(source=str(path), column="request", n=1)) == found[:1]


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl"])
def test_missing_column_names_those_there_are(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("request,kind\nx,y\n" if name.endswith("csv") else '{"request": "x", "kind": "y"}\n')
    with pytest.raises(UserError, match="request, kind"):
        data.prompt_set(PromptSet(source=str(path)))
    with pytest.raises(UserError, match="no column 'prompt'"):
        data.conversations(Data(source=str(path)), 0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.csv", b"prompt,answer\n", "no rows"),
        ("a.jsonl", b'{"prompt": "x", "answer": "y"}\n{"prompt": \n', "line 2"),
        ("a.jsonl", b'"text"\n', "line 1"),
        ("a.jsonl", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b'{"prompt": "x", "answer": null}\n', "'answer'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, says: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        data.conversations(Data(source=str(path)), 0)
    assert name in str(caught.value)


def test_a_folder_is_not_a_data_file(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        data.conversations(Data(source=str(tmp_path)), 0)


def test_the_model_s_own_answers_are_trained_on_only_when_finished():
    def reply(number: int, **changes: object) -> Reply:
        whole = {"thought": "t", "answer": "a", "closed": True, "finish": "stop"}
        return Reply.model_validate(
            {"id": str(number), "arm": "base", "seed": None, "checkpoint": None, "source": "s", "prompt_id": "p"}
            | {"prompt": f"q{number}", "sample": 0, "text": "", "tokens": 1}
            | whole
            | changes
        )

    kept = data.self_conversations(
        [reply(1), reply(2, closed=False), reply(3, finish="length"), reply(4, answer=""), reply(5, thought="")]
    )
    assert kept == [data.Conversation("q1", "t", "a"), data.Conversation("q5", None, "a")]
    with pytest.raises(UserError, match="finished none"):
        data.self_conversations([reply(1, closed=False)])
