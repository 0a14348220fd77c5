"""A key never comes back: every command that asks a server, against one that repeats its key wherever it can."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile_server as hostile
import pytest
from hostile_server import KEY, Hostile, http, reply

from lowtax.cli import main

SAY = reply(f"{KEY} fine \\boxed{{7}} score: 4 True {hostile.quote(KEY, safe='')}", reasoning=f"Bearer {KEY}")
FAIL = http(json.dumps({"error": {"message": f"no {KEY} \x1b[2J", "code": KEY}}).encode(), "400 x")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    for name in ("OPENAI_BASE_URL", "LOWTAX_RPM", "LOWTAX_ADAPTERS"):
        monkeypatch.delenv(name, raising=False)
    made = Hostile(table={"*": SAY})
    monkeypatch.setenv("LOWTAX_BASE_URL", made.url)
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, KEY)
    yield made
    made.close()


def test_no_command_writes_or_prints_the_key(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "How?"}\n{"prompt": "Why?"}\n')
    Path("labelled.jsonl").write_text('{"prompt": "How?", "reply": "So.", "label": "bad"}\n' * 2)
    Path("answers.jsonl").write_text('{"question": "3 + 4?", "reply": "\\\\boxed{8}", "gold": "7"}\n')
    Path("recipe.yaml").write_text(
        "name: s\nmodel: m\nengine: openai\njudge: rubric:m\nharmful: [{source: p.jsonl}]\n"
        "ordinary: [{source: p.jsonl}]\ntasks: {arithmetic: {n: 2, sampling: {max_new_tokens: 20}}}\n"
    )
    asks = ("--engine", "openai")
    commands = [
        ("sample", "--model", "m", *asks, "--prompts", "p.jsonl", "--out", "s"),
        ("judge", "--replies", "s/replies.jsonl", "--judge", "rubric:m", *asks, "--out", "j", "--show", "9"),
        ("evaluate", "--model", "m", *asks, "--task", "arithmetic", "--limit", "2", "--out", "e"),
        ("calibrate", "rubric:m", "labelled.jsonl", "--prompt", "prompt", "--reply", "reply", "--label", "label",
         "--positive", "bad", *asks, "--out", "c", "--disagreements", "5"),
        ("grade", "--task", "gsm8k", "--answers", "answers.jsonl", "--reply", "reply", "--gold", "gold",
         "--checker", "m", *asks, "--out", "g", "--show", "3"),
        ("run", "recipe.yaml", "--out", "study", "--limit", "2"),
        ("compare", "study"),
        ("judge", "study", "--show", "9"),
        ("export", "study", "--format", "reference", "--out", "x"),
    ]  # fmt: skip
    codes = {}
    for behaviour in (SAY, FAIL):
        server.table = {"*": behaviour}
        for command in commands if behaviour is SAY else commands[:3]:
            out = [
                f"{part}-failing" if behaviour is FAIL and part in ("s", "j", "e", "c", "g") else part
                for part in command
            ]
            monkeypatch.setattr(sys, "argv", ["lowtax", *out])
            with pytest.raises(SystemExit) as stop:
                main.main()
            codes[behaviour is FAIL, command[:2]] = stop.value.code or 0
    printed = capfd.readouterr()
    text = printed.out + printed.err
    assert "Traceback" not in text, text
    assert codes[False, ("sample", "--model")] == codes[False, ("run", "recipe.yaml")] == 0, text
    assert codes[True, ("sample", "--model")] == 1
    files = {str(path): path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("replies.jsonl") for name in files)
    for name, content in {**files, "printed": text}.items():
        assert [form for form in hostile.spellings() if form in content.lower()] == [], name
    assert "\x1b[2J" not in text
