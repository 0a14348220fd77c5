"""A corpus of replies with their verdicts, in the styles of MATH, AIME, GSM8K, GPQA and of several models."""

import json
import time
from pathlib import Path

import pytest

from lowtax.benchmarks import questions
from lowtax.common.records import Prompt

ROWS = [json.loads(line) for line in (Path(__file__).parent / "corpus.jsonl").read_text("utf-8").splitlines()]
AGREEMENT = 0.995


def test_the_corpus_is_large_and_has_both_verdicts():
    assert len(ROWS) >= 1000
    assert len({row["style"] for row in ROWS}) >= 8
    assert min(sum(row["right"] is verdict for row in ROWS) for verdict in (True, False)) >= 300


def test_verdicts_agree_with_the_corpus():
    pytest.importorskip("math_verify", reason="needs math-verify: pip install 'lowtax[eval]'")
    wrong, slowest = [], 0.0
    for row in ROWS:
        options = tuple(row.get("options", ()))
        prompt = Prompt(id="1", source="corpus", text="?", gold=row["gold"], choices=options)
        began = time.monotonic()
        score = (questions.choice_score if options else questions.open_score)(prompt, row["reply"], "default")
        slowest = max(slowest, time.monotonic() - began)
        if score.correct is not row["right"]:
            wrong.append((row["style"], row["reply"], row["gold"], row["right"], score.extracted, score.rule))
    assert len(wrong) <= (1 - AGREEMENT) * len(ROWS), "\n".join(map(repr, wrong))
    assert slowest < 2
