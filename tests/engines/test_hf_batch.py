"""Decoding: rows that join a batch say what they say alone; attention and cache compute what transformers' do."""

import copy
from pathlib import Path

import pytest
import torch
from hybrids import make_hybrid
from progress import collected
from tiny import make_model
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, Qwen3NextConfig
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
    copies = copy.deepcopy(caches)
    joined = RoomyCache.of(caches, [(torch.tensor([2, 0]), 3), (torch.tensor([1]), 0)], 6)
    assert not any(layer.is_initialized for cache in caches for layer in cache.layers), "two copies fill the memory"
    for layer in range(2):
        for name in ("keys", "values"):
            long, short, found = (getattr(cache.layers[layer], name) for cache in (*copies, joined))
            assert found.shape == (3, 2, 6, 8)
            assert torch.equal(found[:2], long[[2, 0], :, 3:])
            assert torch.equal(found[2, :, 2:], short[1])
            assert not found[2, :, :2].any()
    assert joined.get_seq_length() == 6
    assert isinstance(joined, DynamicCache)


def greedy(engine: HF, prompt: list[int], room: int) -> list[int]:
    """Return a greedy reply, with the whole text read again for each token and no cache."""
    tokens: list[int] = []
    while len(tokens) < room:
        ids = torch.tensor([prompt + tokens])
        with torch.no_grad():
            token = int(engine.model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
        if token in engine.ends:
            break
        tokens.append(token)
    return tokens


MEMORY = {
    "mamba": "cache_params",
    "falcon_mamba": "cache_params",
    "mamba2": "cache_params",
    "minimax": "none",
    "rwkv": "none",
    "gpt2": "past_key_values",
    "bloom": "past_key_values",
    "mpt": "past_key_values",
    "falcon": "past_key_values",
    "gptj": "past_key_values",
    "gpt_oss": "past_key_values",
    "qwen3_5_text": "past_key_values",
    "lfm2": "past_key_values",
    "jamba": "past_key_values",
    "falcon_h1": "past_key_values",
    "granitemoehybrid": "past_key_values",
    "gemma3": "past_key_values",
    "llama4_text": "past_key_values",
}


@pytest.mark.parametrize("kind", MEMORY)
def test_every_architecture_says_what_it_says_without_a_cache(tmp_path: Path, kind: str) -> None:
    """Prompts of many lengths share a batch, two samples share a prompt, and rows end at different times."""
    with collected() as lines:
        engine = HF(str(make_hybrid(tmp_path / "m", kind)), "float32", 4)
    assert engine.memory == MEMORY[kind]
    assert any("every token reads the whole text" in line for line in lines) == (MEMORY[kind] == "none")
    engine.ends = engine.ends | set(range(0, 256, 16))
    texts = [f"{i} " * (1 + 3 * i) for i in range(4)]
    plan = [
        Request(f"{i}.{sample}", ({"role": "user", "content": text},), None, 8)
        for i, text in enumerate(texts)
        for sample in range(2)
    ]
    replies = {c.id: c for c in engine.generate(plan)}
    for request in plan:
        prompt = engine._row(request, "").prompt.ids  # type: ignore[union-attr]
        expected = greedy(engine, prompt, 8)
        text = engine.tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert (replies[request.id].text, replies[request.id].tokens) == (text, len(expected))


def test_states_of_recurrent_layers_follow_their_rows() -> None:
    config = Qwen3NextConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, layer_types=["linear_attention", "full_attention"]
    )
    cache = RoomyCache(config=config)
    states = torch.arange(3.0)[:, None, None].expand(3, 2, 4).contiguous()
    cache.update_conv_state(states, 0)
    cache.update_recurrent_state(states, 0)
    cache.update(states[:, None], states[:, None], 1)
    cache.batch_select_indices(torch.tensor([2, 0, 0, 1]))
    for rows in (cache.layers[0].conv_states[0], cache.layers[0].recurrent_states[0], cache.layers[1].keys[:, 0]):
        assert rows[:, 0, 0].tolist() == [2, 0, 0, 1]
    assert not cache.can_join()
