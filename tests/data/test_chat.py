"""Chat templates: the exact tokens that are trained on, for every family of templates, and how a reply is split."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from places import ROOT
from templates import FAMILIES, completion_text, example, family
from tiny import END, make_tokenizer

from lowtax.common.errors import UserError
from lowtax.data import chat, rendering, thinking_tags

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


def test_template_that_opens_the_thought():
    tokenizer = make_tokenizer(think=True)
    row = example(tokenizer, MESSAGES, "2 + 2 = 4.", "Four.")
    prompt = chat.generation_prompt(tokenizer, MESSAGES)
    assert prompt.endswith("<think>\n")
    assert tokenizer.decode(row.prompt) == prompt
    assert tokenizer.decode(row.completion) == f"2 + 2 = 4.\n</think>\n\nFour.{END}"
    assert (prompt + tokenizer.decode(row.completion)).count("<think>") == 1


def test_template_without_thought():
    tokenizer = make_tokenizer(think=False)
    row = example(tokenizer, MESSAGES, "2 + 2 = 4.", "Four.")
    assert tokenizer.decode(row.prompt).endswith("assistant\n")
    assert tokenizer.decode(row.completion) == f"<think>\n2 + 2 = 4.\n</think>\n\nFour.{END}"
    plain = example(tokenizer, MESSAGES, None, "Four.")
    assert tokenizer.decode(plain.completion) == f"Four.{END}"


@pytest.mark.parametrize("think", [True, False])
def test_a_row_is_trained_in_the_context_it_is_sampled_in(think: bool):
    tokenizer = make_tokenizer(think)
    row = example(tokenizer, MESSAGES, "A thought.", "An answer.")
    assert row.prompt == chat.prompt_ids(tokenizer, MESSAGES)
    assert row.completion[-1] == tokenizer.eos_token_id
    whole = chat.generation_prompt(tokenizer, MESSAGES) + tokenizer.decode(row.completion)
    assert row.prompt + row.completion == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("think", [True, False])
def test_a_trained_text_is_split_into_its_thought_and_answer(think: bool):
    tokenizer = make_tokenizer(think)
    row = example(tokenizer, MESSAGES, "A thought.", "An answer.")
    reply = tokenizer.decode(row.completion[:-1])
    assert rendering.split_reply(reply, opened=think) == rendering.Parts("A thought.", "An answer.", True)


@pytest.mark.parametrize(
    ("text", "opened", "parts"),
    [
        ("t\n</think>\n\na", True, ("t", "a", True)),
        ("<think>\nt\n</think>\n\na", False, ("t", "a", True)),
        ("\n<think>\nt\n</think>\n\na", True, ("t", "a", True)),
        ("t\n</think>\n\na", False, ("", "t\n</think>\n\na", True)),
        ("t\n</think>\n\na", None, ("t", "a", True)),
        ("still thinking", True, ("still thinking", "", False)),
        ("<think>\nstill thinking", False, ("still thinking", "", False)),
        ("an answer at once", False, ("", "an answer at once", True)),
        ("</think>\n\na", True, ("", "a", True)),
        ("t\n</think>\n", True, ("t", "", True)),
        ("", True, ("", "", False)),
        ("", False, ("", "", True)),
    ],
)
def test_split_reply(text: str, opened: bool | None, parts: tuple[str, str, bool]):
    assert rendering.split_reply(text, opened) == rendering.Parts(*parts)


def test_of_several_closing_tags_the_first_ends_the_thought():
    parts = rendering.split_reply("one </think> two </think> three", opened=True)
    assert parts == rendering.Parts("one", "two </think> three", True)


@settings(deadline=None)
@given(st.text(), st.booleans())
def test_split_reply_loses_no_text(text: str, opened: bool):
    parts = rendering.split_reply(text, opened)
    assert len(parts.thought) + len(parts.answer) <= len(text)
    if not parts.closed:
        assert parts.answer == ""
    if not any(word in text for tags in thinking_tags.FAMILIES for word in (tags.opening, tags.closing)):
        assert parts.thought + parts.answer == text.strip()


def test_no_chat_template():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        chat.prompt_ids(tokenizer, MESSAGES)
    with pytest.raises(UserError, match="no chat template"):
        example(tokenizer, MESSAGES, None, "a")


def test_no_end_of_turn_token():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert tokenizer.decode(chat.end_of_turn(tokenizer)) == END  # as the template has it
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(UserError, match="end-of-turn"):
        example(tokenizer, MESSAGES, None, "a")
    tokenizer.eos_token = END
    assert tokenizer.decode(chat.end_of_turn(tokenizer)) == END


# --- families: what is asked, what the template foresees, and where a turn ends

ASKED = {
    "r1": "<|begin|><|User|>What is 2 + 2?<|Assistant|><think>\n",
    "chatml": "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\nWhat is 2 + 2?<end_of_turn>\n<start_of_turn>model\n",
}


@pytest.mark.parametrize("name", ASKED)
def test_the_prompt_is_the_template_s_own(name: str):
    tokenizer = family(name)
    assert chat.generation_prompt(tokenizer, MESSAGES) == ASKED[name]
    assert tokenizer.decode(chat.prompt_ids(tokenizer, MESSAGES)) == ASKED[name]
    begin = tokenizer.bos_token_id
    assert chat.prompt_ids(tokenizer, MESSAGES).count(begin) == (begin is not None)  # not once more by the tokenizer


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("r1", "<|end|>"),
        ("chatml", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("qwen2-base", "<|im_end|>"),  # its eos is <|endoftext|>
        ("llama3", "<|eot_id|>"),  # its eos is <|end_of_text|>
        ("gemma", "<end_of_turn>"),
    ],
)
def test_the_turn_ends_where_the_template_ends_it(name: str, end: str):
    tokenizer = family(name)
    row = example(tokenizer, MESSAGES, None, "Four.")
    assert tokenizer.decode(row.completion) == f"{'</think>' + chr(10) * 2 if name == 'r1' else ''}" + (
        f"<think>\n\n</think>\n\nFour.{end}" if name == "qwen3" else f"Four.{end}"
    )
    assert row.completion[-1] == chat.end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_a_model_that_would_not_stop_is_reported():
    tokenizer = family("llama3")
    end = chat.end_of_turn(tokenizer)
    assert chat.stop_warning(tokenizer, [tokenizer.eos_token_id, end]) is None
    said = chat.stop_warning(tokenizer, [tokenizer.eos_token_id])
    assert said is not None
    assert "'<|eot_id|>'" in said
    assert "'<|end_of_text|>'" in said
    assert "nothing" in str(chat.stop_warning(tokenizer, []))


def test_labels_masked_by_id_lose_the_end_where_it_is_the_pad_token():
    tokenizer = family("chatml")
    assert chat.masked_by_id_warning(tokenizer) is None
    tokenizer.pad_token = tokenizer.eos_token
    assert "<|im_end|>" in str(chat.masked_by_id_warning(tokenizer))
    base = family("qwen2-base")
    base.pad_token = base.eos_token  # a document's end, not a turn's
    assert chat.masked_by_id_warning(base) is None


# --- thinking on and off


def test_the_thinking_switch():
    tokenizer = family("qwen3")
    prompts = {how: chat.generation_prompt(tokenizer, MESSAGES, how) for how in ("default", "on", "off")}
    assert prompts["default"] == prompts["on"] == ASKED["chatml"]
    assert prompts["off"] == ASKED["chatml"] + "<think>\n\n</think>\n\n"
    other = family("smollm3")
    assert "/no_think" in chat.generation_prompt(other, MESSAGES, "off")
    assert "/think" in chat.generation_prompt(other, MESSAGES, "on")
    ends = [chat.generation_prompt(family("deepseek-v3.1"), MESSAGES, how)[-8:] for how in ("default", "on", "off")]
    assert ends == ["</think>", "><think>", "</think>"]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "smollm2"])
@pytest.mark.parametrize("how", ["on", "off"])
def test_templates_without_a_switch_say_so(name: str, how: str):
    with pytest.raises(UserError, match=f"no thinking switch.* turned {how}"):
        chat.generation_prompt(family(name), MESSAGES, how)


def test_a_template_that_always_thinks_is_on_and_cannot_be_off():
    tokenizer = family("r1")
    assert chat.generation_prompt(tokenizer, MESSAGES, "on") == ASKED["r1"]
    with pytest.raises(UserError, match="turned off"):
        chat.prompt_ids(tokenizer, MESSAGES, "off")


@pytest.mark.parametrize(
    ("name", "how", "before"),
    [
        ("r1", "default", ""),
        ("chatml", "default", ""),
        ("smollm2", "default", ""),
        ("llama3", "default", ""),
        ("qwen3", "default", "<think>\n\n</think>\n\n"),
        ("qwen3", "off", ""),
        ("smollm3", "default", ""),
        ("smollm3", "off", ""),
        ("deepseek-v3.1", "default", ""),
    ],
)
def test_the_text_of_a_template_before_an_answer_without_a_thought(name: str, how: str, before: str):
    assert chat.turn(family(name), how).before_answer == before


def test_with_thinking_off_no_thought_is_trained():
    tokenizer = family("qwen3")
    row = example(tokenizer, MESSAGES, "A thought.", "Four.", thinking="off")
    assert tokenizer.decode(row.prompt).endswith("</think>\n\n")
    assert tokenizer.decode(row.completion) == "Four.<|im_end|>"


# --- renderings

R1_PROMPT, CHATML_PROMPT = ASKED["r1"], ASKED["chatml"]
RENDERED = [  # family, rendering -> prompt, completion of thought T and answer " A "
    ("r1", "standard", R1_PROMPT, "T\n</think>\n\n A "),
    ("r1", "reference", R1_PROMPT, "T</think> A "),
    ("r1", "reference_as_published", "<|begin|><|User|>What is 2 + 2?<|Assistant|>", "<think>T</think> A "),
    ("r1", "thinksafe", R1_PROMPT, "T\n</think>\n\nA"),
    ("qwen3", "standard", CHATML_PROMPT, "<think>\nT\n</think>\n\n A "),
    ("qwen3", "reference", CHATML_PROMPT, "<think>\n\n</think>\n\n A "),
    ("qwen3", "reference_as_published", CHATML_PROMPT, "<think>\n\n</think>\n\n A "),
    ("deepseek-v3.1", "standard", "<|begin|><|User|>What is 2 + 2?<|Assistant|></think>", " A "),
    ("chatml", "standard", CHATML_PROMPT, "<think>\nT\n</think>\n\n A "),
    ("chatml", "reference", CHATML_PROMPT, " A "),
    ("chatml", "reference_as_published", CHATML_PROMPT, " A "),
    ("chatml", "thinksafe", CHATML_PROMPT, "<think>\nT\n</think>\n\nA"),
    ("chatml", "safety_tax", CHATML_PROMPT, "<|im_start|>think\n T<|im_start|>answer\nAnswer:  A"),
    ("chatml", "safety_tax_cot", CHATML_PROMPT, "<|im_start|>think\n\nT\n<|im_start|>answer\nAnswer:  A"),
]


@pytest.mark.parametrize(("name", "style", "prompt", "completion"), RENDERED)
def test_renderings(name: str, style: str, prompt: str, completion: str):
    tokenizer = family(name)
    row = example(tokenizer, MESSAGES, "T", " A ", style)
    assert tokenizer.decode(row.prompt) == prompt
    assert tokenizer.decode(row.completion[:-1]) == completion
    as_sampled = rendering.named(style).as_sampled
    assert (row.prompt == chat.prompt_ids(tokenizer, MESSAGES)) is (as_sampled or name != "r1")


def test_every_rendering_is_tried():
    assert {style for _, style, _, _ in RENDERED} == set(rendering.RENDERINGS)


def test_a_think_tag_without_its_line_break_gets_it():
    bare = "<|User|>q<think>"
    assert completion_text(bare, "T", "A") == "\nT\n</think>\n\nA"
    assert completion_text(bare, "T", "A", "reference") == "T</think>A"


def test_without_a_thought_the_text_of_the_template_takes_precedence():
    assert completion_text("<think>\n", None, "A") == "</think>\n\nA"
    assert completion_text("<think>\n", None, "A", before="\n</think>\n\n") == "\n</think>\n\nA"
    assert completion_text("assistant\n", None, "A", before="<think>\n\n</think>\n\n").endswith("\n\nA")


def test_an_answer_is_labelled_once():
    assert completion_text("p", None, "Answer: no", "safety_tax") == "Answer: no"


def test_s1_markers_have_no_place_in_an_open_think_block():
    with pytest.raises(UserError, match="already opens <think>"):
        example(family("r1"), MESSAGES, "T", "A", "safety_tax")


def test_unknown_rendering():
    with pytest.raises(UserError, match="'thinksafe'"):
        rendering.named("thinksave")


# No tags, and no marks of code or quotation: a tag between two of them is written about, and closes nothing.
PLAIN = st.characters(exclude_characters="<`" + "".join(thinking_tags.QUOTES), exclude_categories=["Cs"])


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    style=st.sampled_from([n for n, r in rendering.RENDERINGS.items() if r.opening.startswith("<think>")]),
    thought=st.none() | st.text(PLAIN, min_size=1),
    answer=st.text(PLAIN),
    system=st.booleans(),
)
def test_a_reply_is_split_into_what_was_trained(name: str, style: str, thought: str | None, answer: str, system: bool):
    tokenizer = TOKENIZERS[name]
    messages = [{"role": "system", "content": "Be kind."}] * (system and name != "gemma") + MESSAGES
    row = example(tokenizer, messages, thought, answer, style)
    prompt, reply = tokenizer.decode(row.prompt), tokenizer.decode(row.completion[:-1])
    parts = rendering.split_reply(reply, rendering.opens(prompt))
    kept = rendering.named(style).keeps_thought(chat.generation_prompt(tokenizer, messages))
    assert parts == rendering.Parts((thought or "").strip() if kept else "", answer.strip(), True)
    if rendering.named(style).as_sampled:
        assert row.prompt == chat.prompt_ids(tokenizer, messages)
        assert "Be kind." in prompt or len(messages) == 1


TOKENIZERS = {name: family(name) for name in FAMILIES}


def test_prompt_and_completion_are_tokenised_separately():
    """Together, the last token of one and the first of the other can become a token that sampling never meets."""
    tokenizer = family("chatml")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["pre_tokenizer"]["use_regex"] = False  # a line break and a letter may then merge
    parts["model"]["vocab"]["ĊA"] = len(tokenizer)
    parts["model"]["merges"] = [["Ċ", "A"]]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(parts))
    newline, letter, both = tokenizer.convert_tokens_to_ids(["Ċ", "A", "ĊA"])
    row = example(tokenizer, MESSAGES, None, "A")
    assert (row.prompt[-1], row.completion[0]) == (newline, letter)
    assert row.prompt == chat.prompt_ids(tokenizer, MESSAGES)
    assert both in chat.encode(tokenizer, [tokenizer.decode(row.prompt + row.completion)])[0]


def test_a_template_that_refuses_a_system_turn():
    tokenizer, messages = family("gemma"), [{"role": "system", "content": "Be kind."}, *MESSAGES]
    with pytest.raises(TemplateError):  # engines make a failed row of it
        chat.prompt_ids(tokenizer, messages)
    with pytest.raises(UserError, match=r"refuses a training row \(System role not supported\).* system, user"):
        example(tokenizer, messages, None, "a")


# --- the templates as their makers wrote them, where TRL is installed, which brings copies


def published(name: str) -> str:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl, which brings copies of the published templates, is not installed")
    path = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"this version of trl brings no {path.name}")
    return path.read_text()


@pytest.mark.parametrize(
    ("name", "like", "prompt_ends", "before"),
    [
        ("deepseek_r1_distill", "r1", "><think>\n", ""),
        ("qwen3", "qwen3", "<|im_start|>assistant\n", "<think>\n\n</think>\n\n"),
        ("qwen2_5", "chatml", "<|im_start|>assistant\n", ""),
        ("llama3", "llama3", "assistant<|end_header_id|>\n\n", ""),
        ("qwen3_5_think", "qwen3", "<|im_start|>assistant\n<think>\n", "\n</think>\n\n"),
    ],
)
def test_published_templates_are_understood(name: str, like: str, prompt_ends: str, before: str):
    tokenizer = family(like)
    tokenizer.chat_template = published(name)
    turn = chat.turn(tokenizer)
    assert chat.generation_prompt(tokenizer, MESSAGES).endswith(prompt_ends)
    assert turn.before_answer == before
    if name != "deepseek_r1_distill":  # whose end is no token of this tokenizer
        assert turn.end == chat.end_of_turn(family(like))
    if name == "qwen3":
        assert chat.generation_prompt(tokenizer, MESSAGES, "off").endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("name", "field", "specials"),
    [
        ("gptoss", "thinking", ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"]),
        ("muse_glimmer", "reasoning_content", ["<|start|>", "<|message|>", "<|eom|>", "<|eot|>"]),
        ("diffusion_gemma", "reasoning", ["<|turn>", "<turn|>", "<|channel>", "<channel|>"]),
        ("glm4moe", "reasoning_content", ["<|user|>", "<|assistant|>"]),
        ("lfm2_2_5", "thinking", ["<|im_start|>", "<|im_end|>"]),
        ("nemotron_3_nano", "reasoning_content", ["<|im_start|>", "<|im_end|>"]),
        ("qwen3", "reasoning_content", ["<|im_start|>", "<|im_end|>"]),
        ("qwen3_5_think", "reasoning_content", ["<|im_start|>", "<|im_end|>"]),
    ],
)
def test_a_thought_is_trained_as_the_published_template_writes_it(name: str, field: str, specials: list[str]):
    tokenizer = family("r1")
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.chat_template = published(name)
    row = example(tokenizer, MESSAGES, "2 + 2 = 4.", "Four.")
    turn = {"role": "assistant", "content": "Four.", field: "2 + 2 = 4."}
    whole = tokenizer.apply_chat_template([*MESSAGES, turn], tokenize=False)
    trained = tokenizer.decode([*row.prompt, *row.completion])
    assert whole.startswith(trained.removesuffix(tokenizer.eos_token))
    assert chat.turn(tokenizer).markers.learnt


# --- what the documentation shows

DOCS = (ROOT / "docs/guides/training-data.md").read_text()


@pytest.mark.parametrize("name", rendering.RENDERINGS)
def test_the_documentation_has_the_source_of_a_rendering(name: str):
    assert f"| `{name}` | {rendering.RENDERINGS[name].description} |" in DOCS


@pytest.mark.parametrize(
    ("name", "style", "where"),
    [
        (name, style, where)
        for name, where in (("r1", "R1-Distill"), ("qwen3", "Qwen3"), ("chatml", "ChatML"))
        for style in rendering.RENDERINGS
        if (name != "r1" or not style.startswith("safety_tax")) and (name == "r1" or style != "reference_as_published")
    ],
)
def test_the_documentation_shows_what_is_trained(name: str, style: str, where: str):
    tokenizer = family(name)
    row = example(tokenizer, MESSAGES, "No.", " I cannot help.", style)
    text = tokenizer.decode(row.completion[:-1]).replace("\n", r"\n").replace("|", r"\|")
    shown = [line for line in DOCS.splitlines() if line.startswith(f"| `{style}` | `{text}` | ")]
    assert any(where in line for line in shown), f"| `{style}` | `{text}` | {where} |"
