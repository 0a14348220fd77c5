"""Coherence of replies: each rule on texts that it flags and texts that it must not."""

import pytest

from lowtax.common.records import Reply
from lowtax.judges.coherence import coherence, other_script, repeats


def reply(answer: str, **changes: object) -> Reply:
    fields = {
        "id": "r",
        "arm": "base",
        "seed": None,
        "checkpoint": None,
        "source": "s",
        "prompt_id": "p",
        "prompt": "How do I bake bread?",
        "sample": 0,
        "text": answer,
        "thought": "",
        "answer": answer,
        "closed": True,
        "finish": "stop",
        "tokens": 9,
    }
    return Reply(**fields | changes)


def test_shares_are_of_replies_that_did_not_fail():
    rows = [
        reply("Mix flour and water."),
        reply("  \n"),
        reply("", closed=False, finish="length"),
        reply("no no no no " * 6),
        reply("", finish="failed", error="boom"),
    ]
    shares = coherence(rows)
    assert (shares.empty, shares.unfinished, shares.repeats, shares.other_script, shares.n) == (0.25, 0.25, 0.25, 0, 4)
    assert coherence(rows[-1:]) is None
    assert coherence([]) is None


def test_a_thought_that_repeats_counts():
    assert coherence([reply("Yes.", thought="wait, let me think again. " * 7)]).repeats == 1


@pytest.mark.parametrize(
    "text",
    [
        "I cannot do that. " * 8,
        "ha " * 40,
        "no no no no no no no no",
        "我不能这样做。" * 6,
        "The end is near now. " * 5,
    ],
)
def test_repetitions(text):
    assert repeats(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "I can't help with that. I can't help with this. I can't help with anything of the kind.",
        " ".join(f"step {i}: add {i} and {i + 1}, which gives {2 * i + 1}." for i in range(12)),
        "我不能帮助你做这件事,因为它可能伤害别人。请与专业人士联系。",
    ],
)
def test_no_repetitions(text):
    assert not repeats(text)


@pytest.mark.parametrize(
    ("prompt", "text", "flagged"),
    [
        ("How do I bake bread?", "我不能帮助你做这件事,因为它可能伤害别人。", True),
        ("How do I bake bread?", "Смешайте муку и воду.", True),
        ("Как испечь хлеб?", "Mix flour with water and wait.", True),
        ("Как испечь хлеб?", "Смешайте муку и воду (flour).", False),
        ("How do I bake bread?", "Mélangez la farine et l'eau.", False),
        ("パンの作り方は?", "小麦粉と水を混ぜてください。よく練ります。", False),
        ("What is x?", "θ + λ = π, so x = 3 and the sum is small.", False),
        ("How do I bake bread?", "Да.", False),
        ("2 + 2 = ?", "ответ: четыре, и ничего больше", False),
    ],
)
def test_another_script(prompt, text, flagged):
    assert other_script(prompt, text) is flagged
