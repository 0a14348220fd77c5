"""Reading of prompts of unlike lengths: in groups of similar length, beside one batch padded to the longest.

    python bench/prefill_cpu.py --repeats 5

48 prompts of about 50 tokens, and one of about 213; greedy replies of few tokens, so that reading them is most of the
work. The two sides take turns in one process, in one precision. Seconds are those of this process's threads.
"""

import argparse
import statistics
import time

from lowtax.common import log
from lowtax.data import chat
from lowtax.engines.base import Request
from lowtax.engines.hf import batch
from lowtax.engines.hf.engine import HF
from lowtax.models import loading

MODEL = "builtin:smollm2-135m-reasoner"


def prompts(engine: HF, lengths: list[int]) -> list[Request]:
    """Requests of so many tokens each, with different words."""
    requests = []
    for number, length in enumerate(lengths):
        words = f"Number {number}, please:" + " tell me a story" * length
        empty = len(chat.prompt_ids(engine.tokenizer, [{"role": "user", "content": ""}]))
        [ids] = chat.encode(engine.tokenizer, [words])
        text = engine.tokenizer.decode(ids[: max(1, length - empty)])
        requests.append(Request(str(number), ({"role": "user", "content": text},), None, 1))
    return requests


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=1)
    parser.add_argument("--short", type=int, default=48)
    given = parser.parse_args()
    log.quiet_libraries()
    engine = HF(given.model, loading.precision(given.precision), given.short + 1)
    lengths = [40 + 20 * (7 * i % 11) // 10 for i in range(given.short)] + [213]
    requests = [Request(r.id, r.messages, None, given.max_new_tokens) for r in prompts(engine, lengths)]
    seconds: dict[str, list[float]] = {"groups": [], "one batch": []}
    replies = {}
    grouped = batch.group_widths
    for _ in range(given.repeats):
        for side in seconds:
            batch.group_widths = grouped if side == "groups" else lambda lengths, fixed: [max(lengths)]
            began = time.process_time()
            replies[side] = {c.id: c.text for c in engine.generate(requests)}
            seconds[side].append(time.process_time() - began)
    ratios = sorted(old / new for old, new in zip(seconds["one batch"], seconds["groups"], strict=True))
    same = sum(replies["groups"][id_] == text for id_, text in replies["one batch"].items())
    for side, values in seconds.items():
        log.tell(f"{side}: {statistics.median(values):.2f} CPU s ({min(values):.2f} to {max(values):.2f})")
    log.tell(f"ratio: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    log.tell(f"equal replies: {same} of {len(requests)}")


if __name__ == "__main__":
    main()
