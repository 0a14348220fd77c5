"""Sampling speed on CPU beside the reference's way, and how many replies a minute the embedded judge reads.

The reference (arXiv 2507.17075, its published code) samples batches of four prompts in file order, each batch waiting
for its longest reply. Both sides are given the same prompts, token limit and model in the same precision, greedily, and
take turns. Tokens are those of the replies, without what is written after their end.

    python bench/sample_cpu.py --prompts FILE[:column]      # StrongREJECT, where a copy is at hand

The file has vs_reference_loop, tokens_per_second and judge_replies_per_minute, and the spread of each.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from lowtax.common.files import write_json
from lowtax.common.log import quiet_libraries
from lowtax.common.provenance import provenance
from lowtax.data import chat, prompt_sets
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.judges import base as judges
from lowtax.models import loading

MODEL = "builtin:smollm2-135m-reasoner"
RESULT = Path(__file__).parent / "results" / "sample_cpu.json"


def ours(engine: HF, requests: list[Request]) -> list[str]:
    """Replies by our engine, in the order of the requests."""
    found = {c.id: c.text for c in engine.generate(requests)}
    return [found[r.id] for r in requests]


def reference(engine: HF, requests: list[Request]) -> list[str]:
    """Replies by transformers' `generate`: batches of four, in file order."""
    texts = []
    for start in range(0, len(requests), 4):
        batch = requests[start : start + 4]
        asked = [chat.generation_prompt(engine.tokenizer, list(r.messages)) for r in batch]
        inputs = engine.tokenizer(
            asked, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        with torch.inference_mode():
            out = engine.model.generate(
                **inputs, do_sample=False, max_new_tokens=batch[0].max_new_tokens, eos_token_id=sorted(engine.ends)
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        texts += engine.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def tokens(engine: HF, texts: list[str]) -> int:
    """Tokens of the replies."""
    return sum(len(ids) for ids in chat.encode(engine.tokenizer, texts))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="builtin:harmful", help="a set by name, or FILE[:column]")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--judge", default="refusal")
    asked = parser.parse_args()
    quiet_libraries()
    found = prompt_sets.load(asked.prompts, n=asked.n)
    engine = HF(MODEL, loading.precision("auto"), asked.batch_size)
    requests = [
        Request(p.id, ({"role": "user", "content": p.text},), None, asked.max_new_tokens) for p in found.prompts
    ]
    rates: dict[str, list[float]] = {"ours": [], "reference": []}
    texts: list[str] = []
    for number in range(asked.repeats):
        for name, side in (("ours", ours), ("reference", reference)):
            began = time.perf_counter()
            texts = side(engine, requests)
            rates[name].append(tokens(engine, texts) / (time.perf_counter() - began))
            print(f"run {number + 1}: {name} {rates[name][-1]:.0f} tokens/s", flush=True)
    judge = judges.load(asked.judge)
    judge.judge(["Hi"], ["Hello."])  # loads it
    began = time.perf_counter()
    judge.judge([p.text for p in found.prompts], texts)
    per_minute = 60 * len(texts) / (time.perf_counter() - began)
    ratios = [a / b for a, b in zip(rates["ours"], rates["reference"], strict=True)]
    result = {
        "vs_reference_loop": round(statistics.median(ratios), 2),
        "tokens_per_second": round(statistics.median(rates["ours"])),
        "judge_replies_per_minute": round(per_minute),
        "spread": {"vs_reference_loop": [round(min(ratios), 2), round(max(ratios), 2)]},
        "prompts": {key: value for key, value in found.describe().items() if key != "name"},
        "settings": {"n": len(requests), "max_new_tokens": asked.max_new_tokens, "batch_size": asked.batch_size},
        "judge": asked.judge,
    }
    write_json(RESULT, {**result, **provenance()})
    print(result)


if __name__ == "__main__":
    main()
