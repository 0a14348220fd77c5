"""A stored study stays valid: its row ids, file formats, verdicts, grades and figures do not change unseen.

`tests/golden/study` was written by version 0.1.0 (commit 0a655e1). A test that fails here means that a user's stored
study would be sampled, judged or read differently from now on.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from golden_study import FOLDER, RECIPE, rows, stub_model

from lowtax.common.records import Grade, Prompt, Reply, Verdict, row_id
from lowtax.study import recipe, study

STAGES = {"replies": Reply, "answers": Reply, "verdicts": Verdict, "grades": Grade}
FILES = sorted(p for p in (FOLDER / "study").glob("*/*.jsonl"))
NEW = ["base.json", "lowtax_base.json"]  # files with the fingerprint of the base, newer than the stored study
FREE = {"seconds", "versions", "hardware", "git", "peak_memory_gb", "train_seconds", "made_by_hash"}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored study, in a folder that has the model and the rows which its recipe names."""
    shutil.copytree(FOLDER / "study", tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    stub_model(tmp_path / "model")
    rows()
    return tmp_path / "study"


def opened(folder: Path) -> study.Study:
    os.chdir(folder.parent)
    return study.Study.open(Path("study"))


def shape(value: object) -> object:
    """The keys and types of a JSON value, without its numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def pruned(value: object) -> object:
    """A JSON value without what differs from machine to machine."""
    if isinstance(value, dict):
        return {key: pruned(inner) for key, inner in value.items() if key not in FREE}
    return [pruned(inner) for inner in value] if isinstance(value, list) else value


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_row_ids():
    assert row_id("a", 1, None, {"b": [2.5, True]}) == "1bb10b11e304d079"
    assert row_id(Path("x")) == row_id("x")
    assert row_id({"b": 1, "a": 2}) == row_id({"a": 2, "b": 1})


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_row_is_read_and_written_back_as_it_was(path: Path):
    kind = STAGES[path.parent.name]
    for line in path.read_text().splitlines():
        assert kind.model_validate_json(line).model_dump_json() == line


def test_prompts_have_the_fields_they_had():
    older = ["id", "source", "text", "category", "gold", "goal", "choices", "problem"]
    assert list(Prompt.model_fields) == [*older, "attacked"]


def test_a_stored_study_has_nothing_left_to_do(stored: Path):
    before = {path: path.read_bytes() for path in stored.rglob("*.jsonl")}
    work = opened(stored)
    work.train()
    work.sample([*work.reply_sheets().values(), *work.answer_sheets().values()])
    work.compare()
    after = {path: path.read_bytes() for path in stored.rglob("*.jsonl")}
    assert after == before
    # Its mode string meant the corrected penalty: another seed of the arm is trained with that one, too.
    assert "as_published" not in work.job("kept_apart", 2).methods[0]


def test_replies_are_drawn_again_as_they_were(stored: Path):
    for path in [*stored.glob("replies/*.jsonl"), *stored.glob("answers/*.jsonl")]:
        path.unlink()
    work = opened(stored)
    work.sample([*work.reply_sheets().values(), *work.answer_sheets().values()])
    for path in [p for p in FILES if p.parent.name in ("replies", "answers")]:
        again = stored / path.relative_to(FOLDER / "study")
        assert sorted(again.read_text().splitlines()) == sorted(path.read_text().splitlines()), path.name


def test_verdicts_grades_and_figures_are_made_again_as_they_were(stored: Path):
    for path in [*stored.glob("verdicts/*.jsonl"), *stored.glob("grades/*.jsonl"), *stored.glob("table.*")]:
        path.unlink()
    opened(stored).compare()
    for path in [p for p in FILES if p.parent.name in ("verdicts", "grades")]:
        again = stored / path.relative_to(FOLDER / "study")
        assert sorted(again.read_text().splitlines()) == sorted(path.read_text().splitlines()), path.name
    table = [json.loads((folder / "table.json").read_text()) for folder in (stored, FOLDER / "study")]
    assert pruned(table[0]) == pruned(table[1])
    assert (stored / "table.md").read_text() == (FOLDER / "study" / "table.md").read_text()


def test_a_new_run_writes_the_same_files_in_the_same_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    stub_model(tmp_path / "model")
    rows()
    settings = recipe.Recipe.model_validate(RECIPE)
    study.Study(settings, Path("study")).run()
    files = [p.relative_to("study") for p in Path("study").rglob("*") if p.is_file()]
    bases = [p for p in files if p.name in NEW]
    assert sorted({p.name for p in bases}) == NEW
    listing = sorted(str(p) for p in set(files) - set(bases))
    assert listing == json.loads((FOLDER / "listing.json").read_text())
    for path in sorted((FOLDER / "study").rglob("*.json")):
        again = json.loads((Path("study") / path.relative_to(FOLDER / "study")).read_text())
        was = json.loads(path.read_text())
        if path.name == "card.json":  # a git commit is there or not
            again["git"] = was["git"] = None
        if path.name == "table.json":  # newer: the machine in the table, and its processor everywhere
            assert again.pop("hardware")["cpu_threads"] >= 1
        for name in ("cpu", "arithmetic"):
            assert isinstance(again.get("hardware", {name: ""}).pop(name), str)
        if path.parts[-3] == "kept_apart":  # a mode string now means the published penalty
            assert again["job"]["methods"][0].pop("as_published")
        if path.name == "updates.json":  # by ids, which no longer have names and times of the base's files
            assert sorted(map(str, map(shape, again.values()))) == sorted(map(str, map(shape, was.values())))
            continue
        assert shape(again) == shape(was), path
    for path in sorted((FOLDER / "study").rglob("steps.jsonl")):
        again = lines(Path("study") / path.relative_to(FOLDER / "study"))
        for now, was in zip(again, lines(path), strict=True):
            assert now.keys() == was.keys()
            assert now["loss"] == pytest.approx(was["loss"], rel=1e-3)
            assert now["grad_norm"] == pytest.approx(was["grad_norm"], rel=1e-2)
            assert (now["lr"], now["tokens"]) == (was["lr"], was["tokens"])
    for arm in ("full", "r1", "kept_apart"):
        cards = [
            json.loads((root / f"arms/{arm}/seed-1/card.json").read_text())
            for root in (Path("study"), FOLDER / "study")
        ]
        if arm == "kept_apart":
            assert cards[0]["job"]["methods"][0].pop("as_published")
        assert cards[0]["job"] == cards[1]["job"], arm
