"""Judging by workers gives the verdicts of one process, each once, whatever happens to workers and drivers."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_study import write_recipe
from worked import SMALL, Killer, events, history

import lowtax as lt
from lowtax.common.errors import UserError
from lowtax.common.records import Reply
from lowtax.judges.base import BUILTIN
from lowtax.study import attack_panel, recipe, running, study
from lowtax.study.units.base import judging_size

SLOW = """
import time
from lowtax.judges.base import Opinion

class Slow:
    name, kind = "slow", "refusal"
    def judge(self, prompts, texts):
        time.sleep(0.02 * len(texts))
        return [Opinion("refusal" if "7" in text else "compliance", detail=text) for text in texts]
"""


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowtax.study.units.base.REPLIES_AT_ONCE", 5)
    monkeypatch.setattr("lowtax.study.units.base.BATCHES_AT_ONCE", 0)


def replies(number: int = 17) -> list[Reply]:
    """Replies of two models; the last two are one that was never produced, and one without an answer."""

    def reply(i: int, **changes: Any) -> Reply:
        body = {"text": f"Hm.</think>Thing {i}.", "thought": "Hm.", "answer": f"Thing {i}.", "closed": True}
        own = {"seed": None, "checkpoint": None, "source": "s", "sample": 0, "tokens": 3, "finish": "stop"}
        names = {"id": f"r{i}", "prompt_id": f"p{i // 2}", "prompt": f"Do {i // 2}.", "arm": "ab"[i % 2]}
        return Reply(**body | own | names | changes)

    last = [reply(number, finish="failed"), reply(number + 1, text="Hm", thought="Hm", answer="", closed=False)]
    return [*map(reply, range(number)), *last]


def written(out: Path) -> dict[str, Any]:
    """All that a call has written, without what tells one call from another."""
    lines = (out / "verdicts.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines), "a verdict is repeated"
    rates = json.loads((out / "safety.json").read_text())["rates"]
    texts = [(out / name).read_text() for name in ("judged.jsonl", "safety.md")]
    return {"verdicts": sorted(lines), "rates": rates, "texts": texts}


def test_a_model_judges_by_workers_as_in_one_process(tmp_path: Path, tiny_model: Path):
    judge, how = f"wildguard:{tiny_model}", {"precision": "float32", "batch_size": 4}
    one = lt.judge(replies(), judge, out=tmp_path / "one", **how)
    two = lt.judge(replies(), judge, out=tmp_path / "two", workers=2, **how)
    assert one == two
    assert {verdict.label for verdict in two} >= {"failed", "unfinished"}
    assert len({verdict.detail for verdict in two}) > 4  # what the model wrote
    assert written(tmp_path / "one") == written(tmp_path / "two")
    done = [event["unit"] for event in events(tmp_path / "two") if event["state"] == "done"]
    assert sorted(done) == [f"judge/{share}-of-4" for share in range(1, 5)], history(tmp_path / "two")
    before = len(events(tmp_path / "two"))
    assert lt.judge(replies()[:-2], judge, out=tmp_path / "two", workers=2, **how) == one[:-2]
    assert len(events(tmp_path / "two")) == before  # nothing is judged twice
    assert lt.judge(replies(), judge, out=tmp_path / "two", workers=1, again=True, **how) == one
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert len(events(tmp_path / "two")) > before


def test_kills_of_workers_and_drivers_leave_every_verdict_once(tmp_path: Path):
    (tmp_path / "slow.py").write_text(SLOW)
    judge, out = f"{tmp_path}/slow.py:Slow", tmp_path / "out"
    rows = replies(400)
    (tmp_path / "replies.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    one = lt.judge(rows, judge, out=tmp_path / "one")
    ask = ["--replies", tmp_path / "replies.jsonl", "--judge", judge, "--out", out, "--workers", "2"]
    driver = subprocess.Popen([sys.executable, "-m", "lowtax", "judge", *map(str, ask)])
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(event["state"] == "done" for event in events(out)):
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    stored = (out / "verdicts.jsonl").read_text().splitlines()
    assert 100 <= len(stored) < 402, history(out)  # of four shares: the command has those of usual size
    with Killer(out, ("judge",), after=0.1) as killer:
        two = lt.judge(rows, judge, out=out, workers=2, batch_size=4)
    assert killer.kills == 1, history(out)
    assert one == two
    assert written(out) == written(tmp_path / "one"), history(out)
    assert stored == (out / "verdicts.jsonl").read_text().splitlines()[: len(stored)]


def test_a_study_is_judged_by_workers_with_its_attacks(tmp_path: Path, tiny_model: Path):
    plain = {"source": "builtin:harmful", "split": "test", "n": 4}
    sets = {"harmful": [plain, plain | {"n": 2, "attack": "prefill"}], "tasks": {}, "edited": {}, "arms": {}}
    path = write_recipe(tmp_path, tiny_model, **SMALL | sets)
    judged = []
    for name, workers in (("one", None), ("two", 2)):
        with study.Study(recipe.load(path), tmp_path / name) as work:
            work.sample([*work.reply_sheets().values(), *work.attack_sheets()])
            with running.reading(workers, None, work.out) as read:
                judged.append(attack_panel.judge_study(work, "keywords", "answer", read=read))
    assert judged[0] == judged[1]
    assert judged[0].keys() == {"harmful", "ordinary", "attack prefill"}
    one, two = ({p.name: sorted(p.read_text().splitlines()) for p in (tmp_path / name / "verdicts").iterdir()}
                for name in ("one", "two"))  # fmt: skip
    assert one == two
    assert len(one) == 3
    done = [event["unit"] for event in events(tmp_path / "two") if event["state"] == "done"]
    assert done == ["judge/1-of-1", "judge/1/1-of-1", "judge/2/1-of-1"]


def test_mistakes_are_one_sentence(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="There is no judge 'llama_gard'"):
        lt.judge(replies(), "llama_gard", out=tmp_path / "out", workers=1)
    with pytest.raises(
        UserError, match=r"A share of the replies could not be judged, .*\(judge/.-of-4: .*nowhere"
    ) as no:
        lt.judge(replies(), f"wildguard:{tmp_path}/nowhere", out=tmp_path / "out", workers=1)
    assert "Traceback" not in str(no.value)
    with pytest.raises(UserError, match="'slurm' is no place for workers"):
        lt.judge(replies(), "keywords", out=tmp_path / "out", workers_on="slurm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="--workers 2 needs 2 GPUs, 1 for each, and there are 1 here"):
        lt.judge(replies(), f"wildguard:{tiny_model}", out=tmp_path / "out", workers=2)


def test_judges_by_rules_have_large_shares():
    assert {name for name in BUILTIN if judging_size(name, "hf", 4) == 2048} == {"keywords", "refusal", "refusal_words"}
    assert judging_size("wildguard:some/model", "hf", 4) == 5
    assert judging_size("rubric:some/model", "vllm", 4) == 2048
