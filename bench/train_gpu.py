"""Training speed and memory on a GPU, beside TRL: models of published shapes with random weights.

Rank 1 on `up_proj` of the middle third, bfloat16; sequences of 120 tokens (as in DirectRefusal) and of 2,048, half of
them trained; 2 and 16 examples a step. Each figure is a process of its own. The clock runs over steps after three that
are not measured, five epochs over the rows, so that the frozen prefix is made once and used four times more.

    python bench/train_gpu.py --out gpu.json                      # needs: pip install 'lowtax[bench]'
    python bench/train_gpu.py --dry-run               # a tiny shape, also without a GPU: does it run at all?

`mfu` is the work that no way can avoid (`training.unavoidable_flops`) over the rate of a square bfloat16 product
measured in the same process, over the time. The file has the shapes as keys; under each `length L, batch B` stand
vs_trl_default, vs_trl_tuned (no checkpointing), share_of_floor and same_loss, and the figures behind them. On 32B only
our side runs: for the memory.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

SHAPES = ("R1-Distill-Qwen-1.5B", "R1-Distill-Qwen-7B", "R1-Distill-Qwen-14B", "R1-Distill-Qwen-32B")
SIDES = ("lowtax", "lowtax_fused", "lowtax_compiled", "trl", "trl_no_checkpointing")
LENGTHS, BATCHES = (120, 2048), (2, 16)
EPOCHS = 5


def config_of(shape: str, vocabulary: int) -> Any:
    """A Qwen2 configuration with the published sizes; `tiny` for a trial."""
    from transformers import Qwen2Config

    from lowtax.models.shapes import SHAPES as KNOWN
    from lowtax.models.shapes import Shape

    s = Shape(6, 64, 128, 4, 2, vocabulary) if shape == "tiny" else KNOWN[shape]
    return Qwen2Config(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        intermediate_size=s.mlp,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=s.tied,
    )


def task_of(asked: argparse.Namespace, folder: Path) -> Any:
    """The run to be timed. The tokenizer is one of bytes, so that a text of n letters has n tokens."""
    import torch
    import training
    from transformers import AutoModelForCausalLM

    from lowtax.data.conversations import Conversation
    from lowtax.models import loading
    from lowtax.models.placement import Placement
    from lowtax.training.encoding import encode_all
    from lowtax.training.settings import Execution, Train

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from tiny import make_tokenizer

    tokenizer = make_tokenizer(think=False)
    tokenizer.save_pretrained(folder)
    config = config_of(asked.shape, 300)

    def load(dtype: str) -> Any:
        torch.manual_seed(0)
        with torch.device(loading.device()):
            return AutoModelForCausalLM.from_config(config, dtype=loading.DTYPES[dtype]).eval()

    overhead = len(encode_all(tokenizer, [Conversation("", None, "x")], 99).examples[0].prompt) + 1
    half = (asked.length - overhead) // 2
    rows = [Conversation(f"{i:04d}" + "q" * (half - 4), None, "a" * half) for i in range(asked.rows)]
    return training.Task(
        load=load,
        model=str(folder),
        tokenizer=tokenizer,
        placement=Placement(modules=("up_proj",), layers="middle third", dropout=0.0),
        settings=Train(
            lr=1e-4,
            steps=asked.rows * EPOCHS // asked.batch,
            batch_size=asked.batch,
            warmup_steps=0,
            max_length=asked.length,
        ),
        rows=rows,
        examples=encode_all(tokenizer, rows, asked.length).examples,
        precision="bfloat16",
        execution=Execution(
            compile=asked.side == "lowtax_compiled", fused="on" if asked.side == "lowtax_fused" else "auto"
        ),
        trl_precision="bfloat16",
    )


def one(asked: argparse.Namespace) -> None:
    """In a process of its own: a few steps unmeasured, then the run; prints what it found as JSON."""
    import torch
    import training

    from lowtax.models import loading

    ways: dict[str, Any] = {
        "lowtax": training.lowtax,
        "lowtax_fused": training.lowtax,
        "lowtax_compiled": training.lowtax,
        "trl": training.trl,
        "trl_no_checkpointing": lambda task, out: training.trl(task, out, gradient_checkpointing=False),
    }
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(asked, Path(folder) / "tokenizer")
        ways[asked.side](task.limited(3), Path(folder) / "unmeasured")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        found = ways[asked.side](task, Path(folder) / "measured")
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    cube = 8192 if torch.cuda.is_available() else 512
    rate = training.matmul_rate(loading.device(), torch.bfloat16, cube)
    result = {
        "samples_per_second": round(task.steps * asked.batch / found.seconds, 3),
        "peak_gb": None if peak is None else round(peak, 2),
        "mfu": round(training.unavoidable_flops(task) / rate / found.seconds, 4),
        "mean_loss": round(sum(found.losses) / len(found.losses), 4),
        "tflops_of_a_matmul": round(rate / 1e12, 1),
    }
    print(json.dumps(result))


def measure(shape: str, length: int, batch: int, side: str) -> dict[str, Any]:
    """One figure, or why there is none."""
    rows = max(batch * 2, 32 if length < 1000 else 16)
    command = [sys.executable, __file__, "--side", side, "--shape", shape, "--length", str(length)]
    command += ["--batch", str(batch), "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300] if done.stderr else f"exit {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Our figures beside theirs, as far as both are there."""
    ours = found.get("lowtax", {})
    cell: dict[str, Any] = {"share_of_floor": ours.get("mfu")}
    for name, side in (("vs_trl_default", "trl"), ("vs_trl_tuned", "trl_no_checkpointing")):
        theirs = found.get(side, {})
        both = "samples_per_second" in ours and "samples_per_second" in theirs
        cell[name] = round(ours["samples_per_second"] / theirs["samples_per_second"], 2) if both else None
        if both:
            same = abs(ours["mean_loss"] - theirs["mean_loss"]) <= 0.03 * ours["mean_loss"]
            cell["same_loss"] = cell.get("same_loss", True) and same
    return cell


def main() -> None:
    """Every shape, length and batch; the file is written anew after each, so that nothing measured is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_gpu.json")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=[*SHAPES, "tiny"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument(
        "--sides", nargs="+", default=("lowtax", "lowtax_fused", "trl", "trl_no_checkpointing"), choices=SIDES
    )
    parser.add_argument("--dry-run", action="store_true", help="run every side on a tiny shape, and keep no figures")
    for name in ("side", "shape"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("length", "batch", "rows"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        return one(asked)
    if asked.dry_run:
        asked.shapes, asked.lengths, asked.batches, asked.sides = ["tiny"], [120], [2], [*asked.sides]
        asked.out = Path(tempfile.mkdtemp()) / "train_gpu.json"
    result: dict[str, Any] = {"machine": provenance()["hardware"], "versions": provenance()["versions"]}
    for shape, length, batch in itertools.product(asked.shapes, asked.lengths, asked.batches):
        found = {}
        for side in asked.sides if "32B" not in shape else ["lowtax"]:
            found[side] = measure(shape, length, batch, side)
            print(shape, length, batch, side, found[side], flush=True)
        result.setdefault(shape, {})[f"length {length}, batch {batch}"] = {**compared(found), **found}
        write_json(asked.out, result)
        if asked.dry_run and (failed := [side for side, figures in found.items() if "failed" in figures]):
            sys.exit(f"these sides do not run here: {', '.join(failed)}")


if __name__ == "__main__":
    main()
