"""The preset `reference` gives a stored reply the grade that the published scripts give it, thought and all."""

from pathlib import Path

import pytest

from lowtax.benchmarks import evaluate
from lowtax.benchmarks.base import Task, load
from lowtax.benchmarks.stored_answers import Stored, grade_stored
from lowtax.common.records import Prompt, Reply
from lowtax.data.rendering import split_reply

# exam, reply after a prompt that opened a thought, gold, finish; correct, extracted, finished: as its scripts have the
# first two, and by the default preset.
REPLIES = [
    ("gpqa", "\\boxed{B} maybe\n</think>\n\nThe answer is C", "B", "stop", (True, "B", True), (False, "C", True)),
    ("gpqa", "Hm.\n</think>\n\nFinal Answer: \\boxed{C}", "C", "stop", (True, "C", True), (True, "C", True)),
    ("gpqa", "So the answer is A, I", "A", "length", (True, "A", False), (False, None, False)),
    ("gpqa", "Let me think", "A", "length", (False, None, False), (False, None, False)),
    ("gpqa", "\\boxed{A}\n</think>\n\nI do not know.", "A", "stop", (True, "A", True), (False, None, True)),
    ("aime24", "First \\boxed{12}\n</think>\n\nIt is 13.", "12", "stop", (True, "12", True), (False, "13", True)),
    ("aime24", "\\boxed{025}", "25", "length", (True, "025", False), (False, None, False)),
    ("aime24", "</think>\n\n\\boxed{25.0}", "025", "stop", (True, "25.0", True), (True, "25", True)),
    ("aime25", "</think>\n\n\\boxed{025}", "25", "stop", (True, "025", True), (True, "25", True)),
    ("amc23", "</think>\n\n\\boxed{27.0}", "27", "stop", (True, "27.0", True), (True, "27", True)),
    ("math500", "</think>\n\n\\boxed{25.0}", "25", "stop", (False, "25.0", True), (True, "25", True)),
    ("math500", "</think>\n\n\\boxed{025}", "25", "stop", (False, "025", True), (True, "25", True)),
    ("math500", "\\boxed{\\frac12} hm\n</think>\n\nI stop.", "\\frac{1}{2}", "stop", (True, "\\frac12", True), None),
    ("math", "</think>\n\n\\boxed{25.0}", "25", "stop", (False, "25.0", True), (True, "25", True)),
    ("gsm8k", "It is 18", "18", "length", (True, "18", False), (False, None, False)),
    ("arithmetic", "\\boxed{3}\n</think>\n\nIt is 3.", "3", "stop", (False, None, True), (False, None, True)),
]


def reply_of(text: str, finish: str) -> Reply:
    parts = split_reply(text, opened=True)
    own = {"arm": "base", "seed": None, "checkpoint": None, "source": "s", "sample": 0, "tokens": 3, "prompt": "?"}
    body = {"text": text, "thought": parts.thought, "answer": parts.answer, "closed": parts.closed, "finish": finish}
    return Reply(id="r", prompt_id="p", **own, **body)


def test_whole_replies_are_read_and_zeros_ignored_where_its_code_does(tmp_path: Path):
    for name, text, gold, finish, theirs, ours in REPLIES:
        choices = ("a", "b", "c", "d") if name == "gpqa" else ()
        exam = "gpqa_diamond" if name == "gpqa" else name
        row, reply = Prompt(id="p", source="s", text="?", gold=gold, choices=choices), reply_of(text, finish)
        stored = [Stored(row, text, reply.answer if reply.closed and finish == "stop" else None)]
        for preset, expected in (("reference", theirs), ("default", ours), ("paper", ours)):
            task = Task(preset=preset)
            (grade,) = evaluate.grade([reply], exam, load(exam, task), {"p": row}, tmp_path / "g.jsonl").values()
            (again,) = grade_stored(stored, exam, task, workers=1)
            found = {(each.correct, each.extracted, each.finished) for each in (grade, again)}
            assert expected is None or found == {expected}, (name, text, preset)


def test_the_harness_tasks_read_whole_replies_too():
    tasks = pytest.importorskip("lowtax.interop.lm_eval_tasks")
    row = Prompt(id="p", source="s", text="?", gold="12")
    for preset, correct in (("reference", [True, True]), ("paper", [False, False])):
        exam = {"opened": True, "benchmark": "aime24", "task": Task(preset=preset).model_dump_json()}
        doc = {"lowtax": tasks.json.dumps(exam | {"row": row.model_dump()})}
        (graded,) = tasks.grades([["\\boxed{12}\n</think>\n\nIt is 13.", "\\boxed{12} and"]], [doc])
        rows = [tasks.json.loads(grade) for grade in graded]
        assert [grade["correct"] for grade in rows] == correct
        assert [grade["finished"] for grade in rows] == [True, False]
