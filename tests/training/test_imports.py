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
folder, recipe = map(Path, sys.argv[1:])
from lowtax.cli.main import main
for name, more in (("train", []), ("run", ["--set", "judge=refusal_words"])):
    sys.argv = ["lowtax", name, str(recipe), "--out", str(folder / "out"), *more]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    (folder / f"{name}.txt").write_text("\\n".join(name for name, module in sys.modules.items() if module))
"""
FOR_RESULTS = (
    "matplotlib",
    "sklearn",  # transformers imports it where it is installed
    *(place.partition(":")[0] for place in BUILTIN.values()),
    "lowtax.judges.model_judge",
    "lowtax.judges.calibration",
    "lowtax.analysis.geometry",
    "lowtax.analysis.landscape.walk",
    "lowtax.study.frontier",
    "lowtax.common.figures",
)


def starting_with(modules: list[str], *prefixes: str) -> list[str]:
    return [name for name in modules if name.startswith(prefixes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a study, and the modules of its process after `train` and after `run`."""
    folder = tmp_path_factory.mktemp("imports")
    arms = {"r1": {"mode": "lora_mlp_r1"}}
    edited = {"half": {"of": "r1", "edits": [{"name": "scale", "by": 0.5}]}}
    train = {"steps": 2, "batch_size": 2}
    changes = {"engine": "fake", "judge": "refusal", "seeds": [0], "train": train, "arms": arms, "edited": edited}
    command = [sys.executable, "-c", COMMAND, str(folder), str(write_recipe(folder, tiny_model, **changes))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return folder


def test_training_imports_neither_plots_nor_judges_nor_the_analysis(folder: Path):
    modules = (folder / "train.txt").read_text().splitlines()
    assert (folder / "out/arms/r1/seed-0/checkpoint-2/adapter_model.safetensors").exists()
    assert "lowtax.training.loop" in modules
    assert starting_with(modules, *FOR_RESULTS, "lowtax.study.dryrun") == []


def test_a_run_imports_what_its_results_need_but_not_the_dry_run(folder: Path):
    modules = (folder / "run.txt").read_text().splitlines()
    assert (folder / "out/frontier.png").exists()
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
