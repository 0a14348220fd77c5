"""The loss of packed rows equals that of separate forward passes, in value and gradient, on every fast path."""

from pathlib import Path

import pytest
import torch
from hybrids import make_hybrid
from tiny import make_model
from torch import nn

from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.lora import adapt, first_trained_layer
from lowtax.models.placement import Placement, parse_mode
from lowtax.training import frozen_prefix
from lowtax.training.encoding import Example, encode_all
from lowtax.training.objective import Objective, TargetLoss, choose_objective, hidden_before, unwrap
from lowtax.training.packing import fused_attention, length, pack, plain_attention, use_packed_attention

KINDS = ["llama", "qwen2", "qwen3"]
ROWS = [
    Conversation(f"What is {i} + {i * i}?" * (i + 1), f"{i}." * i, f"It is {i + i * i}, I think.") for i in range(5)
]


def encoded(model: Path) -> list[Example]:
    return encode_all(loading.load_tokenizer(str(model)), ROWS, 1024).examples


def adapted(folder: Path, placement: Placement, dtype: str = "float32") -> nn.Module:
    """Return an adapted model with both factors random, so that every gradient is nonzero."""
    torch.manual_seed(0)
    model = adapt(loading.load_model(str(folder), dtype), placement, str(folder))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return model


def separately(model: nn.Module, examples: list[Example]) -> torch.Tensor:
    """Return the summed loss by transformers alone: one forward pass per example, all logits, labels of -100."""
    unwrap(model).set_attn_implementation("eager")
    total = torch.zeros(())
    for e in examples:
        ids = torch.tensor([e.prompt + e.completion])
        labels = torch.tensor([[-100] * len(e.prompt) + e.completion])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total = total + nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
    return total


def padded(model: nn.Module, examples: list[Example]) -> torch.Tensor:
    """Return the summed loss of one padded batch with an attention mask."""
    unwrap(model).set_attn_implementation("sdpa")
    longest = max(len(e.prompt) + len(e.completion) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for line, e in enumerate(examples):
        n = len(e.prompt) + len(e.completion)
        ids[line, :n], mask[line, :n] = torch.tensor(e.prompt + e.completion), 1
        labels[line, len(e.prompt) : n] = torch.tensor(e.completion)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Test for equal names, and for values within 1e-5 of the largest."""
    return one.keys() == two.keys() and all(
        (one[name] - two[name]).abs().max() <= 1e-5 * max(1e-3, two[name].abs().max()) for name in one
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["full", "lora_qkvo_mlp_r2", "lora_up_proj_only_from2_to2_r1"])
def test_packed_padded_and_separate_agree_in_loss_and_gradient(tmp_path: Path, kind: str, mode: str):
    folder = make_model(tmp_path / kind, kind, layers=3)
    examples = encoded(folder)
    model = adapted(folder, parse_mode(mode).model_copy(update={"dropout": 0.0}))
    expected = separately(model, examples)
    gradient = gradients(model, expected)
    other = padded(model, examples)
    assert other.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradients(model, other), gradient)
    for direct, packed in ((True, True), (False, True), (False, False)):
        if packed:
            use_packed_attention(unwrap(model))
        else:
            unwrap(model).set_attn_implementation("sdpa")
        actual = Objective(model, direct)(pack(examples))
        assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
        assert close(gradients(model, actual), gradient), (direct, packed)
    assert Objective(model)(pack(examples[:-1])).item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_the_frozen_prefix_changes_neither_loss_nor_gradient(tmp_path: Path, kind: str, place: frozen_prefix.Place):
    folder = make_model(tmp_path / kind, kind, layers=4)
    examples = encoded(folder)
    model = adapted(folder, Placement(modules=("up_proj", "q_proj"), layers=(2, 3), dropout=0.0))
    objective, note = choose_objective(model, examples, sharded=False)
    assert (note, first_trained_layer(model)) == ("", 2)
    prefix = frozen_prefix.build(objective, 2, examples, place, tmp_path, row_tokens=200)
    assert (prefix.file is not None and prefix.file.exists()) == (place == "disk")
    for members in ([0, 1, 2, 3, 4], [3, 1], [4]):
        row = pack([examples[i] for i in members], members)
        expected = objective(row)
        gradient = gradients(model, expected)
        actual = objective(row, prefix.of(row, torch.device("cpu")), prefix.first)
        assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
        assert close(gradients(model, actual), gradient)
    assert len(unwrap(model).get_decoder().layers) == 4
    assert frozen_prefix.is_exact(objective, prefix, examples)
    prefix.table *= 1.1
    assert not frozen_prefix.is_exact(objective, prefix, examples)
    prefix.close()
    assert not list(tmp_path.glob(".prefix*"))


# Gemma scales its embeddings; OLMo 3 and Gemma 3 choose masks and rotary angles by the place of a layer.
@pytest.mark.parametrize("kind", ["gemma", "olmo3", "gemma3_text", "gemma3", "gpt_neox", "opt"])
def test_the_frozen_prefix_is_exact_where_layers_or_embeddings_differ(tmp_path: Path, kind: str):
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2} if kind in ("olmo3", "gemma3_text") else {}
    model = loading.load_model(str(make_hybrid(tmp_path / "m", kind, num_hidden_layers=4, dropout=0.0, **layers)))
    examples = encoded(tmp_path / "m")
    objective, note = choose_objective(model, examples, sharded=False)
    assert note == ""
    for first in (1, 3):
        prefix = frozen_prefix.build(objective, first, examples, "memory", tmp_path, row_tokens=200)
        row = pack([examples[i] for i in (3, 1)], (3, 1))
        actual = objective(row, prefix.of(row, torch.device("cpu")), first)
        assert actual.item() == pytest.approx(objective(row).item(), rel=1e-5)
        assert frozen_prefix.is_exact(objective, prefix, examples)


def test_layers_that_share_keys_have_no_prefix(tmp_path: Path):
    model = loading.load_model(str(make_model(tmp_path / "m")))
    assert frozen_prefix.layers_are_apart(model)
    model.config.num_kv_shared_layers = 1
    assert not frozen_prefix.layers_are_apart(model)
    assert not frozen_prefix.layers_are_apart(loading.load_model(str(make_hybrid(tmp_path / "gpt2", "gpt2"))))


def test_the_prefix_has_the_same_bits_for_another_adapter(tmp_path: Path):
    folder = make_model(tmp_path / "m", layers=3)
    examples = encoded(folder)
    tables = []
    for _ in range(2):
        torch.manual_seed(len(tables))
        model = adapted(folder, Placement(modules=("up_proj",), layers=(1, 2)))
        objective, _ = choose_objective(model, examples, sharded=False)
        tables.append(frozen_prefix.build(objective, 1, examples, "memory", tmp_path, row_tokens=100).table)
    assert torch.equal(*tables)
    assert tables[0].shape == (sum(map(length, examples)), 32)


def test_hidden_states_are_those_that_enter_the_layer(tmp_path: Path):
    folder = make_model(tmp_path / "m", layers=3)
    e = encoded(folder)[2]
    model = loading.load_model(str(folder))
    with torch.no_grad():
        expected = model(torch.tensor([e.prompt + e.completion]), output_hidden_states=True).hidden_states
        for first in range(3):
            actual = hidden_before(Objective(model), pack([e]), first)[:, : length(e)]
            torch.testing.assert_close(actual, expected[first][:, : length(e)], rtol=1e-5, atol=1e-5)


def test_where_the_table_goes(tmp_path: Path):
    assert frozen_prefix.choose_place("auto", 0.001, None, tmp_path) == "memory"
    assert frozen_prefix.choose_place("auto", 0.001, 0.0, tmp_path) == "disk"
    assert frozen_prefix.choose_place("auto", 1e9, None, tmp_path) == "off"
    assert frozen_prefix.choose_place("disk", 0.001, 1.0, tmp_path) == "disk"


def test_backward_stops_at_the_first_trained_layer(tmp_path: Path):
    folder = make_model(tmp_path / "m", layers=4)
    model = adapted(folder, Placement(modules=("up_proj",), layers=(2, 3)))
    tracked: dict[int, bool] = {}
    for number, layer in enumerate(unwrap(model).get_decoder().layers):
        layer.register_forward_hook(
            lambda _, __, out, n=number: tracked.update({n: torch.as_tensor(out).requires_grad})
        )
    Objective(model)(pack(encoded(folder))).backward()
    assert tracked == {0: False, 1: False, 2: True, 3: True}
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name, p in model.named_parameters() if "lora_" in name}
    assert all("layers.2.mlp.up_proj" in name or "layers.3.mlp.up_proj" in name for name in moved)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [1, 40])
def test_the_loss_of_targets_is_cross_entropy(n: int, bias: bool, monkeypatch: pytest.MonkeyPatch):
    from lowtax.training import objective

    monkeypatch.setitem(objective.SLICE_BYTES, "cpu", 1)  # slices of 16 targets
    generator = torch.Generator().manual_seed(n)
    shapes = [(n, 8), (50, 8), (50,)]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).float().requires_grad_() for s in shapes]
    targets = torch.randint(50, (n,), generator=generator)
    h, w, b = tensors[0], tensors[1], tensors[2] if bias else None
    actual = TargetLoss.apply(h, w, b, targets)
    expected = nn.functional.cross_entropy(nn.functional.linear(h, w, b), targets, reduction="sum")
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    leaves = [h, w, *([b] if b is not None else [])]
    for ours, theirs in zip(
        torch.autograd.grad(3 * actual, leaves), torch.autograd.grad(3 * expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_both_kinds_of_attention_are_causal_attention(heads: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, n, 8, generator=generator) for n in (heads[0], heads[1], heads[1]))
    scores = torch.einsum("nihd,njhd->nhij", q, k.repeat_interleave(heads[0] // heads[1], 2)) * 0.3
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    expected = torch.einsum("nhij,njhd->nihd", scores.softmax(-1), v.repeat_interleave(heads[0] // heads[1], 2))
    for way in (plain_attention, fused_attention):
        torch.testing.assert_close(way(q, k, v, 0.3), expected, rtol=1e-5, atol=1e-5)


def test_plain_attention_in_bfloat16_agrees_with_float32(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen2", layers=2)
    examples = encoded(folder)
    model = loading.load_model(str(folder), "bfloat16")
    objective, note = choose_objective(model, examples, sharded=False)
    assert not note
    expected = separately(loading.load_model(str(folder)), examples).item()
    assert objective(pack(examples)).item() == pytest.approx(expected, rel=2e-2)


class Scaled(nn.Linear):
    """An output matrix that also scales, as in some architectures."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


def test_an_architecture_that_also_scales_its_logits_takes_the_slow_path(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen2")
    examples = encoded(folder)
    model = loading.load_model(str(folder))
    head = Scaled(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    expected = separately(model, examples).item()
    objective, note = choose_objective(model, examples, sharded=False)
    assert "does not compute" in note
    assert not objective.direct
    assert objective(pack(examples)).item() == pytest.approx(expected, rel=1e-5)


def test_a_window_shorter_than_an_example_is_respected(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen2")
    model = loading.load_model(str(folder))
    model.config.sliding_window = 20
    assert "window of 20" in choose_objective(model, encoded(folder), sharded=False)[1]
