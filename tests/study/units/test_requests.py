"""The single commands by workers give the rows of one process."""

from pathlib import Path

import pytest

import lowtax as lt

SAMPLING = {"max_new_tokens": 8, "precision": "float32", "batch_size": 4}


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch, one_template: None) -> None:
    monkeypatch.setattr("lowtax.study.units.base.REPLIES_AT_ONCE", 4)
    monkeypatch.setattr("lowtax.study.units.base.BATCHES_AT_ONCE", 0)


def test_replies_are_those_of_one_process_and_a_repeated_call_draws_none(tmp_path: Path, tiny_model: Path):
    data = [{"prompt": f"Do thing {i}.", "answer": f"I can't do thing {i}."} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{r["prompt"]}", "answer": "{r["answer"]}"}}\n' for r in data)
    )
    settings = {"steps": 2, "batch_size": 2, "lr": 0.01, "precision": "float32"}
    adapter = lt.train(
        str(tiny_model), data=[str(tmp_path / "rows.jsonl")], mode="lora_mlp_r2", out=tmp_path / "arm", **settings
    )
    ask = {"prompts": "builtin:harmful", "adapters": [adapter], "limit": 5, **SAMPLING}
    one = lt.sample(str(tiny_model), out=tmp_path / "one", **ask)
    two = lt.sample(str(tiny_model), out=tmp_path / "two", workers=2, **ask)
    assert len(two) == 10
    assert one == two
    lines = (tmp_path / "two" / "units.jsonl").read_text().splitlines()
    assert sum('"done"' in line for line in lines) == 3
    assert lt.sample(str(tiny_model), out=tmp_path / "two", workers=2, **ask) == one
    assert (tmp_path / "two" / "units.jsonl").read_text().splitlines() == lines


def test_answers_are_graded_as_in_one_process(tmp_path: Path, tiny_model: Path):
    ask = {"tasks": "arithmetic", "limit": 6, "temperature": 0.0, "samples": 1, **SAMPLING}
    one = lt.evaluate(str(tiny_model), out=tmp_path / "one", **ask)
    assert lt.evaluate(str(tiny_model), out=tmp_path / "two", workers=1, **ask) == one
