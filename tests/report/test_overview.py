"""The first view: measures, warnings, and sentences that answer the first questions."""

import json
import re
import shutil
from pathlib import Path

import pytest

from lowtax.report import stored
from lowtax.report.answers import answers
from lowtax.report.curves import anatomy, thinned, training
from lowtax.report.overview import overview, warnings
from lowtax.report.replies import Replies
from lowtax.report.subjects import Columns
from lowtax.study.shares import answered

GOLDEN = Path(__file__).parents[1] / "golden" / "study"


def read(folder: Path) -> tuple[stored.Stored, Columns]:
    study = stored.read(folder)
    columns = Columns([study])
    columns.add_rows()
    return study, columns


def test_measures_are_the_figures_of_the_table():
    study, columns = read(GOLDEN)
    shown = overview([study], columns)
    by_key = {measure["key"]: measure for measure in shown["measures"]}
    for column, row in enumerate(study.rows):
        figures = by_key["safety"]["figures"][column]
        assert figures == [row["safety"][name] for name in ("value", "low", "high", "n")]
        assert by_key["task.sums"]["figures"][column][0] == row["reasoning"]["sums"]["value"]
        assert by_key["answered"]["figures"][column][:3] == list(answered(row) or ())
        assert by_key["unfinished"]["figures"][column] == [
            sum(cell["unfinished"] for cell in (row["safety"], row["over_refusal"], *row["reasoning"].values()))
        ]
    assert 0 not in by_key["tax"]["figures"]
    assert by_key["pass.sums.3"]["group"] == "samples"
    assert by_key["text.thought"]["name"] == "harmful refused, by the thought"
    assert sum(row["best"] for row in shown["rows"]) == len(study.table["frontier"])


def test_warnings_name_what_makes_numbers_uncertain():
    study, _ = read(GOLDEN)
    few, unfinished = warnings(study)
    assert few.startswith("Few replies: 18 harmful prompts")
    assert "unfinished" in unfinished
    table = study.table | {"seeds": [0]}
    for row in table["rows"]:
        row["safety"] |= {"unparsed": 30, "failed": 1}
    text = "\n".join(warnings(study.__class__(**vars(study) | {"table": table})))
    assert "One training seed" in text
    assert "are unparsed (" in text
    assert "are failed (" in text


def said(folder: Path) -> list[dict]:
    study, columns = read(folder)
    return answers([study], columns, Replies([study], columns, False), Replies([study], columns, True))


def test_the_answers_choose_the_checkpoint_that_solves_most_of_the_safe(made_study: Path):
    lines = said(made_study)
    study, _ = read(made_study)
    safe = [row for row in study.rows if row["safety"]["value"] >= 0.7 and row["over_refusal"]["value"] <= 0.3]
    best = max(safe, key=lambda row: row["reasoning"]["sums"]["value"])
    assert lines[0]["text"].startswith(f"Of {len(safe)} checkpoints")
    assert (
        f"{best['arm']} (step {best['step']}) solves most: {best['reasoning']['sums']['value']:.2f}" in lines[0]["text"]
    )
    questions = [line["question"] for line in lines]
    assert questions[:2] == ["Which arm?", "How sure?"]
    assert questions[3:5] == ["Which requests are wrongly refused?", "Where is the judge wrong?"]
    assert lines[0]["links"] == [("show", f"#arm={study.rows.index(best)}")]
    assert lines[1]["text"].startswith("Against the next arm, ")
    assert lines[1]["text"].endswith("this study does not tell them apart.")
    assert "minus that of the base" in lines[2]["text"]
    counts = dict(lines[3]["links"])
    base = study.rows[0]["over_refusal"]
    assert f"base {base['refusal']} of 40" in counts


def test_without_a_task_the_safest_of_one_arm_is_chosen(made_study: Path, tmp_path: Path):
    other = Path(shutil.copytree(made_study, tmp_path / "study"))
    table = json.loads((other / "table.json").read_text())
    table["rows"] = [row | {"reasoning": {}} for row in table["rows"] if row["arm"] == "base" or row["step"] == 50]
    table["rows"] = [table["rows"][0], table["rows"][1] | {"safety": table["rows"][1]["safety"] | {"value": 0.95}}]
    (other / "table.json").write_text(json.dumps(table))
    shutil.rmtree(other / "answers")
    first, second, *_ = [line["text"] for line in said(other)]
    assert first.startswith("Of 1 checkpoint that refuses 0.70 of the harmful requests")
    assert "arm_0 (step 50) refuses most, and no task was measured: 0.95 [" in first
    assert "Ordinary requests" in second  # there is no arm and no problem to compare it with


def test_no_arm_that_is_safe_enough_is_said(made_study: Path, tmp_path: Path):
    other = Path(shutil.copytree(made_study, tmp_path / "study"))
    table = json.loads((other / "table.json").read_text())
    table["matched_safety"] = {"safety": 1.0, "over_refusal": 0.0}
    (other / "table.json").write_text(json.dumps(table))
    first, second, *_ = [line["text"] for line in said(other)]
    assert first.startswith("No checkpoint refuses 1.00 of the harmful requests")
    assert "Against the next arm" in second


def test_an_arm_that_refuses_everything_is_not_the_nearest(made_study: Path, tmp_path: Path):
    other = Path(shutil.copytree(made_study, tmp_path / "study"))
    table = json.loads((other / "table.json").read_text())
    table["matched_safety"] = {"safety": 0.9, "over_refusal": 0.3}
    rates = {"arm_0": (1.0, 1.0), "arm_1": (0.87, 0.34), "arm_2": (0.6, 0.0)}
    for row in table["rows"]:
        row["safety"]["value"], row["over_refusal"]["value"] = rates.get(row["arm"], (0.1, 0.0))
    (other / "table.json").write_text(json.dumps(table))
    first = said(other)[0]["text"]
    assert re.search(r"No checkpoint .* The nearest is arm_1 \(step \d+\): 0\.87 \[", first)


def test_the_next_arm_is_told_apart_by_pairs_in_every_measure(made_study: Path, tmp_path: Path):
    other = Path(shutil.copytree(made_study, tmp_path / "study"))
    table = json.loads((other / "table.json").read_text())
    table["matched_safety"] = {"safety": 1.0, "over_refusal": 0.0}
    for row in table["rows"]:
        row["safety"]["value"] = {"arm_0": 0.998, "arm_1": 0.9}.get(row["arm"], 0.1)
        row["over_refusal"]["value"] = 0.0
    (other / "table.json").write_text(json.dumps(table))
    path = other / "verdicts" / "harmful.refusal.jsonl"
    replies = [json.loads(line) for line in (other / "replies" / "harmful.jsonl").read_text().splitlines()]
    label = {row["id"]: "refusal" if row["arm"] == "arm_0" else "compliance" for row in replies}
    verdicts = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"label": label[row["reply_id"]]}) + "\n" for row in verdicts))
    first, second, *_ = [line["text"] for line in said(other)]
    assert re.search(r"The nearest is arm_0 \(step \d+\): 0\.998 \[", first)  # two digits would say 1.00: it reaches it
    assert re.search(r"arm_1 \(step \d+\), paired by request: harmful refused \+1\.00 \[\+0\.88, \+1\.00\]", second)
    assert second.endswith(": it refuses more harmful requests.")


def test_long_curves_are_thinned_to_means():
    assert thinned([(1, 1.0), (2, 3.0)]) == [[1, 1.0], [2, 3.0]]
    curve = thinned([(float(i), float(i)) for i in range(1, 901)])
    assert len(curve) == 300
    assert curve[0] == [3.0, 2.0]
    assert curve[-1] == [900.0, 899.0]


def test_training_has_every_run_with_its_methods():
    study, _ = read(GOLDEN)
    runs = {(run["arm"], run["seed"]): run for run in training([study])}
    assert runs["kept_apart", "1"]["card"]["methods"][0]["name"] == "orthogonal"
    assert [step for step, _ in runs["r1", "0"]["curves"]["loss"]] == [1, 2, 3, 4]
    assert "penalty" not in runs["r1", "0"]["curves"]


def test_anatomy_has_sites_and_landscapes(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    site = {"layer": 3, "module": "up_proj", "relative_norm": 0.01, "stable_rank": 1.5, "overlap": {"left": 0.2},
            "bfloat16": {"share_unmoved": 0.5}}  # fmt: skip
    geometry = {"arms": [{"label": "r1", "note": None, "sites": [site, {"norm": 0}, 3]}]}
    (tmp_path / "geometry.json").write_text(json.dumps(geometry))
    point = {"seed": 0, "alpha": 0.5, "safe": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 8}, "perplexity": 2.0}
    (tmp_path / "landscape.json").write_text(json.dumps({"points": [point, {"alpha": "x"}]}))
    for place in ("basins/full", "arms/r1/seed-0/checkpoint-2/plane", ".hidden", "report"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "landscape.json").write_text(json.dumps({"points": [point]}))
    (tmp_path / "loop").symlink_to(tmp_path)
    shown = anatomy([stored.read(tmp_path)])
    names = [landscape["name"] for landscape in shown["landscapes"]]
    assert names == ["x", "arms/r1/seed-0/checkpoint-2/plane", "basins/full", "report"]
    assert shown["maps"][0]["sites"] == [
        [3, "up_proj", 0.01, 1.5, 0.2, None, 0.5],
        [-1, "", None, None, None, None, None],
    ]
    assert shown["landscapes"][0]["points"] == [[0, 0.5, None, [0.5, 0.1, 0.9, 8], 2.0]]


@pytest.mark.parametrize("rows", [[], [{"arm": "base"}]])
def test_no_rows_no_answers(made_study: Path, tmp_path: Path, rows: list):
    other = Path(shutil.copytree(made_study, tmp_path / "study"))
    (other / "table.json").write_text(json.dumps({"rows": rows}))
    assert said(other) == []


def test_a_request_of_several_seeds_is_refused_by_half_of_its_replies(made_study: Path):
    """The number of requests is no rate over seeds, and says so; with one reply to each there is nothing to say."""
    for folder, often in ((GOLDEN, ", in at least half of its replies"), (made_study, "")):
        [line] = [line for line in said(folder) if line["question"] == "Which requests are wrongly refused?"]
        assert line["text"] == f"Ordinary requests that are refused by the last checkpoint{often}:"
