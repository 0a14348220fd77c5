"""A study that is kept without weights and texts: the same figures, no text, and its base for another."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lowtax.benchmarks import base, evaluate
from lowtax.common.errors import UserError
from lowtax.common.records import Reply
from lowtax.judges.verdicts import judge_replies
from lowtax.models.fingerprint import base_in, record_base

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "study"


@pytest.fixture(scope="module")
def stored_study():
    spec = importlib.util.spec_from_file_location("stored_study", ROOT / "bench" / "stored_study.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read(folder: Path) -> dict[str, dict]:
    """All rows of a study by id."""
    paths = [
        p for name in ("replies", "answers", "verdicts", "grades") for p in sorted((folder / name).glob("*.jsonl"))
    ]
    return {row["id"]: row for p in paths for row in map(json.loads, p.read_text().splitlines())}


def test_texts_become_hashes_and_verdicts_stay(stored_study, tmp_path: Path):
    stored_study.keep(GOLDEN, tmp_path / "kept")
    before, after = read(GOLDEN), read(tmp_path / "kept")
    assert before.keys() == after.keys()
    texts = [row["text"] for row in before.values() if row.get("text")]
    everything = "".join(p.read_text() for p in (tmp_path / "kept").rglob("*.jsonl"))
    assert len(texts) > 100
    assert not [text for text in texts if text in everything]
    for key in ("label", "correct", "finish", "tokens", "closed", "gold", "prompt_id"):
        assert [row.get(key) for row in before.values()] == [row.get(key) for row in after.values()]


def test_a_study_begins_with_the_base_of_another(stored_study, tmp_path: Path):
    stored_study.bases(GOLDEN, tmp_path / "new")
    rows = read(tmp_path / "new")
    assert {row["arm"] for row in rows.values() if "arm" in row} == {"base"}
    assert {row["reply_id"] for row in rows.values() if "reply_id" in row} <= rows.keys()
    assert sum("correct" in row for row in rows.values()) > 0


def test_rows_of_the_base_keep_their_ids_in_the_study_that_begins_with_them(
    stored_study, tmp_path: Path, tiny_model: Path
):
    """The ids are made of the base's; with another one they would be drawn again."""
    kept = shutil.copytree(GOLDEN, tmp_path / "kept")
    (kept / "base.json").unlink(missing_ok=True)
    record_base(kept, replace(base_in(tmp_path / "none", str(tiny_model)), made_by="of the rows"))
    stored_study.bases(kept, tmp_path / "new")
    assert base_in(tmp_path / "new", str(tiny_model)).made_by == "of the rows"


def test_hashes_are_neither_judged_nor_graded(stored_study, tmp_path: Path):
    """Judged as texts they would all be compliances, and all answers wrong."""
    stored_study.keep(GOLDEN, tmp_path / "kept")
    files = {p: p.read_bytes() for p in (tmp_path / "kept").rglob("*.json*")}
    replies = [Reply(**row) for row in read(tmp_path / "kept").values() if "tokens" in row]
    with pytest.raises(UserError, match=r"replies that .*new\.jsonl needs are kept as hashes"):
        judge_replies(replies, tmp_path / "new.jsonl", "refusal_words", "answer")
    with pytest.raises(UserError, match="kept as hashes"):
        evaluate.grade(replies, "gsm8k", base.load("gsm8k", base.Task()), {}, tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()
    assert files == {p: p.read_bytes() for p in (tmp_path / "kept").rglob("*.json*")}


def test_a_hash_that_a_model_wrote_is_a_text(tmp_path: Path):
    reply = next(Reply(**row) for row in read(GOLDEN).values() if "tokens" in row)
    hashed = reply.model_copy(update={"text": "0" * 64, "answer": "0" * 64, "closed": True})
    assert judge_replies([hashed], tmp_path / "new.jsonl", "refusal_words", "answer")[reply.id].label == "compliance"
