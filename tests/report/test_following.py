"""`lowtax report --follow` beside a real run, and when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forks
import pytest
from small_study import write_recipe

from lowtax.common.files import locked, write_json
from lowtax.report import bundle, following

ENVIRONMENT = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
PATIENCE = 120  # seconds, on a busy machine


@contextmanager
def lowtax(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that runs meanwhile; it is killed at the end, so that a failing test does not wait for it."""
    command = [sys.executable, "-m", "lowtax", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(path: Path, of: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert of.poll() is None, of.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def overview(page: Path) -> dict:
    """The first view's data, as the browser reads it."""
    text = (page / "data" / "overview.js").read_text()
    written = text.removeprefix("lowtaxData('overview', '").removesuffix("');\n")
    return json.loads(json.loads('"' + written.replace('"', '\\"') + '"'))


def test_the_page_of_a_run_appears_is_written_again_and_ends_with_it(tmp_path: Path, tiny_model: Path):
    one_arm = {"full": {"mode": "full"}}
    path = write_recipe(tmp_path, tiny_model, engine="fake", seeds=[0], arms=one_arm)
    out, page = tmp_path / "out", tmp_path / "page"
    with forks.Command("train", path, "--out", out) as trained:
        trained.communicate(timeout=PATIENCE)
    with lowtax("report", out, "--out", page, "--follow") as following_:
        until(page / "index.html", following_)
        first = overview(page)
        assert first["follow"] is True
        with forks.Command("run", path, "--out", out) as running:  # however short, it comes after the first look
            running.communicate(timeout=PATIENCE)
        said, progress = following_.communicate(timeout=PATIENCE)
        assert (running.returncode, following_.returncode) == (0, 0), progress
    assert said.startswith(f"page: {page / 'index.html'}")
    assert progress.count("page: ") >= 1
    last = overview(page)
    assert (first["follow"], last["follow"]) == (True, False)
    assert first["stamp"] != last["stamp"] == overview(out / "report")["stamp"]
    assert not any("Not finished" in note or "under way" in note for note in last["studies"][0]["notes"])


def test_the_page_of_a_finished_study_is_written_and_the_command_ends(made_study: Path, tmp_path: Path):
    page = tmp_path / "page"
    with lowtax("report", made_study, made_study, "--out", page, "--follow") as running:
        said, progress = running.communicate(timeout=PATIENCE)
    assert (running.returncode, progress) == (0, "")
    assert said.startswith(f"page: {page / 'index.html'}")
    assert overview(page)["follow"] is False


def test_a_study_with_an_arm_that_is_not_made_waits_for_a_run(made_study: Path, tmp_path: Path):
    study = Path(shutil.copytree(made_study, tmp_path / "study"))
    assert next(following.rounds([study])) is True
    shutil.rmtree(study / "arms" / "arm_1")
    assert next(following.rounds([study])) is False
    assert next(following.rounds([made_study, study])) is False
    table = json.loads((study / "table.json").read_text())
    write_json(study / "table.json", table | {"failed": [{"arm": "arm_1", "seed": 0, "reason": "x"}]})
    assert next(following.rounds([study])) is True  # the run ended, although an arm failed
    (study / "card.json").unlink()
    assert next(following.rounds([study])) is False


def test_ctrl_c_leaves_a_whole_page(made_study: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path):
    study = Path(shutil.copytree(made_study, tmp_path_factory.mktemp("under way") / "study"))
    shutil.rmtree(study / "arms" / "arm_1")
    page = tmp_path / "page"
    with lowtax("report", study, "--out", page, "--follow") as running:
        until(page / "index.html", running)
        running.send_signal(signal.SIGINT)
        _, progress = running.communicate(timeout=PATIENCE)
    assert (running.returncode, progress.splitlines()[-1]) == (0, f"stopped; {page} stays as it is")
    assert bundle.is_page(page)
    assert overview(page)["rows"]
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_rounds_end_once_a_run_that_was_seen_lets_go_of_its_folder(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "table.json").write_text("{}")
    rounds = following.rounds([tmp_path], every=0.01)
    assert next(rounds) is False  # no run yet: one is waited for
    with locked(tmp_path):
        (tmp_path / "card.json").write_text("{}")
        assert next(rounds) is False
    (tmp_path / "table.json").write_text("{  }")
    assert list(rounds) == [True]


def test_rounds_end_after_a_run_that_came_and_went_between_two_looks(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "table.json").write_text("{}")
    rounds = following.rounds([tmp_path], every=0.01)
    assert next(rounds) is False
    with locked(tmp_path):
        (tmp_path / "table.json").write_text("{ }")
    assert list(rounds) == [True]
