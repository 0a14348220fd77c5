"""A worker trains a sharded arm in several processes: the bits of a launch without workers, also after a kill."""

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
from worked import SMALL, Killer, by_workers, events, history

from lowtax.study.units import pools

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
    "zero_force_ds_cpu_optimizer": False,
}


def adapters(out: Path) -> dict[str, dict[str, list]]:
    paths = sorted(out.glob("arms/*/*/*/*.safetensors"))
    return {str(path.relative_to(out)): {k: v.tolist() for k, v in load_file(path).items()} for path in paths}


@needs_deepspeed
def test_a_group_trains_what_a_launcher_does_and_survives_a_kill(tmp_path, tiny_model):
    (tmp_path / "zero.json").write_text(json.dumps(ZERO))
    changes = {"arms": {"r1": SMALL["arms"]["r1"]}, "edited": {}, "tasks": {}, "judged_also": []}
    execution = {"execution": {"deepspeed": str(tmp_path / "zero.json")}}
    path = write_recipe(tmp_path, tiny_model, **SMALL | changes | execution)
    launch = {"jobs": [{"recipe": str(path), "out": str(tmp_path / "launched")}], "processes": 2}
    (tmp_path / "launches.json").write_text(json.dumps([launch]))
    command = [sys.executable, TESTS / "support" / "ranks.py", tmp_path / "launches.json", "deepspeed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with Killer(tmp_path / "out", ("train",), after=2.0) as killer:
        table, _ = by_workers(path, tmp_path / "out", lambda: pools.local(1), group=2)
    assert killer.kills == 1
    assert "failed" not in table, table["failed"]
    assert {row["arm"] for row in table["rows"]} == {"base", "r1"}
    card = json.loads((tmp_path / "out" / "arms" / "r1" / "seed-0" / "card.json").read_text())
    assert card["processes"] == 2
    assert adapters(tmp_path / "out") == adapters(tmp_path / "launched") != {}, history(tmp_path / "out")
    assert any(event["state"] == "again" for event in events(tmp_path / "out"))
