"""Serving the base and six adapters in one batch: our engine beside `PeftModel.generate(adapter_names=...)`.

Both hold the embedded model once, in the same precision, with the same rank-16 MLP adapters (random factors),
and write the same number of tokens for the same rows, greedily and without stopping early. They take turns.
The differences are the output layer (`LAST` in `lowtax.engines.hf.batch`) and how the rows of an adapter are found
(`lowtax.engines.hf.row_adapters`).

    python bench/mixed_adapters.py
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel

from lowtax.common.files import write_json
from lowtax.common.log import quiet_libraries
from lowtax.common.provenance import provenance
from lowtax.data import prompt_sets
from lowtax.data.specs import PromptSet
from lowtax.engines.base import Request
from lowtax.engines.hf.engine import HF
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import parse_mode

MODEL = "builtin:smollm2-135m-reasoner"
RESULT = Path(__file__).parent / "results" / "mixed_adapters.json"


def make_adapters(folder: Path, n: int) -> list[str]:
    """Adapters whose update is small and not zero."""
    adapted = adapt(loading.load_model(MODEL), parse_mode("lora_mlp_r16"), MODEL)
    for i in range(n):
        torch.manual_seed(i)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=1e-3)
        adapted.save_pretrained(folder / str(i), save_embedding_layers=False)
    return [str(folder / str(i)) for i in range(n)]


def ours(engine: HF, requests: list[Request]) -> int:
    """Tokens written by our engine, end-of-turn tokens ignored."""
    engine.ends = frozenset({-1})
    return sum(c.tokens for c in engine.generate(requests))


def peft(model: PeftModel, engine: HF, requests: list[Request]) -> int:
    """Tokens written by PEFT's mixed-batch generation for the same batches."""
    names = {r.adapter: "__base__" if r.adapter is None else Path(r.adapter).name for r in requests}
    total = 0
    rows = sorted(requests, key=lambda r: len(r.messages[0]["content"]))
    for start in range(0, len(rows), engine.batch_size):
        batch = rows[start : start + engine.batch_size]
        text = [
            engine.tokenizer.apply_chat_template(list(r.messages), tokenize=False, add_generation_prompt=True)
            for r in batch
        ]
        inputs = engine.tokenizer(
            text, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        n = batch[0].max_new_tokens
        out = model.generate(
            **inputs.to(model.device),
            adapter_names=[names[r.adapter] for r in batch],
            do_sample=False,
            max_new_tokens=n,
            min_new_tokens=n,
        )
        total += (out.shape[1] - inputs["input_ids"].shape[1]) * len(batch)
    return total


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default=loading.precision("auto"))
    asked = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as work:
        adapters = make_adapters(Path(work), asked.adapters)
        prompts = prompt_sets.prompt_set(PromptSet(source="builtin:ordinary", split="test", n=asked.prompts))
        requests = [
            Request(f"{p.id}{a}", ({"role": "user", "content": p.text},), a, asked.tokens)
            for p in prompts
            for a in [None, *adapters]
        ]
        engine = HF(MODEL, asked.precision, 96)
        reference = loading.load_model(MODEL, asked.precision)
        loaded = PeftModel.from_pretrained(reference, adapters[0], adapter_name="0")
        for a in adapters[1:]:
            loaded.load_adapter(a, adapter_name=Path(a).name)
        loaded.eval()
        rates: dict[str, list[float]] = {"lowtax": [], "peft": []}
        for turn in range(asked.repeats + 1):
            for name, serve in (
                ("lowtax", lambda: ours(engine, requests)),
                ("peft", lambda: peft(loaded, engine, requests)),
            ):
                began = time.perf_counter()
                tokens = serve()
                if turn:  # the first turn warms up
                    rates[name].append(tokens / (time.perf_counter() - began))
    ratios = [a / b for a, b in zip(rates["lowtax"], rates["peft"], strict=True)]
    result = {
        "tokens_per_second": rates,
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
    }
    write_json(RESULT, {"settings": vars(asked), **result, **provenance()})
    print(
        f"{len(requests)} rows, {asked.adapters} adapters: median {result['ratio']['median']:.2f} times PEFT's tokens/s"
    )


if __name__ == "__main__":
    main()
