"""Beginnings of replies: where they are in the prompt of each family, and that the reply holds none of them."""

from pathlib import Path

import pytest
from templates import FAMILIES, THINKERS, family

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Attacked, Prompt, Reply, Subject
from lowtax.data import chat
from lowtax.engines.base import Prompter, Request
from lowtax.engines.prefixes import prefix
from lowtax.engines.sampling import Sheet, collect
from lowtax.engines.settings import EngineSettings, Sampling

USER = [{"role": "user", "content": "What is asked?"}]
ANSWER = Attacked(attack="prefill", request="r", prefix="Sure, here")
THOUGHT = Attacked(attack="flawed_thought", request="r", prefix="It is fine.", part="thought")


@pytest.mark.parametrize("thinking", ["default", "on", "off"])
@pytest.mark.parametrize("name", [*FAMILIES, *THINKERS])
def test_a_beginning_is_in_its_part_in_every_family(name: str, thinking: chat.Thinking):
    tokenizer = family(name)
    try:
        text = chat.generation_prompt(tokenizer, USER, thinking)
    except UserError as error:
        pytest.skip(str(error))  # no switch
    markers, prompter = chat.markers_of(tokenizer, thinking), Prompter(tokenizer)

    def begun(attacked: Attacked) -> tuple[str, bool]:
        begin = prefix(attacked, markers, text)
        assert begin.endswith(attacked.prefix) or attacked.closed
        request = Request("r", tuple(USER), None, 8, prefix=begin, thinking=thinking)
        return text + begin, prompter.prompt(request).opened

    whole, opened = begun(ANSWER)
    assert not opened
    assert whole.count(markers.close) <= 1 + bool(markers.before_answer) or not markers.close
    if markers.closes(text) or (markers.closed and not markers.in_tags):
        with pytest.raises(UserError, match="allows none here"):
            begun(THOUGHT)
        return
    whole, opened = begun(THOUGHT)
    assert opened
    assert not begun(THOUGHT.model_copy(update={"closed": True}))[1]


def prompt(attacked: Attacked) -> Prompt:
    id_ = f"{attacked.attack}{attacked.closed}"
    return Prompt(id=id_, source="own", text="How?", goal="How?", attacked=attacked)


def test_a_model_reads_the_beginning_and_its_reply_does_not_hold_it(tmp_path: Path, tiny_model: Path):
    attacks = [ANSWER, THOUGHT, THOUGHT.model_copy(update={"closed": True})]
    plain = Prompt(id="plain", source="own", text="How?")
    sheet = Sheet(tmp_path / "replies.jsonl", [plain, *map(prompt, attacks)], Sampling(max_new_tokens=12))
    subject = Subject("base", None, None, 0, str(tiny_model), None, "made")
    collect([sheet], [subject], EngineSettings("hf", "float32", 4), tmp_path)
    rows = {r.prompt_id: r for r in read_rows(sheet.path, Reply).values()}
    assert len({r.text for r in rows.values()}) == 4  # each beginning changes what a model writes
    assert rows["prefillFalse"].closed
    assert rows["prefillFalse"].answer
    assert not rows["flawed_thoughtFalse"].closed  # it thinks on and reaches no end in 12 tokens
    assert rows["flawed_thoughtTrue"].closed
    assert all(a.prefix not in rows[prompt(a).id].text for a in attacks)
    assert rows["prefillFalse"].attacked == ANSWER
    assert '"attacked"' not in rows["plain"].model_dump_json()


def test_a_thought_cannot_begin_where_thinking_is_off(tmp_path: Path, tiny_model: Path):
    sheet = Sheet(tmp_path / "replies.jsonl", [prompt(THOUGHT)], Sampling(max_new_tokens=12))
    subject = Subject("base", None, None, 0, str(tiny_model), None, "made")
    with pytest.raises(UserError, match="begins the thought, but thinking is off or"):
        collect([sheet], [subject], EngineSettings("fake", "float32", 4, "off"), tmp_path)
