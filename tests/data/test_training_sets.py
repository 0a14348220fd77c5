"""Training sets: which rows they have, in which order, in which mix, and what a card records of them."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from datahub import COMMIT, cached, write_jsonl, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from progress import collected

from lowtax.common.errors import UserError
from lowtax.data import forms, prompt_sets, tables, training_sets
from lowtax.data.arithmetic import problems
from lowtax.data.catalog import TRAINING_SETS
from lowtax.data.conversations import REFERENCE_THOUGHT, Conversation
from lowtax.data.specs import Data, PromptSet
from lowtax.data.turns import CONTENT_KEYS, MARKS, MORE_THAN_TEXT, ROLE_KEYS, ROLES, THOUGHTS

CHAIN = [
    {"instruction": "a", "label": "vanilla_harmful", "response": "Hm.\n</think>\n\nNo."},
    {"instruction": "b", "label": "vanilla_benign", "response": "Hm.\n</think>\n\nYes."},
    {"instruction": "c", "label": "vanilla_harmful", "response": "Without an end"},
    {"instruction": "d", "label": "vanilla_harmful", "response": "So.</think>Never."},
]


@pytest.mark.parametrize("source", ["builtin:harmful", "builtin:ordinary"])
def test_what_is_trained_on_is_never_measured(source: str):
    trained = {p.text for p in training_sets.self_prompts(Data(source=source, answers="self"), 0)}
    for split in ("validation", "test"):
        measured = {p.text for p in prompt_sets.prompt_set(PromptSet(source=source, split=split))}
        assert measured
        assert not measured & trained
    refused = {c.prompt for c in training_sets.conversations(Data(source="builtin:refusals"), 0)}
    assert not refused & {p.text for p in prompt_sets.prompt_set(PromptSet(source="builtin:harmful", split="test"))}


def test_refusals_have_the_reference_thought_or_the_recipe_s():
    assert {c.thought for c in training_sets.conversations(Data(source="builtin:refusals"), 0)} == {REFERENCE_THOUGHT}
    changed = training_sets.conversations(Data(source="builtin:refusals", thought="No."), 0)
    assert {c.thought for c in changed} == {"No."}


def test_arithmetic_rows_end_in_their_boxed_answer():
    rows = training_sets.conversations(Data(source="builtin:arithmetic", n=7), 5)
    assert [c.answer for c in rows] == [rf"The answer is \boxed{{{p.answer}}}." for p in problems(7, "train", 5)]


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
    ("source", "message"),
    [
        ("builtin:refusal", "'refusals'"),
        ("builtin:nothing-like-it", "known are"),
        ("builtin:ordinary", "answers: self"),
        ("builtin:harmful", "answers: self"),
        ("nowhere.jsonl", "cannot be read"),
    ],
)
def test_sources_that_cannot_be_trained_on(source: str, message: str):
    with pytest.raises(UserError, match=message):
        training_sets.conversations(Data(source=source), 0)


def test_a_file_of_conversations(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": "b"}\n\n{"prompt": "c", "answer": "d", "thought": "e"}\n', encoding="utf-8"
    )
    rows = training_sets.conversations(Data(source=str(path)), 0)
    assert set(rows) == {Conversation("a", None, "b"), Conversation("c", "e", "d")}
    with_thought = training_sets.conversations(Data(source=str(path), thought="t"), 0)
    assert set(with_thought) == {Conversation("a", "t", "b"), Conversation("c", "e", "d")}


def test_prompts_of_a_csv_file(tmp_path: Path):
    path = tmp_path / "set.csv"
    path.write_text('id,request,category\n1,"How, then?",x\n2,"Two\nlines",y\n3,"How, then?",x\n', encoding="utf-8")
    prompts = prompt_sets.prompt_set(PromptSet(source=str(path), column="request"))
    twice = ("How, then?", "x")
    assert [(p.text, p.category) for p in prompts] == [twice, ("Two\nlines", "y"), twice]  # kept for its own id
    path.write_text(path.read_text().replace("id,", "note,"), encoding="utf-8")
    assert len(prompt_sets.prompt_set(PromptSet(source=str(path), column="request"))) == 2
    assert prompt_sets.prompt_set(PromptSet(source=str(path), column="request", n=1)) == prompts[:1]


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl"])
def test_missing_column_names_those_there_are(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("request,kind\nx,y\n" if name.endswith("csv") else '{"request": "x", "kind": "y"}\n')
    with pytest.raises(UserError, match="request, kind"):
        prompt_sets.prompt_set(PromptSet(source=str(path)))
    with pytest.raises(UserError, match="no columns of a known form; its columns are request, kind"):
        training_sets.conversations(Data(source=str(path)), 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.csv", b"prompt,answer\n", "no rows"),
        ("a.jsonl", b'{"prompt": \n{"prompt": "x", \n', "line 1 is not valid JSON"),
        ("a.jsonl", b'"text"\n', "line 1"),
        ("a.jsonl", b'{"prompt": "x", "answer": "\xe9"}\n', "UTF-8"),
        ("a.jsonl", b'{"prompt": "x", "answer": null}\n', "'answer'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        training_sets.conversations(Data(source=str(path)), 0)
    assert name in str(caught.value)


def test_a_folder_is_not_a_data_file(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        training_sets.conversations(Data(source=str(tmp_path)), 0)


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


def test_fields_that_do_not_fit_the_source(tmp_path: Path):
    path = str(write_jsonl(tmp_path / "x.jsonl", {"prompt": "p", "answer": "a", "reason": "r"}))
    with pytest.raises(UserError, match="`subset` and `revision` are for"):
        training_sets.load(Data(source=path, revision="main"), 0)
    with pytest.raises(UserError, match="is a local source"):
        training_sets.load(Data(source=path, path=path), 0)
    with pytest.raises(UserError, match=r"takes no revision or where"):
        training_sets.load(Data(source="builtin:chat", revision="main", where={"a": "b"}), 0)
    with pytest.raises(UserError, match=r"column 'reason', but .* set columns.thought"):
        training_sets.load(Data(source=path, thought="reason"), 0)


def test_prompts_of_every_kind_of_source(tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", [{"q": "a", "kind": "k"}, {"q": "b", "kind": ""}, {"q": "a", "kind": "k"}])
    prompts = prompt_sets.prompt_set(PromptSet(source=str(tmp_path / "x.parquet"), column="q"))
    assert [(p.text, p.category) for p in prompts] == [("a", "k"), ("b", "")]
    chain = str(write_jsonl(tmp_path / "chain.jsonl", *CHAIN))
    spec = Data(source="safechain", path=chain, where={"label": "vanilla_harmful"}, answers="self")
    assert sorted(p.text for p in training_sets.self_prompts(spec, 0)) == ["a", "c", "d"]
    one = Data(source=str(tmp_path / "x.parquet"), columns={"prompt": "q"}, answers="self", n=1)
    assert len(training_sets.self_prompts(one, 0)) == 1
    with pytest.raises(UserError, match=r"remove columns \['system'\]"):
        training_sets.self_prompts(
            Data(source=chain, columns={"prompt": "instruction", "system": "label"}, answers="self"), 0
        )


def test_loading_text_rows_imports_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "pyarrow"}
    code = f"import sys, lowtax.data.training_sets, lowtax.study.recipe; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_the_documentation_has_every_named_source(name: str):
    docs = (ROOT / "docs/guides/training-data.md").read_text()
    named = TRAINING_SETS[name]
    (line,) = (line for line in docs.splitlines() if line.startswith(f"| `{name}` | `{named.hub}`: "))
    assert f": {named.rows:,} " in line
    assert line.endswith(f"| {named.licence} | {named.citation} |")


def test_a_cached_data_set_is_the_same_by_name_and_by_id_and_its_commit_is_recorded(tmp_path: Path):
    cached(tmp_path, "UWNSL/SafeChain", [CHAIN[:2], CHAIN[2:]])
    code = """
import json, sys
from lowtax.data import specs, training_sets
for line in sys.argv[1:]:
    print(json.dumps(training_sets.load(specs.parse(line), 0).describe()))
"""
    lines = ("safechain", f"safechain,revision={COMMIT}", "UWNSL/SafeChain,prompt=instruction,answer=response,n=2")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        env={**variables, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    by_name, pinned, by_id = map(json.loads, done.stdout.splitlines())
    assert {record["revision"] for record in (by_name, pinned, by_id)} == {COMMIT}
    assert by_name["sha256"] == pinned["sha256"] != by_id["sha256"]
    assert (by_name["rows"], by_name["skipped"], by_id["rows"]) == (3, 1, 2)
    assert by_name["licence"] == TRAINING_SETS["safechain"].licence


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
def test_a_mix_is_the_largest_that_repeats_no_row(sources: list[tuple[int, float]], seed: int):
    parts = [part("abcd"[i], size, ratio) for i, (size, ratio) in enumerate(sources)]
    unit = min(Fraction(str(ratio)) and Fraction(size) / Fraction(str(ratio)) for size, ratio in sources)
    if any(unit * Fraction(str(ratio)) < 1 for _, ratio in sources):
        with pytest.raises(UserError, match=r"no row of [abcd]: its ratio .* is too small"):
            mix(parts, seed)
        return
    mixed = mix(parts, seed)
    assert max(Counter(mixed).values()) == 1
    by_source = sizes(mixed)
    assert any(by_source["abcd"[i]] == size for i, (size, _) in enumerate(sources))  # one source is used up
    for i, (size, ratio) in enumerate(sources):
        assert by_source["abcd"[i]] <= size
        assert abs(by_source["abcd"[i]] - float(unit) * ratio) < 1


def test_the_seed_chooses_what_a_mix_leaves_out():
    parts = [part("a", 10, 1), part("b", 100, 1)]
    assert mix(parts, 0) == mix(parts, 0)
    assert set(mix(parts, 0)) != set(mix(parts, 1))


# --- what is said


def test_rows_that_occur_more_than_once_are_counted_and_trained(tmp_path: Path):
    rows = [{"prompt": "p", "answer": "a"}] * 3 + [{"prompt": "p", "answer": "b", "thought": "t"}]
    path = write_jsonl(tmp_path / "x.jsonl", *rows)
    loaded = training_sets.load(Data(source=str(path)), 0)
    assert len(loaded.rows) == 4
    with collected() as said:
        loaded.announce()
    assert said == [
        "x.jsonl: 4 rows, read as prompt and answer.",
        "x.jsonl: 1 of 4 usable rows has a thought.",
        "x.jsonl: 2 rows repeat earlier ones and are trained all the same.",
    ]
    constant = training_sets.load(Data(source=str(path), thought="t"), 0)
    assert constant.reading is not None
    assert not any("thought" in note for note in constant.reading.notes())


def test_rows_of_several_forms(tmp_path: Path):
    path = write_jsonl(
        tmp_path / "x.jsonl",
        *[{"instruction": "p", "input": "", "output": f"a{i}"} for i in range(2)],
        {"prompt": "q", "completion": "b"},
        {"prompt": "r"},
        {"something": "else"},
    )
    loaded = training_sets.load(Data(source=str(path)), 0)
    assert {(row.prompt, row.answer) for row in loaded.rows} == {("p", "a0"), ("p", "a1"), ("q", "b")}
    assert loaded.reading is not None
    assert loaded.reading.notes()[:2] == [
        "x.jsonl: 5 rows, read as Alpaca (2) and as prompt and completion (1).",
        "x.jsonl: 2 of 5 rows are skipped: the column 'output' is empty (2).",
    ]


def test_rows_with_a_false_label_are_left_out_and_do_not_count_as_bad(tmp_path: Path):
    path = write_jsonl(
        tmp_path / "x.jsonl", *[{"prompt": "p", "completion": f"a{i}", "label": i == 0} for i in range(4)]
    )
    loaded = training_sets.load(Data(source=str(path)), 0)
    assert [row.answer for row in loaded.rows] == ["a0"]
    assert (loaded.total, loaded.skipped) == (4, 0)
    assert loaded.describe()["left_out"] == {"the label is false": 3}
    assert loaded.reading is not None
    assert loaded.reading.notes()[1] == "x.jsonl: 3 of 4 rows are left out: the label is false (3)."
    others = training_sets.load(Data(source=str(path), where={"label": False}), 0)
    assert sorted(row.answer for row in others.rows) == ["a1", "a2", "a3"]
    none = write_jsonl(tmp_path / "none.jsonl", {"prompt": "p", "completion": "a", "label": False})
    with pytest.raises(UserError, match=r"can be trained on: the label is false \(1\)"):
        training_sets.load(Data(source=str(none)), 0)


def test_more_than_half_of_a_source_is_an_error(tmp_path: Path):
    good, bad = {"prompt": "p", "answer": "a"}, {"prompt": "p", "answer": ""}
    half = write_jsonl(tmp_path / "half.jsonl", good, bad)
    assert training_sets.load(Data(source=str(half)), 0).skipped == 1
    more = write_jsonl(tmp_path / "more.jsonl", good, bad, bad, {"prompt": 7, "answer": "a"})
    with pytest.raises(UserError) as caught:
        training_sets.load(Data(source=str(more)), 0)
    assert str(caught.value) == (
        f"3 of the 4 rows of {more} cannot be trained on, which is more than half: the column 'answer' is empty (2), "
        "the column 'prompt' holds a number, not text (1); correct them, name other columns, or select rows with "
        "`where`."
    )
    assert len(training_sets.load(Data(source=str(more), first=2), 0).rows) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("star-1", "star1"),
        ("STAR1", "star1"),
        ("directrefusal", "direct-refusal"),
        ("direct_refusal", "direct-refusal"),
        ("safe-chain", "safechain"),
        ("safechian", "safechain"),
        ("builtin-refusals", "builtin:refusals"),
    ],
)
def test_a_name_that_is_nearly_one(name: str, near: str):
    with pytest.raises(UserError, match=f"^There is no training set and no file '{name}'; did you mean '{near}'"):
        training_sets.load(Data(source=name), 0)


def test_a_name_that_is_none():
    with pytest.raises(
        UserError, match="no file 'wat'; known are: builtin:arithmetic, builtin:chat, builtin:refusals, "
    ):
        training_sets.load(Data(source="wat"), 0)


def test_prompts_for_the_model_s_own_answers(tmp_path: Path):
    path = write_jsonl(
        tmp_path / "x.jsonl", {"instruction": "p", "input": "x"}, {"instruction": "q", "input": ""}, {"instruction": ""}
    )
    with collected() as said:
        prompts = training_sets.self_prompts(Data(source=str(path), answers="self"), 0)
    assert sorted(prompt.text for prompt in prompts) == ["p\n\nx", "q"]
    assert said == ["x.jsonl: 1 of 3 rows is skipped: the column 'instruction' is empty (1)."]
    with pytest.raises(UserError, match="trains on the model's answers alone; remove train_on"):
        training_sets.self_prompts(Data(source=str(path), answers="self", train_on="all"), 0)


# --- whatever is in a file, its rows are text, skipped and counted, or refused in one sentence

ANY_COLUMN = [
    *(*forms.MESSAGES, *forms.PROMPTS, *forms.ANSWERS, *forms.SYSTEMS, *forms.LABELS, *forms.BESIDE, *forms.CHOSEN),
    *(*THOUGHTS, *forms.MORE_THOUGHTS, "history", "id", "context", "Prompt ", ""),
]
TURN_KEYS = [*ROLE_KEYS, *CONTENT_KEYS, *THOUGHTS, *MARKS, *MORE_THAN_TEXT, "type", "text", "refusal", "human"]
ANY_TEXT = st.sampled_from(
    ["", " ", "How?", "No.", "<think>Hm.</think>No.", "</think>", "[]", '[{"role": "user"}]', "\ud83d"]
)
LEAVES = ANY_TEXT | st.sampled_from([None, True, False, 0, 1, 7.5, float("nan"), float("inf"), *ROLES])
ANY_VALUE = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TURN_KEYS), inner, max_size=4),
    max_leaves=12,
)
ANY_TURN = st.fixed_dictionaries(
    {"role": st.sampled_from([*ROLES, "tool"]), "content": ANY_VALUE},
    optional={key: ANY_VALUE for key in TURN_KEYS if key not in ROLE_KEYS + CONTENT_KEYS[:1]},
)
ANY_ROWS = st.lists(
    st.dictionaries(st.sampled_from(ANY_COLUMN), ANY_VALUE | st.lists(ANY_TURN, max_size=4), max_size=5),
    min_size=1,
    max_size=4,
)
ANY_SUFFIX = st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "feather", "jsonl.gz", "txt"])


def all_texts(row: Conversation) -> list[Any]:
    return [row.prompt, row.answer, *(part for turn in row.history for part in turn)]


def read_file(name: str, content: bytes, **fields: Any) -> list[Conversation]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            whole = training_sets.load(Data(source=str(path), **fields), 0)
        except UserError:
            return []
    assert whole.reading is not None
    assert all("\n" not in note for note in whole.reading.notes())
    assert json.dumps(whole.describe())
    return whole.rows


@settings(deadline=None, max_examples=50)
@given(ANY_ROWS, st.sampled_from(["last", "assistant", "all"]), st.booleans())
def test_rows_of_any_content(rows: list[dict[str, Any]], train_on: str, document: bool):
    text = json.dumps(rows) if document else "\n".join(map(json.dumps, rows))
    for row in read_file("x.json", text.encode(), train_on=train_on):
        assert all(isinstance(part, str) and part.encode() is not None for part in all_texts(row))
        assert row.prompt.strip()
        assert row.answer.strip()
        assert row.thought is None or isinstance(row.thought, str)
        assert row.system is None or isinstance(row.system, str)
        assert not any(part.startswith(("{'", "['", "[{'")) for part in all_texts(row))


@settings(deadline=None, max_examples=200)
@given(
    ANY_SUFFIX, st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_files_of_any_content(suffix: str, content: bytes):
    read_file(f"x.{suffix}", content)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([*tables.FOREIGN, *tables.BOMS, *tables.COMPRESSED.values(), b"PAR1", b"ARROW1"]), st.binary())
def test_files_that_begin_like_another(magic: bytes, content: bytes):
    read_file("x.jsonl", magic + content)
