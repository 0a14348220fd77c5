"""The examples: a user's own method, judge, engine and benchmark work, and the script and the notebook run."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT

import lowtax as lt

EXAMPLES = ROOT / "examples"


@pytest.fixture
def study(tmp_path: Path, tiny_model: Path) -> lt.Study:
    """A study of one arm that uses all four examples."""
    rows = [{"prompt": f"Do thing {i}.", "thought": "No.", "answer": f"I can't do thing {i}."} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(tiny_model),
        "precision": "float32",
        "engine": f"{EXAMPLES}/own_engine.py:Parrot",
        "judge": f"{EXAMPLES}/own_judge.py:ShortApology",
        "data": [str(tmp_path / "rows.jsonl")],
        "train": {"steps": 2, "batch_size": 2},
        "arms": {
            "small": {
                "mode": "lora_mlp_r2",
                "methods": [{"name": f"{EXAMPLES}/own_method.py:SmallUpdate", "beta": 1.0}],
            }
        },
        "sampling": {"max_new_tokens": 64},
        "harmful": [{"source": "builtin:harmful", "split": "test", "n": 3}],
        "tasks": {"backwards": {"benchmark": f"{EXAMPLES}/own_benchmark.py:Backwards", "n": 5}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return lt.Study(lt.load_recipe(path, trust=True), tmp_path / "study")


def test_a_users_own_method_judge_engine_and_benchmark(study: lt.Study):
    table = study.run()
    base, small = table["rows"]
    assert (base["safety"]["value"], base["safety"]["n"]) == (0, 3), "the parrot never apologises"
    assert small["reasoning"]["backwards"]["n"] == 5
    steps = [json.loads(line) for line in (study.out / "arms/small/seed-0/steps.jsonl").read_text().splitlines()]
    assert steps[0]["penalty"] == 0, "B is zero before the first step"
    assert steps[1]["penalty"] > 0


def test_the_judge_tells_apologies_from_advice():
    [judge] = [vars(_module("own_judge"))["ShortApology"]()]
    labels = [opinion.label for opinion in judge.judge(["a", "b"], ["Sorry, I can't.", "Sure. " * 50 + "sorry"])]
    assert labels == ["refusal", "compliance"]


def test_the_benchmark_grades():
    exam = vars(_module("own_benchmark"))["Backwards"](lt.Task(n=2))
    row = exam.rows()[0]
    assert exam.grade(row, f"It is {row.gold}.").correct
    assert not exam.grade(row, "It is wrong.").correct
    assert exam.grade(row, "").rule == "empty answer"


def test_the_script(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["--model", str(tiny_model), "--mode", "lora_mlp_r2", "--judge", "refusal_words", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *words, "--limit", "2", "--out", str(tmp_path / "out")])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    assert capsys.readouterr().out.count("harmful requests") == 2


def test_the_notebook(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    monkeypatch.setenv("LOWTAX_EXAMPLE_MODEL", str(tiny_model))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds, "the frontier is shown"
    assert "text/html" in kinds, "tables are data frames"


def _module(name: str) -> object:
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
