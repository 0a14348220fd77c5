"""Conversations: the layouts of published sets with their traps, think blocks, and turns in and out of order."""

from dataclasses import replace
from pathlib import Path

import pytest
from datahub import write_jsonl
from places import PUBLISHED

from lowtax.common.errors import UserError
from lowtax.data import conversations, readers, specs, training_sets
from lowtax.data.conversations import Conversation, of_turns
from lowtax.data.rendering import RENDERINGS
from lowtax.data.specs import Data
from lowtax.data.turns import Turn, Unusable


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
    assert conversations.direct_refusal(row, "thinksafe") == Conversation("p", None, "No.", rendering="thinksafe")
    for other in (row, {"prompt": "p", "refusal": "Question: p\nAnswer:  "}):
        with pytest.raises(Unusable, match="it has no answer"):
            conversations.direct_refusal(other, "reference")
    with pytest.raises(Unusable, match="the answer is empty"):
        conversations.direct_refusal({"prompt": "p", "refusal": None}, "reference")


def test_nothing_to_train_on(tmp_path: Path):
    path = write_jsonl(tmp_path / "direct.jsonl", *DIRECT[2:])
    with pytest.raises(UserError, match=r"None of the 1 rows of .*direct.jsonl can be trained on: it has no answer"):
        training_sets.load(Data(source="direct-refusal", path=str(path)), 0)


def test_a_file_with_other_columns_is_refused(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"prompt": "p", "answer": "a"})
    with pytest.raises(UserError, match=r"x.jsonl: the column 'refusal' is not there; its columns are prompt, answer"):
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


def test_safety_tax_cot_is_byte_for_byte_what_its_code_writes(tmp_path: Path):
    written = {  # response: the assistant's turn of the published script
        "Hm.\n</think>\n\nI'm sorry.": "Hm.\n<|im_start|>answer\nAnswer: \n\nI'm sorry.",
        " Hm. </think>No. \n": "Hm.\n<|im_start|>answer\nAnswer: No.",
        "Hm.</think>\n\nAnswer: no\n": "Hm.\n<|im_start|>answer\nAnswer: no",
        "Hm.</think>\n\nFinal Answer: no\n": "Hm.\n<|im_start|>answer\nFinal Answer: no",
        "Hm.</think>\nOne.</think>Two.": "Hm.\n<|im_start|>answer\nAnswer: \nOne.",
        "Hm.\n</think>\n\n  x": "Hm.\n<|im_start|>answer\nAnswer: \n\n  x",
    }
    rows = [{"instruction": "q", "label": "l", "response": response} for response in written]
    path = write_jsonl(tmp_path / "chain.jsonl", *rows)
    loaded = training_sets.load(specs.parse(f"safechain,path={path},rendering=safety_tax_cot"), 0)
    layout = RENDERINGS["safety_tax_cot"]
    texts = [layout.completion("<|im_start|>assistant\n", row.thought, row.answer) for row in loaded.rows]
    assert sorted(texts) == sorted(f"<|im_start|>think\n\n{text}" for text in written.values())
    plain = training_sets.load(specs.parse(f"safechain,path={path}"), 0).rows
    assert all(row.answer == row.answer.strip() for row in plain)


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


# --- think blocks


@pytest.mark.parametrize(
    ("answer", "thought", "rest"),
    [
        ("<think>\nT\n</think>\n\nA", "T", "A"),
        ("T</think>A", "T", "A"),
        ("<think></think>\nA", "", "A"),
        (" A ", None, " A "),
        # The thought ends at the first closing tag; what follows is the answer, also where it speaks of tags.
        ("<think>T</think>No.\nThe tag </think> closes a thought.", "T", "No.\nThe tag </think> closes a thought."),
        ("T</think>No.\nThe tag </think> closes a thought.", "T", "No.\nThe tag </think> closes a thought."),
        ("<think>a <think>b</think> c</think>A", "a <think>b</think> c", "A"),
        ("<think>I mention <think> here</think>A", "I mention <think> here", "A"),
        ("<think>T</think>\nA\n</think>", "T", "A"),
        ("Write <think> and </think> around it.", None, "Write <think> and </think> around it."),
        ("Write <think> first.", None, "Write <think> first."),
    ],
)
def test_a_think_block_is_split_from_its_answer(answer: str, thought: str | None, rest: str):
    assert conversations.split_answer(answer) == (thought, rest)


def test_a_thought_beside_the_answer():
    """A tag in an answer whose thought is in another place is text; another thought in it is a contradiction."""
    assert conversations.split_answer("No. </think> closes.", "T") == ("T", "No. </think> closes.")
    assert conversations.split_answer("<think>\n\n</think>\n\nNo.", "T") == ("T", "No.")
    assert conversations.split_answer("<think>\nT\n</think>\n\nNo.", "T") == ("T", "No.")
    with pytest.raises(Unusable, match="two different thoughts"):
        conversations.split_answer("<think>S</think>No.", "T")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("<think>\nAnd on and on", "its thought has no end"), ("<think>T</think>\n", "the answer is empty")],
)
def test_an_answer_that_is_cut(answer: str, reason: str):
    with pytest.raises(Unusable, match=reason):
        conversations.split_answer(answer)


def test_an_answer_that_begins_inside_its_thought():
    assert conversations.split_answer("T</think>A </think> B", opened=True) == ("T", "A </think> B")
    with pytest.raises(Unusable, match="no end"):
        conversations.split_answer("T", opened=True)


def test_an_empty_think_block_stays_one_unless_there_is_a_constant(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"prompt": "p", "answer": "<think>\n\n</think>\n\nNo."})
    assert training_sets.conversations(Data(source=str(path)), 0) == [Conversation("p", "", "No.")]
    assert training_sets.conversations(Data(source=str(path), thought="T"), 0) == [Conversation("p", "T", "No.")]


# --- turns

SYSTEM, FIRST, REPLY, NEXT = Turn("system", "S"), Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3")
LAST = Turn("assistant", "<think>T</think>4")


def test_the_last_assistant_turn_is_trained():
    turns = [SYSTEM, FIRST, REPLY, NEXT, LAST, Turn("user", "thanks")]
    (row,) = of_turns(turns)
    assert row == Conversation("3", "T", "4", system="S", history=(("user", "1"), ("assistant", "2")))
    assert row.messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ]


def test_every_assistant_turn_is_an_example_in_the_context_that_is_sampled():
    rows = of_turns([SYSTEM, FIRST, Turn("assistant", "2", "T1"), NEXT, LAST], "assistant")
    assert rows == [
        Conversation("1", "T1", "2", system="S"),
        Conversation("3", "T", "4", system="S", history=(("user", "1"), ("assistant", "2", "T1"))),
    ]
    assert rows[1].messages[2] == {"role": "assistant", "content": "2", "reasoning_content": "T1"}
    greeting = [Turn("assistant", "Hello."), FIRST, REPLY]
    assert of_turns(greeting, "assistant") == [Conversation("1", None, "2", history=(("assistant", "Hello."),))]


def test_turns_that_the_data_leave_out():
    silent = replace(REPLY, trained=False)
    assert [row.prompt for row in of_turns([FIRST, silent, NEXT, LAST], "assistant")] == ["3"]
    with pytest.raises(Unusable, match="carries no loss"):
        of_turns([FIRST, silent])


def test_system_turns_at_the_beginning_are_one():
    assert of_turns([SYSTEM, Turn("system", "R"), SYSTEM, FIRST, REPLY])[0].system == "S\n\nR"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no assistant turn"),
        ([FIRST], "no assistant turn"),
        ([REPLY], "no request is before its answer"),
        ([SYSTEM, REPLY], "no request is before its answer"),
        ([FIRST, REPLY, REPLY], "two assistant turns follow each other"),
        ([FIRST, Turn("assistant", " \n")], "the answer is empty"),
        ([Turn("user", ""), REPLY], "the prompt is empty"),
        ([FIRST, Turn("assistant", ""), NEXT, LAST], "the content of an earlier turn is empty"),
    ],
)
def test_turns_that_cannot_be_trained_on(turns: list[Turn], reason: str):
    with pytest.raises(Unusable, match=reason):
        of_turns(turns)


def test_the_description_of_a_row_is_that_of_version_0_1_unless_it_uses_more():
    """Hashes of rows in cards and jobs of stored studies stay valid."""
    row = Conversation("p", None, "a", "s", (("user", "h"),))
    fields = {"prompt": "p", "thought": None, "answer": "a", "system": "s", "history": (("user", "h"),)}
    assert row.describe() == {**fields, "rendering": "standard"}
    assert replace(row, prompt_loss=True).describe() == {**fields, "rendering": "standard", "prompt_loss": True}
