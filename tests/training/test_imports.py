"""What a command imports: training needs no plots, judges or analysis, and only a dry run needs the dry run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_study import write_recipe

from lowtax.common.errors import UserError
from lowtax.judges import base as judges
from lowtax.judges.base import BUILTIN

COMMAND = """
import sys
from pathlib import Path
modules, *words = sys.argv[1:]
sys.argv = ["lowtax", *words]
from lowtax.cli.main import main
try:
    main()
finally:
    Path(modules).write_text("\\n".join(sys.modules))
"""
FOR_RESULTS = (
    "matplotlib",
    *(place.partition(":")[0] for place in BUILTIN.values()),
    "lowtax.judges.model_judge",
    "lowtax.judges.calibration",
    "lowtax.analysis.geometry",
    "lowtax.analysis.landscape.walk",
    "lowtax.study.frontier",
    "lowtax.common.figures",
)


def imported(folder: Path, *words: object) -> list[str]:
    """The modules in a separate process after the command has run."""
    file = folder / "modules.txt"
    command = [sys.executable, "-c", COMMAND, str(file), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return file.read_text().splitlines()


def starting_with(modules: list[str], *prefixes: str) -> list[str]:
    return [name for name in modules if name.startswith(prefixes)]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    arms = {"r1": {"mode": "lora_mlp_r1"}}
    edited = {"half": {"of": "r1", "edits": [{"name": "scale", "by": 0.5}]}}
    train = {"steps": 2, "batch_size": 2}
    changes = {"engine": "fake", "judge": "refusal", "seeds": [0], "train": train, "arms": arms, "edited": edited}
    return write_recipe(tmp_path, tiny_model, **changes)


def test_training_imports_neither_plots_nor_judges_nor_the_analysis(recipe: Path, tmp_path: Path):
    modules = imported(tmp_path, "train", recipe, "--out", tmp_path / "out")
    assert (tmp_path / "out/arms/r1/seed-0/checkpoint-2/adapter_model.safetensors").exists()
    assert "lowtax.training.loop" in modules
    assert starting_with(modules, *FOR_RESULTS, "lowtax.study.dryrun") == []


def test_a_run_imports_what_its_results_need_but_not_the_dry_run(recipe: Path, tmp_path: Path):
    words = ("run", recipe, "--out", tmp_path / "out", "--set", "judge=refusal_words")
    modules = imported(tmp_path, *words)
    assert (tmp_path / "out/frontier.png").exists()
    assert {"matplotlib", "lowtax.judges.refusal_words", "lowtax.analysis.geometry"} <= set(modules)
    assert starting_with(modules, "lowtax.study.dryrun", "lowtax.analysis.landscape.walk") == []


def test_a_judge_is_checked_by_its_name_as_strictly_as_it_is_loaded(tmp_path: Path):
    (tmp_path / "mine.py").write_text("class Mine: pass\nclass Broken:\n    def __init__(self, x): pass\n")
    names = [*BUILTIN, *(f"{name}:owner/name" for name in BUILTIN), "nobody", f"{tmp_path}/mine.py:Mine"]
    for name in names:
        refusals = []
        for attempt in (judges.check, judges.load):
            try:
                attempt(name)
            except UserError as error:
                refusals.append(str(error))
        assert len(set(refusals)) == len(refusals) / 2, name
    with pytest.raises(TypeError):
        judges.check(f"{tmp_path}/mine.py:Broken")
