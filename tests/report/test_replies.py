"""The index of prompts and the chunks of texts: letters, flags, order, and rows that replace others."""

import json
from pathlib import Path

import pytest

from lowtax.common.files import append_rows
from lowtax.common.records import Grade, Reply, Verdict
from lowtax.report import stored
from lowtax.report.replies import Replies, loops
from lowtax.report.subjects import Columns


def reply(name: str, arm: str = "base", **changes: object) -> Reply:
    made = {"seed": None, "checkpoint": None} if arm == "base" else {"seed": 0, "checkpoint": "checkpoint-4"}
    about = {"id": name, "arm": arm, "source": "set", "prompt_id": "p1", "prompt": "Why?", "sample": 0, "tokens": 3}
    texts = {"text": "t</think>a", "thought": "t", "answer": "a", "closed": True, "finish": "stop"}
    return Reply(**made | about | texts | changes)


def verdict(of: str, label: str, judge: str = "j", on: str = "answer") -> Verdict:
    return Verdict(id=f"{of}{judge}{on}", reply_id=of, judge=judge, on=on, label=label)


def read(folder: Path, questions: bool = False) -> tuple[Replies, Columns]:
    study = stored.read(folder)
    columns = Columns([study])
    return Replies([study], columns, questions), columns


def test_letters_and_flags_are_in_the_order_of_columns_seeds_and_samples(tmp_path: Path):
    rows = [
        reply("b"),
        reply("x2", "x", sample=1, finish="length", text="word " * 99, closed=False),
        reply("x1", "x", finish="length", text="cut here", closed=False),
        reply("y1", "y", finish="failed", text="", thought="", answer="", error="no memory"),
        reply("c", prompt_id="p2", category="fraud", finish="length"),
    ]
    append_rows(tmp_path / "replies" / "harmful.jsonl", rows)
    verdicts = [
        verdict("b", "compliance"),
        verdict("x1", "unfinished"),
        verdict("x2", "refusal"),
        verdict("y1", "failed"),
    ]
    append_rows(tmp_path / "verdicts" / "harmful.j.jsonl", [*verdicts, verdict("b", "safe", "k", "both")])
    replies, columns = read(tmp_path)
    prompts = replies.chosen(None)
    index = replies.index(prompts, [0, 0], len(columns.numbers))
    assert [row[:3] for row in index["prompts"]] == [["p1", "harmful", 0], ["p2", "harmful", 0]]
    assert index["judges"] == [["j", "answer"], ["k", "both"]]
    assert index["letters"] == [["c|ur|f", "-||"], ["s|--|-", "-||"]]
    assert index["flags"] == [".|ul|f", "c||"]
    assert index["ids"] == ["b x1 x2 y1", "c"]
    entries = [json.loads(line) for chunk in replies.chunks(prompts) for line in chunk]
    assert [each["column"] for each in entries[0]["replies"]] == [0, 1, 1, 2]
    assert entries[0]["replies"][3]["error"] == "no memory"
    assert [each["label"] for each in entries[0]["replies"][0]["results"]] == ["compliance", "safe"]


def test_of_rows_of_one_reply_the_last_counts(tmp_path: Path):
    append_rows(tmp_path / "replies" / "ordinary.jsonl", [reply("old", answer="old"), reply("new", answer="new")])
    append_rows(tmp_path / "verdicts" / "ordinary.j.jsonl", [verdict("old", "refusal"), verdict("new", "compliance")])
    replies, _ = read(tmp_path)
    [line] = next(iter(replies.chunks(replies.chosen(None))))
    assert [each["answer"] for each in json.loads(line)["replies"]] == ["new"]
    assert replies.replaced == 1
    assert len(replies) == 1


def test_grades_have_letters_and_their_rule(tmp_path: Path):
    append_rows(tmp_path / "answers" / "sums.jsonl", [reply(f"r{i}", sample=i) for i in range(4)])
    grade = {"task": "sums", "gold": "4", "rule": "last box"}
    grades = [
        Grade(id="g0", reply_id="r0", correct=True, finished=True, extracted="4", **grade),
        Grade(id="g1", reply_id="r1", correct=False, finished=True, extracted="5", **grade),
        Grade(id="g2", reply_id="r2", correct=False, finished=True, extracted=None, **grade),
        Grade(id="g3", reply_id="r3", correct=False, finished=False, extracted=None, **grade),
    ]
    append_rows(tmp_path / "grades" / "sums.jsonl", grades)
    replies, columns = read(tmp_path, questions=True)
    assert replies.index(replies.chosen(None), [0], len(columns.numbers))["letters"] == [["ywnu"]]
    [line] = next(iter(replies.chunks(replies.chosen(None))))
    assert json.loads(line)["replies"][1]["results"][0] == {
        "judge": 0, "label": "w", "correct": False, "extracted": "5", "gold": "4", "rule": "last box", "checked": None,
    }  # fmt: skip


def test_a_single_file_has_prompts_from_everywhere_and_cut_texts(tmp_path: Path):
    rows = [reply(f"r{i}", prompt_id=f"p{i}", answer="y" * 50) for i in range(100)]
    append_rows(tmp_path / "replies" / "harmful.jsonl", rows)
    replies, _ = read(tmp_path)
    chosen = replies.chosen(10)
    assert [prompt.id for prompt in chosen] == [f"p{i}" for i in range(0, 100, 10)]
    [lines] = replies.chunks(chosen, longest=20)
    assert json.loads(lines[0])["replies"][0]["answer"] == "y" * 20 + " ... (30 more characters)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I think. " * 40, True),
        ("so " * 40, True),
        ("A first thought. " + "Wait, let me check the sum of these numbers once more. " * 4, True),
        ("A first thought. " + "Wait, let me check the sum of these numbers once more. " * 2, False),
        (
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28",
            False,
        ),
        ("no no no", False),
        ("", False),
    ],
)
def test_a_text_that_repeats_its_end_loops(text: str, expected: bool):
    assert loops(text) is expected
