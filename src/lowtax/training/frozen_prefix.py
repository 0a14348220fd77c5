"""The frozen prefix: hidden states below the first trained layer, computed once per example.

Below the first trained layer nothing changes and nothing is random, so that layer receives the same hidden states in
every epoch. They are computed once, in groups that depend on the data alone, so that a resumed run gets the same bits,
and kept in memory (pinned if there is a GPU) or in a file. Every later pass starts at the first trained layer.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax.training import exactness
from lowtax.training.assumptions import decoder_layers
from lowtax.training.encoding import Example
from lowtax.training.objective import Objective, hidden_before, unwrap
from lowtax.training.packing import Row, group_by_length, length, pack

Place = Literal["auto", "memory", "disk", "off"]
PLACES: tuple[Place, ...] = ("memory", "disk", "off")  # from the most room to the least


class FrozenPrefix:
    """The hidden states that enter layer `first`, for every example, in one table (tokens of all examples, size)."""

    def __init__(self, first: int, lengths: Sequence[int], table: Tensor, file: Path | None) -> None:
        self.first, self.lengths, self.table, self.file = first, lengths, table, file
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.starts = [end - n for end, n in zip(ends, lengths, strict=True)]

    def of(self, row: Row, device: torch.device) -> Float[Tensor, "1 tokens size"]:
        """Return the hidden states that enter layer `first` on a packed row; zeros where it is filled up."""
        parts = [self.table[self.starts[i] : self.starts[i] + self.lengths[i]] for i in row.members]
        filler = torch.zeros(len(row.ids) - sum(map(len, parts)), self.table.shape[1], dtype=self.table.dtype)
        return torch.cat([*parts, filler]).to(device, non_blocking=True)[None]

    def close(self) -> None:
        """Release the table, and remove its file."""
        self.table = torch.empty(0)
        if self.file:
            self.file.unlink(missing_ok=True)


def size_gb(model: nn.Module, examples: Sequence[Example]) -> float:
    """Return the size of the table in gigabytes."""
    inner = unwrap(model)
    width = inner.config.get_text_config().hidden_size
    return float(sum(map(length, examples)) * width * inner.dtype.itemsize / 1e9)


def choose_place(requested: Place, gigabytes: float, budget_gb: float | None, folder: Path) -> Place:
    """Return where the table goes.

    With "auto" this is memory within the budget (a quarter of what is free if None), or else a file if the disk has
    twice the room, or else "off".
    """
    if requested != "auto":
        return requested
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
) -> FrozenPrefix:
    """Run every example once up to layer `first`.

    Args:
        objective: the model.
        first: the layer whose inputs are kept.
        examples: all examples that will be trained.
        place: "memory" or "disk".
        folder: folder of the file, with place "disk".
        row_tokens: tokens in one forward pass.
        share: (rank, processes). In each turn every process computes a group and broadcasts it to the others.
    """
    inner = unwrap(objective.model)
    lengths = [length(e) for e in examples]
    shape = (sum(lengths), inner.config.get_text_config().hidden_size)
    file = folder / f".prefix-{share[0]}.bin" if place == "disk" else None
    prefix = FrozenPrefix(first, lengths, _empty_table(shape, inner, file), file)
    training = objective.training
    objective.eval()
    rank, world = share
    groups = group_by_length(lengths, row_tokens)
    for start in range(0, len(groups), world):
        turn = groups[start : start + world]
        own_groups = turn[rank : rank + 1]
        packed = [pack([examples[i] for i in members], members).to(inner.device) for members in own_groups]
        computed = [hidden_before(objective, row, first)[0, : sum(row.lengths)] for row in packed]
        for owner, members in enumerate(turn):
            sizes = [lengths[i] for i in members]
            if owner == rank:
                part = computed[0]
            else:
                part = torch.empty(sum(sizes), shape[1], dtype=inner.dtype, device=inner.device)
            if world > 1:
                torch.distributed.broadcast(part, src=owner)
            for i, hidden in zip(members, torch.split(part, sizes), strict=True):
                prefix.table[prefix.starts[i] : prefix.starts[i] + lengths[i]] = hidden
    objective.train(training)
    return prefix


def layers_are_apart(model: PreTrainedModel) -> bool:
    """Test whether the layers of a decoder pass nothing but hidden states on: no keys and values."""
    config = model.config.get_text_config().to_dict()
    return bool(decoder_layers(model)) and not config.get("num_kv_shared_layers")


@torch.no_grad()
def is_exact(objective: Objective, prefix: FrozenPrefix, examples: Sequence[Example]) -> bool:
    """Test whether the shortest and the longest example have the same loss with the table as without it."""
    device = unwrap(objective.model).device
    ordered = sorted(range(len(examples)), key=lambda i: length(examples[i]))
    members = list(dict.fromkeys([ordered[0], ordered[-1]]))
    row = pack([examples[i] for i in members], members).to(device)
    training = objective.training
    objective.eval()
    losses = [float(objective(row)), float(objective(row, prefix.of(row, device), prefix.first))]
    objective.train(training)
    return not abs(losses[0] - losses[1]) > exactness.FLOOR[prefix.table.dtype] * 20 * (len(row.targets) + losses[0])


def _empty_table(shape: tuple[int, int], model: nn.Module, file: Path | None) -> Tensor:
    """Return an uninitialised table in memory, or mapped to a file."""
    inner = unwrap(model)
    if file is None:
        return torch.empty(shape, dtype=inner.dtype, pin_memory=inner.device.type == "cuda")
    count = shape[0] * shape[1]
    return torch.from_file(str(file), shared=True, size=count, dtype=inner.dtype).view(shape)
