"""Sampling by the 1.5B model on a CPU beside `transformers` and llama.cpp: the same prompts, and where the time goes.

    python -m venv llama && llama/bin/pip install llama-cpp-python      # compiles it, some ten minutes
    python bench/beside_llama_cpp.py --llama-cpp llama/bin/python       # without: lowtax and transformers alone

GGUF is the file that `builtin:qwen2.5-coder-1.5b` is made of, in 4 bits: `--gguf`, else it is fetched. llama.cpp
computes with its 4-bit weights, the other two with the weights made of them, in the precision `auto`. All are given the
same tokens, and decode greedily to the model's end tokens or `--max-new-tokens`. llama.cpp, whose Python class has one
sequence, reads prompt after prompt; the other two have all prompts in one batch.

Each side runs in a process of its own, with `--threads`, and they take turns. Seconds are of the processor, which other
work on the machine disturbs less than the clock. `profile` is torch's, of lowtax's side: the share of each operation.

The result has, by side, tokens a second (least, median, most), vs_transformers and vs_llama_cpp, and the profile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

RESULT = Path(__file__).parent / "results" / "beside_llama_cpp.json"
MODEL = "builtin:qwen2.5-coder-1.5b"
SIDES = ("lowtax", "transformers", "llama.cpp")
SHOWN = 8  # operations of the profile
LLAMA = """
import json, sys, time
from llama_cpp import Llama
given = json.load(open(sys.argv[1]))
model = Llama(sys.argv[2], n_ctx=2048, n_threads=given["threads"], n_threads_batch=given["threads"], verbose=False)
def run(prompts):
    written = []
    for ids in prompts:
        model.reset()
        new = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            if token in given["ends"]:
                break
            new.append(token)
            if len(new) == given["most"]:
                break
        written.append(new)
    return written
run([given["prompts"][0][:8]])
clock, began = time.perf_counter(), time.process_time()
written = run(given["prompts"])
print(json.dumps({"seconds": time.process_time() - began, "clock": time.perf_counter() - clock, "written": written}))
"""


def prompts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the tokens of the prompts, the end tokens and the limits, as each side reads them."""
    from transformers import GenerationConfig

    from lowtax.data import chat, prompt_sets
    from lowtax.models import loading

    tokenizer = loading.load_tokenizer(options.model)
    texts = [p.text for p in prompt_sets.load(options.prompts, n=options.n).prompts]
    chats = [chat.generation_prompt(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    folder = loading.resolve(options.model)
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    return {
        "texts": texts,
        "prompts": chat.encode(tokenizer, chats),
        "ends": ends if isinstance(ends, list) else [ends],
        "most": options.max_new_tokens,
        "threads": options.threads,
    }


def one_side(options: argparse.Namespace) -> None:
    """Run lowtax's or transformers' side in this process, and print its result as JSON."""
    import torch

    from lowtax.common.log import quiet_libraries
    from lowtax.data import chat
    from lowtax.engines.base import Request
    from lowtax.engines.hf.engine import HF
    from lowtax.models import loading

    quiet_libraries()
    torch.set_num_threads(options.threads)
    asked = json.loads(Path(options.file).read_text())
    engine = HF(options.model, loading.precision("auto"), len(asked["prompts"]))

    def ours(number: int, most: int) -> list[list[int]]:
        requests = [
            Request(str(i), ({"role": "user", "content": text},), None, most)
            for i, text in enumerate(asked["texts"][:number])
        ]
        done = {int(c.id): c.text for c in engine.generate(requests)}
        return chat.encode(engine.tokenizer, [done[i] for i in range(number)])

    def theirs(number: int, most: int) -> list[list[int]]:
        rows, pad = asked["prompts"][:number], engine.tokenizer.pad_token_id
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = engine.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=asked["ends"],
                pad_token_id=pad,
            )
        texts = engine.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return chat.encode(engine.tokenizer, texts)

    work = ours if options.side == "lowtax" else theirs
    work(1, 2)
    if options.profile:
        print(json.dumps(profile(lambda: work(len(asked["prompts"]), asked["most"]))))
        return
    clock, began = time.perf_counter(), time.process_time()
    written = work(len(asked["prompts"]), asked["most"])
    seconds = time.process_time() - began
    print(json.dumps({"seconds": seconds, "clock": time.perf_counter() - clock, "written": written}))


def profile(work: Any) -> dict[str, float]:
    """Return the share of the processor's time of the operations that take most."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    rows = recorded.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    largest = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:SHOWN]
    return {row.key: round(row.self_cpu_time_total / total, 3) for row in largest}


def run(side: str, options: argparse.Namespace, file: Path, *more: str) -> dict[str, Any]:
    """Return the result of one run of a side."""
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    if side == "llama.cpp":
        command = [options.llama_cpp, "-c", LLAMA, str(file), str(options.gguf)]
    else:
        command = [sys.executable, __file__, "--side", side, "--file", str(file), "--model", options.model]
        command += ["--threads", str(options.threads), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Return least, median and most."""
    return {name: round(of(values), 2) for name, of in (("min", min), ("median", statistics.median), ("max", max))}


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Let the sides take turns."""
    from lowtax.models import embedded_coder

    sides = [side for side in SIDES if side != "llama.cpp" or options.llama_cpp]
    if options.llama_cpp and options.gguf is None:
        options.gguf = embedded_coder.gguf(work)
    given, file = prompts(options), work / "prompts.json"
    file.write_text(json.dumps(given))
    rates: dict[str, list[float]] = {side: [] for side in sides}
    tokens: dict[str, int] = {}
    for number in range(1, options.repeats + 1):
        for side in sides:
            one = run(side, options, file)
            tokens[side] = sum(map(len, one["written"]))
            rates[side].append(tokens[side] / one["seconds"])
            print(f"run {number}: {side} {tokens[side]} tokens, {rates[side][-1]:.1f} a second", flush=True)
    ratios = {
        f"vs_{side.replace('.', '_')}": spread([a / b for a, b in zip(rates["lowtax"], rates[side], strict=True)])
        for side in sides[1:]
    }
    return {
        **ratios,
        "tokens_per_cpu_second": {side: spread(of) for side, of in rates.items()},
        "tokens": tokens,
        "prompt_tokens": sum(map(len, given["prompts"])),
        "profile": run("lowtax", options, file, "--profile"),
        "settings": {name: getattr(options, name) for name in ("model", "n", "max_new_tokens", "threads", "repeats")},
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="the Python that has llama-cpp-python")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--prompts", default="builtin:ordinary")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return one_side(options)
    with tempfile.TemporaryDirectory() as work:
        result = measure(options, Path(work)) | provenance()
    write_json(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
