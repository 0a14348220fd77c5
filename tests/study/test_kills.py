"""Kills in a study that has every newer stage: own answers, arms that start from arms, edits, attacks, two judges."""

import json
import random
from pathlib import Path

import forks
import pytest
from kills import kill_at_random
from scripted import WRITER
from small_study import contents, run, write_recipe

from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.study import attacking

PROMPTS = {"source": "builtin:harmful", "split": "test", "n": 2}


def _recipe(folder: Path, base: Path) -> Path:
    (folder / "writer.py").write_text(WRITER)
    talk = {"attacker": "any", "attacker_engine": f"{folder / 'writer.py'}:Writer"}
    own = {"source": "builtin:harmful", "n": 24, "answers": "self", "steer": "refuse", "filter": "refusal_words"}
    changes = {
        "engine": "fake",
        "seeds": [0],
        "data": [own | {"draw": {"temperature": 1.0, "max_new_tokens": 32}}, {"source": str(folder / "rows.jsonl")}],
        "arms": {
            "child": {"start": "r1", "data": [{"source": str(folder / "rows.jsonl")}]},
            "r1": {"mode": "lora_mlp_r1"},
        },
        "edited": {"ablated": {"of": "child", "edits": [{"name": "ablate", "n": 2}, {"name": "subtract"}]}},
        "harmful": [PROMPTS, {**PROMPTS, "attack": {"name": "best_of_n", "n": 2}},
                    {**PROMPTS, "attack": {"name": "pair", "streams": 2, "iterations": 2, **talk}},
                    {**PROMPTS, "attack": {"name": "crescendo", "rounds": 1, "backtracks": 1, **talk}}],
        "judges": ["keywords"],
        "judged_also": [],
        "tasks": {},
    }  # fmt: skip
    return write_recipe(folder, base, **changes)


def _child(path: Path, out: Path) -> None:
    run(path, out)


def _all(out: Path) -> dict:
    found = contents(out)
    table = json.loads((out / "table.json").read_text())
    found["table"] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in table["rows"]]
    return found | {"judges": table["judges"]} | {str(p.relative_to(out)): p.read_text() for p in out.glob("data/*")}


def test_a_study_that_is_killed_anywhere_ends_like_a_whole_one(tmp_path: Path, tiny_model: Path):
    path = _recipe(tmp_path, tiny_model)
    run(path, tmp_path / "whole")
    expected = _all(tmp_path / "whole")
    assert {
        "data/builtin_harmful.jsonl",
        "data/builtin_harmful.refusal_words.jsonl",
        "attacks/pair.calls.jsonl",
        "verdicts/attacks.keywords.jsonl",
    } <= expected.keys()
    rng, out = random.Random(0), tmp_path / "killed"
    waits = (rng.uniform(0.1, 0.4 + 0.4 * attempt) for attempt in range(7))
    assert kill_at_random(forks.context(), _child, (path, out), waits) >= 3
    run(path, out)
    assert _all(out) == expected


def test_a_kill_of_the_second_judge_repeats_nothing(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """The replies, the calls of attackers and the first judge's verdicts stay as they are, byte for byte."""
    path, out = _recipe(tmp_path, tiny_model), tmp_path / "out"
    judge = attacking.judge_replies

    def killed(*args: object, **more: object) -> object:
        if args[2] == "keywords":
            raise KeyboardInterrupt
        return judge(*args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(attacking, "judge_replies", killed)
        with pytest.raises(KeyboardInterrupt):
            run(path, out)
    before = {p: p.read_bytes() for p in [*out.glob("*/*.jsonl"), *out.glob("arms/*/*/*/*.safetensors")]}
    assert len(read_rows(out / "attacks" / "pair.replies.jsonl", Reply)) > 0
    monkeypatch.setattr("lowtax.engines.base.load", None)
    run(path, out)
    assert {p: p.read_bytes() for p in before} == before
    names = ("refusal_words", "keywords")
    read = [read_rows(out / "verdicts" / f"attacks.{name}.jsonl", Verdict).values() for name in names]
    assert {v.reply_id for v in read[0]} == {v.reply_id for v in read[1]}
