"""Division of prompts into groups of similar length, so that little of what the model reads is padding.

Prompts that are read together are padded to the longest. One of 200 tokens among fifty of 50 makes the model read four
times as many tokens. So prompts are read in groups, and their caches joined. Each group costs a forward pass more,
whose fixed part counts as some tokens; the division is the cheapest by that count, and depends on the lengths alone.
"""

from collections import Counter
from collections.abc import Sequence

import torch

# Tokens that take as long to read as a forward pass takes beside them. A CPU computes even a few tokens for as long as
# they take; an accelerator needs thousands to be busy.
FIXED_CPU, FIXED_ACCELERATOR = 64, 8192


def fixed_tokens(device: torch.device) -> int:
    """Return the number of tokens that the fixed part of a forward pass on a device is worth."""
    return FIXED_CPU if device.type == "cpu" else FIXED_ACCELERATOR


def group_widths(lengths: Sequence[int], fixed: int) -> list[int]:
    """Return the longest length of each group of the cheapest division, ascending.

    A group has the lengths above the width before it, up to its own, and costs `fixed` + its number x its width. All
    divisions are compared, by dynamic programming over the distinct lengths.

    Args:
        lengths: of the prompts in tokens; several, in any order.
        fixed: cost of a group beside its tokens, in tokens.
    """
    counts = sorted(Counter(lengths).items())
    up_to = [0]
    for _, count in counts:
        up_to.append(up_to[-1] + count)
    # The least cost of the first `end` lengths, and the beginning of the last group there.
    best: list[tuple[int, int]] = [(0, 0)]
    for end, (width, _) in enumerate(counts, 1):
        best.append(min((best[begin][0] + fixed + (up_to[end] - up_to[begin]) * width, begin) for begin in range(end)))
    widths, end = list[int](), len(counts)
    while end:
        widths.append(counts[end - 1][0])
        end = best[end][1]
    return widths[::-1]
