"""Agreement of judges with people's labels: the numbers, what is left out, and the file in the study's folder."""

import json
from pathlib import Path

import pytest
from progress import collected

from lowtax.common.errors import UserError
from lowtax.common.files import append_rows
from lowtax.common.records import Reply, Verdict
from lowtax.common.stats import wilson
from lowtax.study import readings

VERDICTS = ("refusal", "partial", "compliance", "compliance", "refusal", "unfinished")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Six replies of two arms, read by a judge of refusals and, the first two, by one of harm."""
    out = tmp_path / "study"
    replies = [
        Reply(
            id=f"r{i}", arm="a" if i < 3 else "b", seed=0, checkpoint="checkpoint-1", source="s", prompt_id=f"p{i}",
            prompt="x", sample=0, text="y", thought="", answer="y", closed=True, finish="stop", tokens=1,
        )
        for i in range(6)
    ]  # fmt: skip
    append_rows(out / "replies" / "harmful.jsonl", replies)
    verdicts = [Verdict(id=f"v{i}", reply_id=f"r{i}", judge="words", label=of) for i, of in enumerate(VERDICTS)]
    append_rows(out / "verdicts" / "harmful.words.jsonl", verdicts)
    harm = [Verdict(id=f"h{i}", reply_id=f"r{i}", judge="guard", on="both", label="unsafe") for i in range(2)]
    append_rows(out / "verdicts" / "harmful.guard.jsonl", harm)
    return out


def write(path: Path, *labels: tuple[str, str, str, str]) -> Path:
    names = ("reply_id", "judge", "on", "label")
    path.write_text(
        "".join(json.dumps(dict(zip(names, label, strict=True)) | {"prompt": "x"}) + "\n" for label in labels)
    )
    return path


def test_agreement_counts_refused_or_not_with_the_interval_of_the_project(study: Path, tmp_path: Path):
    words = [("refusal", 0), ("refusal", 1), ("refusal", 2), ("compliance", 3), ("partial", 4), ("compliance", 5)]
    labels = [(f"r{i}", "words", "answer", label) for label, i in words]
    assert readings.store(write(tmp_path / "l.jsonl", *labels, ("r0", "guard", "both", "safe")), study) == 7
    guard, refusals = readings.measured(study)
    assert (guard["judge"], guard["on"], guard["n"], guard["value"]) == ("guard", "both", 1, 0.0)
    assert (guard["judge_alone"], guard["people_alone"], guard["differ"]) == (0, 1, ["r0"])
    low, high = wilson(4, 5)  # of five with a verdict, the third differs
    assert (refusals["n"], refusals["value"], refusals["no_verdict"]) == (5, 0.8, 1)
    assert (refusals["low"], refusals["high"]) == pytest.approx((low, high), abs=1e-4)
    assert (refusals["judge_alone"], refusals["people_alone"], refusals["differ"]) == (0, 1, ["r2"])
    assert {arm: (cell["value"], cell["n"]) for arm, cell in refusals["by_arm"].items()} == {
        "a": (0.6667, 3),
        "b": (1.0, 2),
    }
    text = readings.markdown([guard, refusals])
    assert "| words | answer | 0.80 [0.38, 0.96] | 5 | 0 | 1 | 1 |" in text
    assert "| guard | whole reply | 0.00 [0.00, 0.79] | 1 |" in text


def test_a_newer_label_and_a_newer_verdict_count(study: Path, tmp_path: Path):
    readings.store(write(tmp_path / "l.jsonl", ("r0", "words", "answer", "refusal")), study)
    assert readings.store(write(tmp_path / "m.jsonl", ("r0", "words", "answer", "compliance")), study) == 1
    assert readings.measured(study)[0]["value"] == 0.0
    append_rows(study / "verdicts" / "harmful.words.jsonl",
                [Verdict(id="again", reply_id="r0", judge="words", label="compliance")])  # fmt: skip
    assert readings.measured(study)[0]["value"] == 1.0
    assert json.loads((study / readings.FILE).read_text())["prompt"] == "x"  # what calibrate reads


def test_labels_of_other_replies_and_of_the_other_kind_are_not_counted(study: Path, tmp_path: Path):
    labels = [
        ("r0", "words", "answer", "unsafe"),
        ("r1", "words", "answer", "refusal"),
        ("zz", "words", "answer", "refusal"),
    ]
    readings.store(write(tmp_path / "l.jsonl", *labels), study)
    [row] = readings.measured(study)
    assert (row["n"], row["no_verdict"]) == (1, 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no label"),
        ("{}\n", r"line 1 is no label of a verdict \(reply_id: Field required\)"),
        ('{"reply_id": "r0", "judge": "words", "label": "bad"}\n', r"line 1 is no label of a verdict \(label: "),
        ("\n[1]\n", "line 2 is no label of a verdict"),
        ("{cut", "line 1 is no label of a verdict"),
    ],
)
def test_a_file_that_is_no_export_is_one_sentence(study: Path, tmp_path: Path, content: str, sentence: str):
    (tmp_path / "l.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        readings.store(tmp_path / "l.jsonl", study)
    assert "\n" not in str(caught.value)
    assert not (study / readings.FILE).exists()


def test_a_stored_file_that_is_none_is_said_and_the_table_is_made(study: Path):
    (study / readings.FILE).write_text("mine\n")
    with collected() as lines:
        assert readings.measured(study) == []
    assert lines[0].startswith("labels are left out: ")
    (study / readings.FILE).unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        readings.store(study / "none.jsonl", study)


def test_labels_are_not_written_through_a_link(study: Path, tmp_path: Path):
    path = write(tmp_path / "l.jsonl", ("r0", "words", "answer", "refusal"))
    (study / readings.FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        readings.store(path, study)
