"""The store of an attack: nothing is asked twice, a kill resumes, and a stored attack needs no model."""

from pathlib import Path

import pytest
from scripted import REFUSAL, Scores, Script, arena, as_json, case

from lowtax.attacks.arena import Draft, Query
from lowtax.attacks.pair import PAIR
from lowtax.common.errors import UserError


def attack() -> PAIR:
    return PAIR(attacker="writer", attacker_engine="fake", streams=2, iterations=3)


def script() -> Script:
    return Script(lambda r: as_json(r, f"museum {len(r.messages)} {r.seed}"))


class Killed(BaseException):
    """A kill."""


def killed_after(number: int, words: str) -> Script:
    def say(_: object) -> str:
        if len(target.requests) > number:
            raise Killed
        return words

    target = Script(say)
    return target


@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_a_killed_attack_resumes_and_ends_like_a_whole_one(tmp_path: Path, number: int):
    whole = attack().run([case()], arena(attack(), tmp_path / "whole", script(), Script(lambda _: REFUSAL)))
    with pytest.raises(Killed):
        attack().run([case()], arena(attack(), tmp_path / "cut", script(), killed_after(number, REFUSAL)))
    attacker, target = script(), Script(lambda _: REFUSAL)
    again = attack().run([case()], arena(attack(), tmp_path / "cut", attacker, target))
    assert again == whole
    assert len(attacker.requests) < 6
    third = Script(lambda _: "never")
    assert attack().run([case()], arena(attack(), tmp_path / "cut", third, third)) == whole
    assert third.requests == []


def test_a_stored_attack_needs_no_model_and_an_unfinished_one_is_refused(tmp_path: Path):
    here = arena(attack(), tmp_path, script(), Script(lambda _: REFUSAL))
    whole = attack().run([case()], here)
    stored = arena(attack(), tmp_path, script(), script(), stored=True)
    assert attack().run([case()], stored) == whole
    assert {a.reply for a in whole} == {*stored.replies()}
    with pytest.raises(UserError, match="lacks a part of the attack pair: run `lowtax sample`"):
        attack().run([case(1)], stored)


def test_failed_calls_are_repeated(tmp_path: Path):
    one = arena(attack(), tmp_path, Script(lambda _: None), Script(lambda _: None))
    (call,) = one.write([Draft(({"role": "user", "content": "write"},), (0,))])
    (reply,) = one.answer([Query(case(), "museum", 0)])
    assert (call.finish, reply.finish) == ("failed", "failed")
    two = arena(attack(), tmp_path, Script(lambda _: "words"), Script(lambda _: "an answer"))
    (call,) = two.write([Draft(({"role": "user", "content": "write"},), (0,))])
    (reply,) = two.answer([Query(case(), "museum", 0)])
    assert (call.text, reply.answer) == ("words", "an answer")


def test_a_row_keeps_the_plain_request_and_the_earlier_turns(tmp_path: Path):
    here = arena(attack(), tmp_path, script(), target := Script(lambda _: "an answer"))
    history = (("user", "first"), ("assistant", "second"))
    (reply,) = here.answer([Query(case(), "third", 4, history=history)])
    assert [(m["role"], m["content"]) for m in target.requests[0].messages] == [*history, ("user", "third")]
    assert (reply.prompt, reply.goal) == ("third", case().goal)
    assert reply.attacked is not None
    assert (reply.attacked.history, reply.attacked.attempt) == (history, 4)


def test_scores_are_stored_and_asked_once(tmp_path: Path):
    scores = Scores({"yes": 1.0})
    here = arena(attack(), tmp_path, script(), Script(lambda _: "yes"), scores)
    replies = here.answer([Query(case(), "museum", 0), Query(case(), "museum", 1)])
    assert [s.value for s in here.score(replies)] == [1.0, 1.0]
    assert [s.value for s in here.score(replies)] == [1.0, 1.0]
    assert scores.read == ["yes", "yes"]  # one for each reply
