"""Prompts are read in groups of similar length: the cheapest division, and the replies of one batch."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from tiny import make_model, save_adapter

from lowtax.engines.base import Request
from lowtax.engines.hf import batch
from lowtax.engines.hf.engine import HF
from lowtax.engines.hf.prefill import FIXED_ACCELERATOR, FIXED_CPU, fixed_tokens, group_widths


def cost(lengths: list[int], widths: list[int], fixed: int) -> int:
    return sum(min(w for w in widths if w >= length) for length in lengths) + fixed * len(widths)


@pytest.mark.parametrize("fixed", [0, 3, 30, 10_000])
def test_the_division_is_the_cheapest(fixed: int) -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 60, (9,), generator=g).tolist()
        distinct = sorted(set(lengths))
        found = group_widths(lengths, fixed)
        possible = ([*some, distinct[-1]] for n in range(len(distinct)) for some in combinations(distinct[:-1], n))
        assert found == sorted(found)
        assert cost(lengths, found, fixed) == min(cost(lengths, widths, fixed) for widths in possible)


def test_one_long_prompt_does_not_pad_the_others() -> None:
    assert group_widths([50] * 48 + [213], FIXED_CPU) == [50, 213]
    assert group_widths([50] * 48 + [213], FIXED_ACCELERATOR) == [213], "a forward pass more takes longer there"
    assert group_widths([48, 50, 50, 52], FIXED_CPU) == [52]
    assert fixed_tokens(torch.device("cpu")) == FIXED_CPU
    assert fixed_tokens(torch.device("cuda")) == FIXED_ACCELERATOR


def requests(adapters: list[str | None]) -> list[Request]:
    """Prompts of 5 to 300 tokens, each twice, with samples and adapters mixed."""
    return [
        Request(
            f"{i}-{sample}",
            ({"role": "user", "content": "word " * (1, 60, 2, 3, 57, 8, 33, 9, 4)[i]},),
            adapters[i % len(adapters)],
            3 + i,
            temperature=float(i % 3 == 0),
            seed=i + 100 * sample,
        )
        for i in range(9)
        for sample in range(2)
    ]


def test_replies_are_those_of_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "model", "qwen2")
    adapters = [save_adapter(tmp_path / "a", folder, 2, ["up_proj", "q_proj"], seed=1), None]
    engine, seen = HF(str(folder), "float32", 18), list[tuple[int, int]]()
    engine.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    expected = {c.id: c for c in engine.generate(requests(adapters))}  # which measures the adapter, too
    seen.clear()
    grouped = {c.id: c for c in engine.generate(requests(adapters))}
    assert grouped == expected
    read, most = [rows * columns for rows, columns in seen if columns > 1], max(rows for rows, _ in seen)
    seen.clear()
    monkeypatch.setattr(batch, "group_widths", lambda lengths, fixed: [max(lengths)])
    assert {c.id: c for c in engine.generate(requests(adapters))} == grouped
    assert [rows for rows, columns in seen if columns > 1] == [9], "samples of a prompt share its row"
    assert sum(read) < 0.8 * seen[0][0] * seen[0][1]
    assert most == 18, "the groups are decoded together"


def test_a_group_that_ends_at_once_is_not_joined(tmp_path: Path) -> None:
    engine = HF(str(make_model(tmp_path)), "float32", 8)
    engine.ends = set()
    made = [Request(str(i), ({"role": "user", "content": "w " * n},), None, m) for i, (n, m) in enumerate(
        [(1, 1), (1, 1), (90, 5), (190, 1)])]  # fmt: skip
    assert {c.id: c.tokens for c in engine.generate(made)} == {"0": 1, "1": 1, "2": 5, "3": 1}
    assert {c.id: c.tokens for c in engine.generate(made[:2] + made[3:])} == {"0": 1, "1": 1, "3": 1}
