"""The loss of an example is that of transformers alone, for every architecture, row and order; leaks are found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import make_hybrid
from tiny import make_model
from torch import nn
from transformers import AutoModelForCausalLM

from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement
from lowtax.training import assumptions, exactness
from lowtax.training.encoding import Example, encode_all
from lowtax.training.objective import Objective, choose_objective
from lowtax.training.packing import UnsupportedAttention, length, pack, packed_attention, use_packed_attention

ROWS = [Conversation(f"{i}?", None, "No. " * (1 + i)) for i in range(6)]
LONG = [*ROWS, Conversation("word " * 10, None, "No. " * 10)]
ALONE = {
    "gpt_oss": "attention sinks",
    "qwen3_5_text": "linear_attention",
    "qwen3_next": "linear_attention",
    "falcon_h1": "a recurrent state",
    "granitemoehybrid": "linear_attention",
    "bamba": "a recurrent state",
    "lfm2": "layers of the kind conv",
    "jamba": "JambaMambaMixer",
    "minimax": "linear_attention",
    "mamba": "a recurrent state",
    "falcon_mamba": "a recurrent state",
    "mamba2": "a recurrent state",
    "gemma2": "a soft cap",
    "bloom": "its own attention",
    "falcon": "its own attention",
    "gptj": "its own attention",
    "mpt": "its own attention",
    "rwkv": "a recurrent state",
}
WHOLE = ["cohere", "granite", "llama4_text"]  # packed rows, but transformers' own forward pass
FAST = ["gemma", "gemma3_text", "gemma3", "olmo3", "mistral", "mixtral", "qwen3_moe", "gpt2", "opt", "gpt_neox"]


def encoded(folder: Path, rows: list[Conversation] = ROWS) -> list[Example]:
    return encode_all(loading.load_tokenizer(str(folder)), rows, 1024).examples


@torch.no_grad()
def one_by_one(folder: Path, examples: list[Example], precision: str, **more: Any) -> list[torch.Tensor]:
    """Return the losses of each example's completion by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision), **more).eval()
    losses = []
    for e in examples:
        ids = torch.tensor([e.prompt + e.completion])
        logits = model(input_ids=ids).logits[0, len(e.prompt) - 1 : -1]
        losses.append(nn.functional.cross_entropy(logits.float(), ids[0, len(e.prompt) :], reduction="none"))
    return losses


@torch.no_grad()
def check_every_row(objective: Objective, examples: list[Example], expected: list[torch.Tensor], tolerance: float):
    """Compare the losses of six a row, in both orders, and of one a row, token by token."""
    for order in (range(len(examples)), range(len(examples) - 1, -1, -1)):
        row = pack([examples[i] for i in order])
        theirs = torch.cat([expected[i] for i in order])
        assert float((objective.losses(row) - theirs).abs().max()) < tolerance
        assert float(objective(row)) == pytest.approx(float(theirs.sum()), abs=tolerance * len(theirs) ** 0.5)
    for e, theirs in zip(examples, expected, strict=True):
        assert float((objective.losses(pack([e])) - theirs).abs().max()) < tolerance


@pytest.mark.parametrize("kind", ALONE)
def test_what_packed_rows_do_not_fit_has_a_forward_pass_an_example(tmp_path: Path, kind: str):
    folder = make_hybrid(tmp_path / "m", kind)
    examples = encoded(folder)
    precision = "bfloat16" if kind in ("gpt_oss", "lfm2") else "float32"
    model = loading.load_model(str(folder), precision)
    objective, note = choose_objective(model, examples, sharded=False)
    assert (objective.alone, objective.most_examples) == (True, 1)
    assert ALONE[kind] in note
    assert "\n" not in note
    check_every_row(objective, examples, one_by_one(folder, examples, precision), 2e-5)


@pytest.mark.parametrize("kind", [*WHOLE, *FAST])
def test_what_they_fit_is_packed(tmp_path: Path, kind: str):
    folder = make_hybrid(tmp_path / "m", kind)
    examples = encoded(folder)
    model = loading.load_model(str(folder))
    objective, note = choose_objective(model, examples, sharded=False)
    assert (objective.alone, objective.direct, objective.most_examples) == (False, kind in FAST, None)
    assert ("does not compute" in note) == (kind in WHOLE)
    check_every_row(objective, examples, one_by_one(folder, examples, "float32"), 1e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "olmo3", "qwen3_moe"])
def test_plain_architectures_are_fast_in_bfloat16(tmp_path: Path, kind: str):
    for seed, scale in enumerate((1.0, 4.0, 8.0)):
        folder = make_hybrid(tmp_path / str(seed), kind, scale, seed)
        model = adapt(loading.load_model(str(folder), "bfloat16"), Placement(modules=("all-linear",)), str(folder))
        objective, note = choose_objective(model, encoded(folder), sharded=False)
        assert (objective.direct, note) == (True, "")


@pytest.mark.parametrize(
    "rows", [ROWS[:1], ROWS[:2], [ROWS[0]] * 3, [Conversation("a", None, "b"), Conversation("c " * 300, None, "d")]]
)
def test_any_number_and_length_of_rows_can_be_checked(tmp_path: Path, rows: list[Conversation]):
    folder = make_model(tmp_path / "m", "qwen2")
    sample = exactness.sample(encoded(folder, rows))
    assert len(sample) == exactness.CHECKED
    assert all(len(e.prompt) == 1 and length(e) < exactness.LONGEST for e in sample)
    objective, note = choose_objective(loading.load_model(str(folder)), encoded(folder, rows), sharded=False)
    assert (objective.direct, note) == (True, "")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_window_counts_wherever_the_configuration_has_it(tmp_path: Path, wrapped: bool):
    kind = "gemma3" if wrapped else "gemma3_text"
    folder = make_hybrid(tmp_path / "m", kind, sliding_window=64)
    for rows, reaches in ((ROWS[:3], False), (LONG, True)):
        examples = encoded(folder, rows)
        objective, note = choose_objective(loading.load_model(str(folder)), examples, sharded=False)
        assert (objective.alone, "window of 64 tokens" in note) == (reaches, reaches)
        expected = one_by_one(folder, examples, "float32")
        check_every_row(objective, examples, expected, 1e-3)
    everything = one_by_one(folder, encoded(folder, LONG), "float32", **_window(wrapped, 512))
    assert float((torch.cat(everything) - torch.cat(expected)).abs().max()) > 0.1  # the window matters


def _window(wrapped: bool, size: int) -> dict[str, Any]:
    return {"text_config": {"sliding_window": size}} if wrapped else {"sliding_window": size}


@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2", "falcon_h1", "gpt_oss", "minimax", "bamba"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_numbers_find_what_nobody_has_a_name_for(
    tmp_path: Path, kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
):
    folder = make_hybrid(tmp_path / "m", kind, scale=1.0)  # so small that the loss alone would not show it
    examples = encoded(folder)
    monkeypatch.setattr("lowtax.training.objective.departures", lambda *_: [])
    objective, note = choose_objective(loading.load_model(str(folder), precision), examples, sharded=False)
    assert objective.alone
    assert "does not compute what the fast path assumes" in note


def test_a_leak_too_small_for_the_loss_is_found(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen2")
    examples = encoded(folder)
    model = loading.load_model(str(folder))

    def blend(_: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return out + 1e-9 * out.roll(1, 1)

    assert choose_objective(model, examples, sharded=False)[0].direct
    model.model.layers[0].mlp.register_forward_hook(blend)
    assert choose_objective(model, examples, sharded=False)[0].alone


class _WithCap(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5 * torch.tanh(super().forward(x) / 5)


def test_a_cap_on_the_logits_takes_the_forward_pass_of_transformers(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen3")
    model = loading.load_model(str(folder))
    head = _WithCap(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    objective, note = choose_objective(model, encoded(folder), sharded=False)
    assert (objective.direct, objective.alone) == (False, False)
    assert "does not compute" in note


def test_lora_on_the_output_layer_is_trained(tmp_path: Path):
    folder = make_model(tmp_path / "m", "qwen3")
    placement = Placement(modules=("lm_head", "up_proj"), rank=2, dropout=0.0)
    model = adapt(loading.load_model(str(folder)), placement, str(folder))
    objective, _ = choose_objective(model, encoded(folder), sharded=False)
    objective(pack(encoded(folder))).backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("lm_head" in name for name in moved)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"softcap": 30.0}, "softcap=30"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "is_causal=False"),
        ({"sliding_window": 3}, "sliding_window=3"),
        ({"something_new": 1}, "something_new"),
    ],
)
def test_the_packed_attention_refuses_what_it_does_not_compute(more: dict[str, Any], word: str):
    layout = pack([Example([1, 2, 3], [4, 5])]).layout
    x = torch.randn(1, 4, 16, 8)
    neutral = {"sliding_window": 4, "is_causal": True, "position_ids": torch.zeros(1), "softcap": None}
    packed_attention(nn.Identity(), x, x, x, None, layout=layout, **neutral)
    with pytest.raises(UnsupportedAttention, match=word.split("=")[0]):
        packed_attention(nn.Identity(), x, x, x, None, layout=layout, **neutral | more)
    with pytest.raises(UnsupportedAttention, match="attention_mask"):
        packed_attention(nn.Identity(), x, x, x, torch.zeros(1), layout=layout)


def test_attention_dropout_is_drawn_in_packed_rows(tmp_path: Path):
    folder = make_hybrid(tmp_path / "m", "llama", attention_dropout=0.5)
    examples = encoded(folder)
    model = loading.load_model(str(folder))
    objective, note = choose_objective(model, examples, sharded=False)
    row = pack(examples)
    losses = []
    for training in (False, False, True, True):
        objective.train(training)
        losses.append(objective(row).item())
    assert note == ""
    assert losses[0] == losses[1]
    assert len(set(losses[1:])) == 3


def test_sharded_weights_choose_by_what_is_known(tmp_path: Path):
    for kind, alone in (("llama", False), ("lfm2", True), ("gpt_oss", True)):
        folder = make_hybrid(tmp_path / kind, kind)
        examples = encoded(folder)
        objective, note = choose_objective(loading.load_model(str(folder)), examples, sharded=True)
        assert (objective.direct, objective.alone, bool(note)) == (False, alone, alone)
        check_every_row(objective, examples, one_by_one(folder, examples, "float32"), 1e-3)


def test_a_sharded_model_without_the_packed_attention_stops_at_its_first_row(tmp_path: Path):
    model = loading.load_model(str(make_hybrid(tmp_path / "m", "lfm2")))
    use_packed_attention(model)
    objective = Objective(model, direct=False, watched=True)
    with pytest.raises(Exception, match="layers without the attention of packed rows"):
        objective(pack(encoded(tmp_path / "m")))


def test_dropout_anywhere_makes_a_model_random(tmp_path: Path):
    for kind, more, random in (
        ("llama", {}, False),
        ("llama", {"attention_dropout": 0.1}, True),
        ("gpt_neox", {"hidden_dropout": 0.1, "classifier_dropout": 0.1}, True),
        ("gpt_neox", {"classifier_dropout": 0.1}, False),
        ("gemma3", {"attention_dropout": 0.1}, True),
    ):
        folder = make_hybrid(tmp_path / f"{kind}{len(more)}{random}", kind, **more)
        assert assumptions.is_random(loading.load_model(str(folder))) == random
