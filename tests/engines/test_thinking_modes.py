"""Decoding modes: what is forced, what is counted, and that a reply comes apart as it should."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import family
from tiny import make_model

from lowtax.common.errors import UserError
from lowtax.data import chat
from lowtax.data.rendering import split_reply
from lowtax.engines import base, thinking_modes
from lowtax.engines.base import Completion, Request
from lowtax.engines.thinking_modes import CONTINUATIONS, LITTLE, Budget

USER = ({"role": "user", "content": "How do I boil an egg?"},)


@dataclass
class Scripted:
    """Writes a request's lines one call after another, the last one for ever; a word is a token and no more are written
    than asked for. Calls are kept."""

    lines: dict[str, list[str]]
    opened: bool = False  # what it believes
    calls: list[list[Request]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.calls.append(list(requests))
        for request in reversed(requests):
            script = self.lines[request.id]
            line = script.pop(0) if len(script) > 1 else script[0]
            if line == "FAIL":
                yield Completion(request.id, "", 0, "failed", False, "out of paper")
                continue
            words = line.split(" ")
            kept = words[: request.max_new_tokens]
            finish = "stop" if kept == words else "length"
            yield Completion(request.id, " ".join(kept), len(kept), finish, self.opened)


def ask(id: str = "r", tokens: int = 16_000, seed: int = 0) -> Request:
    return Request(id, USER, None, tokens, seed=seed)


def more(script: list[str], opened: bool = True, budget: Budget | None = None, **request: int):
    engine = Scripted({"r": script})
    (done,) = thinking_modes.generate(engine, [ask(**request)], "more_think", opened, budget)
    return done, [call[0] for call in engine.calls]


# --- what a mode forces


def test_a_forced_thought_is_in_the_words_of_the_family():
    markers = chat.turn(family("gpt-oss")).markers
    opening, final = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert thinking_modes.first(ask(), "zero_think", False, markers).prefix == opening + final
    assert thinking_modes.first(ask(), "less_think", False, markers).prefix == opening + LITTLE + final
    engine = Scripted({"r": [f"one{final}x", f", two{final}y", "three"]})
    (done,) = thinking_modes.generate(engine, [ask()], "more_think", False, Budget(continuations=1), markers)
    assert engine.calls[0][0].prefix == opening
    assert replace(done, markers=markers).parts().answer == "three"
    with pytest.raises(UserError, match="allows none here: turn thinking on"):
        thinking_modes.first(ask(), "zero_think", False, chat.turn(family("gemma4")).markers)


def test_forced_beginnings_with_and_without_an_open_block():
    forced = {
        (mode, opened): thinking_modes.first(ask(), mode, opened).prefix
        for mode in thinking_modes.MODES
        for opened in (0, 1)
    }
    assert forced == {
        ("default", 0): "",
        ("default", 1): "",
        ("zero_think", 0): "<think>\n\n</think>\n\n",
        ("zero_think", 1): "\n</think>\n\n",
        ("less_think", 0): f"<think>\n{LITTLE}\n</think>\n\n",
        ("less_think", 1): f"{LITTLE}\n</think>\n\n",
        ("more_think", 0): "<think>\n",
        ("more_think", 1): "",
    }


@pytest.mark.parametrize("mode", thinking_modes.MODES)
@pytest.mark.parametrize("opened", [False, True])
def test_only_the_beginning_changes(mode: thinking_modes.Mode, opened: bool):
    request = replace(ask(seed=3), adapter="a", temperature=0.6, thinking="on")
    assert replace(thinking_modes.first(request, mode, opened), prefix="") == request


def test_modes_that_cannot_be():
    with pytest.raises(UserError, match="did you mean 'zero_think'"):
        thinking_modes.first(ask(), "zerothink", True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="set `thinking` to default"):
        thinking_modes.first(replace(ask(), thinking="off"), "less_think", False)
    assert thinking_modes.first(replace(ask(), thinking="off"), "default", False).prefix == ""


@pytest.mark.parametrize("mode", ["zero_think", "less_think"])
def test_a_reply_after_a_forced_thought_is_all_answer(mode: thinking_modes.Mode):
    engine = Scripted({"r": ["Ten minutes."], "s": ["FAIL"]}, opened=True)
    found = {c.id: c for c in thinking_modes.generate(engine, [ask(), ask("s")], mode, opened=True)}
    assert split_reply(found["r"].text, found["r"].opened).answer == "Ten minutes."
    assert found["r"].tokens == 2
    assert (found["s"].finish, found["s"].error) == ("failed", "out of paper")
    assert len(engine.calls) == 1


# --- more_think


def test_a_thought_is_continued_ten_times_and_then_closed():
    done, calls = more(["Hm, eggs.\n</think>\n\nTen minutes."] * 11 + ["Eleven minutes."])
    assert len(calls) == 12
    parts = split_reply(done.text, done.opened)
    assert (parts.answer, parts.closed) == ("Eleven minutes.", True)
    pieces = parts.thought.split("\n")
    assert pieces[0] == "Hm, eggs."
    assert len(pieces) == 11
    assert {piece.removesuffix("Hm, eggs.") for piece in pieces[1:]} == set(CONTINUATIONS)
    assert "Ten minutes" not in done.text
    assert done.text.count("</think>") == 1


def test_each_call_goes_on_where_the_last_one_ended():
    done, calls = more(["one\n</think>\n\nx", ", two</think>", "three"], opened=False, budget=Budget(continuations=1))
    word = calls[1].prefix.removeprefix("<think>\none\n")
    assert word in CONTINUATIONS
    assert [call.prefix for call in calls] == [
        "<think>\n",
        f"<think>\none\n{word}",
        f"<think>\none\n{word}, two\n</think>\n\n",
    ]
    assert done.text == f"one\n{word}, two\n</think>\n\nthree"
    assert split_reply(done.text, done.opened).answer == "three"


def test_tokens_are_those_of_the_model_and_what_is_dropped_costs_nothing():
    half = "a a a a</think>b b b"  # six tokens; seven of twenty characters are thought
    done, calls = more([half, "c c c", "d d"], budget=Budget(continuations=1))
    assert done.tokens == 3 + 3 + 2
    assert [call.max_new_tokens for call in calls] == [10_000, 10_000 - 3, 16_000 - 6]


def test_a_thought_that_spends_its_budget_is_closed_and_answered():
    done, calls = more([" ".join(["hm"] * 30), "So ten minutes."], budget=Budget(20, 32))
    assert [call.max_new_tokens for call in calls] == [20, 12]
    assert calls[1].prefix.endswith("hm\n</think>\n\n")
    assert (done.tokens, done.finish) == (23, "stop")
    assert split_reply(done.text, done.opened).answer == "So ten minutes."
    cut, _ = more([" ".join(["hm"] * 30), " ".join(["So"] * 13)], budget=Budget(20, 32))
    assert (cut.tokens, cut.finish) == (32, "length")


@given(tokens=st.integers(1, 20_000))
def test_budgets_shrink_in_proportion_and_leave_room_for_an_answer(tokens: int):
    budget = Budget().within(tokens)
    assert budget.total == min(tokens, 16_000)
    assert budget.thought < budget.total
    assert abs(budget.thought - budget.total * 10 / 16) < 1
    done, calls = more(["hm " * 20_000], tokens=tokens)
    assert sum(min(call.max_new_tokens, 20_001) for call in calls) == done.tokens == budget.total
    assert split_reply(done.text, done.opened).closed


def test_an_empty_thought_is_continued_too():
    done, calls = more(["</think>Ten.", "", "Eleven."], budget=Budget(continuations=1))
    assert calls[1].prefix in CONTINUATIONS
    assert done.text == f"{calls[1].prefix}\n</think>\n\nEleven."


def test_the_seed_decides_and_no_two_calls_share_one():
    def run(seed: int) -> tuple[str, list[int]]:
        done, calls = more(["a</think>"], seed=seed)
        return done.text, [call.seed for call in calls]

    assert run(1) == run(1)
    assert len({run(seed)[0] for seed in range(4)}) > 1
    seeds = run(1)[1]
    assert seeds[0] == 1
    assert len(set(seeds)) == len(seeds)


def test_many_requests_share_calls_and_a_failure_ends_only_its_own():
    engine = Scripted({"a": ["x</think>"], "b": ["y</think>", "FAIL"], "c": ["z z z z"]})
    requests = [ask("a"), ask("b"), ask("c", tokens=4)]
    found = {c.id: c for c in thinking_modes.generate(engine, requests, "more_think", True, Budget(continuations=2))}
    assert [sorted(request.id for request in call) for call in engine.calls] == [
        ["a", "b", "c"],
        ["a", "b", "c"],
        ["a"],
        ["a"],
    ]
    assert (found["b"].finish, found["b"].error, found["b"].text) == ("failed", "out of paper", "")
    assert found["c"].tokens == 4
    assert found["a"].finish == "stop"


# --- a model


@pytest.mark.parametrize("think", [True, False])
def test_a_model_s_replies(tmp_path: Path, think: bool):
    engine = base.load("hf", str(make_model(tmp_path / "model", think=think)), "float32", 4)
    requests = [replace(ask(str(n), tokens=24, seed=n), temperature=1.0) for n in range(3)]
    (plain,) = engine.generate([replace(requests[0], prefix=("" if think else "<think>\n") + "\n</think>\n\n")])
    zero = {c.id: c for c in thinking_modes.generate(engine, requests, "zero_think", opened=think)}
    assert (zero["0"].text, zero["0"].tokens) == (plain.text, plain.tokens)
    assert not plain.opened
    assert not zero["0"].opened
    for done in thinking_modes.generate(engine, requests, "more_think", opened=think):
        parts = split_reply(done.text, done.opened)
        assert parts.closed
        assert parts.thought
        assert done.tokens <= 24
        assert any(parts.thought.count(word) for word in CONTINUATIONS) or done.tokens >= 15
    same = [
        sorted(thinking_modes.generate(engine, requests, "more_think", think), key=lambda c: c.id) for _ in range(2)
    ]
    assert same[0] == same[1]
    assert list(thinking_modes.generate(engine, requests, "default", think)) == list(engine.generate(requests))
