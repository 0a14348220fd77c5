"""A study with one arm that two processes train together (ZeRO-2), and what a launcher makes of it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import TESTS
from safetensors.torch import load_file
from small_study import write_recipe
from worked import SMALL

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
    "zero_force_ds_cpu_optimizer": False,
}


def write_sharded(folder: Path, tiny_model: Path) -> Path:
    """Write the recipe, and return its path."""
    (folder / "zero.json").write_text(json.dumps(ZERO))
    changes = {"arms": {"r1": SMALL["arms"]["r1"]}, "edited": {}, "tasks": {}, "judged_also": []}
    execution = {"execution": {"deepspeed": str(folder / "zero.json")}}
    return write_recipe(folder, tiny_model, **SMALL | changes | execution)


def launch(path: Path, out: Path) -> None:
    """Train the study in two processes with the variables of a launcher."""
    launches = path.with_name("launches.json")
    launches.write_text(json.dumps([{"jobs": [{"recipe": str(path), "out": str(out)}], "processes": 2}]))
    command = [sys.executable, TESTS / "support" / "ranks.py", launches, "deepspeed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def adapters(out: Path) -> dict[str, dict[str, list]]:
    """The weights of all adapters of a study."""
    paths = sorted(out.glob("arms/*/*/*/*.safetensors"))
    return {str(path.relative_to(out)): {k: v.tolist() for k, v in load_file(path).items()} for path in paths}
