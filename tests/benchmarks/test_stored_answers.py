import csv
import gzip
import json

import pytest
from places import PUBLISHED
from typer.testing import CliRunner

from lowtax.benchmarks import stored_answers
from lowtax.benchmarks.base import Task
from lowtax.cli import grade
from lowtax.common.errors import UserError

DATA = PUBLISHED
pytest.importorskip("math_verify", reason="needs math-verify: pip install 'lowtax[eval]'")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grades(path, columns, task="math", **settings):
    return stored_answers.grade_stored(stored_answers.read(path, columns, path.name), task, Task(**settings), workers=1)


ROWS = [
    {"r": "<think>It is 4.</think>\n\\boxed{5}", "g": "5"},
    {"r": "<think>It is \\boxed{5}", "g": "5"},
    {"r": "<think>hm</think>I cannot say.", "g": "5"},
    {"r": "<think>hm</think>The answer is 6.", "g": "5"},
    {"r": "", "g": "5"},
    {"r": None, "g": 5},
]


def test_thoughts_are_taken_off_and_unfinished_ones_are_wrong(tmp_path):
    found = grades(write(tmp_path / "a.jsonl", ROWS), stored_answers.Columns("r", "g"))
    assert [g.correct for g in found] == [True, False, False, False, False, False]
    assert [g.finished for g in found] == [True, False, True, True, True, True]
    summary = stored_answers.summary(found)
    assert {key: summary[key] for key in ("n", "accuracy", "unfinished", "no_answer")} == {
        "n": 6, "accuracy": 1 / 6, "unfinished": 1, "no_answer": 3}  # fmt: skip
    low, high = summary["interval"]
    assert low < 1 / 6 < high


def test_prompts_that_opened_the_thought_are_noticed(tmp_path):
    rows = [{"r": "so</think>\\boxed{5}", "g": "5"}, {"r": "and so \\boxed{5}", "g": "5"}]
    found = grades(write(tmp_path / "a.jsonl", rows), stored_answers.Columns("r", "g"))
    assert [(g.correct, g.finished) for g in found] == [(True, True), (False, False)]


def test_a_reply_that_was_cut_is_unfinished(tmp_path):
    rows = [{"r": "\\boxed{5}", "g": "5", "f": "stop"}, {"r": "\\boxed{5}", "g": "5", "f": "length"}]
    found = grades(write(tmp_path / "a.jsonl", rows), stored_answers.Columns("r", "g", finish="f"))
    assert [(g.correct, g.finished) for g in found] == [(True, True), (False, False)]


def test_columns_inside_of_columns_and_compressed_csv(tmp_path):
    rows = [{"a": {"b.c": {"d": "The answer is 7."}}, "g": "#### 7"}]
    assert grades(write(tmp_path / "a.jsonl", rows), stored_answers.Columns("a.b.c.d", "g"), "gsm8k")[0].correct
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wt", newline="") as handle:
        table = csv.writer(handle)
        table.writerows([["a", "g"], [json.dumps({"b": "x\n\\boxed{7}"}), "7"]])
    assert grades(path, stored_answers.Columns("a.b", "g"))[0].correct


BOX = "\\boxed{7}"
ELSEWHERE = {  # name: a row, the column of its reply, and its answer after the thought
    "lm-eval": ({"resps": [[f"<think>\n8?\n</think>\n\n{BOX}"]]}, "resps", BOX),
    "lm-eval, no thought": ({"resps": [[BOX]]}, "resps", BOX),
    "lm-eval, filtered": ({"filtered_resps": [BOX]}, "filtered_resps", BOX),
    "batch of OpenAI": (
        {"response": {"body": {"choices": [{"message": {"content": BOX}}]}}},
        "response.body.choices.0.message.content", BOX,
    ),
    "batch, all of the message": (
        {"body": {"choices": [{"message": {"content": BOX, "reasoning_content": "8?"}}]}},
        "body.choices.0.message", BOX,
    ),
    "batch, a thought without an end": ({"m": {"content": "", "reasoning": BOX}}, "m", None),
    "batch, a failed request": ({"response": None, "x": {"response": ""}}, "response", ""),
    "parts": ({"m": [{"type": "thinking", "thinking": "8?"}, {"type": "text", "text": BOX}]}, "m", BOX),
    "turns": ({"m": [{"role": "user", "content": "?"}, {"role": "assistant", "content": BOX}]}, "m", BOX),
    "ShareGPT": ({"m": [{"from": "human", "value": "?"}, {"from": "gpt", "value": BOX}]}, "m", BOX),
    "JSON text": ({"m": json.dumps({"choices": [{"text": BOX}]})}, "m.choices.0.text", BOX),
    "from the end": ({"m": [{"text": "?"}, {"text": BOX}]}, "m.-1.text", BOX),
    "ZeroEval": ({"output": [BOX]}, "output", BOX),
    "nothing": ({"output": []}, "output", ""),
    "a list as text": ({"output": "[1, 7]"}, "output", "[1, 7]"),
}  # fmt: skip


def test_logs_of_other_tools_are_read(tmp_path):
    answers = {}
    for name, (row, column, _) in ELSEWHERE.items():
        path = write(tmp_path / "a.jsonl", [row | {"g": "7"}])
        answers[name] = stored_answers.read(path, stored_answers.Columns(column, "g"), path.name)[0].answer
    assert answers == {name: answer for name, (_, _, answer) in ELSEWHERE.items()}


def test_a_list_of_texts_has_samples(tmp_path):
    rows = [{"r": [["\\boxed{5}", "\\boxed{6}"]], "g": "5"}, {"r": [["\\boxed{5}"]], "g": "5"}]
    found = grades(write(tmp_path / "a.jsonl", rows), stored_answers.Columns("r", "g"))
    assert [(g.reply_id, g.correct) for g in found] == [("1", True), ("1#2", False), ("2", True)]
    summary = stored_answers.summary(found)
    assert (summary["n"], summary["questions"], summary["correct"]) == (3, 2, 2)


TABLES = {
    "mark.csv": "\ufeffr,g\nThe answer is 7.,7\n", "semi.csv": "r;g\nThe answer is 7.;7\n",
    "tabs.tsv": "r\tg\nThe answer is 7.\t7\n", "tabs.csv": "r\tg\nThe answer is 7.\t7\n",
    "mark.jsonl": '\ufeff{"r": "The answer is 7.", "g": 7}\n', "blank.jsonl": '\n{"r": "The answer is 7.", "g": 7}\n\n',
    "list.json": '[{"r": "The answer is 7.", "g": 7}]',
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_files_as_other_programs_write_them(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name])
    assert [g.correct for g in grades(tmp_path / name, stored_answers.Columns("r", "g"), "gsm8k")] == [True]


OPTIONS = [
    {"A": "x", "B": "Venus"}, {"b": "Venus", "a": "x"}, {"text": ["x", "Venus"], "label": ["A", "B"]}, "['x', 'Venus']",
    '["x", "Venus"]', "('x', 'Venus')", "{'A': 'x', 'B': 'Venus'}", "A) x\nB) Venus", "A. x\nB. Venus\n",
    "(A) x\n(B) Venus",
    [{"label": "A", "text": "x"}, {"label": "B", "text": "Venus"}], {"0": "x", "1": "Venus"},
]  # fmt: skip


def test_options_in_every_form(tmp_path):
    rows = [{"r": "\\boxed{Venus}", "g": "B", "c": options} for options in OPTIONS]
    path = tmp_path / "a.jsonl"
    columns = stored_answers.Columns("r", "g", choices="c")
    found = [grades(write(path, [row]), columns, "multiple_choice")[0] for row in rows]
    assert [OPTIONS[n] for n, g in enumerate(found) if not g.correct] == []
    with pytest.raises(UserError, match="neither a list nor JSON of one"):
        grades(write(path, [rows[0] | {"c": "Mars or Venus"}]), columns, "multiple_choice")


def test_rows_are_numbered_whatever_the_file_is_called(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:2])
    stored = stored_answers.read(path, stored_answers.Columns("r", "g"), "mine, row 9.jsonl")
    assert [(each.row.id, each.row.source) for each in stored] == [(n, "mine, row 9.jsonl") for n in ("1", "2")]


def test_options_of_a_column(tmp_path):
    rows = [{"r": "\\boxed{Venus}", "g": "B", "c": ["Mars", "Venus"]}, {"r": "Answer: C", "g": "1", "c": ["x", "y"]}]
    found = grades(write(tmp_path / "a.jsonl", rows), stored_answers.Columns("r", "g", choices="c"), "multiple_choice")
    assert [(g.correct, g.extracted) for g in found] == [(True, "B"), (False, None)]


def test_the_reference_preset_has_its_own_extraction(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"r": "The answer is 5", "g": "5"}, {"r": "\\boxed{05}", "g": "5"}])
    assert [g.correct for g in grades(path, stored_answers.Columns("r", "g"))] == [True, True]
    assert [g.correct for g in grades(path, stored_answers.Columns("r", "g"), preset="reference")] == [False, True]


@pytest.mark.parametrize(("columns", "says"), [
    (stored_answers.Columns("x", "g"), "no column 'x'; its columns are r, g"),
    (stored_answers.Columns("r.x", "g"), "no column 'r.x'"),
    (stored_answers.Columns("r", "g", finish="f"), "no column 'f'"),
])  # fmt: skip
def test_a_column_that_is_not_there_is_named(tmp_path, columns, says):
    with pytest.raises(UserError, match=says):
        stored_answers.read(write(tmp_path / "a.jsonl", ROWS), columns, "a")


def test_a_row_without_a_gold_answer_is_named(tmp_path):
    with pytest.raises(UserError, match="row 2: its column 'g' is empty"):
        stored_answers.read(
            write(tmp_path / "a.jsonl", [{"r": "a", "g": "1"}, {"r": "b", "g": ""}]),
            stored_answers.Columns("r", "g"),
            "a",
        )


def run(*words):
    import typer

    app = typer.Typer()
    app.command()(grade.grade)
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_the_command_prints_and_writes(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    words = ["--task", "math", "--answers", path, "--reply", "r", "--gold", "g", "--out", tmp_path / "o"]
    found = json.loads(run(*words, "--json").output)
    assert (found["n"], found["unfinished"], found["no_answer"]) == (6, 1, 3)
    rows = [json.loads(line) for line in (tmp_path / "o" / "grades.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False, False, False, False, False]
    assert json.loads((tmp_path / "o" / "grades.json").read_text()) == found
    assert [row["reply"] for row in rows[:2]] == [ROWS[0]["r"], ROWS[1]["r"]]
    printed = run(*words, "--show", "2").output
    assert "accuracy    0.1667" in printed
    assert printed.count("## Row ") == 2
    assert "    <think>hm</think>I cannot say." in printed


def test_the_command_asks_a_checker(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"r": "\\boxed{6}", "g": "5"}])
    words = ["--task", "math", "--answers", path, "--reply", "r", "--gold", "g", "--checker", "any", "--engine", "fake"]
    run(*words, "--out", tmp_path / "o", "--json")
    assert json.loads((tmp_path / "o" / "grades.jsonl").read_text())["checked"] is None


def test_an_unknown_preset_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    done = run("--task", "math", "--answers", path, "--reply", "r", "--gold", "g", "--preset", "x")
    assert done.exit_code == 2
    assert all(preset in done.output for preset in ("'default'", "'paper'", "'reference'"))


@pytest.mark.parametrize(("name", "columns", "least"), [
    (
        "outputs_gsm8k_gpt3_labelled.jsonl.gz",
        stored_answers.Columns("175b_verification.solution", "ground_truth"),
        0.56,
    ),
    ("outputs_gsm8k_gpt_oss_120b.jsonl.gz", stored_answers.Columns("response", "gold", finish="finish_reason"), 0.95),
])  # fmt: skip
def test_stored_replies(name, columns, least):
    if not (DATA / name).exists():
        pytest.skip(f"needs ../shared/data/{name}")
    summary = stored_answers.summary(grades(DATA / name, columns, "gsm8k"))
    assert summary["n"] == 1319
    assert summary["accuracy"] > least
    assert summary["no_answer"] <= 1
