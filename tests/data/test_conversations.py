"""Rows become conversations: the layouts of published sets with their traps, named columns, think blocks, messages."""

from pathlib import Path

import pytest
from datahub import write_jsonl
from places import PUBLISHED

from lowtax.common.errors import UserError
from lowtax.data import conversations, readers, specs, training_sets
from lowtax.data.conversations import Conversation
from lowtax.data.rendering import RENDERINGS
from lowtax.data.specs import Data


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"the data set {name} is not beside this checkout")
    return path


# --- DirectRefusal: rows of its shape

REFUSAL = "Question: a. How do I pick a lock?\nAnswer: I cannot help. Answer: no, really.\nAnswer: A third piece."
DIRECT = [
    {"prompt": "a. How do I pick a lock? ", "refusal": REFUSAL, "response": "Take a pick.", "text": "<|im_start|>..."},
    {"prompt": "b. Why?", "refusal": "Question: b. Why?\nAnswer: Because.", "response": "x", "text": ""},
    {"prompt": "c. Cut short", "refusal": "Question: c. Cut short", "response": "x", "text": ""},
]
EXPECTED = {  # rendering -> prompt and answer of the first row
    "standard": ("a. How do I pick a lock?", REFUSAL.partition("Answer:")[2].strip()),
    "reference": ("a. How do I pick a lock? ", REFUSAL.partition("Answer:")[2]),
    "reference_as_published": ("a. How do I pick a lock? ", REFUSAL.partition("Answer:")[2]),
    "thinksafe": ("a. How do I pick a lock?", REFUSAL.partition("Answer:")[2].strip()),
    "safety_tax": ("a. How do I pick a lock?", "I cannot help. Answer: no, really."),
    "safety_tax_cot": ("a. How do I pick a lock?", "I cannot help. Answer: no, really."),
}


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_direct_refusal_is_read_as_each_rendering_s_code_reads_it(tmp_path: Path, rendering: str):
    path = write_jsonl(tmp_path / "direct.jsonl", *DIRECT)
    loaded = training_sets.load(Data(source="direct-refusal", path=str(path), rendering=rendering), 0)
    first, second = sorted(loaded.rows, key=lambda row: row.prompt)
    assert (first.prompt, first.answer) == EXPECTED[rendering]
    assert (second.prompt, second.answer.strip()) == ("b. Why?", "Because.")
    assert {row.thought for row in loaded.rows} == {"I should not answer this question!"}
    assert {row.rendering for row in loaded.rows} == {rendering}
    assert (loaded.total, loaded.skipped) == (3, 1)


def test_direct_refusal_by_itself_is_the_reference_s(tmp_path: Path):
    path = write_jsonl(tmp_path / "direct.jsonl", *DIRECT)
    by_itself = training_sets.conversations(Data(source="direct-refusal", path=str(path)), 0)
    assert by_itself == training_sets.conversations(
        Data(source="direct-refusal", path=str(path), rendering="reference"), 0
    )
    assert all(row.answer.startswith(" ") for row in by_itself)


def test_labels_of_other_case_and_answers_that_are_empty():
    row = {"prompt": "p", "refusal": "QUESTION:  p\n answer:\n\nNo. "}
    assert conversations.direct_refusal(row, "", "thinksafe") == Conversation("p", None, "No.", rendering="thinksafe")
    assert conversations.direct_refusal(row, "", "reference") is None
    assert conversations.direct_refusal({"prompt": "p", "refusal": "Question: p\nAnswer:  "}, "", "reference") is None


def test_nothing_to_train_on(tmp_path: Path):
    path = write_jsonl(tmp_path / "direct.jsonl", *DIRECT[2:])
    with pytest.raises(UserError, match="None of the 1 rows of direct-refusal has an answer"):
        training_sets.load(Data(source="direct-refusal", path=str(path)), 0)


def test_a_file_with_other_columns_is_refused(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"prompt": "p", "answer": "a"})
    with pytest.raises(
        UserError, match=r"x.jsonl, row 1: the column 'refusal' is not there; its columns are prompt, answer"
    ):
        training_sets.load(Data(source="direct-refusal", path=str(path)), 0)
    with pytest.raises(UserError, match="The columns of star1 are fixed"):
        training_sets.load(Data(source="star1", path=str(path), columns={"prompt": "prompt"}), 0)


# --- SafeChain and STAR-1

CHAIN = [
    {"instruction": "a", "label": "vanilla_harmful", "response": "Hm.\n</think>\n\nNo."},
    {"instruction": "b", "label": "vanilla_benign", "response": "Hm.\n</think>\n\nYes."},
    {"instruction": "c", "label": "vanilla_harmful", "response": "Without an end"},
    {"instruction": "d", "label": "vanilla_harmful", "response": "So.</think>Never."},
]


def test_safechain_begins_inside_the_thought(tmp_path: Path):
    path = write_jsonl(tmp_path / "chain.jsonl.gz", *CHAIN)
    loaded = training_sets.load(Data(source="safechain", path=str(path)), 0)
    assert set(loaded.rows) == {
        Conversation("a", "Hm.", "No."),
        Conversation("b", "Hm.", "Yes."),
        Conversation("d", "So.", "Never."),
    }
    assert (loaded.total, loaded.skipped) == (4, 1)


def test_the_subset_that_safety_tax_compares_with(tmp_path: Path):
    """The first rows of one label; those without an end are then skipped, so that fewer remain."""
    path = write_jsonl(tmp_path / "chain.jsonl", *CHAIN)
    spec = specs.parse(f"safechain,path={path},where.label=Vanilla_Harmful,first=2,rendering=safety_tax_cot")
    loaded = training_sets.load(spec, 0)
    assert [row.prompt for row in loaded.rows] == ["a"]
    assert (loaded.total, loaded.skipped) == (2, 1)
    with pytest.raises(UserError, match="has no rows with label = vanilla"):
        training_sets.load(Data(source="safechain", path=str(path), where={"label": "vanilla"}), 0)
    with pytest.raises(UserError, match="has no rows with label = x, split = test"):
        training_sets.load(Data(source="safechain", path=str(path), where={"label": "x"}, split="test"), 0)
    with pytest.raises(UserError, match="no column 'lable'; its columns are instruction, label, response"):
        training_sets.load(Data(source="safechain", path=str(path), where={"lable": "x"}), 0)


def test_star1_has_its_own_thoughts():
    path = published("star1_safety_reasoning.jsonl.gz")
    loaded = training_sets.load(Data(source="star1", path=str(path)), 0)
    assert (len(loaded.rows), loaded.skipped) == (968, 0)
    assert all(row.thought and row.answer for row in loaded.rows)
    assert not any(tag in row.answer + str(row.thought) for row in loaded.rows for tag in ("<think>", "</think>"))
    record = loaded.describe()
    assert record["licence"] == "Apache-2.0"
    assert (record["hub"], record["rows"], record["revision"]) == ("UCSC-VLAA/STAR-1", 968, None)


@pytest.mark.parametrize(
    ("name", "columns", "n"),
    [
        (
            "safety_tuned_llamas_refusals.jsonl.gz",
            {"prompt": "instruction", "answer": "output", "context": "input"},
            2483,
        ),
        ("alpaca_gpt4_en_demo.jsonl", {"prompt": "instruction", "answer": "output", "context": "input"}, 999),
        ("dolly_1k.jsonl.gz", {"prompt": "instruction", "answer": "response", "context": "context"}, 1000),
    ],
)
def test_real_files_by_columns(name: str, columns: dict[str, str], n: int):
    rows = training_sets.conversations(Data(source=str(published(name)), columns=columns, thought="No."), 0)
    assert len(rows) == n
    assert {row.thought for row in rows} == {"No."}
    raw = {row[columns["prompt"]]: row for row in readers.read_table(published(name))}
    with_context = [r for r in raw.values() if r[columns["context"]].strip()]
    assert all(any(row.prompt.startswith(r[columns["prompt"]] + "\n\n") for row in rows) for r in with_context[:5])


# --- rows with columns


def read(row: dict[str, object], **columns: str) -> Conversation | None:
    return conversations.conversation(row, "f, row 1", columns)


def test_columns_by_name():
    row = {"q": "Q", "a": "A", "r": "R", "s": "S", "c": " C "}
    assert read(row, prompt="q", answer="a", thought="r", system="s", context="c") == Conversation(
        "Q\n\nC", "R", "A", system="S"
    )
    assert read({**row, "c": ""}, prompt="q", answer="a", context="c") == Conversation("Q", None, "A")
    assert read({"prompt": 1, "answer": 2.5, "thought": None}) == Conversation("1", None, "2.5")


@pytest.mark.parametrize(
    ("answer", "thought", "rest"),
    [
        ("<think>\nT\n</think>\n\nA", "T", "A"),
        ("T</think>A", "T", "A"),
        ("<think></think>\nA", "", "A"),
        (" A ", None, " A "),
    ],
)
def test_a_think_block_in_the_answer_is_split(answer: str, thought: str | None, rest: str):
    assert read({"prompt": "p", "answer": answer}) == Conversation("p", thought, rest)


def test_a_thought_without_an_end_is_no_row():
    assert read({"prompt": "p", "answer": "<think>\nAnd on and on"}) is None


def test_an_empty_think_block_stays_one_unless_there_is_a_constant(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"prompt": "p", "answer": "<think>\n\n</think>\n\nNo."})
    assert training_sets.conversations(Data(source=str(path)), 0) == [Conversation("p", "", "No.")]
    assert training_sets.conversations(Data(source=str(path), thought="T"), 0) == [Conversation("p", "T", "No.")]


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def test_messages_train_the_last_assistant_turn():
    turns = [
        turn("system", "S"),
        turn("user", "1"),
        turn("assistant", "2"),
        turn("user", "3"),
        turn("assistant", "<think>T</think>4"),
        turn("user", "thanks"),
    ]
    whole = Conversation("3", "T", "4", system="S", history=(("user", "1"), ("assistant", "2")))
    assert read({"messages": turns}) == whole
    assert whole.messages == [*turns[:3], turns[3]]
    assert read({"chat": turns, "prompt": "ignored", "answer": "too"}, messages="chat") == whole
    shared_gpt = [
        {"from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]), "value": t["content"]} for t in turns
    ]
    assert read({"conversations": shared_gpt}, messages="conversations") == whole


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([turn("user", "1")], "no assistant turn"),
        ([turn("assistant", "1")], "no assistant turn"),
        ([turn("user", "1"), turn("assistant", "2"), turn("assistant", "3")], "no assistant turn that answers"),
        ([], "no assistant turn"),
        ("text", "no assistant turn"),
        ([turn("user", "1"), turn("tool", "2"), turn("assistant", "3")], "role 'tool'"),
        ([turn("user", [{"type": "image"}]), turn("assistant", "3")], "'user' with list content"),
        (["hello"], "object with role and content"),
    ],
)
def test_messages_that_cannot_be_trained_on(turns: object, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read({"messages": turns})
    assert "f, row 1" in str(caught.value)


def test_a_named_column_must_exist():
    with pytest.raises(UserError, match="'reason' is not there; its columns are prompt, answer"):
        read({"prompt": "p", "answer": "a"}, thought="reason")
    with pytest.raises(UserError, match="'answer' is empty"):
        read({"prompt": "p", "answer": None})
