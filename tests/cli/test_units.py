"""`lowtax run` with workers and its plan, as a user meets them."""

import json
import sys
from pathlib import Path

import pytest
from small_study import write_recipe
from worked import SMALL

from lowtax.cli import main

ARMS = {"r1": SMALL["arms"]["r1"], "bad": {"mode": "lora_mlp_r2", "train": {"lr": 1e30}}}


def lowtax(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object):
    monkeypatch.setattr(sys, "argv", ["lowtax", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.mark.usefixtures("one_template")
def test_an_arm_that_fails_is_in_the_table_and_exit_code_1(tmp_path, tiny_model, monkeypatch, capsys):
    half = {"edits": [{"name": "scale", "by": 0.5}]}
    edited = {"half": {"of": "r1", **half}, "bad_half": {"of": "bad", **half}}
    path = write_recipe(tmp_path, tiny_model, **SMALL | {"arms": ARMS, "edited": edited})
    out = tmp_path / "out"
    code, shown, said = lowtax(monkeypatch, capsys, "run", path, "--out", out, "--workers", 1)
    assert code == 1, said
    assert "2 of the trainings, edits or measurements failed: bad (seed 0), bad_half (seed 0); repeat" in said
    assert "train/bad/seed-0 FAILED" in said
    assert "Traceback" not in said
    table = json.loads((out / "table.json").read_text())
    assert [(row["arm"], row["seed"]) for row in table["failed"]] == [("bad", 0), ("bad_half", 0)]
    assert "diverged" in table["failed"][0]["reason"]
    assert {row["arm"] for row in table["rows"]} == {"base", "r1", "half"}
    assert "| bad_half |" in shown


def test_a_plan_prints_units_and_writes_nothing(tmp_path, tiny_model, monkeypatch, capsys):
    path = write_recipe(tmp_path, tiny_model, **SMALL)
    before = sorted(Path(tmp_path).rglob("*"))
    code, text, _ = lowtax(monkeypatch, capsys, "run", path, "--plan", "--json")
    units = json.loads(text)
    assert code == 0
    assert {"id", "kind", "after", "resources", "outputs", "rows", "exact"} == units[0].keys()
    code, text, _ = lowtax(monkeypatch, capsys, "run", path, "--plan", "--limit", 2)
    assert "train/r1/seed-0" in text
    assert sorted(Path(tmp_path).rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--patience", 5], "--patience is for workers: give --workers N or --on ray"),
        (["--gpus-each", 2], "--gpus-each is for workers"),
        (["--nodes-each", 2], "--nodes-each is for workers"),
        (["--workers", 1, "--nodes-each", 2, "--gpus-each", 2], "and this recipe has neither: remove it"),
        (["--on", "slurm"], "'slurm' is no place for workers: give ray, or ray://ADDRESS"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, tiny_model, monkeypatch, capsys, options, sentence):
    path = write_recipe(tmp_path, tiny_model, **SMALL)
    code, _, said = lowtax(monkeypatch, capsys, "run", path, "--out", tmp_path / "out", *options)
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said


def test_without_ray_its_installation_is_named(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_recipe(tmp_path, tiny_model, **SMALL)
    code, _, said = lowtax(monkeypatch, capsys, "run", path, "--out", tmp_path / "out", "--on", "ray")
    assert (code, "pip install 'lowtax[ray]'" in said) == (2, True)
