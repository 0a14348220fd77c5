"""Thoughts in each family's own words: what is trained, where a turn ends, and how a reply is split."""

import pytest
from places import ROOT
from templates import FAMILIES, THINKERS, family
from transformers import PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.data import chat, rendering, thoughts
from lowtax.data.conversations import Conversation
from lowtax.training.encoding import encode_all

QUESTION = [{"role": "user", "content": "How?"}]
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
RESPONSE = "<|close|>think<|sep|><|open|>response<|sep|>"
END_KIMI = "<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>"
END_COMMAND = "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
# family, switch, end of the prompt, text with the thought `T.` and the answer `A.`, text with the answer alone
FORMATS = [
    (
        "gpt-oss",
        "default",
        "<|start|>assistant",
        f"<|channel|>analysis<|message|>T.{FINAL}A.<|return|>",
        "<|channel|>final<|message|>A.<|return|>",
    ),
    ("gemma4", "on", "<|turn>model\n", "<|channel>thought\nT.\n<channel|>A.<turn|>", "A.<turn|>"),
    ("gemma4", "default", "<|channel>thought\n<channel|>", "A.<turn|>", "A.<turn|>"),
    ("seed", "default", "assistant\n", "<seed:think>T.</seed:think>\nA.<seed:eos>", "A.<seed:eos>"),
    ("magistral", "default", "[/INST]", "[THINK]T.[/THINK]A.</s>", "A.</s>"),
    (
        "command-r7b",
        "on",
        "<|CHATBOT_TOKEN|>",
        f"<|START_THINKING|>T.<|END_THINKING|><|START_RESPONSE|>A.{END_COMMAND}",
        f"<|START_RESPONSE|>A.{END_COMMAND}",
    ),
    (
        "command-r7b",
        "default",
        "<|START_THINKING|><|END_THINKING|>",
        f"<|START_RESPONSE|>A.{END_COMMAND}",
        f"<|START_RESPONSE|>A.{END_COMMAND}",
    ),
    (
        "command-a",
        "default",
        "<|START_THINKING|>",
        "T.<|END_THINKING|><|START_TEXT|>A.<|END_TEXT|><|END_OF_TURN_TOKEN|>",
        "<|END_THINKING|><|START_TEXT|>A.<|END_TEXT|><|END_OF_TURN_TOKEN|>",
    ),
    (
        "glm",
        "default",
        "<|assistant|>",
        "\n<think>T.</think>\nA.<|endoftext|>",
        "\n<think></think>\nA.<|endoftext|>",
    ),
    ("glm", "off", "\n<think></think>", "\nA.<|endoftext|>", "\nA.<|endoftext|>"),
    ("kimi", "default", "<|open|>think<|sep|>", f"T.{RESPONSE}A.{END_KIMI}", f"{RESPONSE}A.{END_KIMI}"),
    ("kimi", "off", "<|open|>response<|sep|>", f"A.{END_KIMI}", f"A.{END_KIMI}"),
    ("minimax", "default", "assistant\n", "<mm:think>T.</mm:think>A.[e~[", "</mm:think>A.[e~["),
    ("hunyuan", "default", "<think:opensource></think:opensource>", "A.<hy_eos>", "A.<hy_eos>"),
    (
        "apriel",
        "default",
        "Here are my reasoning steps:\n",
        "T.\n[BEGIN FINAL RESPONSE]\nA.<|end|>",
        "[BEGIN FINAL RESPONSE]\nA.<|end|>",
    ),
    (
        "solar",
        "default",
        "<|begin|>assistant",
        "<|think|>T.<|end|><|begin|>assistant<|content|>A.<|end|><|endoftext|>",
        "<|content|>A.<|end|><|endoftext|>",
    ),
    (
        "apertus",
        "default",
        "<|assistant_start|>",
        "<|inner_prefix|>T.<|inner_suffix|>A.<|assistant_end|>",
        "A.<|assistant_end|>",
    ),
    ("r1-first", "default", "<|Assistant|>", "<think>\nT.\n</think>\n\nA.<|end|>", "A.<|end|>"),
    ("mistral", "default", "[/INST]", " <think>\nT.\n</think>\n\nA.</s>", " A.</s>"),
]


def trained(
    tokenizer: PreTrainedTokenizerBase,
    thought: str | None,
    thinking: chat.Thinking = "default",
    style: str = "standard",
) -> tuple[str, str]:
    (example,) = encode_all(tokenizer, [Conversation("How?", thought, "A.", rendering=style)], 1000, thinking).examples
    return tokenizer.decode(example.prompt), tokenizer.decode(example.completion)


@pytest.mark.parametrize(("name", "thinking", "prompt", "whole", "answer"), FORMATS)
def test_a_row_is_written_in_the_words_of_its_family(
    name: str, thinking: chat.Thinking, prompt: str, whole: str, answer: str
):
    tokenizer = family(name)
    sampled = tokenizer.decode(chat.prompt_ids(tokenizer, QUESTION, thinking))
    assert sampled.endswith(prompt)
    assert trained(tokenizer, "T.", thinking) == (sampled, whole)
    assert trained(tokenizer, None, thinking) == (sampled, answer)


@pytest.mark.parametrize(("name", "thinking", "prompt", "whole", "answer"), FORMATS)
def test_what_is_trained_is_split_again(name: str, thinking: chat.Thinking, prompt: str, whole: str, answer: str):
    tokenizer = family(name)
    around = chat.turn(tokenizer, thinking)
    opened = around.markers.opens(chat.generation_prompt(tokenizer, QUESTION, thinking))
    end = tokenizer.convert_ids_to_tokens(around.end)
    kept = "T." in whole
    for text, thought in ((whole, "T." * kept), (answer, "")):
        parts = rendering.split_reply(text.removesuffix(end), opened, around.markers)
        assert parts == rendering.Parts(thought, "A.", True)
    if kept:
        cut = whole[: whole.index("T.") + 1]
        assert rendering.split_reply(cut, opened, around.markers) == rendering.Parts("T", "", False)


@pytest.mark.parametrize("name", [*FAMILIES, *THINKERS])
def test_decoded_replies_keep_the_marks_of_a_thought_and_lose_other_special_tokens(name: str):
    tokenizer = family(name)
    around = chat.turn(tokenizer)
    _, text = trained(tokenizer, "T.")
    ids = [*chat.encode(tokenizer, [text])[0][:-1], tokenizer.pad_token_id]
    shown = chat.decode(tokenizer, ids, chat.mark_tokens(tokenizer, around.markers))
    opened = around.markers.opens(chat.generation_prompt(tokenizer, QUESTION))
    assert rendering.split_reply(shown, opened, around.markers).answer == "A."
    assert "<|pad|>" not in shown
    assert ("T." in text) == (rendering.split_reply(shown, opened, around.markers).thought == "T.")


def test_think_tags_that_are_special_tokens_stay_in_a_reply():
    tokenizer = family("r1")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<|User|>"]})
    marks = chat.mark_tokens(tokenizer, chat.turn(tokenizer).markers)
    ids = chat.encode(tokenizer, ["2+2=4</think>\n\nThe answer is 4.<|User|><|end|>"])[0]
    assert chat.decode(tokenizer, ids, marks) == "2+2=4</think>\n\nThe answer is 4."


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("gemma",)])
@pytest.mark.parametrize("style", ["standard", "reference", "thinksafe"])
def test_think_models_are_written_as_before(name: str, style: str):
    """The layout of R1, Qwen3 and SmolLM3, spelled out without the learnt markers."""
    tokenizer = family(name, think_token=name == "qwen3")
    for thinking in ("default", "on", "off"):
        try:
            prompt = chat.generation_prompt(tokenizer, QUESTION, thinking)
        except UserError:
            continue
        opened, closed = prompt.rstrip().endswith("<think>"), prompt.rstrip().endswith("</think>")
        inner, tail = ("", "") if style == "reference" else ("\n", "\n\n")
        whole = f"<think>{inner}T.{inner}</think>{tail}A."
        if opened:
            whole = whole.removeprefix("<think>" + inner * prompt.endswith("\n"))
        if closed or (style == "reference" and not opened):
            before = "<think>\n\n</think>\n\n" if name == "qwen3" and not closed else ""
            whole = f"{before}A."
        sampled, text = trained(tokenizer, "T.", thinking, style)
        assert (sampled, text) == (prompt, whole + tokenizer.convert_ids_to_tokens(chat.end_of_turn(tokenizer)))


def test_a_field_for_thoughts_may_be_any_of_several():
    for name in thoughts.FIELDS:
        tokenizer = family("seed")
        tokenizer.chat_template = tokenizer.chat_template.replace("reasoning_content", name)
        assert trained(tokenizer, "T.")[1] == "<seed:think>T.</seed:think>\nA.<seed:eos>"


def test_templates_that_write_a_list_of_parts_as_it_is_have_no_place_for_a_thought():
    tokenizer = family("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | string")
    assert not chat.turn(tokenizer).markers.learnt


def test_published_layouts_use_the_words_of_the_family_too():
    assert trained(family("seed"), " T. ", style="thinksafe")[1] == "<seed:think>T.</seed:think>\nA.<seed:eos>"
    assert trained(family("kimi"), "T.", style="reference")[1] == f"T.{RESPONSE}A.{END_KIMI}"
    assert trained(family("seed"), "T.", style="reference")[1] == "A.<seed:eos>"  # a thought only where one is open
    assert trained(family("glm"), "T.", style="reference")[1] == "\n<think></think>\nA.<|endoftext|>"
    assert trained(family("glm"), "T.", style="thinksafe")[1] == "\n<think>\nT.\n</think>\n\nA.<|endoftext|>"


DOCS = (ROOT / "docs/guides/chat-templates.md").read_text().replace("\\|", "|").replace(r"\n", "\n")


@pytest.mark.parametrize(
    ("name", "thinking", "prompt", "whole"),
    [row[:4] for row in FORMATS if "T." in row[3] and row[0] not in ("apertus", "r1-first", "mistral")],
)
def test_the_documentation_shows_what_is_trained(name: str, thinking: str, prompt: str, whole: str):
    shown = whole.removesuffix("<|endoftext|>") if name == "solar" else whole
    assert f"` | `{shown}`" in DOCS, name
    assert prompt in DOCS or name == "minimax"


# --- replies that models write


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("gpt-oss", f"<|channel|>analysis<|message|>5, no 6.{FINAL}It is 6", ("5, no 6.", "It is 6", True)),
        ("gpt-oss", "<|channel|>analysis<|message|>let me: 5", ("let me: 5", "", False)),
        ("gpt-oss", "<|channel|>final<|message|>It is 6", ("", "It is 6", True)),
        ("magistral", "[THINK]maybe 5?[/THINK]The total is 6 apples", ("maybe 5?", "The total is 6 apples", True)),
        (
            "magistral",
            "[THINK]let me compute: first 5, then \\boxed{5}",
            ("let me compute: first 5, then \\boxed{5}", "", False),
        ),
        ("seed", "<seed:think>answer: 5</seed:think>It is 6", ("answer: 5", "It is 6", True)),
        ("gemma4", "<|channel>thought\nthe answer is 5<channel|>It is 6", ("the answer is 5", "It is 6", True)),
        ("gemma4", "The tag </think> closes a thought.", ("", "The tag </think> closes a thought.", True)),
        ("command-r7b", "<|START_THINKING|>5<|END_THINKING|>It is 6", ("5", "It is 6", True)),
    ],
)
def test_replies(name: str, text: str, parts: tuple[str, str, bool]):
    markers = chat.turn(family(name), "on" if name in ("gemma4", "command-r7b") else "default").markers
    assert rendering.split_reply(text, False, markers) == rendering.Parts(*parts)


def test_tokens_inside_a_thought_do_not_end_a_reply():
    tokenizer = family("solar")
    end, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert chat.stops(tokenizer, {end, eos}) == {eos}
    tokenizer = family("gpt-oss")
    end, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "<|return|>"])
    assert chat.stops(tokenizer, {end}) == {eos}
    tokenizer = family("r1")
    assert chat.stops(tokenizer, {0}) == {0, tokenizer.eos_token_id}


def test_a_thought_that_ends_like_the_turn_is_refused_where_nothing_else_ends_it():
    tokenizer = family("solar")
    tokenizer.eos_token = "<|end|>"
    with pytest.raises(UserError, match=r"ends thoughts with '<\|end\|>', at which the model stops"):
        trained(tokenizer, "T.")
    assert trained(tokenizer, None)[1] == "<|content|>A.<|end|>"


# --- variables of templates, and templates that need more than messages


def test_variables_of_a_template_are_in_the_prompt_and_decide_the_place_of_a_thought():
    prompt = chat.generation_prompt(family("gpt-oss"), QUESTION, variables={"reasoning_effort": "low"})
    assert "Reasoning: low<|end|>" in prompt
    for name, variables, text in (
        ("hunyuan", {"reasoning_effort": "high"}, "T.</think:opensource>A.<hy_eos>"),
        ("command-a", {"reasoning_effort": "none"}, "<|START_TEXT|>A.<|END_TEXT|><|END_OF_TURN_TOKEN|>"),
        ("seed", {"thinking_budget": 0}, "A.<seed:eos>"),
    ):
        encoded = encode_all(family(name), [Conversation("How?", "T.", "A.")], 1000, variables=variables)
        assert family(name).decode(encoded.examples[0].completion) == text
        assert encoded.without_thought == ("T." not in text)


def test_variables_that_a_template_does_not_use_are_refused():
    with pytest.raises(UserError, match="'reasoning_efort', which the chat template of '' does not use"):
        chat.generation_prompt(family("gpt-oss"), QUESTION, variables={"reasoning_efort": "low"})
    with pytest.raises(UserError, match="'tools', which lowtax sets itself"):
        chat.generation_prompt(family("tool-use"), QUESTION, variables={"tools": []})


def test_the_date_of_a_template_can_be_fixed():
    tokenizer = family("chatml")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    prompt = chat.generation_prompt(tokenizer, QUESTION, variables={"strftime_now": "2026-01-31"})
    assert prompt.startswith("31 Jan 2026<|im_start|>")
    with pytest.raises(UserError, match="must be a date such as 2026-01-31"):
        chat.generation_prompt(tokenizer, QUESTION, variables={"strftime_now": "today"})


def test_templates_for_calls_of_tools_work_without_tools():
    assert trained(family("tool-use"), None) == trained(family("chatml"), None)
    tokenizer = family("tool-use")
    tokenizer.chat_template = {"tool_use": tokenizer.chat_template}
    assert trained(tokenizer, None) == trained(family("chatml"), None)


def test_a_template_that_fails_on_every_question_is_one_sentence():
    tokenizer = family("chatml")
    tokenizer.chat_template = "{{ functions + 1 }}" + tokenizer.chat_template
    with pytest.raises(UserError, match=r"refuses a question \('functions' is undefined\): set what it needs in chat_"):
        chat.turn(tokenizer)
    row = [Conversation("How?", None, "A.")]
    assert encode_all(tokenizer, row, 100, variables={"functions": 1}).examples


def test_a_template_that_wants_a_system_turn():
    tokenizer = family("seed")
    refusal = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    (example,) = encode_all(tokenizer, [Conversation("How?", "T.", "A.", system="Be kind.")], 100).examples
    assert tokenizer.decode(example.completion) == "<seed:think>T.</seed:think>\nA.<seed:eos>"


# --- what is said


def notes(name: str, *rows: Conversation) -> list[str]:
    return encode_all(family(name), rows, 1000).notes()


def test_thoughts_of_a_model_without_a_place_for_them_are_pointed_out():
    row = Conversation("How?", "T.", "A.")
    (note,) = notes("chatml", row, Conversation("How?", None, "A."))
    assert note.startswith("1 of 2 training rows have a thought, but the chat template of '' has no place for one")
    for name in ("r1", "qwen3", "smollm3", "deepseek-v3.1", *(set(THINKERS) - {"mistral", "tool-use"})):
        assert not any("no place for one" in note for note in notes(name, row)), name
    assert not notes("chatml", Conversation("How?", None, "A."))


def test_answers_straight_after_the_prompt_of_a_reasoner_are_pointed_out():
    row = Conversation("How?", None, "A.")
    (note,) = notes("r1-first", row, Conversation("How?", "T.", "A."))
    assert note.startswith("1 of 2 training rows have no thought and nothing in its place")
    assert notes("r1", row) == notes("qwen3", row) == notes("kimi", row) == notes("gpt-oss", row) == []


def test_markers_that_are_no_tokens_are_pointed_out():
    bare = family("mistral")
    bare.chat_template = family("seed").chat_template
    (first, second) = encode_all(bare, [Conversation("How?", "T.", "A.")], 100).notes()
    assert "writes '<seed:think>' and '</seed:think>' around thoughts or answers, but its tokenizer has no" in first
    assert "ends turns with '<seed:eos>', but its tokenizer has no such token: rows end with '</s>' instead" in second
