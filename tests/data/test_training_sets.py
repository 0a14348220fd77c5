"""Data: the built-in sets are what they claim to be, and a file of the user's is read or refused."""

import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax import recipe
from lowtax.data import prompt_sets, shipped, specs, training_sets
from lowtax.data.arithmetic import problems
from lowtax.data.conversations import Conversation
from lowtax.data.specs import Data, PromptSet
from lowtax.data.training_sets import conversations
from lowtax.errors import UserError
from lowtax.records import Reply


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (shipped.FOLDER / f"{name}.jsonl").read_text().splitlines()]


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
    trained = {p.text for p in training_sets.self_prompts(Data(source=source, answers="self"), 0)}
    for split in ("validation", "test"):
        measured = {p.text for p in prompt_sets.prompt_set(PromptSet(source=source, split=split))}
        assert measured
        assert not measured & trained
    refused = {c.prompt for c in training_sets.conversations(Data(source="builtin:refusals"), 0)}
    assert not refused & {p.text for p in prompt_sets.prompt_set(PromptSet(source="builtin:harmful", split="test"))}


def test_refusals_carry_the_reference_thought_or_the_recipe_s():
    assert {c.thought for c in training_sets.conversations(Data(source="builtin:refusals"), 0)} == {
        conversations.REFERENCE_THOUGHT
    }
    own = training_sets.conversations(Data(source="builtin:refusals", thought="No."), 0)
    assert {c.thought for c in own} == {"No."}


def test_arithmetic_rows_end_in_their_boxed_answer():
    found = training_sets.conversations(Data(source="builtin:arithmetic", n=7), 5)
    assert [c.answer for c in found] == [rf"The answer is \boxed{{{p.answer}}}." for p in problems(7, "train", 5)]


def test_the_seed_chooses_and_orders():
    spec = Data(source="builtin:chat", n=20)
    assert training_sets.conversations(spec, 1) == training_sets.conversations(spec, 1)
    assert training_sets.conversations(spec, 1) != training_sets.conversations(spec, 2)
    whole = training_sets.conversations(Data(source="builtin:chat"), 1)
    assert training_sets.conversations(spec, 1) == whole[:20]
    assert Counter(whole) == Counter(training_sets.conversations(Data(source="builtin:chat"), 2))


def test_more_rows_than_there_are():
    with pytest.raises(UserError, match="fewer than the 5000"):
        training_sets.conversations(Data(source="builtin:chat", n=5000), 0)


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
        training_sets.conversations(Data(source=source), 0)


def test_unknown_split_names_those_there_are():
    with pytest.raises(UserError, match="test, train, validation"):
        prompt_sets.prompt_set(PromptSet(source="builtin:harmful", split="dev"))


def test_a_file_of_conversations(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": "b"}\n\n{"prompt": "c", "answer": "d", "thought": "e"}\n', encoding="utf-8"
    )
    found = training_sets.conversations(Data(source=str(path)), 0)
    assert set(found) == {Conversation("a", None, "b"), Conversation("c", "e", "d")}
    found = training_sets.conversations(Data(source=str(path), thought="t"), 0)
    assert set(found) == {Conversation("a", "t", "b"), Conversation("c", "e", "d")}


def test_prompts_of_a_csv_file(tmp_path: Path):
    path = tmp_path / "set.csv"
    path.write_text('id,request,category\n1,"How, then?",x\n2,"Two\nlines",y\n3,"How, then?",x\n', encoding="utf-8")
    found = prompt_sets.prompt_set(PromptSet(source=str(path), column="request"))
    assert [(p.text, p.category) for p in found] == [("How, then?", "x"), ("Two\nlines", "y")]
    assert prompt_sets.prompt_set(PromptSet(source=str(path), column="request", n=1)) == found[:1]


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl"])
def test_missing_column_names_those_there_are(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("request,kind\nx,y\n" if name.endswith("csv") else '{"request": "x", "kind": "y"}\n')
    with pytest.raises(UserError, match="request, kind"):
        prompt_sets.prompt_set(PromptSet(source=str(path)))
    with pytest.raises(UserError, match="row 1: the column 'prompt' is not there"):
        training_sets.conversations(Data(source=str(path)), 0)


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
        training_sets.conversations(Data(source=str(path)), 0)
    assert name in str(caught.value)


def test_a_folder_is_not_a_data_file(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        training_sets.conversations(Data(source=str(tmp_path)), 0)


def test_the_model_s_own_answers_are_trained_on_only_when_finished():
    def reply(number: int, **changes: object) -> Reply:
        whole = {"thought": "t", "answer": "a", "closed": True, "finish": "stop"}
        return Reply.model_validate(
            {"id": str(number), "arm": "base", "seed": None, "checkpoint": None, "source": "s", "prompt_id": "p"}
            | {"prompt": f"q{number}", "sample": 0, "text": "", "tokens": 1}
            | whole
            | changes
        )

    kept = training_sets.self_conversations(
        [reply(1), reply(2, closed=False), reply(3, finish="length"), reply(4, answer=""), reply(5, thought="")]
    )
    assert kept == [Conversation("q1", "t", "a"), Conversation("q5", None, "a")]
    with pytest.raises(UserError, match="finished none"):
        training_sets.self_conversations([reply(1, closed=False)])
    rendered = training_sets.self_conversations([reply(1)], "thinksafe")
    assert rendered == [Conversation("q1", "t", "a", rendering="thinksafe")]


# --- renderings and the record


def test_a_rendering_is_the_row_s_own_and_recorded():
    rows = training_sets.conversations(Data(source="builtin:refusals", rendering="reference", n=3), 0)
    assert {row.rendering for row in rows} == {"reference"}
    assert training_sets.rendering_of(Data(source="builtin:refusals")) == "standard"
    assert training_sets.rendering_of(Data(source="direct-refusal")) == "reference"
    assert training_sets.rendering_of(Data(source="direct-refusal", rendering="thinksafe")) == "thinksafe"


def test_the_record_names_what_was_trained_in_any_order():
    spec = Data(source="builtin:chat", n=20)
    one, other = training_sets.load(spec, 1), training_sets.load(spec, 2)
    described = one.describe()
    assert (described["rows"], described["found"], described["skipped"], described["n"]) == (20, 260, 0, 20)
    assert described["licence"] == "Apache-2.0"
    assert re.fullmatch("[0-9a-f]{64}", described["sha256"])
    assert described["sha256"] != other.describe()["sha256"]
    assert training_sets.describe(spec, one.rows[::-1])["sha256"] == described["sha256"]
    changed = [Conversation("p", None, one.rows[0].answer), *one.rows[1:]]
    assert training_sets.describe(spec, changed)["sha256"] != described["sha256"]
    json.dumps(described)


# --- one-line specs


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("direct-refusal", Data(source="direct-refusal")),
        (
            "refusals.jsonl,prompt=question,answer=response,n=500",
            Data(source="refusals.jsonl", columns={"prompt": "question", "answer": "response"}, n=500),
        ),
        (
            "star1, path=a/star1.jsonl.gz,rendering=thinksafe",
            Data(source="star1", path="a/star1.jsonl.gz", rendering="thinksafe"),
        ),
        (
            "safechain,where.label=vanilla_harmful,where.a.b=c,first=1000,ratio=0.5",
            Data(source="safechain", where={"label": "vanilla_harmful", "a.b": "c"}, first=1000, ratio=0.5),
        ),
        (
            'x.csv,"thought=No, I will not.",columns.thought=why',
            Data(source="x.csv", thought="No, I will not.", columns={"thought": "why"}),
        ),
        ("builtin:ordinary,answers=self", Data(source="builtin:ordinary", answers="self")),
        (
            "owner/name,revision=v1,subset=en,split=test",
            Data(source="owner/name", revision="v1", subset="en", split="test"),
        ),
        ("x.jsonl,thought=a=b", Data(source="x.jsonl", thought="a=b")),
    ],
)
def test_specs_of_one_line(text: str, spec: Data):
    assert specs.parse(text) == spec
    assert Data.model_validate(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no source"),
        ("a\nb", "not one line"),
        (",n=5", "names no source"),
        ("star1,n", "'n' is not key=value"),
        ("star1,n=5,n=6", "'n' is given twice"),
        ("star1,prompt=a,columns.prompt=b", "is given twice"),
        ("star1,size=5", "unknown key 'size'; known are"),
        ("star1,rnedering=x", "did you mean 'rendering'"),
        ("star1,rendering=standrad", "did you mean 'standard'"),
        ("star1,n=many", "n: Input should be a valid integer"),
        ("star1,n=0", "n: Input should be greater than 0"),
        ("star1,ratio=-1", "ratio: "),
        ("star1,columns.prmpt=x", "columns.prmpt"),
        ("star1,sampling.n=x", "only columns.NAME and where.COLUMN"),
        ("star1,answers=mine", "answers: Input should be 'given' or 'self'"),
        ("star1,thought=No, I will not.", "is not key=value; put a part that holds a comma in double quotes"),
    ],
)
def test_specs_that_are_refused(text: str, says: str):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        specs.parse(text)
    assert str(caught.value).startswith(f"The data {text!r}: ")
    assert "\n" not in str(caught.value)


def test_a_recipe_may_hold_specs_of_one_line(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    written = {"model": "m", "data": ["builtin:refusals,n=8", {"source": "x.jsonl", "where": {"safe": True}}]}
    path.write_text(yaml.safe_dump(written))
    loaded = recipe.load(path)
    assert loaded.data == [Data(source="builtin:refusals", n=8), Data(source="x.jsonl", where={"safe": True})]
    path.write_text(yaml.safe_dump(loaded.model_dump(mode="json", exclude_unset=True)))  # as a study keeps it
    assert recipe.load(path).data == loaded.data
    path.write_text(yaml.safe_dump({**written, "data": ["builtin:refusals,rendering=mine"]}))
    with pytest.raises(UserError, match=r"data\.0\.rendering: there is no such rendering; known are"):
        recipe.load(path)


# --- mixes


def part(name: str, size: int, ratio: float | None) -> tuple[Data, list[Conversation]]:
    return Data(source=name, ratio=ratio), [Conversation(f"{name}{i}", None, "a") for i in range(size)]


def sizes(mixed: list[Conversation]) -> dict[str, int]:
    return dict(Counter(row.prompt.rstrip("0123456789") for row in mixed))


def mix(parts: list[tuple[Data, list[Conversation]]], seed: int) -> list[Conversation]:
    return [row for rows in training_sets.shares(parts, seed) for row in rows]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("a", 5, None), ("b", 7, None)], {"a": 5, "b": 7}),
        ([("a", 10, 1), ("b", 100, 3)], {"a": 10, "b": 30}),
        ([("a", 100, 1), ("b", 30, 3)], {"a": 10, "b": 30}),
        ([("a", 100, 0.1), ("b", 30, 0.3)], {"a": 10, "b": 30}),
        ([("a", 10, 1), ("b", 100, 3), ("c", 8, None)], {"a": 10, "b": 30, "c": 8}),
        ([("a", 10, 2), ("b", 10, 3)], {"a": 6, "b": 10}),
        ([("a", 4, 5)], {"a": 4}),
    ],
)
def test_sizes_of_a_mix(parts: list[tuple[str, int, float | None]], expected: dict[str, int]):
    assert sizes(mix([part(*p) for p in parts], 0)) == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.25, 0.5, 1, 2, 3.3])), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_a_mix_is_the_largest_that_repeats_no_row(given_: list[tuple[int, float]], seed: int):
    parts = [part("abcd"[i], size, ratio) for i, (size, ratio) in enumerate(given_)]
    unit = min(Fraction(str(ratio)) and Fraction(size) / Fraction(str(ratio)) for size, ratio in given_)
    if any(unit * Fraction(str(ratio)) < 1 for _, ratio in given_):
        with pytest.raises(UserError, match=r"no row of [abcd]: its ratio .* is too small"):
            mix(parts, seed)
        return
    mixed = mix(parts, seed)
    assert max(Counter(mixed).values()) == 1
    found = sizes(mixed)
    assert any(found["abcd"[i]] == size for i, (size, _) in enumerate(given_))  # one source is used up
    for i, (size, ratio) in enumerate(given_):
        assert found["abcd"[i]] <= size
        assert abs(found["abcd"[i]] - float(unit) * ratio) < 1


def test_the_seed_chooses_what_a_mix_leaves_out():
    parts = [part("a", 10, 1), part("b", 100, 1)]
    assert mix(parts, 0) == mix(parts, 0)
    assert set(mix(parts, 0)) != set(mix(parts, 1))
