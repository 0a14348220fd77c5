"""The command line as a user meets it: one sentence and exit code 2 for every mistake, no traceback."""

import json
import re
import shutil
import subprocess
import sys

import forks
import pytest
from small_study import write_recipe
from tiny import make_model

from lowtax.cli import main


def lowtax(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lowtax.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """The same without a new process: exit code and what was printed to stderr."""
    code, _, printed = in_process(monkeypatch, capsys, *arguments)
    return code, printed


def in_process(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """The same with what was printed to stdout."""
    monkeypatch.setattr(sys, "argv", ["lowtax", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main.main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_a_study_from_the_command_line_stage_by_stage(tmp_path, tiny_model, monkeypatch, capsys):
    path, out = write_recipe(tmp_path, tiny_model, seeds=[0]), tmp_path / "out"
    for step in (("train", path, "--out", out), ("sample", out), ("judge", out), ("evaluate", out), ("compare", out)):
        code, result, progress = in_process(monkeypatch, capsys, *step)
        assert code == 0, progress
        assert "Warning" not in progress
        if step[0] == "evaluate":
            assert "| arithmetic | r2 4 |" in result
    assert "frontier.png" in result
    by_stage = json.loads((out / "table.json").read_text())["rows"]
    whole = lowtax("run", path, "--out", tmp_path / "whole", "--limit", "2")
    assert whole.returncode == 0, whole.stderr
    assert "Warning" not in whole.stderr
    rows = json.loads((tmp_path / "whole/table.json").read_text())["rows"]
    assert [r["arm"] for r in rows] == [r["arm"] for r in by_stage]
    assert all(r["safety"]["n"] == 2 for r in rows)
    assert json.loads((tmp_path / "whole/card.json").read_text())["recipe"]["name"] == "tiny"
    assert (tmp_path / "whole/report/index.html").exists()


MISTAKES = {
    "recipe key": ({"trian": {}}, [], r"unknown key 'trian'; did you mean 'train'\?"),
    "nested key": ({"train": {"step": 3}}, [], r"unknown key 'train.step'; did you mean 'steps'\?"),
    "mode": (
        {"arms": {"a": {"mode": "lora_mlp"}}},
        [],
        r"Unknown mode 'lora_mlp'; the nearest forms are lora_mlp_rR, ",
    ),
    "engine": ({}, ["--engine", "hv"], r"There is no engine 'hv'; known are: fake, hf"),
    "judge": ({"judge": "refusal_word", "engine": "fake"}, [], r"There is no judge 'refusal_word'; did you mean"),
    "task": ({"tasks": {"arithmetics": {}}}, [], r"There is no task 'arithmetics'; did you mean 'arithmetic'\?"),
    "data set": (
        {"data": [{"source": "builtin:refusal"}]},
        [],
        r"no built-in data set 'refusal'; did you mean 'refusals'\?",
    ),
    "data file": ({"data": [{"source": "nowhere.jsonl"}]}, [], r"'nowhere.jsonl' cannot be read: No such file"),
    "model": ({"model": "./nowhere"}, [], r"There is no model at './nowhere'"),
    "built-in model": ({"model": "builtin:smollm"}, [], r"no built-in model 'smollm'; did you mean"),
    "layers": (
        {"arms": {"a": {"mode": "lora_up_proj_only_from1_to2_r1"}}},
        [],
        r"Layers 1\.\.2 are outside the model, which has layers 0\.\.1",
    ),
    "module": (
        {"arms": {"a": {"mode": "lora_gat_proj_only_r1"}}},
        [],
        r"no linear module 'gat_proj' .*did you mean 'gate_proj'",
    ),
    "split": (
        {"harmful": [{"source": "builtin:harmful", "split": "tset"}]},
        [],
        r"has no split 'tset'; its splits are",
    ),
    "no data": ({"data": []}, [], r"has no training data"),
    "set": ({}, ["--set", "train.lr"], r"is not of the form key=value"),
    "type": ({}, ["--set", "train.steps=many"], r"train.steps: .*integer.*'many'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(name, tmp_path, tiny_model, monkeypatch, capsys):
    changes, flags, sentence = MISTAKES[name]
    path = write_recipe(tmp_path, tiny_model, **{"seeds": [0], **changes})
    code, printed = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out", *flags)
    assert code == 2
    assert "Traceback" not in printed
    assert re.search(sentence, printed.splitlines()[-1]), printed


def test_missing_recipe_empty_data_and_bad_json(tmp_path, tiny_model, monkeypatch, capsys):
    code, printed = call(monkeypatch, capsys, "run", tmp_path / "no.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "cannot be read: No such file" in printed
    path = write_recipe(tmp_path, tiny_model)
    (tmp_path / "rows.jsonl").write_text("")
    code, printed = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 2
    assert "rows.jsonl' has no rows" in printed
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt"\n{"answer"\n')
    code, printed = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 2
    assert re.search(r"rows.jsonl.*not valid JSON", printed)


def test_a_model_without_a_chat_template(tmp_path, tiny_model, monkeypatch, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    for path in bare.glob("chat_template*"):
        path.unlink()
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    path = write_recipe(tmp_path, bare, seeds=[0])
    code, printed = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 2
    assert "has no chat template" in printed


def test_an_adapter_of_another_base(tmp_path, tiny_model, monkeypatch, capsys):
    path, out = write_recipe(tmp_path, tiny_model, seeds=[0]), tmp_path / "out"
    assert call(monkeypatch, capsys, "train", path, "--out", out)[0] == 0
    record = out / "arms/r1/seed-0/checkpoint-4/lowtax_base.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": "0" * 64}))
    code, printed = call(monkeypatch, capsys, "sample", out)
    assert code == 2
    assert "whose weights differ from those of" in printed


def test_a_full_disk_is_one_sentence_and_the_work_goes_on(tmp_path, tiny_model, monkeypatch, capsys):
    """A file-size limit stands in for the full disk: writing fails in the middle, as it would."""
    path, out = write_recipe(tmp_path, tiny_model, seeds=[0]), tmp_path / "out"
    with forks.Command("run", path, "--out", out, file_bytes=20_000) as limited:
        _, printed = limited.communicate(timeout=120)
    assert limited.returncode == 2, printed
    assert "Traceback" not in printed
    assert "repeat the command" in printed.splitlines()[-1]
    code, printed = call(monkeypatch, capsys, "run", path, "--out", out)
    assert code == 0, printed


def test_two_processes_do_not_share_a_folder(tmp_path, tiny_model, monkeypatch, capsys):
    from lowtax.common.files import locked

    path, out = write_recipe(tmp_path, tiny_model), tmp_path / "out"
    with locked(out):
        code, printed = call(monkeypatch, capsys, "run", path, "--out", out)
    assert code == 2
    assert "Another lowtax process is working in" in printed


def test_another_architecture_runs(tmp_path, monkeypatch, capsys):
    path = write_recipe(
        tmp_path, make_model(tmp_path / "qwen", kind="qwen3"), seeds=[0], arms={"r1": {"mode": "lora_qkvo_mlp_r1"}}
    )
    code, printed = call(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 0, printed


def test_an_output_folder_that_cannot_be_one_is_one_sentence(tmp_path, tiny_model, monkeypatch, capsys):
    path, prompts, replies = (
        write_recipe(tmp_path, tiny_model, engine="fake"),
        tmp_path / "p.jsonl",
        tmp_path / "r.jsonl",
    )
    prompts.write_text('{"prompt": "How?"}\n')
    replies.write_text('{"prompt": "How?", "response": "So."}\n')
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    commands = {
        "run": (path,),
        "train": (path,),
        "sample": ("--model", tiny_model, "--prompts", prompts, "--engine", "fake"),
        "judge": ("--replies", replies, "--judge", "refusal_words"),
    }
    for out in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "dangling", tmp_path / ("a" * 300)):
        for command, words in commands.items():
            code, printed = call(monkeypatch, capsys, command, *words, "--out", out)
            assert code == 2, (command, out, printed)
            assert "Traceback" not in printed
            assert printed.splitlines()[-1].startswith("lowtax: "), printed
    assert (tmp_path / "file").read_text() == "x"
    assert not (tmp_path / "nowhere").exists()


def test_what_no_file_may_do_to_the_process_is_one_sentence(monkeypatch, capsys):
    for error in (MemoryError(), RecursionError("x"), PermissionError(13, "Permission denied", "/x/y")):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(main, "app", fail)
        code, _, printed = in_process(monkeypatch, capsys)
        assert code == 2
        assert printed.startswith("lowtax: ")
        assert printed.count("\n") == 1
    for bug in (KeyError("x"), OSError(22, "Invalid argument"), AssertionError()):
        monkeypatch.setattr(main, "app", lambda bug=bug: (_ for _ in ()).throw(bug))
        with pytest.raises(type(bug)):
            main.main()
