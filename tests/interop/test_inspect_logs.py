"""Inspect logs: what Inspect itself reads in them, and where it is not installed, the fields that it needs."""

import json
import warnings
from pathlib import Path

import pytest
import yaml

from lowtax import benchmarks, evaluate, inspect_log
from lowtax.errors import UserError
from lowtax.files import append_rows, write_json
from lowtax.recipe import Task
from lowtax.records import Reply, row_id
from lowtax.rendering import split_reply

TASK = Task(n=4)
ROWS = benchmarks.load("arithmetic", TASK).rows()
MODEL = "builtin:smollm2-135m"


def texts(gold: str) -> list[str]:
    """A right answer, a wrong one, one without a box, one whose thought never ends."""
    return [
        f"I add \u00fc.\n</think>\n\nIt is \\boxed{{{gold}}}.",
        "Hm.\n</think>\n\n\\boxed{-99999}",
        "Hm.\n</think>\n\nNo idea.",
        "Hm, hm",
    ]


def reply(arm: str, question: int, sample: int, kind: int, failed: bool = False) -> Reply:
    row, base = ROWS[question], arm == "base"
    text = "" if failed else texts(str(row.gold))[kind]
    parts = split_reply(text, opened=True)
    return Reply(
        id=row_id(arm, question, sample),
        arm=arm,
        seed=None if base else 1,
        checkpoint=None if base else "checkpoint-4",
        source="arithmetic",
        prompt_id=row.id,
        prompt=row.text,
        sample=sample,
        text=text,
        thought=parts.thought,
        answer=parts.answer,
        closed=parts.closed,
        finish="failed" if failed else "stop" if parts.closed else "length",
        tokens=0 if failed else 7,
        error="no memory" if failed else None,
        category=row.category,
    )


# question -> the kinds of its two samples
BASE = {0: (0, 0), 1: (0, 1), 2: (2, 3), 3: (1, 0)}
ARM = {0: (0, 3), 1: (0, 0), 2: (3, 3), 3: (1, 1)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `lowtax evaluate` leaves: the base and an arm, two samples of four questions, one reply failed."""
    replies = [reply("base", q, k, kind) for q, kinds in BASE.items() for k, kind in enumerate(kinds)]
    replies += [
        reply("r1", q, k, kind, failed=(q, k) == (1, 1)) for q, kinds in ARM.items() for k, kind in enumerate(kinds)
    ]
    append_rows(tmp_path / "answers" / "arithmetic.jsonl", replies)
    exam = benchmarks.load("arithmetic", TASK)
    rows = {row.id: row for row in ROWS}
    evaluate.grade(replies, "arithmetic", exam, rows, tmp_path / "grades" / "arithmetic.jsonl")
    card = {
        "model": MODEL,
        "tasks": {"arithmetic": TASK.model_dump(mode="json")},
        "versions": {"python": "3.11.7", "lowtax": "0.1.0"},
    }
    write_json(tmp_path / "card.json", card)
    return tmp_path


def export(folder: Path, out: Path) -> dict[str, dict]:
    list(inspect_log.write(folder, out))
    logs = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return {log["eval"]["model"]: log for log in logs}


def test_every_checkpoint_has_a_log_with_its_accuracy(folder, tmp_path):
    said = list(inspect_log.write(folder, tmp_path / "logs"))
    logs = export(folder, tmp_path / "logs")
    assert set(logs) == {MODEL, f"{MODEL}@r1/seed-1/checkpoint-4"}
    assert [line.partition(": ")[2] for line in said] == [
        f"{MODEL}, 8 answers, accuracy 0.5000",
        f"{MODEL}@r1/seed-1/checkpoint-4, 8 answers, accuracy 0.3750",
    ]
    results = logs[f"{MODEL}@r1/seed-1/checkpoint-4"]["results"]
    assert (results["total_samples"], results["completed_samples"]) == (8, 7)
    assert results["metadata"] == {"unfinished": 3, "no_answer": 0, "failed": 1}
    assert logs[MODEL]["results"]["metadata"] == {"unfinished": 1, "no_answer": 1, "failed": 0}


def test_a_sample_has_thought_answer_end_and_grade(folder, tmp_path):
    log = export(folder, tmp_path / "logs")[MODEL]
    right, *_ = log["samples"]
    assert (right["id"], right["epoch"], right["target"]) == (ROWS[0].id, 1, ROWS[0].gold)
    assert right["output"]["choices"][0]["message"]["content"] == [
        {"type": "reasoning", "reasoning": "I add \u00fc."},
        {"type": "text", "text": f"It is \\boxed{{{ROWS[0].gold}}}."},
    ]
    assert right["output"]["choices"][0]["stop_reason"] == "stop"
    assert (right["scores"]["lowtax"]["value"], right["scores"]["lowtax"]["answer"]) == ("C", ROWS[0].gold)
    empty, cut = (sample for sample in log["samples"] if sample["id"] == ROWS[2].id)
    assert [sample["scores"]["lowtax"]["value"] for sample in (empty, cut)] == ["N", "N"]
    assert (cut["output"]["completion"], cut["output"]["choices"][0]["stop_reason"]) == ("", "max_tokens")
    assert cut["scores"]["lowtax"]["explanation"] == "unfinished"
    assert log["plan"]["config"] == {"max_tokens": 32768, "temperature": 0.6, "top_p": 0.95}


def test_a_failed_reply_has_an_error_and_no_score(folder, tmp_path):
    log = export(folder, tmp_path / "logs")[f"{MODEL}@r1/seed-1/checkpoint-4"]
    [failed] = [sample for sample in log["samples"] if "error" in sample]
    assert (failed["error"]["message"], failed["scores"], failed["epoch"]) == ("no memory", {}, 2)


def test_exporting_twice_gives_the_same_files(folder, tmp_path):
    export(folder, tmp_path / "logs")
    first = {path.name: path.read_bytes() for path in (tmp_path / "logs").iterdir()}
    export(folder, tmp_path / "logs")
    assert {path.name: path.read_bytes() for path in (tmp_path / "logs").iterdir()} == first


def test_a_study_gives_the_model_and_the_settings(folder, tmp_path):
    (folder / "card.json").unlink()
    task = {"benchmark": "arithmetic", "n": 4, "sampling": {"max_new_tokens": 64, "top_k": 20, "samples": 2}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": "some/model", "tasks": {"arithmetic": task}}))
    log = export(folder, tmp_path / "logs")["some/model"]
    assert log["plan"]["config"] == {"max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "top_k": 20}
    assert log["eval"]["task_args"]["n"] == 4


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(UserError, match=r"has no answers/\*\.jsonl"):
        list(inspect_log.write(tmp_path / "nowhere", tmp_path / "logs"))
    append_rows(folder / "answers" / "arithmetic.jsonl", [reply("r2", 0, 0, 0)])
    with pytest.raises(UserError, match="has 17 answers, 1 of them not graded"):
        list(inspect_log.write(folder, tmp_path / "logs"))


def test_inspect_reads_the_logs_and_computes_the_same(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = pytest.importorskip("inspect_ai.log", reason="needs inspect_ai: pip install 'lowtax[inspect]'")
        export(folder, tmp_path / "logs")
        found = [log.read_eval_log(info) for info in log.list_eval_logs(str(tmp_path / "logs"))]
        assert len(found) == 2
        for read in found:
            [ours] = read.results.scores
            values = {name: metric.value for name, metric in ours.metrics.items()}
            log.recompute_metrics(read)
            [theirs] = read.results.scores
            assert {name: metric.value for name, metric in theirs.metrics.items()} == pytest.approx(values)
            graded = [sample for sample in read.samples if not sample.error]
            assert all(sample.output.message.content[0].type == "reasoning" for sample in graded)
            assert all(sample.output.completion == sample.output.message.text for sample in graded)
            header = log.read_eval_log(read.location, header_only=True)
            assert (header.samples, header.eval.task) == (None, "arithmetic")
