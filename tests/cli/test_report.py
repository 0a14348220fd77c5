"""The commands `report` and `view`, and the page that `run` leaves."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
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
