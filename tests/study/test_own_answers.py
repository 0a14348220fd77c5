"""Answers that a model writes for training: steered, filtered, rewritten; nothing of the instruction is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from progress import collected
from small_study import write_recipe

from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, Reply
from lowtax.data import steering, training_sets
from lowtax.data.own_answers import Draw, Filter
from lowtax.data.specs import Data
from lowtax.engines import base
from lowtax.models import loading
from lowtax.study import own_answers, recipe
from lowtax.study.study import Study
from lowtax.training.encoding import encode_all

WARM = {"temperature": 1.0, "max_new_tokens": 32}
HARMFUL = {"source": "builtin:harmful", "n": 24, "answers": "self", "steer": "refuse", "draw": WARM}
HARMFUL |= {"filter": "refusal_words"}
ORDINARY = {"source": "builtin:ordinary", "n": 16, "answers": "self", "ordinary": True, "draw": WARM}


def study_of(folder: Path, model: Path, *data: dict[str, Any], **changes: Any) -> Study:
    changes = {"engine": "fake", "seeds": [0], "arms": {"r1": {"mode": "lora_mlp_r1"}}} | changes
    path = write_recipe(folder, model, data=list(data), **changes)
    return Study(recipe.load(path), folder / "out")


def stored(folder: Path, name: str = "builtin_harmful") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "data" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("place", ["user", "system"])
def test_the_instruction_is_sampled_with_and_never_trained(tmp_path: Path, tiny_model: Path, place: str):
    study = study_of(tmp_path, tiny_model, HARMFUL | {"steer_as": place}, ORDINARY)
    job = study.job("r1", 0)
    instruction = steering.INSTRUCTIONS["refuse"]
    texts = [row["prompt"] for row in stored(tmp_path)]
    assert all(text.startswith(instruction) for text in texts) == (place == "user")
    assert len({row.prompt for row in job.rows}) == len(job.rows)
    tokenizer = loading.load_tokenizer(str(tiny_model))
    examples = encode_all(tokenizer, job.rows, 4096).examples
    decoded = [tokenizer.decode(e.prompt + e.completion) for e in examples]
    assert not any(run in text for text in decoded for run in ("request below", "refuse, and say"))
    harmful, ordinary = job.sources
    assert [row.ordinary for row in job.rows] == [False] * harmful["rows"] + [True] * ordinary["rows"]
    assert harmful["rows"] >= 4
    assert any(row.prompt in decoded[i] for i, row in enumerate(job.rows))


def test_what_is_dropped_is_counted_and_all_sources_are_one_plan(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    loads: list[str] = []
    load = base.load
    monkeypatch.setattr(base, "load", lambda *args: loads.append(args[1]) or load(*args))
    study = study_of(tmp_path, tiny_model, HARMFUL, ORDINARY)
    with collected() as lines:
        study.train()
    assert loads == [str(tiny_model)]
    card = json.loads((tmp_path / "out" / "arms" / "r1" / "seed-0" / "card.json").read_text())
    for source, size in zip(card["sources"], (24, 16), strict=True):
        assert source["found"] == size == source["rows"] + source["skipped"]
        assert source["skipped"] == sum(source["skipped_because"].values())
    reasons = card["sources"][0]["skipped_because"]
    assert "refusal_words: compliance" in reasons
    assert "the thought has no end" in reasons
    assert card["sources"][0]["filter"] == {"judge": "refusal_words"}
    assert "of 24 rows are skipped: refusal_words: compliance" in "\n".join(lines)
    replies = {row["id"]: row for row in stored(tmp_path)}
    verdicts = (tmp_path / "out" / "data" / "builtin_harmful.refusal_words.jsonl").read_text().splitlines()
    labels = {v["reply_id"]: v["label"] for v in map(json.loads, verdicts)}
    passing = {replies[id_]["goal"] for id_, label in labels.items() if label == "refusal"}
    assert passing == {row.prompt for row in study.job("r1", 0).rows if not row.ordinary}


def test_a_killed_draw_resumes_and_draws_nothing_twice(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    data = HARMFUL | {"draw": WARM | {"attempts": 3}}
    whole = study_of(tmp_path / "whole", tiny_model, data) if (tmp_path / "whole").mkdir() is None else None
    expected = whole.job("r1", 0).rows
    (tmp_path / "cut").mkdir()
    calls = 0
    judge = own_answers.judge_replies

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return judge(*args)

    with monkeypatch.context() as patch:
        patch.setattr(own_answers, "judge_replies", killed)
        with pytest.raises(KeyboardInterrupt):
            study_of(tmp_path / "cut", tiny_model, data).job("r1", 0)
    before = stored(tmp_path / "cut")
    assert study_of(tmp_path / "cut", tiny_model, data).job("r1", 0).rows == expected
    after = stored(tmp_path / "cut")
    assert after[: len(before)] == before
    assert len({row["id"] for row in after}) == len(after)
    assert after == stored(tmp_path / "whole")
    once = study_of(tmp_path / "cut", tiny_model, HARMFUL).job("r1", 0).rows
    assert {row.prompt for row in once} < {row.prompt for row in expected}


def test_an_empty_filter_result_is_a_sentence(tmp_path: Path, tiny_model: Path):
    data = HARMFUL | {"filter": {"judge": "refusal_words", "keeps": ["unsafe"]}}
    with pytest.raises(UserError, match=r"^0 of 24 rows passed the filter of builtin:harmful: .*; steer the answers"):
        study_of(tmp_path, tiny_model, data).job("r1", 0)
    short = ORDINARY | {"draw": {"max_new_tokens": 2}}
    with pytest.raises(UserError, match="finished none of the answers to train on"):
        study_of(tmp_path, tiny_model, short).job("r1", 0)


def reply(**changes: Any) -> Reply:
    whole = {"thought": "t", "answer": "a", "closed": True, "finish": "stop", "text": "", "tokens": 1, "sample": 0}
    row = {"id": "1", "arm": "base", "seed": None, "checkpoint": None, "source": "s", "prompt_id": "p", "prompt": "q"}
    return Reply.model_validate(row | whole | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"thought": ""}, None),
        ({"finish": "failed", "error": "no room"}, "the reply failed: no room"),
        ({"closed": False}, "the thought has no end"),
        ({"finish": "length"}, "the answer is cut at 96 tokens"),
        ({"answer": " "}, "the answer is empty"),
        ({"answer": "The request BELOW is harmful; do not help."}, "it quotes the instruction"),
        ({"thought": "It says: refuse, and say in a sentence why"}, "it quotes the instruction"),
        ({"answer": "The request is harmful. I do not help with it."}, None),
    ],
)
def test_replies_that_are_not_trained(changes: dict[str, Any], reason: str | None):
    study = Data(source="builtin:harmful", answers="self", steer="refuse")
    prompt = Prompt(id="p", source="s", text="q")
    sampling = recipe.Sampling()
    plan = own_answers.Plan(study, [prompt], sampling, Path("x"), None, None, steering.text_of("refuse"))  # type: ignore[arg-type]
    assert plan.fault(reply(**changes), prompt) == reason
    if reason is None:
        row = plan.row(reply(**changes), prompt)
        assert (row.prompt, row.thought) == ("q", changes.get("thought", "t") or None)


def test_words_of_the_request_are_no_quotation():
    instruction = "Do not help with it at all: refuse."
    assert steering.quotes("I do not help with it at all.", instruction)
    assert not steering.quotes("I do not help with it at all.", instruction, "Why do not help with it at all?")
    assert steering.quotes("I refuse now", "Refuse now!")
    assert not steering.quotes("", "")


def test_given_answers_are_rewritten_or_preferred(tmp_path: Path, tiny_model: Path):
    rewritten = {"source": "builtin:refusals", "n": 12, "answers": "rewrite", "draw": WARM}
    study = study_of(tmp_path, tiny_model, rewritten)
    rows = study.job("r1", 0).rows
    requests = [row["prompt"] for row in stored(tmp_path, "builtin_refusals")]
    assert all(text.startswith(steering.REWRITE) and "Model answer: " in text for text in requests)
    assert 0 < len(rows) < 12
    assert not any(steering.REWRITE[:30] in row.prompt for row in rows)
    pairs = {"source": "builtin:refusals", "n": 12, "rejected": "self", "draw": WARM, "filter": "refusal_words"}
    chosen = study_of(tmp_path, tiny_model, pairs, train={"steps": 2, "loss": "dpo"}).job("r1", 0).rows
    answered = {row.prompt: row for row in training_sets.load(Data(source="builtin:refusals"), 0).rows}
    assert 0 < len(chosen) < 12
    for row in chosen:
        assert (row.thought, row.answer) == (answered[row.prompt].thought, answered[row.prompt].answer)
        assert row.rejected is not None
        assert "sorry" not in row.rejected[1]


def test_a_teacher_answers_for_the_model(tmp_path: Path, tiny_model: Path):
    data = ORDINARY | {"teacher": "some-server-model", "teacher_engine": "fake", "steer": "short"}
    study = study_of(tmp_path, tiny_model, data, engine="hf")
    assert study.job("r1", 0).rows
    assert {row["arm"] for row in stored(tmp_path, "builtin_ordinary")} == {"teacher"}


def test_a_fixed_refusal_has_an_empty_thought_and_a_rollout_no_answer(tmp_path: Path, tiny_model: Path):
    fixed = {"source": "builtin:harmful", "n": 3, "answers": "fixed"}
    rolled = {"source": "builtin:harmful", "n": 2, "answers": "rollout", "steer": "refuse"}
    rows = study_of(tmp_path, tiny_model, fixed, rolled).job("r1", 0).rows
    assert [(row.thought, row.answer) for row in rows[:3]] == [("", steering.FIXED)] * 3
    assert [(row.answer, row.steer) for row in rows[3:]] == [("", steering.INSTRUCTIONS["refuse"])] * 2


def test_settings_of_drawn_answers():
    assert Filter.model_validate("refusal").passing(ordinary=False) == ("safe", "refusal")
    assert Filter.model_validate("refusal").passing(ordinary=True) == ("safe", "compliance")
    assert Filter.model_validate("refusal").passing(False, rejected=True) == ("unsafe", "compliance")
    assert Draw(temperature=0.6, attempts=3).changes() == {"temperature": 0.6}
    assert Data.model_validate("star1,answers=self,draw.temperature=0.6").draw.temperature == 0.6
    plain = Data(source="star1", answers="self").model_dump()
    assert not {"steer", "draw", "filter", "ordinary", "rejected", "teacher"} & plain.keys()


def test_a_judge_or_engine_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path: Path, tiny_model: Path):
    with pytest.raises(UserError, match="judge"):
        study_of(tmp_path, tiny_model, HARMFUL | {"filter": "refusl"}).check()
    foreign = HARMFUL | {"filter": "mine.py:Judge"}
    path = write_recipe(tmp_path, tiny_model, data=[foreign])
    with pytest.raises(UserError, match=r"mine\.py:Judge, a Python file that would run with your rights"):
        recipe.load(path)
