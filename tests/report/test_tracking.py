"""Results of a study for trackers: what is sent, that no harmful text is, and that nothing is sent twice."""

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.common.files import write_json
from lowtax.report import tracking
from lowtax.training.settings import Execution

RECORDING_WANDB = """
import contextlib, json, os

class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data

class Run:
    def log(self, values, step):
        shown = {k: [v.columns, v.data] if isinstance(v, Table) else v for k, v in values.items()}
        with open(os.environ["RECORD"], "a") as handle:
            handle.write(json.dumps([self.name, step, shown]) + "\\n")

@contextlib.contextmanager
def init(**options):
    if os.environ.get("REFUSE"):
        raise RuntimeError("no room\\nat all")
    run = Run()
    run.name = options["name"]
    yield run
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file to which a package `wandb` writes everything that it is sent."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(RECORDING_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("RECORD", str(tmp_path / "record.jsonl"))
    yield tmp_path / "record.jsonl"
    sys.modules.pop("wandb", None)


@pytest.fixture
def study(made_study: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_study, tmp_path / "study")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_rate_has_its_interval_and_n_at_the_step_of_its_checkpoint(study: Path):
    every = {arm.arm: arm for arm in tracking.results(study, 0, False)}
    assert list(every) == ["base", "arm_0", "arm_1", "arm_2"]
    assert every["arm_1"].name == "made/arm_1/results"
    table = json.loads((study / "table.json").read_text())
    for row in table["rows"]:
        figures = dict(every[row["arm"]].figures)[row["step"]]
        for name, cell in (
            ("safety/harmful_refused", row["safety"]),
            ("safety/ordinary_refused", row["over_refusal"]),
            ("reasoning/sums_solved", row["reasoning"]["sums"]),
        ):
            sent = [figures[name + end] for end in ("", "_low", "_high", "_n")]
            assert sent == [cell["value"], cell["low"], cell["high"], cell["n"]]
        assert figures.get("reasoning/tax") == (None if row["arm"] == "base" else 0.01)
        assert not any("categor" in name or "fraud" in name for name in figures)


def test_the_place_at_matched_safety_is_sent_with_the_last_checkpoint(study: Path):
    table = json.loads((study / "table.json").read_text())
    place = {"step": 61.5, "reached": 0.9, "tax": {"value": 0.1, "low": 0.0, "high": 0.2}}
    for row in table["rows"]:
        row["at_matched_safety"] = place if row["arm"] == "arm_0" else None
    write_json(study / "table.json", table)
    first, last = next(arm for arm in tracking.results(study, 0, False) if arm.arm == "arm_0").figures
    assert not any(name.startswith("matched") for name in first[1])
    own = {name: value for name, value in last[1].items() if name.startswith("matched_safety/")}
    assert own == {
        "matched_safety/step": 61.5,
        "matched_safety/reached": 0.9,
        "matched_safety/tax": 0.1,
        "matched_safety/tax_low": 0.0,
        "matched_safety/tax_high": 0.2,
    }


@pytest.mark.parametrize("harmful", [False, True])
def test_the_sample_has_the_same_prompts_for_all_arms_and_harmful_text_only_if_allowed(study: Path, harmful: bool):
    every = tracking.results(study, 3, harmful)
    for arm in every:
        assert [row[0] for row in arm.replies] == 3 * ["made-harmful"] + 3 * ["made-ordinary"] + 3 * ["sums"]
        assert [row[1] for row in arm.replies] == [row[1] for row in every[0].replies]
    stored = {
        row["prompt_id"]: row
        for kind in ("harmful", "ordinary")
        for row in rows(study / "replies" / f"{kind}.jsonl")
        if (row["arm"], row["checkpoint"]) == ("arm_2", "checkpoint-100")
    }
    verdicts = {
        row["reply_id"]: row["label"]
        for kind in ("harmful", "ordinary")
        for row in rows(study / "verdicts" / f"{kind}.refusal.jsonl")
    }
    for set_, id_, category, verdict, prompt, thought, answer in every[-1].replies[:6]:
        row = stored[id_]
        assert (category, verdict) == (row["category"], verdicts[row["id"]])
        texts = (row["prompt"], row["thought"], row["answer"])
        hidden = set_ == "made-harmful" and not harmful
        assert (prompt, thought, answer) == ((tracking.HIDDEN, "", "") if hidden else texts)
    assert ("harmful request" in json.dumps([arm.replies for arm in every])) == harmful


def test_results_are_sent_once_and_again_when_they_change(study: Path, record: Path):
    execution = Execution(report_to=["wandb"], report_replies=2)
    assert tracking.send(study, execution) == {"wandb": ["base", "arm_0", "arm_1", "arm_2"]}
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(name, step) for name, step, _ in lines[:3]] == [
        ("made/base/results", 0),
        ("made/arm_0/results", 50),
        ("made/arm_0/results", 100),
    ]
    assert "replies" not in lines[1][2]
    columns, data = lines[2][2]["replies"]
    assert (columns, len(data)) == (list(tracking.COLUMNS), 6)
    assert "harmful request" not in record.read_text()
    assert tracking.send(study, execution) == {}
    table = json.loads((study / "table.json").read_text())
    table["rows"][-1]["safety"]["value"] = 0.5
    write_json(study / "table.json", table)
    assert tracking.send(study, execution) == {"wandb": ["arm_2"]}


def test_a_tracker_that_refuses_is_a_sentence_and_the_other_arms_are_not_lost(
    study: Path, record: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REFUSE", "yes")
    with pytest.raises(UserError, match=r"base were not sent to wandb \(no room\); the study is complete") as caught:
        tracking.send(study, Execution(report_to=["wandb"]))
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("REFUSE")
    assert tracking.send(study, Execution(report_to=["wandb"]))["wandb"][0] == "base"


def test_nothing_is_sent_without_a_table_through_a_link_or_without_trackers(study: Path, record: Path, tmp_path: Path):
    assert tracking.send(study, Execution()) == {}
    (study / tracking.FOLDER).symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        tracking.send(study, Execution(report_to=["wandb"]))
    (study / tracking.FOLDER).unlink()
    (study / "table.json").unlink()
    with pytest.raises(UserError, match="has no table"):
        tracking.send(study, Execution(report_to=["wandb"]))
    assert not record.exists()


def test_tensorboard_shows_an_arm_and_its_files_are_replaced(study: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        tracking.send(study, Execution(report_to=["tensorboard"]))
        (study / tracking.FOLDER / tracking.SENT).unlink()
    (file,) = (study / tracking.FOLDER / "arm_0").iterdir()
    events = EventAccumulator(str(file.parent)).Reload()
    assert [event.step for event in events.Scalars("safety/harmful_refused_low")] == [50, 100]
    [text] = events.Tensors("replies/text_summary")
    assert b"| made-ordinary |" in text.tensor_proto.string_val[0]
    assert b"harmful request" not in file.read_bytes()


def test_trackio_has_every_arm(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    assert tracking.send(study, Execution(report_to=["trackio"]))["trackio"][-1] == "arm_2"
    with sqlite3.connect(tmp_path / "trackio" / "lowtax.db") as stored:
        listed = stored.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in listed} == {f"made/{arm}/results" for arm in ("base", "arm_0", "arm_1", "arm_2")}
    assert "ordinary request" in str(listed)
    assert "harmful request" not in str(listed)


def test_wandb_takes_every_arm_offline(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    assert tracking.send(study, Execution(report_to=["wandb"]))["wandb"][-1] == "arm_2"
    tables = list(tmp_path.rglob("replies_*.table.json"))
    assert len(tables) == 4
    assert all("ordinary request" in path.read_text() for path in tables)
    assert not any(
        b"harmful request" in path.read_bytes() for path in tmp_path.rglob("offline-run-*/**/*") if path.is_file()
    )
