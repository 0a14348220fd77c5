"""The command `attack`: what is in its folder, resuming, budgets and mistakes."""

import json
import shutil
from pathlib import Path

import pytest
from scripted import WRITER
from tiny import save_adapter
from typer.testing import CliRunner

from lowtax.cli.main import app
from lowtax.common.errors import UserError


def call(model: Path, out: Path, name: str, *more: object) -> str:
    words = ["attack", name, "--model", model, "--prompts", "builtin:harmful", "--limit", 2, "--max-new-tokens", 8,
             "--judge", "refusal_words", "--precision", "float32", "--out", out, *more]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_an_attack_on_a_model_and_an_adapter(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    adapter = save_adapter(tmp_path / "adapter", tiny_model, 2, ["up_proj"], 0)
    out = tmp_path / "out"
    text = call(tiny_model, out, "best_of_n", "--adapter", adapter, "--budget", 3)
    assert text.count("| best_of_n |") == 2
    assert (out / "attack.md").read_text() in text
    results = json.loads((out / "attack.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["base", "adapter"]
    assert all(row["attacks"]["best_of_n"]["budget"] == 3 for row in results["rows"])
    lines = [json.loads(line) for line in (out / "judged.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 3
    assert {line["attempt"] for line in lines} == {0, 1, 2}
    assert all(line["goal"] != line["prompt"] for line in lines)
    monkeypatch.setattr("lowtax.engines.base.load", None)
    again = call(tiny_model, out, "best_of_n", "--adapter", adapter, "--budget", 3)
    assert table(again) == table(text)
    fewer = call(tiny_model, out, "best_of_n", "--adapter", adapter, "--budget", 1)  # a part of what is stored
    assert fewer.count("| 1 |") >= 2


def test_k_of_lox_by_the_success_of_an_attack(tmp_path: Path, tiny_model: Path):
    """The two commands of the guide: an adapter for each k, and the success of one attack on each of them."""
    adapter = save_adapter(tmp_path / "adapter", tiny_model, 4, ["up_proj", "down_proj"], 0)
    words = ["edit", "lox", "--adapter", adapter, "--base", tiny_model, "--sweep", "k=1,3", "--out", tmp_path / "lox"]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    adapters = [word for k in (1, 3) for word in ("--adapter", tmp_path / "lox" / f"k-{k}")]
    text = call(tiny_model, tmp_path / "out", "prefill", *adapters)
    rows = json.loads((tmp_path / "out" / "attack.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["base", "k-1", "k-3"]
    assert all(row["attacks"]["prefill"]["n"] + row["attacks"]["prefill"]["unparsed"] == 2 for row in rows)
    assert text.count("| prefill |") == 3


def test_an_attack_that_talks(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "writer.py").write_text(WRITER)
    how = (
        "--attacker",
        "any",
        "--attacker-engine",
        f"{tmp_path / 'writer.py'}:Writer",
        "--set",
        "streams=2",
        "--budget",
        3,
    )
    how = (*how, "--judges", "refusal")
    text = call(tiny_model, tmp_path / "out", "pair", *how)
    cell = json.loads((tmp_path / "out" / "attack.json").read_text())["rows"][0]["attacks"]["pair"]
    assert (cell["budget"], cell["n"]) == (3, 2)
    assert cell["tokens"]["attacker"] > 0
    assert "fewer than the budget" not in text
    results = json.loads((tmp_path / "out" / "attack.json").read_text())
    of_judge = results["rows"][0]["judges"]["refusal"]["attacks"]["pair"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert all(line["judges"].keys() == {"refusal"} for line in lines)
    assert of_judge["n"] == 2
    agreement = results["judges"]["refusal"]["attacks"]["pair"]
    assert agreement["n"] + agreement["without"] == len(lines)
    assert "| refusal | attack pair |" in text
    monkeypatch.setattr("lowtax.engines.base.load", None)
    assert table(call(tiny_model, tmp_path / "out", "pair", *how)) == table(text)


def test_a_tiny_real_model_attacks_itself_and_writes_nonsense(tmp_path: Path, tiny_model: Path):
    """A random model writes no JSON: every step is counted, nothing is sent, and no request is won."""
    writer = tmp_path / "writer"
    shutil.copytree(tiny_model, writer)
    config = json.loads((writer / "config.json").read_text())
    (writer / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    more = ("--set", "attacker_tokens=8", "--set", "tries=1")
    text = call(tiny_model, tmp_path / "out", "pair", "--attacker", writer, *more, "--budget", 99)
    assert "makes at most 25 queries about one request with these settings, fewer than the budget of 99" in text
    cell = json.loads((tmp_path / "out" / "attack.json").read_text())["rows"][0]["attacks"]["pair"]
    assert (cell["value"], cell["n"], cell["unusable"]) == (0.0, 2, {"no JSON": 2 * 5 * 5})


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("prefil", [], "did you mean 'prefill'"),
        ("prefill", ["--attacker", "m"], "has no attacker"),
        ("pair", [], "set `attacker`"),
        ("prefill", ["--set", "texts"], "not of the form key=value"),
        ("prefill", ["--set", "n=3"], "unknown key 'n'"),
        ("prefill", ["--judge", "refusal_wrds"], "did you mean 'refusal_words'"),
        ("prefill", ["--judges", "refusl"], "did you mean 'refusal'"),
        ("prefill", ["--prompts", "strongrejct"], "did you mean 'strongreject'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, tiny_model: Path, name: str, more: list[str], message: str):
    with pytest.raises(UserError, match=message):
        call(tiny_model, tmp_path / "out", name, *more)
