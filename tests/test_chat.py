"""Chat: the exact tokens that are trained on, and a reply taken apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import END, make_tokenizer

from lowtax import chat
from lowtax.errors import UserError

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


def test_template_that_opens_the_thought():
    tokenizer = make_tokenizer(think=True)
    row = chat.example(tokenizer, MESSAGES, "2 + 2 = 4.", "Four.")
    prompt = chat.generation_prompt(tokenizer, MESSAGES)
    assert prompt.endswith("<think>\n")
    assert tokenizer.decode(row.prompt) == prompt
    assert tokenizer.decode(row.completion) == f"2 + 2 = 4.\n</think>\n\nFour.{END}"
    assert (prompt + tokenizer.decode(row.completion)).count("<think>") == 1


def test_template_without_thought():
    tokenizer = make_tokenizer(think=False)
    row = chat.example(tokenizer, MESSAGES, "2 + 2 = 4.", "Four.")
    assert tokenizer.decode(row.prompt).endswith("assistant\n")
    assert tokenizer.decode(row.completion) == f"<think>\n2 + 2 = 4.\n</think>\n\nFour.{END}"
    plain = chat.example(tokenizer, MESSAGES, None, "Four.")
    assert tokenizer.decode(plain.completion) == f"Four.{END}"


@pytest.mark.parametrize("think", [True, False])
def test_a_row_is_trained_in_the_context_it_is_sampled_in(think: bool):
    tokenizer = make_tokenizer(think)
    row = chat.example(tokenizer, MESSAGES, "A thought.", "An answer.")
    assert row.prompt == chat.prompt_ids(tokenizer, MESSAGES)
    assert row.completion[-1] == tokenizer.eos_token_id
    whole = chat.generation_prompt(tokenizer, MESSAGES) + tokenizer.decode(row.completion)
    assert row.prompt + row.completion == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("think", [True, False])
def test_what_is_trained_is_taken_apart_as_it_was_put_together(think: bool):
    tokenizer = make_tokenizer(think)
    row = chat.example(tokenizer, MESSAGES, "A thought.", "An answer.")
    reply = tokenizer.decode(row.completion[:-1])
    assert chat.split_reply(reply, opened=think) == chat.Parts("A thought.", "An answer.", True)


@pytest.mark.parametrize(
    ("text", "opened", "parts"),
    [
        ("t\n</think>\n\na", True, ("t", "a", True)),
        ("<think>\nt\n</think>\n\na", False, ("t", "a", True)),
        ("\n<think>\nt\n</think>\n\na", True, ("t", "a", True)),
        ("t\n</think>\n\na", False, ("t", "a", True)),
        ("still thinking", True, ("still thinking", "", False)),
        ("<think>\nstill thinking", False, ("still thinking", "", False)),
        ("an answer at once", False, ("", "an answer at once", True)),
        ("</think>\n\na", True, ("", "a", True)),
        ("t\n</think>\n", True, ("t", "", True)),
        ("", True, ("", "", False)),
        ("", False, ("", "", True)),
    ],
)
def test_split_reply(text: str, opened: bool, parts: tuple[str, str, bool]):
    assert chat.split_reply(text, opened) == chat.Parts(*parts)


def test_of_several_closing_tags_the_last_ends_the_thought():
    parts = chat.split_reply("one </think> two </think> three", opened=True)
    assert (parts.answer, parts.closed) == ("three", True)
    assert "one" in parts.thought
    assert "two" in parts.thought


@settings(deadline=None)
@given(st.text(), st.booleans())
def test_split_reply_loses_no_text(text: str, opened: bool):
    parts = chat.split_reply(text, opened)
    assert len(parts.thought) + len(parts.answer) <= len(text)
    if not parts.closed:
        assert parts.answer == ""
    if "<think>" not in text and "</think>" not in text:
        assert parts.thought + parts.answer == text.strip()


def test_no_chat_template():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        chat.prompt_ids(tokenizer, MESSAGES)
    with pytest.raises(UserError, match="no chat template"):
        chat.example(tokenizer, MESSAGES, None, "a")


def test_no_end_of_turn_token():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end-of-turn"):
        chat.example(tokenizer, MESSAGES, None, "a")
