"""Sampling and judging without a study: what lands in the folders, and that kills lose nothing."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from small_study import write_recipe
from tiny import make_model
from typer.testing import CliRunner

from lowtax.cli.main import app
from lowtax.cli.options import say_unused
from lowtax.common import log
from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Reply, Verdict
from lowtax.engines.settings import EngineSettings, Sampling
from lowtax.judges import base as judges
from lowtax.judges.verdicts import judge_replies
from lowtax.study import adhoc, api

SLOW_ENGINE = """
import time
from lowtax.engines.fake import Fake

class Slow(Fake):
    def generate(self, requests):
        for completion in super().generate(requests):
            time.sleep(0.002)
            yield completion
"""
SLOW_JUDGE = """
import time
from lowtax.judges import Opinion

class Slow:
    name, kind = "slow", "harm"
    def judge(self, prompts, texts):
        time.sleep(0.002 * len(texts))
        return [Opinion("unsafe" if "Sure" in text else "safe", 0.25, "S1") for text in texts]
"""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mine.csv"
    lines = [f"Question number {i}?,{'theft' if i % 2 else 'fraud'}" for i in range(60)]
    path.write_text("asked,category\n" + "\n".join(lines) + "\n")
    return path


def asking(model: Path, prompts: Path, engine: str = "fake", adapters: list[Path] | None = None, **more) -> adhoc.Ask:
    sampling = Sampling(max_new_tokens=40, **more)
    return adhoc.Ask(str(model), adapters or [], [f"{prompts}:asked"], sampling, EngineSettings(engine, "float32", 8))


def test_replies_and_rates_of_a_model_and_its_adapters(tmp_path: Path, tiny_model: Path, prompts: Path):
    from tiny import save_adapter

    adapters = [
        Path(save_adapter(tmp_path / f"run{i}" / "checkpoint-4", tiny_model, 1, ["up_proj"], i)) for i in (1, 2)
    ]
    ask = asking(tiny_model, prompts, adapters=adapters, samples=2)
    replies = adhoc.sample(ask, tmp_path / "out")
    assert Counter(r.arm for r in replies) == dict.fromkeys(("base", "run1/checkpoint-4", "run2/checkpoint-4"), 120)
    assert {r.category for r in replies} == {"theft", "fraud"}
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["prompts"][0]["name"] == str(prompts)
    assert card["sampling"]["samples"] == 2
    assert len(api.judge(tmp_path / "out", "refusal_words", out=tmp_path / "judged")) == 360
    found = json.loads((tmp_path / "judged/safety.json").read_text())["rates"]
    assert set(found["base"]["categories"]) == {"theft", "fraud"}
    assert found["base"]["samples"] == 2
    everything = sum(found["base"][label] for label in ("refusal", "partial", "compliance", "unfinished", "failed"))
    assert everything + found["base"]["unparsed"] == 120
    assert "| run1/checkpoint-4 |" in (tmp_path / "judged/safety.md").read_text()
    before = (tmp_path / "out/replies.jsonl").read_text()
    adhoc.sample(ask, tmp_path / "out")
    assert (tmp_path / "out/replies.jsonl").read_text() == before


def test_a_judge_sees_the_plain_goal_and_never_an_empty_text(tmp_path: Path):
    seen: list[tuple[str, str]] = []

    class Spy:
        name, kind = "spy", "harm"

        def judge(self, asked: list[str], texts: list[str]) -> list[judges.Opinion]:
            seen.extend(zip(asked, texts, strict=True))
            return [judges.Opinion("safe") for _ in texts]

    def reply(i: int, **more: object) -> Reply:
        parts = {"text": "", "thought": "", "answer": "", "closed": True, "finish": "stop", "tokens": 1} | more
        own = {"arm": "base", "seed": None, "checkpoint": None, "source": "s", "prompt_id": str(i), "sample": 0}
        return Reply(id=str(i), prompt=f"wrapped {i}", **own, **parts)

    replies = [
        reply(0, text="Hm.\n</think>\nHere.", answer="Here.", thought="Hm.", goal="plain"),
        reply(1),
        reply(2, text="and so", thought="and so", closed=False, finish="length"),
        reply(3, finish="failed", error="boom"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowtax.judges.verdicts.load", lambda name, engine: Spy())
        found = judge_replies(replies, tmp_path / "v.jsonl", "spy", "answer")
        both = judge_replies(replies, tmp_path / "v.jsonl", "spy", "both")
    assert [found[r.id].label for r in replies] == ["safe", "unparsed", "unfinished", "failed"]
    assert [both[r.id].label for r in replies] == ["safe", "unparsed", "safe", "failed"]
    assert seen == [("plain", "Here."), ("plain", "Hm.\n</think>\nHere."), ("wrapped 2", "and so")]


def killed_again_and_again(work: Callable[[], object], times: int) -> int:
    """Do the work in processes that are killed at random moments, and then to its end; how many were killed."""
    luck, killed = random.Random(0), 0
    for _ in range(times):
        child = os.fork()
        if not child:
            work()
            os._exit(0)
        time.sleep(luck.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    work()
    return killed


def test_fifty_kills_lose_and_double_nothing(
    tmp_path: Path, tiny_model: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "slow.py").write_text(SLOW_ENGINE)
    (tmp_path / "judge.py").write_text(SLOW_JUDGE)
    monkeypatch.setattr("lowtax.engines.sampling.STORE_EVERY", 0.01)
    monkeypatch.setattr("lowtax.judges.verdicts.CHUNK", 5)
    whole = adhoc.sample(asking(tiny_model, prompts, samples=4), tmp_path / "whole")
    ask = asking(tiny_model, prompts, f"{tmp_path}/slow.py:Slow", samples=4)
    killed = killed_again_and_again(lambda: adhoc.sample(ask, tmp_path / "out"), 25)
    lines = (tmp_path / "out/replies.jsonl").read_text().splitlines()
    assert killed > 10
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 240
    texts = [(r.prompt_id, r.sample, r.text) for r in read_rows(tmp_path / "out/replies.jsonl", Reply).values()]
    assert sorted(texts) == sorted((r.prompt_id, r.sample, r.text) for r in whole)

    def judge() -> None:
        name = f"{tmp_path}/judge.py:Slow"
        api.judge(tmp_path / "out", name, out=tmp_path / "judged")

    assert killed_again_and_again(judge, 25) > 10
    rows = read_rows(tmp_path / "judged/verdicts.jsonl", Verdict)
    assert len(rows) == len((tmp_path / "judged/verdicts.jsonl").read_text().splitlines()) == 240
    assert {v.reply_id for v in rows.values()} == {json.loads(line)["id"] for line in lines}


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, f"{done.output}{done.exception or ''}"


ALL_FAIL = """
from lowtax.engines.base import Completion

class Broken:
    def __init__(self, model, precision, batch_size): pass
    def generate(self, requests):
        for number, request in enumerate(requests):
            yield Completion(request.id, "", 0, "failed", False, "no memory" if number else "too \\ud83d long")
"""


def test_commands_whose_replies_all_failed_say_why(tmp_path: Path, prompts: Path):
    model = make_model(tmp_path / "m")
    (tmp_path / "broken.py").write_text(ALL_FAIL)
    out = tmp_path / "out"
    sample = ["sample", "--model", model, "--prompts", f"{prompts}:asked", "--engine", f"{tmp_path}/broken.py:Broken"]
    code, said = run(*sample, "--limit", 5, "--out", out)
    assert code == 1
    assert "all 5 replies failed, 4 of them: no memory" in said
    code, said = run("judge", "--replies", out, "--judge", "refusal_words", "--out", tmp_path / "v")
    assert code == 1
    assert "all 5 verdicts failed: too \ufffd long" in said
    arms, few = {"r1": {"mode": "lora_mlp_r1"}}, {"steps": 1, "batch_size": 2}
    recipe = write_recipe(tmp_path, model, seeds=[0], arms=arms, train=few, engine=f"{tmp_path}/broken.py:Broken")
    code, said = run("run", recipe, "--out", tmp_path / "study", "--trust")
    assert code == 1
    assert "replies failed" in said
    assert (tmp_path / "study/table.md").exists()
    code, said = run("judge", tmp_path / "study", "--trust")
    assert code == 1
    assert "verdicts failed: too" in said


def test_replies_are_in_the_order_of_the_file_and_sets_have_rates_of_their_own(tmp_path: Path):
    model = make_model(tmp_path / "m")
    (tmp_path / "a.csv").write_text("id,prompt,label\n" + "".join(f"{9 - i},Say {i}.,unsafe\n" for i in range(9)))
    (tmp_path / "b.csv").write_text("id,prompt\n" + "".join(f"x{i},Sing {i}.\n" for i in range(4)))
    words = ["sample", "--model", model, "--engine", "fake", "--out", tmp_path / "out"]
    for _ in range(2):
        code, said = run(*words, "--prompts", tmp_path / "a.csv", "--prompts", tmp_path / "b.csv")
        assert code == 0, said
        rows = list(read_rows(tmp_path / "out/replies.jsonl", Reply).values())
        assert [r.columns["id"] for r in rows] == [*"987654321", "x0", "x1", "x2", "x3"]
    code, said = run("judge", "--replies", tmp_path / "out", "--judge", "refusal_words", "--out", tmp_path / "v")
    assert code == 0, said
    rates = json.loads((tmp_path / "v/safety.json").read_text())["rates"]["base"]
    assert {name: cell["n"] + cell["unparsed"] for name, cell in rates["sets"].items()} == {
        "a.csv-unsafe": 9,
        "b.csv": 4,
    }
    assert "value" not in rates
    assert "| base | a.csv-unsafe |" in said
    lines = [json.loads(line) for line in (tmp_path / "v/judged.jsonl").read_text().splitlines()]
    assert [line["columns"]["id"] for line in lines] == [r.columns["id"] for r in rows]


def test_a_long_judgement_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines: list[str] = []
    monkeypatch.setattr(log, "OUTPUTS", [lines.append])
    monkeypatch.setattr(log, "SPEAK_EVERY", 0.0)
    monkeypatch.setattr("lowtax.judges.verdicts.CHUNK_RULES", 2)
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {i}?", "reply": "I cannot."}) + "\n" for i in range(7)))
    api.judge(path, "refusal_words", out=tmp_path / "v")
    assert lines[0] == "judging 7 replies with refusal_words, on the answer"
    assert [line.split(" replies")[0] for line in lines[1:]] == [f"  {n} of 7" for n in range(1, 7)]
    api.judge(path, "refusal_words", out=tmp_path / "v")
    assert len(lines) == 7
    say_unused("refusal_words", EngineSettings("hf", "float32", 1))
    assert lines[7] == "the judge refusal_words has no use for --precision and --batch-size: ignored"
    say_unused("llama_guard", EngineSettings("hf", "float32", 1))
    assert len(lines) == 8


def test_the_commands(tmp_path: Path, prompts: Path):
    model = make_model(tmp_path / "m")
    common = ["sample", "--model", model, "--prompts", f"{prompts}:asked", "--engine", "fake", "--limit", 5]
    assert run(*common, "--out", tmp_path / "out", "--preset", "paper", "--system", "Be brief.")[0] == 0
    assert json.loads((tmp_path / "out/card.json").read_text())["sampling"]["temperature"] == 1.0
    code, said = run("judge", "--replies", tmp_path / "out", "--judge", "refusal_words", "--out", tmp_path / "judged")
    assert code == 0
    assert "| base |" in said
    first = (tmp_path / "judged/verdicts.jsonl").read_text()
    assert (
        run(
            "judge", "--replies", tmp_path / "out", "--judge", "refusal_words", "--out", tmp_path / "judged", "--again"
        )[0]
        == 0
    )
    assert (tmp_path / "judged/verdicts.jsonl").read_text() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--model", "m"], "--model, --prompts and --out"),
        (["judge", "--judge", "refusal_words"], "--replies, --judge and --out"),
        (["judge", "--on", "mind"], "not one of 'answer', 'thought', 'both'"),
        (["sample", "x", "--model", "m"], "defines its own model"),
        (["judge", "--replies", "no", "--judge", "refusal_words", "--out", "o"], "holds no replies"),
        (["sample", "--model", "m", "--prompts", "p", "--out", "o", "--preset", "papr"], "paper"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    code, found = run(*words)
    assert code != 0
    assert said in found


def test_adapters_of_one_name_are_told_apart_and_twice_is_refused(tmp_path: Path):
    folders = [tmp_path / a / b for a, b in (("x", "last"), ("y", "last"))]
    assert adhoc._names(folders) == ["x/last", "y/last"]
    assert adhoc._names(folders[:1]) == ["last"]
    with pytest.raises(UserError, match="twice"):
        adhoc._names([folders[0], folders[0]])
