"""The table of thinking tags, and where a reply is divided into thought and answer."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from templates import family
from tiny import make_tokenizer

from lowtax.common.errors import UserError
from lowtax.data import chat, thinking_tags
from lowtax.data.conversations import Conversation, split_answer
from lowtax.data.rendering import Parts, opened_note, split_reply, split_stored
from lowtax.data.thinking_tags import FAMILIES, NAMES, parse
from lowtax.data.turns import Unusable
from lowtax.training.encoding import encode_all

FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
COMMENTARY = "<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}"
CUT = None  # the thought has no end
# a stored reply of any origin, its thought and its answer
STORED = [
    # every family, finished and cut
    ("[THINK]maybe 5?[/THINK]The total is 6 apples", "maybe 5?", "The total is 6 apples"),
    ("[THINK]first 5, then \\boxed{5}, hmm wait", "first 5, then \\boxed{5}, hmm wait", CUT),
    (f"{ANALYSIS}It is 5, no 6.{FINAL}It is 6<|return|>", "It is 5, no 6.", "It is 6"),
    (f"<|start|>assistant{ANALYSIS}5{FINAL}It is 6", "5", "It is 6"),
    (f"{ANALYSIS}5{COMMENTARY}{FINAL}It is 6", "5" + COMMENTARY, "It is 6"),
    (f"{ANALYSIS}5<|end|><|start|>assistant<|channel|>commentary<|message|>6", None, CUT),
    ("<|channel|>final<|message|>It is 6", "", "It is 6"),
    ("analysisThe user wants 5assistantfinalIt is 6", "The user wants 5", "It is 6"),
    ("assistantanalysis 5assistantcommentary xassistantfinalIt is 6", "5assistantcommentary x", "It is 6"),
    ("analysisWe need 5", "We need 5", CUT),
    ("analysis用户要求 5", "用户要求 5", CUT),
    ("analysis of the table gives 6", "", "analysis of the table gives 6"),
    ("analysis: it is 6", "", "analysis: it is 6"),
    ("Analysis\nIt is 6", "", "Analysis\nIt is 6"),
    ("<seed:think>answer: 5</seed:think>It is 6", "answer: 5", "It is 6"),
    ("<|channel>thought\nthe answer is 5<channel|>It is 6<turn|>", "the answer is 5", "It is 6"),
    ("<|channel>thought\n<channel|>It is 6", "", "It is 6"),
    ("<unused94>thought\n5<unused95>It is 6", "5", "It is 6"),
    ("<thinking>5</thinking>\n\nIt is 6", "5", "It is 6"),
    ("<Thinking>5</THINKING>\n\nIt is 6", "5", "It is 6"),
    ("<thought>\n5\n</thought>\nIt is 6", "5", "It is 6"),
    ("<reasoning>5</reasoning><answer>6</answer>", "5", "<answer>6</answer>"),
    ("<scratchpad>5", "5", CUT),
    (
        "<|begin_of_thought|>\n5\n<|end_of_thought|>\n<|begin_of_solution|>\n6\n<|end_of_solution|>",
        "5",
        "6",
    ),
    ("◁think▷5◁/think▷It is 6", "5", "It is 6"),
    ("◁think▷so far 5", "so far 5", CUT),
    ("<|START_THINKING|>5<|END_THINKING|><|START_RESPONSE|>6<|END_RESPONSE|>", "5", "6"),
    ("<|open|>think<|sep|>5<|close|>think<|sep|><|open|>response<|sep|>6<|close|>response<|sep|>", "5", "6"),
    ("<mm:think>5</mm:think>6", "5", "6"),
    ("<think:opensource>5</think:opensource>6", "5", "6"),
    ("<longcat_think>5</longcat_think>6", "5", "6"),
    ("<|inner_prefix|>5<|inner_suffix|>6", "5", "6"),
    ("<|think|>5<|end|><|begin|>assistant<|content|>6<|end|>", "5", "6"),
    ("Here are my reasoning steps:\n5\n[BEGIN FINAL RESPONSE]\n6\n[END FINAL RESPONSE]", "5", "6"),
    ("Here is my thought process:\n5\nHere is my response:\n6", "5", "6"),
    ("<|im_start|>think\n5\n<|im_start|>answer\n6", "5", "6"),
    # before the opening
    ("\ufeff \n<think>5</think>6", "5", "6"),
    ("<|im_start|>assistant\n<think>\n5\n</think>\n\n6", "5", "6"),
    ("<\uff5cAssistant\uff5c><think>5</think>6", "5", "6"),
    ("Assistant: <think>5</think>6", "5", "6"),
    ("Sure. <think>5</think> 6", "", "Sure. <think>5</think> 6"),  # what is said before a block was said
    # closings without an opening: the prompt had it
    ("Let me see... 2+3=5</think>The answer is 5.", "Let me see... 2+3=5", "The answer is 5."),
    ("hm 5[/THINK]6", "hm 5", "6"),
    ("hm 5◁/think▷6", "hm 5", "6"),
    (f"hm 5{FINAL}6", "hm 5", "6"),
    ("hm 5assistantfinal6", "hm 5", "6"),
    ("</think>\n\n6", "", "6"),
    ("one</think>two</think>three", "one", "two</think>three"),
    # tags that are written about
    ("Models write </think> after their thought. It is 5.", "", "Models write </think> after their thought. It is 5."),
    ("To end it, write `</think>` at the end.", "", "To end it, write `</think>` at the end."),
    ('The tag is "</think>", and it is 5.', "", 'The tag is "</think>", and it is 5.'),
    ("`<think>5</think>` is a block.", "", "`<think>5</think>` is a block."),
    ("<think>They ask what `</think>` does.</think>It ends.", "They ask what `</think>` does.", "It ends."),
    ("<think>They ask what `</think>` does.", "They ask what `</think>` does.", CUT),
    ("<think>I open with <think> and 4</think>It is 4.", "I open with <think> and 4", "It is 4."),
    ("<think>t</think>Close it by </think> and go on.", "t", "Close it by </think> and go on."),
    # closings after the answer, nested and repeated ones
    ("<think>2+2=4</think>\nThe answer is \\boxed{4}.\n</think>", "2+2=4", "The answer is \\boxed{4}."),
    ("The answer is 4.\n</think>", "", "The answer is 4."),
    ("<think>t</think></think>\n4</think></think>", "t", "4"),
    ("<think>a <think>b</think> c</think>4", "a <think>b</think> c", "4"),
    ("<think>a <think>b</think> c is \\boxed{5}", "a <think>b</think> c is \\boxed{5}", CUT),
    ("<think>\n<think>\na</think>4", "a", "4"),
    ("<think>t</think>4 <think>more</think>", "t", "4 <think>more</think>"),
    ("", "", ""),
]


def test_stored_replies_of_every_family_are_divided():
    for text, thought, answer in STORED:
        parts = split_stored(text)
        assert (parts.answer, parts.closed) == (answer or "", answer is not CUT), text
        assert thought is None or parts.thought == thought, text


def test_what_the_prompt_opened_decides():
    harmful = "First do this, then that.\n</think> I cannot help with that."
    assert split_reply(harmful, opened=False) == Parts("", harmful, True)
    assert split_stored(harmful, opened=False) == Parts("", harmful, True)
    assert split_reply(harmful, opened=True).answer == "I cannot help with that."
    late = "<think>Hm.</think>First do this, then that.\n</think> I cannot help with that."
    for opened in (True, False, None):
        assert split_reply(late, opened).answer == "First do this, then that.\n</think> I cannot help with that."
    for opened, thought in ((True, "still 5"), (False, ""), (None, "")):
        assert split_stored("still 5", opened=opened) == Parts(thought, "" if opened else "still 5", not opened)
    assert split_stored("5[/THINK]6", opened=True) == Parts("5", "6", True)


def test_a_reply_may_begin_with_the_tags_of_another_family():
    assert split_reply("[THINK]5[/THINK]6", opened=False) == Parts("5", "6", True)
    markers = chat.turn(family("seed")).markers
    assert split_reply("<think>5</think>6", False, markers) == Parts("5", "6", True)
    assert split_reply("5</think>6", False, markers) == Parts("", "5</think>6", True)


def test_tags_that_an_option_names():
    assert split_stored("<plan>5</plan>6", "<plan>...</plan>") == Parts("5", "6", True)
    assert split_stored("<plan>5", "<plan>,</plan>") == Parts("5", "", False)
    assert split_stored("=== 5 === 6", "===...===") == Parts("5", "6", True)
    assert split_stored("<think>5</think>6", "<plan> </plan>") == Parts("", "<think>5</think>6", True)
    assert split_stored("[THINK]5[/THINK]6", "magistral") == Parts("5", "6", True)
    assert split_stored("analysisHm 5assistantfinal6", "harmony") == Parts("Hm 5", "6", True)
    assert parse(None) == parse("") == FAMILIES
    for wrong in ("magistrall", "...", "<plan>..."):
        with pytest.raises(UserError, match=r"neither a family nor a pair; .* written as '<reason>\.\.\.</reason>'"):
            parse(wrong)


def test_training_rows_may_have_the_tags_of_any_family():
    for text, thought, answer in (
        ("<|begin_of_thought|>\n5\n<|end_of_thought|>\n<|begin_of_solution|>6<|end_of_solution|>", "5", "6"),
        (f"{ANALYSIS}5{FINAL}6", "5", "6"),
        ("<thinking>5</thinking>6", "5", "6"),
        ("An [THINK]aside[/THINK].", None, "An [THINK]aside[/THINK]."),
    ):
        assert split_answer(text) == (thought, answer)
    for text, reason in (("[THINK]5", "no end"), ("[THINK]5[/THINK]", "answer is empty")):
        with pytest.raises(Unusable, match=reason):
            split_answer(text)


def test_a_file_whose_prompts_opened_the_thought_is_pointed_out():
    note = opened_note(["a</think>b", "c</think>d", "e"])
    assert note is not None
    assert note.startswith("2 of 3 replies end a thought that they do not begin")
    for replies in (["a</think>b", "c", "e"], ["a</think>b"] * 3, ["<think>a</think>b"] * 3 + ["e"], []):
        assert opened_note(replies) is None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*" \n`\"'ab.", "<think>", "</think>", "[/THINK]", FINAL, "analysis"])), st.booleans())
def test_no_text_is_lost_or_invented(pieces: list[str], opened: bool):
    text = "".join(pieces)
    parts = split_stored(text, opened=opened or None)
    assert parts.thought in text
    assert parts.answer in text
    assert parts.closed or not parts.answer


def test_long_replies_take_no_longer_than_they_are_long():
    for piece in ("</think>", "`</think>` ", "<think>", "x</think>y", "analysis ", "<|end|>\n", "\n"):
        began = time.process_time()
        split_stored(piece * 20_000)
        split_stored("<think>" + piece * 20_000)
        assert time.process_time() - began < 2, piece


def test_special_tokens_that_are_tags_of_any_family_stay_in_a_reply():
    tokenizer = make_tokenizer(think=False)
    tags = ["[THINK]", "[/THINK]", "◁think▷", "◁/think▷", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    marks = chat.mark_tokens(tokenizer, chat.turn(tokenizer).markers)
    for opening, closing in (tags[:2], tags[2:4], tags[4:]):
        ids = chat.encode(tokenizer, [f"{opening}2+2=4{closing}It is 4.<|im_end|><|pad|>"])[0]
        text = chat.decode(tokenizer, ids, marks)
        assert text == f"{opening}2+2=4{closing}It is 4."
        assert split_reply(text, False) == Parts("2+2=4", "It is 4.", True)


OPENS = "{% if add_generation_prompt %}{{ '<thought>\n' }}{% endif %}"
MENTIONS = "{{ 'Write <|begin_of_thought|> and <|end_of_thought|>.' }}"


@pytest.mark.parametrize(
    ("template", "tags", "trained"),
    [
        ("{base}" + OPENS, None, "T.\n</thought>\n\nA."),
        (MENTIONS + "{base}", None, "<|begin_of_thought|>\nT.\n<|end_of_thought|>\n\nA."),
        ("{base}", "kimi", "◁think▷\nT.\n◁/think▷\n\nA."),
        ("{base}", "<plan>...</plan>", "<plan>\nT.\n</plan>\n\nA."),
        ("{base}", "harmony", f"{ANALYSIS}T.{FINAL}A."),
        ("{base}", None, "<think>\nT.\n</think>\n\nA."),
    ],
)
def test_a_template_without_a_place_for_thoughts_gets_the_tags_it_mentions_or_an_option_names(
    template: str, tags: str | None, trained: str
):
    tokenizer = make_tokenizer(think=False)
    tokenizer.chat_template = template.replace("{base}", tokenizer.chat_template)
    row = Conversation("How?", "T.", "A.")
    (example,) = encode_all(tokenizer, [row], 1000, tags=tags).examples
    assert tokenizer.decode(example.completion[:-1]) == trained
    markers = chat.markers_of(tokenizer, tags=tags)
    opened = markers.opens(tokenizer.decode(example.prompt))
    assert opened == (OPENS in template)
    assert split_reply(trained, opened, markers) == Parts("T.", "A.", True)
    assert split_reply(trained.partition("T.")[0] + "T", opened, markers) == Parts("T", "", False)
    assert chat.thinks(tokenizer, tags) == (tags is not None or template != "{base}")


def test_the_documentation_has_the_table():
    page = (ROOT / "docs/reference/thinking-tags.md").read_text().replace("\\|", "|")
    for tags in FAMILIES:
        assert f"| `{tags.name}` | `{tags.opening}` | `{tags.closing}` | {tags.models} |" in page
    assert len(NAMES) == len(set(NAMES))
    assert {"<think>", "[/THINK]", "◁think▷"} < thinking_tags.WHOLE
