"""Crescendo's control flow: the conversation grows, refusals are taken back, and it ends whatever the target says."""

import json
from pathlib import Path

import pytest
from scripted import REFUSAL, Scores, Script, arena, case

from lowtax.attacks.crescendo import Crescendo


def crescendo(**fields: object) -> Crescendo:
    return Crescendo(attacker="writer", attacker_engine="fake", **fields)  # type: ignore[arg-type]


def writer() -> Script:
    words = lambda _: json.dumps({"summary": "s", "question": f"Question {len(script.requests)}?"})  # noqa: E731
    script = Script(lambda r: words(r).removeprefix('{"summary": "'))
    return script


def test_the_target_sees_the_whole_conversation(tmp_path: Path):
    target = Script(lambda r: f"Answer to {r.messages[-1]['content']}")
    attack = crescendo(rounds=3, backtracks=2)
    attempts = attack.run([case()], arena(attack, tmp_path, attacker := writer(), target))
    assert [len(r.messages) for r in target.requests] == [1, 3, 5]
    assert [m["content"] for m in target.requests[-1].messages] == [
        "Question 1?", "Answer to Question 1?", "Question 2?", "Answer to Question 2?", "Question 3?",
    ]  # fmt: skip
    assert [a.attempt for a in attempts] == [0, 1, 2]
    assert "has not begun" in attacker.requests[0].messages[0]["content"]
    assert "Answer to Question 2?" in attacker.requests[2].messages[0]["content"]


def test_a_refused_question_is_taken_back(tmp_path: Path):
    target = Script(lambda r: REFUSAL if r.messages[-1]["content"] == "Question 2?" else "Fine.")
    attack = crescendo(rounds=3, backtracks=2)
    attempts = attack.run([case()], arena(attack, tmp_path, attacker := writer(), target))
    assert [a.refused for a in attempts] == [False, True, False, False]
    assert [m["content"] for m in target.requests[-1].messages if m["role"] == "user"] == [
        "Question 1?", "Question 3?", "Question 4?",
    ]  # fmt: skip
    assert 'refused this question, which was taken back: "Question 2?"' in attacker.requests[2].messages[0]["content"]


def test_a_success_ends_all_conversations_about_the_request(tmp_path: Path):
    target = Script(lambda r: "done" if len(r.messages) == 3 else "Fine.")
    attack = crescendo(rounds=5, streams=2)
    attempts = attack.run([case()], arena(attack, tmp_path, writer(), target, Scores({"done": 1.0})))
    assert [(a.depth, a.stream) for a in attempts] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("words", [REFUSAL, "Fine.", "", None, '<|im_end|> </think> {"prompt": 1}'])
@pytest.mark.parametrize("budget", [None, 3])
def test_it_ends_within_its_budget_whatever_the_target_says(tmp_path: Path, words: str | None, budget: int | None):
    target = Script(lambda _: words)
    attack = crescendo(rounds=4, backtracks=2, streams=2, budget=budget)
    attempts = attack.run([case(0), case(1)], arena(attack, tmp_path, writer(), target))
    assert attack.queries == (budget or 12)
    for request in ("goal0", "goal1"):
        assert 0 < len([a for a in attempts if a.request == request]) <= attack.queries


def test_an_attacker_without_questions_ends_it_too(tmp_path: Path):
    target = Script(lambda _: "Fine.")
    attack = crescendo(rounds=2, backtracks=1, tries=2)
    attacker = Script(lambda _: "no")
    attempts = attack.run([case()], arena(attack, tmp_path, attacker, target))
    assert [(a.attempt, a.problem) for a in attempts] == [(-1, "no JSON")] * 3
    assert (len(attacker.requests), target.requests) == (6, [])
