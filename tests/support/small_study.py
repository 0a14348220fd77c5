"""A study of three arms on a tiny model: its recipe, a run of it, and all that it holds."""

import json
from pathlib import Path

import yaml
from safetensors.torch import load_file

from lowtax.study import recipe, study


def write_recipe(folder: Path, base: Path, **changes: object) -> Path:
    rows = [{"prompt": f"Do thing {i}.", "thought": "No.", "answer": f"I can't do thing {i}."} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "name": "tiny",
        "model": str(base),
        "precision": "float32",
        "batch_size": 16,
        "seeds": [0, 1],
        "data": [{"source": str(folder / "rows.jsonl")}],
        "train": {"steps": 4, "checkpoint_steps": 2, "batch_size": 2, "lr": 0.01},
        "arms": {
            "full": {"mode": "full"},
            "r1": {"mode": "lora_up_proj_only_from1_to1_r1"},
            "r2": {"mode": "lora_mlp_r2"},
        },
        "sampling": {"max_new_tokens": 8},
        "judge": "refusal_words",
        "harmful": [{"source": "builtin:harmful", "split": "test", "n": 3}],
        "ordinary": [{"source": "builtin:ordinary", "split": "test", "n": 2}],
        "tasks": {"arithmetic": {"n": 3, "sampling": {"max_new_tokens": 8}}},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(path: Path, out: Path) -> dict:
    return study.Study(recipe.load(path, trust=True), out).run()


def contents(out: Path) -> dict[str, str]:
    """Everything that a study has found out, without what tells one call from another (times, folders)."""
    found = {}
    for path in sorted(out.glob("*/*.jsonl")):
        lines = path.read_text().splitlines()
        ids = [json.loads(line)["id"] for line in lines]
        assert len(ids) == len(set(ids)), f"{path} repeats a row"
        found[str(path.relative_to(out))] = "\n".join(sorted(lines))
    for path in out.glob("arms/*/*/*/*.safetensors"):
        found[str(path.relative_to(out))] = {k: v.tolist() for k, v in load_file(path).items()}
    table = json.loads((out / "table.json").read_text())
    found["table"] = [{k: v for k, v in row.items() if k != "train_seconds"} for row in table["rows"]]
    return found
