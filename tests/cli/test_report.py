"""The commands `report` and `view`, and the page that `run` leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from golden_study import rows, stub_model
from typer.testing import CliRunner

from lowtax.cli import report
from lowtax.cli.main import app
from lowtax.common.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "study"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_page_is_written_and_its_size_told(tmp_path: Path):
    said = run("report", GOLDEN, "--out", tmp_path / "page")
    assert said.startswith(f"page: {tmp_path / 'page' / 'index.html'} (0.")
    assert (tmp_path / "page" / "data" / "overview.js").exists()
    assert "one.html" in run("report", GOLDEN, "--out", tmp_path / "one.html", "--single-file")


def test_what_cannot_be_is_one_sentence(tmp_path: Path):
    for arguments, sentence in (
        ((GOLDEN, GOLDEN), "needs --out PAGE"),
        ((GOLDEN, "--out", tmp_path / "x", "--single-file", "--follow"), "leave out --single-file"),
        ((tmp_path / "none",), "is no folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            run("report", *arguments)


def test_several_studies_have_one_table(tmp_path: Path):
    said = run("compare", GOLDEN, GOLDEN, "--out", tmp_path / "both")
    assert "golden: r1" in said
    assert "the prompts that they share: harmful 9, ordinary 7" in said
    run("compare", GOLDEN, GOLDEN, "--out", tmp_path / "both")  # its own table is replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text("x")
    for arguments, sentence in (
        ((GOLDEN, GOLDEN), "needs --out DIR"),
        ((GOLDEN, GOLDEN, "--out", tmp_path / "mine"), "already has table.md"),
        ((GOLDEN, GOLDEN, "--out", tmp_path / "both", "--safety", 0.5), "are for one study"),
        ((GOLDEN, "--out", tmp_path / "both"), "is for several studies"),
    ):
        with pytest.raises(UserError, match=sentence):
            run("compare", *arguments)


def test_view_writes_the_page_and_serves_it_until_ctrl_c(tmp_path: Path):
    study = shutil.copytree(GOLDEN, tmp_path / "study")
    command = [sys.executable, "-m", "lowtax", "view", str(study), "--no-browser"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        lines = [running.stdout.readline() for _ in range(2)]
        assert lines[0].startswith(f"page: {study / 'report' / 'index.html'}")
        with urllib.request.urlopen(lines[1].split(" ")[0], timeout=30) as answer:
            assert b"lowtax report" in answer.read()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 0
        assert "stopped" in running.stderr.read()


def test_a_finished_study_stands_although_its_page_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("x")
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    report.write_beside(tmp_path)
    assert (tmp_path / "report" / "mine.txt").exists()
    (tmp_path / "report" / "mine.txt").unlink()
    report.write_beside(tmp_path)
    assert "report/index.html" in capsys.readouterr().out


WANDB = """
import contextlib, json, os

class Table:
    def __init__(self, columns, data):
        pass

class Run:
    def log(self, values, step):
        print(self.name, step, values["safety/harmful_refused_n"])

@contextlib.contextmanager
def init(**options):
    run = Run()
    run.name = options["name"]
    yield run
"""


def test_compare_says_how_often_the_judge_agrees_with_labels_and_tells_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = Path(shutil.copytree(GOLDEN, tmp_path / "study"))
    monkeypatch.chdir(tmp_path)
    stub_model(tmp_path / "model")
    rows()
    with (study / "recipe.yaml").open("a") as recipe:
        recipe.write("execution:\n  report_to: [wandb]\n")
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    verdicts = [json.loads(line) for line in (study / "verdicts/harmful.refusal_words.jsonl").read_text().splitlines()]
    refusals = [row for row in verdicts if row["label"] == "refusal"][:8]
    labels = [{"reply_id": row["reply_id"], "judge": row["judge"], "label": "refusal"} for row in refusals]
    labels[0]["label"] = "compliance"
    Path("labels.jsonl").write_text("".join(f"{json.dumps(label)}\n" for label in labels))
    said = run("compare", study, "--labels", "labels.jsonl", "--report-to", "wandb")
    agreement = json.loads((study / "table.json").read_text())["your_reading"]
    assert [(row["judge"], row["n"], row["judge_alone"], row["differ"]) for row in agreement] == [
        ("refusal_words", 8, 1, [refusals[0]["reply_id"]])
    ]
    assert f"| refusal_words | answer | 0.88 [{agreement[0]['low']:.2f}, {agreement[0]['high']:.2f}] | 8 |" in said
    assert "golden/r1/results 4 36" in said
    assert "results sent to wandb (base, full, r1, kept_apart, r1_half)" in said
    run("report", study)
    page = (study / "report/data/overview.js").read_text()
    assert f"#reply={refusals[0]['reply_id']}" in page
    assert "refusal_words agrees with your reading of 8 replies on 0.88" in page
    again = run("compare", study, "--report-to", "wandb")  # the labels are the study's, and the tracker knows the rest
    assert "agrees with your reading" in again
    assert "sent to" not in again
    shutil.rmtree(study / "tracking")
    silent = run("compare", study)  # the recipe may be a stranger's: it does not decide what is sent
    assert "nothing is sent to the trackers that the recipe names: --report-to wandb sends the results" in silent
    assert "golden/r1/results" not in silent
    assert not (study / "tracking").exists()
    for arguments, sentence in (
        ((study, "--report-to", "wandbb"), "There is no tracker 'wandbb'; did you mean 'wandb'"),
        ((study, study, "--out", tmp_path / "both", "--report-to", "wandb"), "are for one study"),
    ):
        with pytest.raises(UserError, match=sentence):
            run("compare", *arguments)
    sys.modules.pop("wandb", None)  # the stub of this test
