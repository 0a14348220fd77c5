"""Decoding: rows that join a batch say what they say alone; attention and cache compute what transformers' do."""

from pathlib import Path

import pytest
import torch
from tiny import make_model
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lowtax.engines.base import Request
from lowtax.engines.hf import batch
from lowtax.engines.hf.batch import Batch
from lowtax.engines.hf.engine import HF
from lowtax.engines.hf.kv_cache import GROUPED_ATTENTION, ROOM, RoomyCache, RoomyLayer, grouped_attention


def requests(n: int = 24) -> list[Request]:
    """Prompts and replies of many lengths."""
    asked = [({"role": "user", "content": "word " * (1 + 5 * i % 17)},) for i in range(n)]
    return [Request(str(i), asked[i], None, 40, temperature=1.0, seed=i) for i in range(n)]


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> HF:
    """A model whose replies end at many lengths."""
    engine = HF(str(make_model(tmp_path_factory.mktemp("stops"))), "float32", 4)
    engine.ends = engine.ends | set(range(0, 256, 16))
    return engine


def widths(engine: HF, size: int) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """Rows and columns of each forward pass, and the replies."""
    seen: list[tuple[int, int]] = []
    hook = engine.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["attention_mask"].shape)), with_kwargs=True
    )
    engine.batch_size = size
    found = {c.id: c.text for c in engine.generate(requests())}
    hook.remove()
    return seen, found


def test_rows_that_join_say_what_they_say_alone(stops: HF) -> None:
    one_by_one, alone = widths(stops, 1)
    together, found = widths(stops, 8)
    assert found == alone
    assert len(set(map(len, alone.values()))) > 8, "the replies must end at many lengths"
    starts = [i for i, (_, columns) in enumerate(one_by_one) if i == 0 or columns < one_by_one[i - 1][1]]
    steps = [end - start for start, end in zip(starts, [*starts[1:], len(one_by_one)], strict=True)]
    waiting = sum(max(steps[i : i + 8]) for i in range(0, len(steps), 8))  # for the longest of each eight
    assert len(together) < 0.8 * waiting
    assert max(rows for rows, _ in together) <= 8


def test_padding_that_all_rows_share_is_dropped(stops: HF) -> None:
    seen, _ = widths(stops, 8)
    longest = max(len(stops._row(request, "").prompt.ids) for request in requests())  # type: ignore[union-attr]
    assert max(columns for _, columns in seen) <= longest + 41


def test_joining_keeps_to_the_memory(stops: HF, monkeypatch: pytest.MonkeyPatch) -> None:
    stops.batch_size = 8
    rows = [stops._row(request, "") for request in requests()[:8]]
    made = Batch(stops, rows)  # type: ignore[arg-type]
    made.step()
    columns = made.mask.shape[1]
    assert made.room(1) == 0
    for row in made.rows:
        row.done = row is not made.rows[0]
    for wide, width, expected in ((10**6, 1, 7), (0, 1, 7), (0, 4 * columns, 1), (0, 100 * columns, 0)):
        monkeypatch.setattr(batch, "WIDE", wide)
        made.filled = 0
        assert made.room(width) == expected, (wide, width)
    made.rows[0].done = True
    assert made.room(100 * columns) == 8, "an empty batch takes what is asked"


def test_a_window_keeps_rows_apart_and_replies_right(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "qwen2")
    config = Qwen2Config.from_pretrained(folder, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    config.layer_types = ["full_attention", "sliding_attention"]
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    engine = HF(str(folder), "float32", 4)
    engine.ends = engine.ends | set(range(0, 256, 16))
    assert not RoomyCache(engine.model.config).can_join()
    assert widths(engine, 5)[1] == widths(engine, 1)[1]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("heads", "shared", "tokens"), [(6, 2, 1), (6, 6, 1), (8, 1, 1), (6, 2, 5)])
def test_grouped_attention_is_sdpa(heads: int, shared: int, tokens: int, masked: bool) -> None:
    g = torch.Generator().manual_seed(0)
    query = torch.randn(3, heads, tokens, 8, generator=g)
    key, value = (torch.randn(3, shared, 20, 8, generator=g)[:, :, :13] for _ in range(2))
    mask = torch.rand(3, 1, tokens, 13, generator=g) > 0.4 if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups = heads // shared
    found, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3, is_causal=tokens > 1)
    if tokens > 1 and not masked:
        expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected)


def test_the_engine_decodes_by_it(stops: HF) -> None:
    assert stops.model.config._attn_implementation == GROUPED_ATTENTION


def test_the_cache_keeps_what_transformers_keeps() -> None:
    g = torch.Generator().manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()
    rows = 4
    for tokens in (5, 1, 1, ROOM, 1, 2 * ROOM, 1):
        new = [torch.randn(rows, 2, tokens, 3, generator=g) for _ in range(2)]
        for mine, other in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, other)
        kept = torch.randint(rows, (3 + tokens % 3,), generator=g)
        for layer in (ours, theirs):
            layer.batch_select_indices(kept)
        rows = len(kept)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_joined_caches_are_padded_at_the_left_with_zeros(stops: HF) -> None:
    g = torch.Generator().manual_seed(0)
    caches = []
    for rows, tokens in ((3, 9), (2, 4)):
        cache = RoomyCache(stops.model.config)
        for layer in range(2):
            cache.update(*(torch.randn(rows, 2, tokens, 8, generator=g) for _ in range(2)), layer)
        caches.append(cache)
    joined = RoomyCache.of(caches, [(torch.tensor([2, 0]), 3), (torch.tensor([1]), 0)], 6)
    for layer in range(2):
        for name in ("keys", "values"):
            long, short, found = (getattr(cache.layers[layer], name) for cache in (*caches, joined))
            assert found.shape == (3, 2, 6, 8)
            assert torch.equal(found[:2], long[[2, 0], :, 3:])
            assert torch.equal(found[2, :, 2:], short[1])
            assert not found[2, :, :2].any()
    assert joined.get_seq_length() == 6
    assert isinstance(joined, DynamicCache)
