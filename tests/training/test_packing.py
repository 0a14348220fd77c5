"""Packed rows and batches: every example appears once, in the order of the seed, and keeps its tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowtax.training.encoding import Example
from lowtax.training.packing import ROUND, Batches, group_by_length, length, pack

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 60), st.none() | st.integers(1, 5))
def test_rows_hold_every_example_once_within_the_limits(sizes: list[int], limit: int, most: int | None):
    groups = group_by_length(sizes, limit, most)
    assert sorted(place for group in groups for place in group) == list(range(len(sizes)))
    assert all(len(group) == 1 or sum(sizes[i] for i in group) <= limit for group in groups)
    assert all(most is None or len(group) <= most for group in groups)
    flat = [sizes[i] for group in groups for i in group]
    assert flat == sorted(flat)  # similar lengths together, so that attention pads little


def test_a_row_points_at_the_tokens_that_are_trained():
    examples = [Example([1, 2, 3], [4, 5]), Example([6], [7, 8, 9])]
    row = pack(examples, (10, 20))
    last_is_not_run = [1, 2, 3, 4, 6, 7, 8]
    assert row.ids.tolist() == last_is_not_run + [0] * 9
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2] + [0] * 9
    assert row.ids[row.sources].tolist() == [3, 4, 6, 7, 8]
    assert row.targets.tolist() == [4, 5, 7, 8, 9]
    assert row.members == (10, 20)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_the_layout_brings_every_token_to_its_line_and_back(sizes: list[tuple[int, int]]):
    row = pack([Example([0] * a, [0] * b) for a, b in sizes])
    tokens = torch.arange(len(row.ids))
    real = sum(row.lengths)
    assert len(tokens) % ROUND == 0
    assert 0 <= len(tokens) - real < ROUND
    lines = tokens[row.layout.pad]
    assert lines.view(-1)[row.layout.unpad[:real]].tolist() == tokens[:real].tolist()
    start = 0
    for line, (a, b) in zip(lines, sizes, strict=True):
        assert line[: a + b - 1].tolist() == list(range(start, start + a + b - 1))
        start += a + b - 1
    filler = row.layout.unpad[real:]  # places where no example is
    assert bool((filler >= row.lengths[0]).all())
    assert bool((filler < lines.shape[1]).all())
    assert length(Example([0] * sizes[0][0], [0] * sizes[0][1])) == row.lengths[0]


@pytest.mark.parametrize(("n", "size"), [(7, 3), (8, 4), (3, 8), (1, 2)])
def test_every_epoch_sees_every_example_once(n: int, size: int):
    steps = 6 * n
    plan = Batches(n, size, 0)
    order = [i for step in range(steps) for i in plan[step]]
    epochs = [order[i : i + n] for i in range(0, len(order) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 2:
        assert len({tuple(epoch) for epoch in epochs}) > 1
    for first in range(steps):  # a resumed run sees the batches of the uninterrupted one
        assert Batches(n, size, 0)[first] == order[first * size : (first + 1) * size]
    assert n < 3 or [Batches(n, size, 1)[s] for s in range(steps)] != [plan[s] for s in range(steps)]
