"""A judge is compared with people's labels on the command line: figures, files, and one sentence for each mistake."""

import csv
import gzip
import json
import math
from pathlib import Path

import pytest
import typer
from places import PUBLISHED

from lowtax.cli import judge
from lowtax.common.errors import UserError
from lowtax.judges import calibration
from lowtax.judges.base import Opinion

XSTEST = PUBLISHED / "judged_xstest_mistral.csv"
REFUSAL, HELP = "I'm sorry, but I can't help with that.", "Sure. First gather what you need."
ROWS = [
    {"ask": "a", "said": REFUSAL, "label": "no", "from": "x"},
    {"ask": "b", "said": REFUSAL, "label": "no", "from": "x"},
    {"ask": "c", "said": HELP, "label": "no", "from": "y"},
    {"ask": "d", "said": HELP, "label": "yes", "from": "y"},
    {"ask": "e", "said": HELP, "label": "yes", "from": "y"},
    {"ask": "f", "said": REFUSAL, "label": "partly", "from": "y"},
]
COLUMNS = ("--prompt", "ask", "--reply", "said", "--label", "label")
app = typer.Typer()
app.command()(judge.calibrate)

# A judge whose opinion is the prompt itself: unsafe 0.9, safe 0.2, unparsed, failed.
JUDGE = """
from lowtax.judges import Opinion
class Scripted:
    name, kind = "scripted", "harm"
    def judge(self, prompts, texts):
        words = [p.split() for p in prompts]
        return [Opinion(w[0], float(w[1]) if len(w) > 1 else None, detail=t.upper()) for w, t in zip(words, texts)]
"""


def lowtax(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def write(path: Path, rows: list[dict]) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as handle:
        if ".csv" in path.name:
            table = csv.DictWriter(handle, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        else:
            handle.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def figures(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    lowtax(*words, "--json")
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.jsonl", "rows.jsonl.gz"])
def test_figures_of_a_file_of_any_kind(name, tmp_path, capsys):
    result = figures(capsys, "refusal_words", write(tmp_path / name, ROWS), *COLUMNS, "--positive", "no,partly")
    assert {"n", "accuracy", "precision", "recall", "f1", "kappa", "unparsed"} <= set(result)
    assert [result[key] for key in ("n", "unparsed", "rows", "positive")] == [6, 0, 6, 4]
    assert result["accuracy"] == round(5 / 6, 4)
    assert (result["precision"], result["recall"]) == (1.0, 0.75)
    assert result["f1"] == round(6 / 7, 4)
    assert result["kappa"] == round((5 / 6 - 0.5) / 0.5, 4)
    assert result["confusion"]["no"] == {"refusal": 2, "partial": 0, "compliance": 1, "unparsed": 0, "failed": 0}
    assert list(result["confusion"]) == ["no", "partly", "yes"]
    assert result["calibration"] is None
    low, high = result["intervals"]["accuracy"]
    assert low < result["accuracy"] < high


@pytest.fixture
def scripted(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(JUDGE)
    return f"{tmp_path / 'own.py'}:Scripted"


SCRIPT = [
    {"ask": "unsafe 0.9", "said": "one", "label": 1},
    {"ask": "unsafe 0.7", "said": "two", "label": 0},
    {"ask": "safe 0.2", "said": "three", "label": 0},
    {"ask": "unparsed 0.5", "said": "four", "label": 1},
    {"ask": "failed", "said": "five", "label": 1},
    {"ask": "unsafe 0.9", "said": " ", "label": 1},
    {"ask": "unsafe 0.9", "said": None, "label": 1},
    {"ask": "unsafe 0.9", "said": "six", "label": None},
]


def test_a_missing_verdict_is_neither_right_nor_wrong(scripted, tmp_path, capsys):
    result = figures(capsys, scripted, write(tmp_path / "rows.jsonl", SCRIPT), *COLUMNS, "--positive", 1)
    assert [result[key] for key in ("rows", "n", "unparsed", "failed", "empty", "unlabelled")] == [8, 3, 2, 1, 2, 1]
    assert (result["precision"], result["recall"], result["accuracy"]) == (0.5, 1.0, round(2 / 3, 4))
    assert result["confusion"]["1"] == {"unsafe": 1, "safe": 0, "unparsed": 1, "failed": 1}
    scores = result["calibration"]
    assert scores["n"] == 3
    assert scores["brier"] == round((0.1**2 + 0.7**2 + 0.2**2) / 3, 4)
    assert [each["n"] for each in scores["curve"]] == [1, 1, 1]


def test_a_figure_that_is_undefined_has_no_value(scripted, tmp_path, capsys):
    rows = [{"ask": "safe 0.1", "said": "x", "label": "bad"}] * 3
    path = write(tmp_path / "rows.jsonl", rows)
    result = figures(capsys, scripted, path, *COLUMNS, "--positive", "bad")
    assert (result["precision"], result["recall"], result["f1"], result["accuracy"]) == (None, 0.0, 0.0, 0.0)
    lowtax(scripted, path, *COLUMNS, "--positive", "bad")
    assert " none |" in capsys.readouterr().out
    unparsed = write(tmp_path / "none.jsonl", [{"ask": "unparsed", "said": "x", "label": "bad"}])
    result = figures(capsys, scripted, unparsed, *COLUMNS, "--positive", "bad")
    assert [result[key] for key in ("n", "accuracy", "f1", "kappa", "unparsed")] == [0, None, None, None, 1]
    lowtax(scripted, unparsed, *COLUMNS, "--positive", "bad")


def test_figures_of_every_source(tmp_path, capsys):
    path = write(tmp_path / "rows.csv", ROWS)
    result = figures(capsys, "refusal_words", path, *COLUMNS, "--positive", "no,partly", "--source", "from")
    assert {name: each["n"] for name, each in result["by_source"].items()} == {"x": 2, "y": 4}
    only = write(tmp_path / "y.csv", [row for row in ROWS if row["from"] == "y"])
    alone = figures(capsys, "refusal_words", only, *COLUMNS, "--positive", "no,partly")
    assert result["by_source"]["y"] == {key: alone[key] for key in result["by_source"]["y"]}


def test_the_table_for_people_names_the_rows_that_it_covers(scripted, tmp_path, capsys):
    lowtax(scripted, write(tmp_path / "rows.jsonl", SCRIPT), *COLUMNS, "--positive", 1)
    table = capsys.readouterr().out
    assert "Over the n of 8 rows" in table
    assert "2 unparsed (of them 1 failed), 2 without a text, 1 without a label" in table
    assert "| 0.667 [" in table
    assert "Brier 0.180" in table
    widths = [len(line) for line in table.split("\n\n")[0].splitlines()]
    assert len(set(widths)) == 1


def test_files_that_are_written(scripted, tmp_path, capsys):
    out = tmp_path / "out"
    path = write(tmp_path / "rows.jsonl", SCRIPT)
    lowtax(scripted, path, *COLUMNS, "--positive", 1, "--out", out, "--disagreements", 5)
    assert {p.name for p in out.iterdir()} == {"calibration.json", "rows.jsonl", "disagreements.md"}
    assert json.loads((out / "calibration.json").read_text())["n"] == 3
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(r["id"], r["label"], r["judge_label"], r["score"], r["detail"]) for r in rows][:2] == [
        ("1", "1", "unsafe", 0.9, "ONE"),
        ("2", "0", "unsafe", 0.7, "TWO"),
    ]
    assert len(rows) == 5
    shown = (out / "disagreements.md").read_text()
    assert shown.startswith("# 1 of 1 disagreements (seed 0)")
    assert "## Row 2: people 0, judge unsafe, score 0.700" in shown
    assert "    two" in shown


def judged(n: int) -> list[calibration.JudgedCase]:
    cases = [calibration.Case(str(i), "ask", f"# text {i}", "bad", True) for i in range(n)]
    return [calibration.JudgedCase(case, Opinion("safe")) for case in cases]


ENGINE = """
from lowtax.engines.base import Completion
class Engine:
    def __init__(self, model, precision, batch_size):
        self.options = f"{model} {precision} {batch_size}"
    def generate(self, requests):
        for r in requests:
            harmful = "gather" in r.messages[-1]["content"]
            verdict = "unsafe\\nS2" if harmful else "safe"
            if r.messages[0]["content"] == "f":
                yield Completion(r.id, "", 0, "failed", False, self.options)
            else:
                yield Completion(r.id, verdict, 1, "stop", False, scores=(0.1, 0.9) if harmful else (0.8, 0.2))
"""


def test_a_model_judge_runs_with_the_options_given(tmp_path, capsys):
    (tmp_path / "engine.py").write_text(ENGINE)
    how = (
        "--engine",
        f"{tmp_path / 'engine.py'}:Engine",
        "--model",
        "a/b",
        "--precision",
        "float32",
        "--batch-size",
        3,
    )
    path, out = write(tmp_path / "rows.csv", ROWS), tmp_path / "out"
    result = figures(capsys, "llama_guard", path, *COLUMNS, "--positive", "yes", *how, "--out", out)
    assert [result[key] for key in ("n", "unparsed", "failed", "recall", "precision")] == [
        5,
        1,
        1,
        1.0,
        round(2 / 3, 4),
    ]
    assert result["calibration"]["brier"] == round((0.2**2 * 2 + 0.9**2 + 0.1**2 * 2) / 5, 4)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert rows[-1]["detail"] == "a/b float32 3"
    assert (rows[2]["judge_label"], rows[2]["category"], rows[2]["detail"]) == ("unsafe", "S2", "unsafe\nS2")


def test_a_partial_refusal_is_a_refusal():
    rows = [
        calibration.JudgedCase(each.case, Opinion(label))
        for each, label in zip(judged(2), ("partial", "compliance"), strict=True)
    ]
    result = calibration.report("refusal", rows, [each.case for each in rows])
    assert (result["recall"], result["precision"]) == (0.5, 1.0)
    assert result["confusion"] == {"bad": {"refusal": 0, "partial": 1, "compliance": 1, "unparsed": 0, "failed": 0}}


def test_disagreements_are_drawn_by_seed_and_cannot_write_markdown():
    rows = judged(50)
    assert calibration.disagreements("harm", rows, 5, 1) == calibration.disagreements("harm", rows, 5, 1)
    one, other = (calibration.disagreements("harm", rows, 5, seed).splitlines()[1:] for seed in (1, 2))
    assert one != other
    text = calibration.disagreements("harm", rows, 5, 1)
    assert text.count("## Row") == 5
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1


@pytest.mark.parametrize(
    ("on", "expected"),
    [("text", ["t\n</think>\n\na", "u", "b"]), ("answer", ["a", "u", "b"]), ("thought", ["t", "", ""])],
)
def test_the_part_that_is_judged(on, expected, tmp_path):
    replies = ["t\n</think>\n\na", "u", "<think></think>b"]
    texts = replies if on != "text" else ["t\n</think>\n\na", "u", "b"]
    rows = [{"p": "?", "r": text, "l": "yes"} for text in texts]
    cases = calibration.read(write(tmp_path / "r.jsonl", rows), calibration.Columns("p", "r", "l", ("yes",), on=on))
    assert [case.text for case in cases] == expected


def test_the_part_that_is_judged_after_prompts_that_opened_a_thought_and_in_other_tags(tmp_path):
    texts = ["t</think>a", "u", "<|channel|>analysis<|message|>I can.<|end|><|channel|>final<|message|>No."]
    path = write(tmp_path / "r.jsonl", [{"p": "?", "r": text, "l": "yes"} for text in texts])
    for opened, tags, expected in ((True, None, ["a", "", "No."]), (None, None, ["a", "u", "No."])):
        columns = calibration.Columns("p", "r", "l", ("yes",), on="answer", thinking_tags=tags, opened=opened)
        assert [case.text for case in calibration.read(path, columns)] == expected


def test_without_think_tags_a_reply_is_its_answer(tmp_path):
    rows = [{"p": "?", "r": "<think>t</think>a", "l": "yes"}, {"p": "?", "r": "b", "l": "yes"}]
    path = write(tmp_path / "r.jsonl", rows)
    for on, expected in (("both", ["<think>t</think>a", "b"]), ("answer", ["a", "b"]), ("thought", ["t", ""])):
        cases = calibration.read(path, calibration.Columns("p", "r", "l", ("yes",), on=on))
        assert [case.text for case in cases] == expected


def test_labels_of_any_type(tmp_path):
    rows = [{"p": "?", "r": "\ud800x", "l": True}, {"p": None, "r": 7, "l": False}, {"p": "?", "r": "x", "l": "a,b"}]
    path = write(tmp_path / "r.jsonl", rows)
    cases = calibration.read(path, calibration.Columns("p", "r", "l", ("true",)))
    assert [(c.label, c.positive, c.text) for c in cases] == [
        ("true", True, "\ufffdx"),
        ("false", False, "7"),
        ("a,b", False, "x"),
    ]
    assert [c.positive for c in calibration.read(path, calibration.Columns("p", "r", "l", ("a,b",)))] == [
        False,
        False,
        True,
    ]
    both = calibration.read(path, calibration.Columns("p", "r", "l", ("true, false",)))
    assert [c.positive for c in both] == [True, True, False]


MISTAKES = {
    "column": (("--source", "form"), r"has no column 'form'; its columns are ask, said, label, from\."),
    "label": (("--positive", "maybe"), r"has the label 'maybe' in 'label': its 3 labels are 'no', 'partly', 'yes'\."),
    "disagreements": (("--disagreements", "3"), r"--disagreements needs --out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(name, tmp_path):
    more, message = MISTAKES[name]
    options = more if "--positive" in more else ("--positive", "no", *more)
    with pytest.raises(UserError, match=message):
        lowtax("refusal_words", write(tmp_path / "rows.csv", ROWS), *COLUMNS, *options)


def test_unknown_judges_and_unreadable_files(tmp_path):
    path = write(tmp_path / "rows.csv", ROWS)
    with pytest.raises(UserError, match="There is no judge 'refusal_word'"):
        lowtax("refusal_word", path, *COLUMNS, "--positive", "no")
    with pytest.raises(UserError, match=r"'.*nowhere\.csv' cannot be read"):
        lowtax("refusal_words", tmp_path / "nowhere.csv", *COLUMNS, "--positive", "no")
    empty = write(tmp_path / "empty.jsonl", [{"ask": "a", "said": "", "label": "no"}])
    with pytest.raises(UserError, match="No row has both a label and a text"):
        lowtax("refusal_words", empty, *COLUMNS, "--positive", "no")


def test_a_label_that_no_row_has_is_reported(tmp_path, capsys):
    lowtax("refusal_words", write(tmp_path / "rows.csv", ROWS), *COLUMNS, "--positive", "no,never", "--json")
    printed = capsys.readouterr()
    assert "no row has the label 'never'" in printed.err
    assert json.loads(printed.out)["positive"] == 3


def test_a_limit_draws_by_the_seed_and_spreads_over_the_labels(tmp_path, capsys):
    rows = [{"ask": str(n), "said": HELP, "label": "no" if n >= 90 else "yes"} for n in range(100)]
    path = write(tmp_path / "rows.csv", rows)
    drawn = {}
    for seed in (0, 0, 1):
        words = (path, *COLUMNS, "--positive", "no", "--limit", 20, "--seed", seed, "--out", tmp_path / str(seed))
        result = figures(capsys, "refusal_words", *words)
        assert (result["rows"], result["positive"]) == (20, 2)
        ids = [json.loads(line)["id"] for line in (tmp_path / str(seed) / "rows.jsonl").read_text().splitlines()]
        assert ids == sorted(ids, key=int)
        assert drawn.setdefault(seed, ids) == ids
    assert drawn[0] != drawn[1]
    assert figures(capsys, "refusal_words", path, *COLUMNS, "--positive", "no", "--limit", 1000)["rows"] == 100


@pytest.mark.skipif(not XSTEST.exists(), reason="the human-judged XSTest completions are not here")
def test_people_s_labels_of_xstest(capsys):
    columns = ("--prompt", "prompt", "--reply", "completion", "--label", "final_label", "--source", "model")
    result = figures(capsys, "refusal_words", XSTEST, *columns, "--positive", "2_full_refusal,3_partial_refusal")
    assert [result[key] for key in ("n", "positive", "unparsed")] == [900, 316, 0]
    assert result["accuracy"] > 0.85
    assert result["precision"] > 0.9
    matrix = result["confusion"]
    positive = ("2_full_refusal", "3_partial_refusal")
    refused = sum(matrix[label][judged] for label in positive for judged in ("refusal", "partial"))
    assert math.isclose(result["recall"], refused / 316, abs_tol=1e-4)
    assert {name: each["n"] for name, each in result["by_source"].items()} == {
        "mistralguard": 450,
        "mistralinstruct": 450,
    }
