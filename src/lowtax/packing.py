"""Training examples as packed rows: no padding, and the positions where the next token is trained.

The examples of a step are laid end to end, `position_ids` restarting, without a mask and without a cache; the
attention in `attention` keeps them apart exactly, and so does transformers' own, at the price of a dense mask.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowtax.data.chat import Example

# Tokens packed into one row; a larger step becomes several rows. Enough to fill the cores, little enough to fit.
MAX_ROW = {"cpu": 2048, "cuda": 8192}
ROUND = 16


def length(example: Example) -> int:
    """Tokens of an example that are run: all but the last, which predicts nothing and which no other sees."""
    return len(example.prompt) + len(example.completion) - 1


def rounded(n: int, to: int = ROUND) -> int:
    """The next multiple."""
    return -(-n // to) * to


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed row stand if each example had a line of its own, padded at the end.

    `pad` (examples, more than the longest) holds for each place of that table a token of the row, or 0; `unpad`
    (tokens,) the place in the flattened table of each token. What fills the row up stands in the first line's padding.
    """

    pad: Tensor
    unpad: Tensor


@dataclass(frozen=True)
class Row:
    """Examples laid end to end, filled up to a multiple of `ROUND` tokens, so that few shapes occur: a kernel is
    made anew for each. `sources` are the positions whose next token, in `targets`, carries loss."""

    members: tuple[int, ...]  # the examples' numbers in the data
    lengths: tuple[int, ...]
    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    sources: Tensor  # (targets,)
    targets: Tensor  # (targets,)
    layout: Layout

    def to(self, device: torch.device) -> "Row":
        """The same row on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "sources", "targets")}
        layout = Layout(self.layout.pad.to(device), self.layout.unpad.to(device))
        return replace(self, layout=layout, **moved)


def pack(examples: Sequence[Example], members: Sequence[int] = ()) -> Row:
    """One packed row of these examples, in order."""
    lengths = tuple(length(e) for e in examples)
    ids, positions, sources, targets, unpad = list[int](), list[int](), list[int](), list[int](), list[int]()
    pad = torch.zeros(len(lengths), rounded(max(lengths) + 1, 8), dtype=torch.long)
    for number, (e, n) in enumerate(zip(examples, lengths, strict=True)):
        start = len(ids)
        ids += (e.prompt + e.completion)[:n]
        positions += range(n)
        sources += range(start + len(e.prompt) - 1, start + n)
        targets += e.completion
        pad[number, :n] = torch.arange(start, start + n)
        unpad += range(number * pad.shape[1], number * pad.shape[1] + n)
    filled = rounded(len(ids)) - len(ids)
    return Row(
        members=tuple(members),
        lengths=lengths,
        ids=torch.tensor(ids + [0] * filled),
        positions=torch.tensor(positions + [0] * filled),
        sources=torch.tensor(sources),
        targets=torch.tensor(targets),
        layout=Layout(pad, torch.tensor(unpad + [pad.shape[1] - 1] * filled)),
    )


def rows(sizes: Sequence[int], limit: int, most: int | None = None) -> list[list[int]]:
    """Which examples share a row: their places in `sizes` (tokens each), by length, so that little is padded in
    attention; at most `limit` tokens a row, unless one example is longer, and at most `most` examples."""
    found: list[list[int]] = []
    room = 0
    for place in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if not found or sizes[place] > room or len(found[-1]) == most:
            found.append([])
            room = limit
        found[-1].append(place)
        room -= sizes[place]
    return found


class Batches:
    """Which examples each optimiser step sees. Epoch e is a permutation seeded by (seed, e); the last batch of an
    epoch is filled from the next, so that every step sees `size` examples."""

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size, self.seed = n, size, seed
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, step: int) -> list[int]:
        """The examples of one step, counted from 0."""
        places = range(step * self.size, (step + 1) * self.size)
        return [self._order(place // self.n)[place % self.n] for place in places]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = kept | {epoch: torch.randperm(self.n, generator=generator).tolist()}
        return self._orders[epoch]


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
