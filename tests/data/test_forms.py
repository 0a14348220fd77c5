"""Forms of rows: one conversation in every form is read as the same, without options; what no form is, is refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datahub import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from lowtax.common.errors import UserError
from lowtax.data import forms, training_sets
from lowtax.data.conversations import Conversation, of_turns
from lowtax.data.forms import FLAGS, LeftOut
from lowtax.data.specs import Data
from lowtax.data.turns import Unusable

PAGE = (ROOT / "docs/guides/training-data.md").read_text()
EXAMPLES = PAGE.partition("| read as | a row |")[2].partition("\n\n")[0]
TABLE = re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \|$", EXAMPLES, re.MULTILINE)
Row = dict[str, Any]
USER, ANSWER = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "No."}


def read(row: Row, **columns: str) -> Conversation:
    """The conversation of a row, whose form is recognised."""
    (conversation,) = of_turns(forms.turns_of_row(row, forms.recognise(row, columns)))
    return conversation


def test_the_documented_table_is_there():
    assert len(TABLE) > 12


@pytest.mark.parametrize(("name", "row"), TABLE, ids=[f"{i}-{name}" for i, (name, _) in enumerate(TABLE)])
def test_every_documented_form_is_recognised(tmp_path: Path, name: str, row: str):
    path = tmp_path / "x.jsonl"
    path.write_text(row + "\n")
    loaded = training_sets.load(Data(source=str(path)), 0)
    assert loaded.rows == [Conversation("How?", "Hm.", "No.")]
    assert loaded.reading is not None
    assert loaded.reading.notes() == [f"x.jsonl: 1 row, read as {name}."]


# --- one conversation in every form

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda text: (
        text.strip() == text and "<" not in text and ":" not in text and "{" not in text and text.lower() not in FLAGS
    )
)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=2)


def openai(c: Conversation, thought_key: str = "reasoning_content") -> list[Row]:
    turns = [{"role": role, "content": content} for role, content, *_ in c.history]
    last = {"role": "assistant", "content": c.answer, **({thought_key: c.thought} if c.thought else {})}
    system = [{"role": "system", "content": c.system}] if c.system else []
    return [*system, *turns, {"role": "user", "content": c.prompt}, last]


def inline(c: Conversation) -> str:
    return f"<think>\n{c.thought}\n</think>\n\n{c.answer}" if c.thought else c.answer


def share_gpt(c: Conversation) -> list[Row]:
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[role], "value": content} for role, content, *_ in c.history]
    return [*turns, {"from": "human", "value": c.prompt}, {"from": "gpt", "value": inline(c)}]


def parts(c: Conversation) -> list[Row]:
    turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in openai(c)]
    for turn in turns:
        turn["role"] = "developer" if turn["role"] == "system" else turn["role"]
        if thought := turn.pop("reasoning_content", None):
            turn["content"].insert(0, {"type": "thinking", "thinking": thought})
    return turns


def alpaca(c: Conversation) -> Row:
    pairs = [[user[1], answer[1]] for user, answer in zip(c.history[::2], c.history[1::2], strict=True)]
    return {"instruction": c.prompt, "input": "", "output": inline(c), "system": c.system, "history": pairs}


MULTI_TURN: dict[str, Callable[[Conversation], Row]] = {
    "messages": lambda c: {"messages": openai(c)},
    "thinking": lambda c: {"messages": openai(c, "thinking"), "id": 7},
    "as text": lambda c: {"messages": json.dumps(openai(c, "reasoning"))},
    "as Python": lambda c: {"conversations": repr(openai(c, "reasoning"))},
    "filled up by parquet": lambda c: {"messages": [{"tool_calls": None, "thinking": None, **t} for t in openai(c)]},
    "parts": lambda c: {"messages": parts(c)},
    "ShareGPT": lambda c: {"conversations": share_gpt(c), "system": c.system, "tools": ""},
    "Alpaca": alpaca,
    "TRL": lambda c: {"prompt": openai(c)[:-1], "completion": openai(c)[-1:]},
    "a thought beside": lambda c: {"messages": openai(replace(c, thought=None)), "thought": c.thought},
    "chosen turns": lambda c: {"prompt": openai(c)[:-1], "chosen": openai(c)[-1:], "rejected": [{}]},
    "chosen, all turns": lambda c: {"chosen": openai(c), "rejected": openai(c)},
    "chosen, one object": lambda c: {"messages": openai(c)[:-1], "chosen": openai(c)[-1], "rejected": {}},
    "KTO": lambda c: {"messages": openai(c), "label": True},
}
SINGLE_TURN: dict[str, Callable[[Conversation], Row]] = {
    "own": lambda c: {"prompt": c.prompt, "thought": c.thought, "answer": c.answer, "system": c.system},
    "inline": lambda c: {"prompt": c.prompt, "answer": inline(c), "system": c.system},
    "completion": lambda c: {"prompt": c.prompt, "completion": inline(c), "system": c.system},
    "other case": lambda c: {"Question": c.prompt, "Reasoning": c.thought, "Answer": c.answer, "System": c.system},
    "Dolly": lambda c: {"instruction": c.prompt, "context": "", "response": inline(c), "system": c.system},
    "chosen": lambda c: {"question": c.prompt, "chosen": inline(c), "rejected": "So.", "system": c.system},
    "KTO": lambda c: {"prompt": c.prompt, "completion": inline(c), "label": True, "system": c.system},
    "all chosen turns, and the prompt": lambda c: {"prompt": c.prompt, "chosen": openai(c), "rejected": openai(c)},
}


@settings(deadline=None, max_examples=60)
@given(TEXT, TEXT, st.none() | TEXT, st.none() | TEXT, PAIRS)
def test_one_conversation_is_the_same_in_every_form(
    prompt: str, answer: str, thought: str | None, system: str | None, pairs: list[tuple[str, str]]
):
    history = tuple(turn for user, reply in pairs for turn in (("user", user), ("assistant", reply)))
    conversation = Conversation(prompt, thought, answer, system, history)
    written = dict(MULTI_TURN) if history else {**MULTI_TURN, **SINGLE_TURN}
    assert {name: read(write(conversation)) for name, write in written.items()} == dict.fromkeys(written, conversation)


# --- columns by name


def test_named_columns_come_first():
    row = {"q": "Q", "a": "A", "r": "R", "s": "S", "c": " C ", "prompt": "no", "answer": "no", "thought": "no"}
    assert read(row, prompt="q", answer="a", thought="r", system="s", context="c") == Conversation(
        "Q\n\nC", "R", "A", system="S"
    )
    assert read({**row, "c": "", "thought": None}, prompt="q", answer="a", context="c") == Conversation("Q", None, "A")
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    assert read({"chat": turns, "prompt": "no", "answer": "no"}, messages="chat") == Conversation("1", None, "2")


def test_what_is_not_named_is_recognised():
    turns = [{"role": "assistant", "content": "No."}]
    assert read({"prompt": "How?", "completion": turns}, answer="completion") == Conversation("How?", None, "No.")
    assert read({"question": "How?", "reasoning": "Hm.", "answer": "No."}, prompt="question").thought == "Hm."
    shared = [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "No."}]
    assert read({"system": "S", "conversations": shared}, messages="conversations").system == "S"
    chosen = [{"role": "user", "content": "How?"}, *turns]
    assert read({"chosen": chosen, "rejected": []}, answer="chosen") == Conversation("How?", None, "No.")


def test_columns_beside_named_ones_are_left_alone():
    """A stored recipe that names its columns trains the same rows as before there were forms."""
    row = {"instruction": "p", "input": "x", "output": "a", "system_prompt": "S", "history": [["q", "b"]]}
    assert read(row, prompt="instruction", answer="output") == Conversation("p", None, "a")
    assert read(row) == Conversation("p\n\nx", None, "a", "S", (("user", "q"), ("assistant", "b")))


@pytest.mark.parametrize(
    ("row", "conversation"),
    [
        ({"input": "p", "output": "a"}, Conversation("p", None, "a")),
        ({"user": "p", "assistant": "a", "system": "S"}, Conversation("p", None, "a", "S")),
        ({"question": "p", "context": "c", "response": "a"}, Conversation("p\n\nc", None, "a")),
        ({"Problem": "p", "Solution": "a"}, Conversation("p", None, "a")),
        (  # Anthropic
            {"system": [{"type": "text", "text": "S"}], "messages": [USER, {"role": "assistant", "content": "a"}]},
            Conversation("How?", None, "a", "S"),
        ),
        (  # Gemini
            {
                "systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "p"}]},
                    {"role": "model", "parts": [{"text": "T", "thought": True}, {"text": "a"}]},
                ],
            },
            Conversation("p", "T", "a", "S"),
        ),
        (  # OpenAI: a refusal has no content
            {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}]},
            Conversation("How?", None, "No."),
        ),
        ({"conversation": [{"human": "p", "assistant": "a"}]}, Conversation("p", None, "a")),
        (  # OpenAI's preferences
            {
                "input": {"messages": [USER], "tools": []},
                "preferred_output": [ANSWER],
                "non_preferred_output": [ANSWER],
            },
            Conversation("How?", None, "No."),
        ),
        (  # Nemotron: `reasoning` is a switch
            {"input": [USER], "output": "<think>T</think>a", "reasoning": "on", "system_prompt": "S"},
            Conversation("How?", "T", "a", "S"),
        ),
        ({"messages": [USER], "response": "a"}, Conversation("How?", None, "a")),
        ({"Question": "p", "Complex_CoT": "T", "Response": "a"}, Conversation("p", "T", "a")),
        (
            {"prompt": "p", "answer": '[{"role": "user"}] is a list'},
            Conversation("p", None, '[{"role": "user"}] is a list'),
        ),
        ({"prompt": "p", "answer": '{"role": "admin"}'}, Conversation("p", None, '{"role": "admin"}')),
        (  # LLaMA-Factory's newer layout
            {
                "chosen_messages": [
                    {"role": "user", "content": [{"type": "text", "value": "p"}], "loss_weight": 0.0},
                    {
                        "role": "assistant",
                        "content": [{"type": "reasoning", "value": "T"}, {"type": "text", "value": "a"}],
                        "loss_weight": 1.0,
                    },
                ],
                "rejected_messages": [],
            },
            Conversation("p", "T", "a"),
        ),
    ],
)
def test_forms_of_other_tools(row: Row, conversation: Conversation):
    assert read(row) == conversation


def test_a_named_column_must_exist(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"prompt": "p", "answer": "a"}, {"prompt": "p", "answer": "a", "more": 1})
    for role in ("thought", "answer", "system", "messages"):
        with pytest.raises(UserError, match="the column 'reason' is not there; its columns are prompt, answer, more"):
            training_sets.load(Data.model_validate({"source": str(path), "columns": {role: "reason"}}), 0)


def test_the_words_for_named_columns(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"q": "p", "answer": "a", "id": 3, "note": ""})
    loaded = training_sets.load(Data(source=str(path), columns={"prompt": "q"}), 0)
    assert loaded.reading is not None
    first, second = loaded.reading.notes()
    assert first == "x.jsonl: 1 row, read as prompt=q, answer=answer."
    assert second == "x.jsonl: not used: the column id."


# --- rows that are no training rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "answer": ["No.", "Never."]}, "the column 'answer' holds a list, not text"),
        ({"prompt": "p", "answer": float("nan")}, "the column 'answer' is empty"),
        ({"prompt": "p", "answer": 7}, "the column 'answer' holds a number, not text"),
        ({"prompt": "p", "answer": True}, "the column 'answer' holds a truth value, not text"),
        ({"prompt": "p", "answer": {"text": "No."}}, "the column 'answer' holds an object, not text"),
        ({"prompt": "p", "answer": None}, "the column 'answer' is empty"),
        ({"prompt": "p", "answer": " \n"}, "the column 'answer' is empty"),
        ({"prompt": "", "answer": "a"}, "the column 'prompt' is empty"),
        ({"prompt": ["p"], "completion": "a"}, "the column 'prompt' holds a list, not text"),
        ({"prompt": "p", "answer": "a", "system": 7}, "the column 'system' holds a number, not text"),
        ({"prompt": "p", "answer": "a", "thought": 7}, "the column 'thought' holds a number, not text"),
        ({"prompt": "p", "answer": "a", "thought": ["a", "b"]}, "the column 'thought' holds a list, not text"),
        ({"prompt": "p", "answer": "a", "thought": "S", "reasoning": "T"}, "two different thoughts"),
        ({"instruction": "p", "input": ["x"], "output": "a"}, "the column 'input' holds a list, not text"),
        ({"instruction": "p", "output": "a", "history": ["x"]}, "'history' is no list of pairs"),
        ({"messages": [USER, ANSWER], "tools": '[{"name": "f"}]'}, "it has tools"),
        ({"messages": [USER, ANSWER], "images": ["x.png"]}, "it has images"),
        ({"question": "p", "choices": ["a", "b"], "answer": "A"}, "it has choices"),
        ({"messages": [USER, {**ANSWER, "loss_weight": 0.0}]}, "carries no loss"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": "How?"}, "the column 'messages' holds a text, not a list of turns"),
        ({"messages": []}, "the column 'messages' is empty"),
        ({"messages": ["How?"]}, "the column 'messages' holds a text that is no turn"),
        ({"messages": [{"content": "How?"}, ANSWER]}, "a turn has no role"),
        ({"messages": [{"role": "tool", "content": "How?"}, ANSWER]}, "a turn has the role 'tool'"),
        ({"messages": [{"role": "user", "content": 7}, ANSWER]}, "a turn of the user holds a number, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "a turn has a part of type 'image'"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": 1}]}]}, "a turn of the assistant has `tool_calls`"),
        ({"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]}, "has `function_call`"),
        ({"messages": [USER, {**ANSWER, "thinking": "S", "reasoning": "T"}]}, "two different thoughts"),
        ({"messages": [USER, {**ANSWER, "thinking": 7}]}, "a thought holds a number, not text"),
        ({"messages": [USER, {**ANSWER, "content": ""}]}, "the answer is empty"),
        ({"chosen": "No.", "rejected": "So."}, "it has no prompt"),
    ],
)
def test_rows_that_are_skipped(row: Row, reason: str):
    with pytest.raises(Unusable, match=re.escape(reason)):
        read(row)


def test_keys_of_assistant_turns_that_are_not_used_are_named(tmp_path: Path):
    turn = {
        **ANSWER,
        "reasoning_content": "T",
        "reasoning": "T",
        "weight": 1,
        "audio": None,
        "toxic": False,
        "n": 0,
    }
    path = write_jsonl(tmp_path / "x.jsonl", {"messages": [{**USER, "id": 7}, turn]})
    loaded = training_sets.load(Data(source=str(path)), 0)
    assert loaded.rows == [Conversation("How?", "T", "No.")]
    assert loaded.reading is not None
    assert loaded.reading.notes()[1] == "x.jsonl: not used: `toxic` (1 row), `n` (1 row) of assistant turns."


def test_what_is_missing_beside_prompt_and_answer_is_absent():
    """NaN is pandas' missing value; an empty cell is CSV's."""
    for nothing in (None, float("nan"), "", " "):
        row = {"instruction": "p", "input": nothing, "output": "a", "system": nothing, "thought": nothing}
        assert read(row) == Conversation("p", None, "a")


@pytest.mark.parametrize("label", [False, "False", 0])
@pytest.mark.parametrize("key", ["label", "kto_tag", "is_safe"])
def test_answers_with_a_false_label_are_left_out(label: object, key: str):
    row = {"prompt": "p", "completion": "a", key: label}
    with pytest.raises(LeftOut, match="the label is false"):
        read(row)
    form = forms.recognise(row, {})
    assert forms.turns_of_row(row, form, selected={key: False})
    for other in (True, "true", "vanilla_harmful", None, 2):
        assert read({**row, key: other}).answer == "a"


def test_a_label_that_is_no_truth_value_is_none():
    assert read({"prompt": "p", "answer": "a", "label": 0}).answer == "a"


# --- sources that are refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"request": "p", "reply_text": "a"}, "no columns of a known form; its columns are request, reply_text"),
        ({"text": "p"}, "`text` holds whole conversations, whose prompt and answer cannot be told apart"),
        ({"prompt": "p", "response": "a", "refusal": "b"}, "several columns that may hold the answer: "),
        ({"prompt": "p", "answer": ["a"]}, "None of the 1 rows"),
    ],
)
def test_sources_of_no_known_form(tmp_path: Path, row: Row, message: str):
    path = write_jsonl(tmp_path / "x.jsonl", row)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        training_sets.load(Data(source=str(path)), 0)
    assert "x.jsonl" in str(caught.value)


def test_prompts_of_a_row_without_its_answer():
    assert forms.prompt_of({"instruction": "p", "input": "x"}, None) == "p\n\nx"
    assert forms.prompt_of({"q": "p"}, "q") == "p"
    with pytest.raises(Unusable, match="holds a number"):
        forms.prompt_of({"prompt": 7}, None)
