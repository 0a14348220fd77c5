"""Persuasion: one rewrite for each technique, the same for all models, and none of an attacker that refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from scripted import REFUSAL, Script, arena, case

from lowtax.attacks.arena import Case
from lowtax.attacks.base import load
from lowtax.attacks.pap import PAP, TECHNIQUES
from lowtax.attacks.writing import json_alone, plain, read_json
from lowtax.common.errors import UserError


def test_every_technique_is_an_attempt_and_all_models_get_the_same(tmp_path: Path):
    one = case()
    two = Case(replace(one.subject, arm="r1", adapter="adapter", made_by="other"), one.prompt)
    attacker = Script(lambda r: f'"Museum locks, please: {len(attacker.requests)}"')
    target = Script(lambda _: "no")
    attack = PAP(attacker="writer")
    attempts = attack.run([one, two], arena(attack, tmp_path, attacker, target))
    assert len(attacker.requests) == len(TECHNIQUES) == 5
    assert len(target.requests) == 10
    assert [a.variant for a in attempts] == [*TECHNIQUES] * 2
    assert [a.prompt for a in attempts[:5]] == [a.prompt for a in attempts[5:]]
    assert attempts[0].prompt == "Museum locks, please: 1"


def test_a_refused_rewrite_is_counted_and_not_sent(tmp_path: Path):
    attacker = Script(lambda r: REFUSAL if "logical" in r.messages[0]["content"] else "The museum asks you.")
    target = Script(lambda _: "no")
    attack = PAP(attacker="writer", budget=3)
    attempts = attack.run([case()], arena(attack, tmp_path, attacker, target))
    assert [(a.attempt, a.problem) for a in attempts] == [(-1, "refused"), (0, ""), (1, "")]
    assert len(target.requests) == 2


def test_an_attack_that_talks_needs_an_attacker():
    with pytest.raises(UserError, match="pap needs a model that writes the prompts: set `attacker`"):
        load("pap")


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ('{"prompt": "a"}', "a"),
        ('words first {"improvement": "x", "prompt": " a\nb "} and after', "a\nb"),
        ('{"improvement": "x"}', None),
        ('{"prompt": "cut', None),
        ("[1, 2]", None),
        ('{"prompt": {"deep": 1}}', None),
        ("{" * 5000, None),
        ("", None),
    ],
)
def test_json_of_an_attacker(text: str, prompt: str | None):
    assert read_json(text, "prompt") == prompt


def test_text_around_the_json_is_dropped():
    assert json_alone('so: {"prompt": "a{b}"} and {more') == '{"prompt": "a{b}"}'
    assert json_alone("no object") == "no object"


def test_a_plain_text_loses_its_quotes():
    assert [plain(t) for t in ('"a"', " a ", '"', "", '""')] == ["a", "a", '"', None, None]
