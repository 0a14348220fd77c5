"""Training examples as packed rows: no padding, and logits only where the next token is trained.

The examples of a step are laid end to end, `position_ids` restarting, without a mask and without a cache:
transformers then keeps them apart exactly, while any mask or cache would let them see each other.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lowtax.chat import Example, example
from lowtax.data import Conversation
from lowtax.errors import UserError

# Tokens packed into one row; a larger step becomes several rows. Attention costs the square of a row,
# which a CPU feels at once and a GPU fills its cores with.
MAX_ROW = {"cpu": 512, "cuda": 8192}


def encode(tokenizer: PreTrainedTokenizerBase, row: Conversation, max_length: int) -> Example:
    """Tokens of a row; an overlong completion loses its end, an overlong prompt is an error."""
    whole = example(tokenizer, [{"role": "user", "content": row.prompt}], row.thought, row.answer)
    room = max_length - len(whole.prompt)
    if room < 1:
        raise UserError(
            f"A training prompt has {len(whole.prompt)} tokens, which leaves no room within max_length {max_length}: "
            f"{row.prompt[:60]!r}."
        )
    return Example(whole.prompt, whole.completion[:room])


def completion_loss(model: nn.Module, row: list[Example]) -> Tensor:
    """Summed cross-entropy of the completions of one packed row, logits computed only where needed."""
    where = next(model.parameters()).device
    ids, positions, sources, targets = list[int](), list[int](), list[int](), list[int]()
    for e in row:
        start = len(ids)
        ids += e.prompt + e.completion
        positions += range(len(ids) - start)
        sources += range(start + len(e.prompt) - 1, len(ids) - 1)
        targets += e.completion
    logits = model(
        input_ids=torch.tensor([ids], device=where),
        position_ids=torch.tensor([positions], device=where),
        use_cache=False,
        logits_to_keep=torch.tensor(sources, device=where),
    ).logits[0]
    return nn.functional.cross_entropy(logits.float(), torch.tensor(targets, device=where), reduction="sum")


def rows(batch: list[Example], limit: int) -> Iterator[list[Example]]:
    """Split a step's examples into packed rows of at most `limit` tokens, in order."""
    row, size = list[Example](), 0
    for e in batch:
        length = len(e.prompt) + len(e.completion)
        if row and size + length > limit:
            yield row
            row, size = [], 0
        row.append(e)
        size += length
    yield row


def batches(examples: list[Example], size: int, seed: int, first: int, last: int) -> Iterator[list[Example]]:
    """The batches of steps first..last-1. Epoch e is a permutation seeded by (seed, e); the last batch
    of an epoch is filled from the next, so that every step sees `size` examples."""
    orders: dict[int, list[int]] = {}
    n = len(examples)
    for step in range(first, last):
        batch = []
        for position in range(step * size, (step + 1) * size):
            epoch, index = divmod(position, n)
            if epoch not in orders:
                generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
                orders = {epoch: torch.randperm(n, generator=generator).tolist()} | {
                    k: v for k, v in orders.items() if k == epoch - 1
                }
            batch.append(examples[orders[epoch][index]])
        yield batch


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc reuse large freed blocks meanwhile instead of returning them to the kernel: the page faults of
    fresh logits cost a quarter of a CPU training step. Everything goes back at the end. A no-op elsewhere."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mmaps, trim_threshold = -4, -1
    mallopt(mmaps, 0)
    mallopt(trim_threshold, -1)
    try:
        yield
    finally:
        mallopt(mmaps, 65536)  # glibc's defaults
        mallopt(trim_threshold, 128 * 1024)
        malloc_trim(0)
