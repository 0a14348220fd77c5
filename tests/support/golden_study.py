"""The recipe of the stored study in tests/golden, and the model and rows that it names."""

import json
import os
from pathlib import Path

from places import TESTS
from tiny import make_model

FOLDER = TESTS / "golden"
LONG_AGO = 1_700_000_000  # files of a model are told apart by name, size and time
RECIPE = {
    "name": "golden",
    "model": "model",
    "precision": "float32",
    "engine": "fake",
    "seeds": [0, 1],
    "data": [{"source": "rows.jsonl"}, {"source": "builtin:refusals", "n": 4}],
    "train": {"steps": 4, "checkpoint_steps": 2, "batch_size": 2, "lr": 0.01},
    "arms": {
        "full": {"mode": "full"},
        "r1": {"mode": "lora_up_proj_only_from1_to1_r1"},
        "kept_apart": {"mode": "lora_mlp_orthogonal_down_r2_beta0.1_k2", "train": {"steps": 2}},
    },
    "edited": {"r1_half": {"of": "r1", "edits": [{"name": "scale", "by": 0.5}], "checkpoints": "all"}},
    "sampling": {"max_new_tokens": 64, "samples": 2, "temperature": 1.0},
    "judge": "refusal_words",
    "harmful": [{"source": "builtin:harmful", "split": "test", "n": 9}],
    "ordinary": [{"source": "builtin:ordinary", "split": "test", "n": 7}],
    "tasks": {
        "arithmetic": {"n": 5, "sampling": {"max_new_tokens": 64}},
        "sums": {"benchmark": "math", "file": "sums.jsonl", "sampling": {"max_new_tokens": 64, "samples": 3}},
        "letters": {"benchmark": "multiple_choice", "file": "letters.jsonl", "sampling": {"max_new_tokens": 64}},
    },
}
SUMS = [{"question": f"What is {a} + {a}?", "answer": str(2 * a)} for a in range(60, 66)]
LETTERS = [
    {"question": f"Which is number {i}?", "choices": [f"{i}", f"{i + 1}", f"{i + 2}", f"{i + 3}"], "answer": "A"}
    for i in range(4)
]


def stub_model(folder: Path) -> None:
    """A tiny model whose files have fixed times."""
    make_model(folder)
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))


def rows() -> None:
    """The files that the recipe names, in the present folder."""
    training = [{"prompt": f"Do thing {i}.", "thought": "No.", "answer": f"I can't do thing {i}."} for i in range(8)]
    for name, content in (("rows", training), ("sums", SUMS), ("letters", LETTERS)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
