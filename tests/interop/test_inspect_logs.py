"""Inspect logs: their fields, what Inspect itself reads in them, and one sentence where it is not installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowtax.benchmarks import evaluate
from lowtax.benchmarks.base import Task, load
from lowtax.common.errors import UserError
from lowtax.common.files import append_rows, read_rows, write_json
from lowtax.common.records import Grade, Reply, row_id
from lowtax.data.rendering import split_reply
from lowtax.interop import inspect_logs
from lowtax.study import api

TASK = Task(n=4)
ROWS = load("arithmetic", TASK).rows()
MODEL = "builtin:smollm2-135m"


def inspect_log() -> Any:
    """Inspect's module of logs. Its import takes a second, and every process of the tests imports this file."""
    import inspect_ai.log

    return inspect_ai.log


def logs_in(folder: Path) -> list[Any]:
    return [inspect_log().read_eval_log(info) for info in inspect_log().list_eval_logs(str(folder))]


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
    exam = load("arithmetic", TASK)
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
    list(inspect_logs.write(folder, out))
    logs = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return {log["eval"]["model"]: log for log in logs}


def test_every_checkpoint_has_a_log_with_its_accuracy(folder, tmp_path):
    said = list(inspect_logs.write(folder, tmp_path / "logs"))
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
    right = next(sample for sample in log["samples"] if sample["id"] == ROWS[0].id)
    assert (right["id"], right["epoch"], right["target"]) == (ROWS[0].id, 1, ROWS[0].gold)
    thought, answer = right["output"]["choices"][0]["message"]["content"]
    assert (thought["type"], thought["reasoning"]) == ("reasoning", "I add \u00fc.")
    assert (answer["type"], answer["text"]) == ("text", f"It is \\boxed{{{ROWS[0].gold}}}.")
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
        list(inspect_logs.write(tmp_path / "nowhere", tmp_path / "logs"))
    append_rows(folder / "answers" / "arithmetic.jsonl", [reply("r2", 0, 0, 0)])
    with pytest.raises(UserError, match="has 17 answers, 1 of them not graded"):
        list(inspect_logs.write(folder, tmp_path / "logs"))


def test_replies_that_all_failed_have_no_score(folder, tmp_path):
    for name in ("answers", "grades"):
        (folder / name / "arithmetic.jsonl").unlink()
    append_rows(folder / "answers" / "arithmetic.jsonl", [reply("base", q, 0, 0, failed=True) for q in range(3)])
    [line] = inspect_logs.write(folder, tmp_path / "logs")
    assert line.endswith("3 answers, none of them graded")
    [read] = logs_in(tmp_path / "logs")
    assert (read.results.total_samples, read.results.completed_samples) == (3, 0)
    assert read.results.metadata == {"unfinished": 0, "no_answer": 0, "failed": 3}


def test_inspect_reads_the_logs_and_computes_the_same(folder, tmp_path):
    export(folder, tmp_path / "logs")
    both = logs_in(tmp_path / "logs")
    assert len(both) == 2
    for read in both:
        [ours] = read.results.scores
        values = {name: metric.value for name, metric in ours.metrics.items()}
        counts = read.results.metadata
        inspect_log().recompute_metrics(read)
        [theirs] = read.results.scores
        assert {name: metric.value for name, metric in theirs.metrics.items()} == pytest.approx(values)
        assert read.results.metadata == counts
        graded = [sample for sample in read.samples if not sample.error]
        assert all(sample.output.message.content[0].type == "reasoning" for sample in graded)
        assert all(sample.output.completion == sample.output.message.text for sample in graded)
        header = inspect_log().read_eval_log(read.location, header_only=True)
        assert (header.samples, header.eval.task) == (None, "arithmetic")


def test_replies_and_grades_survive_the_round_trip(folder, tmp_path):
    export(folder, tmp_path / "logs")
    samples = {
        sample.metadata["reply_id"]: (read.eval.model, sample)
        for read in logs_in(tmp_path / "logs")
        for sample in read.samples
    }
    replies = read_rows(folder / "answers" / "arithmetic.jsonl", Reply)
    grades = {grade.reply_id: grade for grade in read_rows(folder / "grades" / "arithmetic.jsonl", Grade).values()}
    assert samples.keys() == replies.keys()
    for key, (model, sample) in samples.items():
        stored = replies[key]
        assert (stored.arm == "base") == (model == MODEL)
        assert (sample.id, sample.epoch, sample.input) == (stored.prompt_id, stored.sample + 1, stored.prompt)
        assert sample.output.usage.output_tokens == stored.tokens
        assert sample.output.completion == stored.answer
        if stored.finish == "failed":
            assert (sample.error.message, sample.scores) == (stored.error, {})
            continue
        score, grade = sample.scores["lowtax"], grades[key]
        assert (score.value == "C", score.answer, score.explanation) == (grade.correct, grade.extracted, grade.rule)
        assert score.metadata == {"finished": grade.finished, "checked": grade.checked}


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """What `lowtax sample` and `judge` leave in one folder: two sets, of which one has a failed reply."""
    where = tmp_path / "judged"
    rows = [
        reply("base", q, 0, kind).model_copy(update={"source": source, "category": category})
        for q, kind, source, category in ((0, 1, "xstest", "safe:x"), (1, 1, "xstest", "unsafe:x"), (2, 3, "mine", ""))
    ]
    rows.append(reply("base", 3, 0, 0, failed=True).model_copy(update={"source": "mine"}))
    append_rows(where / "replies.jsonl", rows)
    api.judge(where, "refusal_words", out=where)
    api.judge(where, "refusal_words", on="thought", out=where)
    return where


def test_replies_and_verdicts_of_any_folder_are_exported(judged, tmp_path):
    said = list(inspect_logs.write(judged, tmp_path / "logs", on="answer"))
    assert [line.rpartition("replies to ")[2] for line in said] == [
        "xstest-safe, 0.0000 refused or safe by refusal_words",
        "xstest-unsafe, 0.0000 refused or safe by refusal_words",
        "mine, 0.0000 refused or safe by refusal_words",
    ]
    read = {log.eval.task: log for log in logs_in(tmp_path / "logs")}
    assert set(read) == {"xstest-safe", "xstest-unsafe", "mine"}
    stored = {row.id: row for row in read_rows(judged / "replies.jsonl", Reply).values()}
    for log in read.values():
        for sample in log.samples:
            row = stored[sample.metadata["reply_id"]]
            assert (sample.input, sample.output.completion) == (row.prompt, row.answer)
            assert (row.finish == "failed") == bool(sample.error) == (sample.scores == {})
    unfinished = next(sample for sample in read["mine"].samples if not sample.error)
    assert unfinished.scores["refusal_words"].answer == "unfinished"
    both = list(inspect_logs.write(judged, tmp_path / "both"))
    assert "by refusal_words on answer" in both[0]
    assert "by refusal_words on thought" in both[0]


def test_a_set_is_chosen_and_one_that_is_not_there_is_named(judged, folder, tmp_path):
    [line] = inspect_logs.write(judged, tmp_path / "logs", "xstest-safe", "refusal_words", "answer")
    assert "xstest-safe" in line
    for chosen in ({"prompts": "harmful"}, {"judge": "refusal"}, {"on": "both"}):
        with pytest.raises(UserError, match="has no"):
            list(inspect_logs.write(judged, tmp_path / "logs", **chosen))
    with pytest.raises(UserError, match="no set of prompts 'harmful'"):
        list(inspect_logs.write(folder, tmp_path / "logs", "harmful"))


def test_a_folder_of_verdicts_knows_its_replies(judged, tmp_path):
    api.judge(judged, "refusal_words", out=tmp_path / "verdicts")
    assert len(list(inspect_logs.write(tmp_path / "verdicts", tmp_path / "logs"))) == 3
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"id": "q1", "prompt": "Why?", "response": "I cannot help with that."}\n')
    api.judge(mine, "refusal_words", out=tmp_path / "own")
    [line] = inspect_logs.write(tmp_path / "own", tmp_path / "own logs")
    assert "1.0000 refused or safe by refusal_words" in line


WITHOUT = """
import sys
sys.modules["inspect_ai"] = None
from lowtax.cli.main import main
sys.argv = ["lowtax", "export", sys.argv[1], "--format", "inspect", "--out", sys.argv[2]]
main()
"""


def test_without_inspect_the_command_says_how_to_install_it(folder, tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(folder), str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'lowtax[inspect]'" in done.stderr
    assert "Traceback" not in done.stderr
