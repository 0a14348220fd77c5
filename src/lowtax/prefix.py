"""The frozen prefix: hidden states below the first trained layer, computed once per example.

Below the first trained layer nothing moves and nothing is random, so what enters that layer is the same in every
epoch. It is computed once, in groups that depend on the data alone (so a resumed run finds the same bits), and
kept in memory (pinned where there is a GPU) or in a file; every later pass starts at that layer.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn

from lowtax.data.chat import Example
from lowtax.objective import Objective, bare, hidden_before
from lowtax.packing import Row, length, pack, rows

Place = Literal["auto", "memory", "disk", "off"]
PLACES: tuple[Place, ...] = ("memory", "disk", "off")  # from the most room to the least


class Prefix:
    """What enters layer `first`, for every example: one table (tokens of all examples, size)."""

    def __init__(self, first: int, lengths: Sequence[int], table: Tensor, file: Path | None) -> None:
        self.first, self.lengths, self.table, self.file = first, lengths, table, file
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.starts = [end - n for end, n in zip(ends, lengths, strict=True)]

    def of(self, row: Row, device: torch.device) -> Tensor:
        """What enters layer `first` on a packed row: (1, tokens, size)."""
        parts = [self.table[self.starts[i] : self.starts[i] + self.lengths[i]] for i in row.members]
        filled = torch.zeros(len(row.ids) - sum(map(len, parts)), self.table.shape[1], dtype=self.table.dtype)
        return torch.cat([*parts, filled]).to(device, non_blocking=True)[None]

    def close(self) -> None:
        """Let go of the table; its file, if it has one, is removed."""
        self.table = torch.empty(0)
        if self.file:
            self.file.unlink(missing_ok=True)


def size_gb(model: nn.Module, examples: Sequence[Example]) -> float:
    """Gigabytes of the table."""
    inner = bare(model)
    width = inner.config.get_text_config().hidden_size
    return float(sum(map(length, examples)) * width * inner.dtype.itemsize / 1e9)


def place_for(asked: Place, gigabytes: float, budget_gb: float | None, folder: Path) -> Place:
    """Where the table goes: memory within the budget (a quarter of what is free, unless given), else a file if the
    disk has twice the room, else nowhere."""
    if asked != "auto":
        return asked
    if gigabytes <= (psutil.virtual_memory().available / 4e9 if budget_gb is None else budget_gb):
        return "memory"
    return "disk" if 2 * gigabytes <= shutil.disk_usage(folder).free / 1e9 else "off"


def build(
    objective: Objective,
    first: int,
    examples: Sequence[Example],
    place: Place,
    folder: Path,
    row_tokens: int,
    share: tuple[int, int] = (0, 1),
) -> Prefix:
    """Run every example once up to layer `first`.

    `share` is (rank, world): the processes take turns of a group each, all at a time, and hand them to the others.
    """
    inner = bare(objective.model)
    lengths = [length(e) for e in examples]
    shape = (sum(lengths), inner.config.get_text_config().hidden_size)
    file = folder / f".prefix-{share[0]}.bin" if place == "disk" else None
    prefix = Prefix(first, lengths, _table(shape, inner, file), file)
    training = objective.training
    objective.eval()
    rank, world = share
    groups = rows(lengths, row_tokens)
    for start in range(0, len(groups), world):
        turn = groups[start : start + world]
        mine = turn[rank : rank + 1]
        packed = [pack([examples[i] for i in members], members).to(inner.device) for members in mine]
        found = [hidden_before(objective, row, first)[0, : sum(row.lengths)] for row in packed]
        for owner, members in enumerate(turn):
            sizes = [lengths[i] for i in members]
            part = (
                found[0] if owner == rank else torch.empty(sum(sizes), shape[1], dtype=inner.dtype, device=inner.device)
            )
            if world > 1:
                torch.distributed.broadcast(part, src=owner)
            for i, hidden in zip(members, torch.split(part, sizes), strict=True):
                prefix.table[prefix.starts[i] : prefix.starts[i] + lengths[i]] = hidden
    objective.train(training)
    return prefix


def _table(shape: tuple[int, int], model: nn.Module, file: Path | None) -> Tensor:
    inner = bare(model)
    if file is None:
        return torch.empty(shape, dtype=inner.dtype, pin_memory=inner.device.type == "cuda")
    count = shape[0] * shape[1]
    return torch.from_file(str(file), shared=True, size=count, dtype=inner.dtype).view(shape)
