"""An arm that fails is recorded with the reason; the others go on, in one process and with workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_study import write_recipe
from typer.testing import CliRunner
from worked import SMALL, by_workers

from lowtax.cli.main import app
from lowtax.study import recipe, study
from lowtax.study.units import pools

Run = Callable[[Path, Path], dict]
RATE = {"lr": 1e30}  # the first step makes the weights infinite


def alone(path: Path, out: Path) -> dict:
    with study.Study(recipe.load(path), out) as work:
        return work.run()


def workers(path: Path, out: Path) -> dict:
    return by_workers(path, out, lambda: pools.local(1))[0]


def failing_recipe(folder: Path, model: Path, **arm: object) -> Path:
    arms = {"bad": SMALL["arms"]["r1"] | arm, "good": SMALL["arms"]["r1"], "after": {"start": "bad"}}
    edited = {"half": {"of": "bad", "edits": [{"name": "scale", "by": 0.5}]}}
    return write_recipe(folder, model, **SMALL | {"arms": arms, "edited": edited, "tasks": {}})


@pytest.mark.usefixtures("one_template")
@pytest.mark.parametrize("run", [alone, workers])
def test_the_others_go_on_and_a_repeated_command_tries_again(run, tmp_path, tiny_model):
    path = failing_recipe(tmp_path, tiny_model)
    out = tmp_path / "out"
    (out / "arms" / "bad").mkdir(parents=True)
    (out / "arms" / "bad" / "seed-0").write_text("in the way")
    table = run(path, out)
    failed = {row["arm"]: row["reason"] for row in table["failed"]}
    assert set(failed) == {"bad", "after", "half"}
    assert failed["bad"].startswith("train/bad/seed-0: ")
    assert (failed["half"], failed["after"]) == (
        "bad, which it is made of, failed",
        "bad, from which it starts, failed",
    )
    assert {row["arm"] for row in table["rows"]} == {"base", "good"}
    assert failed["half"] in (out / "table.md").read_text()
    again = CliRunner().invoke(app, ["compare", str(out)])
    assert again.exit_code == 0, again.output
    assert failed["half"] in (out / "table.md").read_text()
    (out / "arms" / "bad" / "seed-0").unlink()
    table = run(path, out)
    assert "failed" not in table
    assert {row["arm"] for row in table["rows"]} == {"base", "bad", "good", "after", "half"}


@pytest.mark.usefixtures("one_template")
@pytest.mark.parametrize("options", [[], ["--workers", "1"]])
def test_a_loss_that_diverges_is_exit_code_1_and_in_the_table(options, tmp_path, tiny_model):
    path = failing_recipe(tmp_path, tiny_model, train=RATE)
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 1, result.output
    assert "3 of the trainings, edits or measurements failed: bad (seed 0)" in result.output
    page = (tmp_path / "out" / "table.md").read_text()
    assert "train/bad/seed-0: " in page
    assert "Traceback" not in result.output


def test_an_adapter_that_cannot_be_sampled_fails_its_arm_alone(tmp_path, tiny_model):
    changes = {"arms": {"one": SMALL["arms"]["r1"], "two": {"mode": "lora_mlp_r2"}}, "edited": {}, "tasks": {}}
    path, out = write_recipe(tmp_path, tiny_model, **SMALL | changes), tmp_path / "out"
    with study.Study(recipe.load(path), out) as work:
        work.train()
        last = Path(work.trained("two")[-1].adapter)
        (last / "adapter_model.safetensors").write_bytes(b"")
        table = work.run()
    assert [row["arm"] for row in table["failed"]] == ["two"]
    assert {row["arm"] for row in table["rows"]} == {"base", "one"}


def test_the_only_training_of_a_study_ends_it(tmp_path, tiny_model):
    arms = {"bad": SMALL["arms"]["r1"] | {"train": RATE}}
    path = write_recipe(tmp_path, tiny_model, **SMALL | {"arms": arms, "edited": {}})
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert not (tmp_path / "out" / "table.json").exists()
