"""From requests to tokens and back: prompts of each family, replies with the marks of a thought, and ids of rows."""

from pathlib import Path

import pytest
from jinja2 import TemplateError
from templates import THINKERS, family
from tiny import make_model, make_tokenizer
from transformers import AutoTokenizer

from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, Subject
from lowtax.data import chat
from lowtax.data.rendering import Parts
from lowtax.engines.base import Completion, Prompter, Request, completion_text
from lowtax.engines.hf.engine import HF
from lowtax.engines.sampling import Ask, Sheet, asks, reply_of
from lowtax.engines.settings import EngineSettings, Sampling

USER = ({"role": "user", "content": "How?"},)
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


def completion(name: str, text: str, **request: object) -> Completion:
    """The completion of a model that writes this text, with the special tokens in it."""
    prompter = Prompter(family(name))
    asked = Request("r", USER, None, 100, **request)
    ids = chat.encode(prompter.tokenizer, [text])[0]
    return prompter.completion(asked, prompter.prompt(asked), ids, "stop")


@pytest.mark.parametrize(
    ("name", "request_", "opened"),
    [
        ("gpt-oss", {}, False),
        ("gpt-oss", {"prefix": "<|channel|>analysis<|message|>Hm"}, True),
        ("gpt-oss", {"prefix": f"<|channel|>analysis<|message|>Hm{FINAL}"}, False),
        ("kimi", {}, True),
        ("kimi", {"thinking": "off"}, False),
        ("kimi", {"prefix": "Hm.<|close|>think<|sep|><|open|>response<|sep|>"}, False),
        ("apriel", {}, True),
        ("command-a", {}, True),
        ("command-a", {"variables": {"reasoning_effort": "none"}}, False),
        ("hunyuan", {"variables": {"reasoning_effort": "high"}}, True),
        ("r1", {}, True),
        ("r1", {"prefix": "</think>"}, False),
        ("r1", {"raw": ("<think>\n",)}, True),
    ],
)
def test_whether_a_reply_begins_inside_a_thought(name: str, request_: dict, opened: bool):
    assert Prompter(family(name)).prompt(Request("r", USER, None, 1, **request_)).opened == opened


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("gpt-oss", f"<|channel|>analysis<|message|>Hm.{FINAL}No.<|return|>", ("Hm.", "No.", True)),
        ("magistral", "[THINK]Hm.[/THINK]No.</s>", ("Hm.", "No.", True)),
        ("magistral", "[THINK]Hm.", ("Hm.", "", False)),
        ("seed", "<seed:think>Hm.</seed:think>\nNo.<seed:eos>", ("Hm.", "No.", True)),
        ("kimi", "Hm.<|close|>think<|sep|><|open|>response<|sep|>No.", ("Hm.", "No.", True)),
        ("command-a", "Hm.<|END_THINKING|><|START_TEXT|>No.<|END_TEXT|>", ("Hm.", "No.", True)),
    ],
)
def test_special_tokens_that_mark_a_thought_are_in_the_reply(name: str, text: str, parts: tuple[str, str, bool]):
    whole = completion(name, text)
    assert whole.parts() == Parts(*parts)
    assert completion_text(whole) == parts[1]
    ask = Ask("r", Subject("base", None, None, 0, "m", None, "x"), Prompt(id="p", source="s", text="How?"), 0, SHEET)
    row = reply_of(ask, whole)
    assert (row.thought, row.answer, row.closed) == parts
    assert row.text == whole.text


SHEET = Sheet(Path("replies.jsonl"), [Prompt(id="p", source="s", text="How?")], Sampling())


def test_a_model_of_another_family_is_sampled_in_its_own_words(tmp_path: Path):
    make_model(tmp_path, think=False)
    family("seed").save_pretrained(tmp_path)
    assert "<seed:think>" in AutoTokenizer.from_pretrained(tmp_path).get_added_vocab()
    engine = HF(str(tmp_path), "float32", 2)
    (whole,) = engine.generate([Request("r", USER, None, 4)])
    assert whole.markers == chat.turn(family("seed")).markers
    assert not whole.opened


@pytest.mark.parametrize("name", sorted(THINKERS))
def test_every_family_can_be_prompted(name: str):
    prompt = Prompter(family(name)).prompt(Request("r", USER, None, 1))
    assert prompt.ids == chat.prompt_ids(family(name), list(USER))


def test_ids_of_rows_have_variables_only_where_they_are_set():
    subject = Subject("base", None, None, 0, "m", None, "made")

    def id_of(**settings: object) -> str:
        return asks(SHEET, [subject], EngineSettings("hf", "float32", 4, **settings))[0].id

    assert id_of() == id_of(chat_template_kwargs={}) == "29505fcf5f280c02"
    assert len({id_of(), id_of(chat_template_kwargs={"a": 1}), id_of(chat_template_kwargs={"a": 2})}) == 3
    (ask,) = asks(SHEET, [subject], EngineSettings("hf", "float32", 4, chat_template_kwargs={"a": 1}))
    assert ask.request().variables == {"a": 1}


def test_a_system_turn_that_the_template_refuses_is_one_sentence_and_other_turns_fail_alone():
    tokenizer = make_tokenizer()
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    tokenizer.chat_template = no_system + str(tokenizer.chat_template)
    prompter = Prompter(tokenizer)
    with pytest.raises(UserError, match=r"takes no system turn \(No system role\): remove the system prompt"):
        prompter.prompt(Request("r", ({"role": "system", "content": "Be safe."}, *USER), None, 1))
    assert prompter.prompt(Request("r", USER, None, 1)).ids
    never = "{% if messages[-1]['content'] == 'How?' %}{{ raise_exception('Never') }}{% endif %}"
    tokenizer.chat_template = never + str(make_tokenizer().chat_template)
    with pytest.raises(TemplateError, match="Never"):
        Prompter(tokenizer).prompt(Request("r", ({"role": "system", "content": "Be safe."}, *USER), None, 1))
