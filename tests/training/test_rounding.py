"""Packed attention rounds no worse in bfloat16 than torch's own: loss and gradient beside float32, on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hybrids import make_hybrid
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lowtax.data.conversations import Conversation
from lowtax.models import loading
from lowtax.models.lora import adapt
from lowtax.models.placement import Placement
from lowtax.training import fused_layers
from lowtax.training.encoding import Example, encode_all
from lowtax.training.objective import unwrap
from lowtax.training.packing import PACKED_ATTENTION, pack, packed_attention, use_packed_attention

WORSE = 1.2
ANSWERS = ("I cannot help with that.", "No. That would hurt people, and I will not do it.", "Sorry, I will not.")
PLACEMENT = Placement(modules=("q_proj", "k_proj", "v_proj", "o_proj"), rank=2, dropout=0.0)


def adapted(ref: str, precision: str, layers: int | None = None) -> nn.Module:
    """Return a model, or its first layers, with random adapters, in evaluation mode."""
    torch.manual_seed(0)
    loaded = loading.load_model(ref, precision)
    loaded.model.layers = loaded.model.layers[:layers]
    model = adapt(loaded, PLACEMENT, ref)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.01)
    return model.eval()


def measured(model: nn.Module, states: Callable[[], Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of all targets at every position, and the gradient of the loss of the real one.

    A vocabulary of at most 512 tokens, with scores in float32, is no part of the question and saves most of the time.
    """
    model.zero_grad()
    weight = unwrap(model).lm_head.weight[:512].float()
    scores = nn.functional.linear(states().float(), weight).log_softmax(-1)
    nn.functional.nll_loss(scores, targets % 512).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return scores.detach().double(), gradient.double()


def separately(model: nn.Module, examples: list[Example], attention: str) -> Callable[[], Tensor]:
    """Return the function that runs each example alone."""
    unwrap(model).set_attn_implementation(attention)
    ids = [torch.tensor([(e.prompt + e.completion)[:-1]]) for e in examples]
    decoder = unwrap(model).get_decoder()
    return lambda: torch.cat([decoder(input_ids=i, use_cache=False).last_hidden_state[0] for i in ids])


def packed(model: nn.Module, examples: list[Example], fuse: bool) -> Callable[[], Tensor]:
    """Return the function that runs all examples in one row."""
    use_packed_attention(unwrap(model))
    decoder, row = unwrap(model).get_decoder(), pack(examples)
    assert fused_layers.fuse(decoder.layers if fuse else []) == (len(decoder.layers) if fuse else 0)
    inputs = {"input_ids": row.ids[None], "position_ids": row.positions[None], "layout": row.layout}
    return lambda: decoder(**inputs, use_cache=False).last_hidden_state[0][: sum(row.lengths)]


def errors(one: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> Tensor:
    """Return the squared error of the losses, and one minus the cosine of the gradients."""
    cosine = nn.functional.cosine_similarity(one[1], exact[1], dim=0)
    return torch.stack([(one[0] - exact[0]).square().mean(), 1 - cosine])


def compared(ref: str) -> Tensor:
    """Return errors in bfloat16 of torch's attention, of packed attention, and of fused layers: [3, 2]."""
    examples, targets = encoded(ref)
    model = adapted(ref, "float32")
    exact = measured(model, separately(model, examples, "sdpa"), targets)
    model = adapted(ref, "bfloat16")
    stock = measured(model, separately(model, examples, "sdpa"), targets)
    ours = [measured(model, packed(model, examples, fuse), targets) for fuse in (False, True)]
    return torch.stack([errors(one, exact) for one in (stock, *ours)])


def encoded(ref: str, n: int = 3) -> tuple[list[Example], Tensor]:
    """Return examples, and the tokens after each of theirs."""
    rows = [Conversation(f"How do I pick lock {i}?", None, ANSWERS[i % len(ANSWERS)]) for i in range(n)]
    examples = encode_all(loading.load_tokenizer(ref), rows, 1024).examples
    return examples, torch.cat([torch.tensor((e.prompt + e.completion)[1:]) for e in examples])


def check(total: Tensor) -> None:
    """Compare root mean square errors of losses, and distances of gradients, with those of torch's attention."""
    assert bool((total[1:, 0].sqrt() <= WORSE * total[0, 0].sqrt()).all()), total
    assert bool((total[1:, 1] <= WORSE * total[0, 1]).all()), total


def test_of_random_models_with_large_scores(tmp_path: Path):
    """Qwen2's queries and keys have biases, and in trained models these make scores of a hundred and more."""
    total = torch.zeros(3, 2, dtype=torch.float64)
    for seed in range(6):
        folder = make_hybrid(tmp_path / str(seed), "qwen2", 4.0, seed, num_hidden_layers=3)
        weights = load_file(folder / "model.safetensors")
        for name in weights:
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                weights[name] = 6 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(seed))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        total += compared(str(folder))
    check(total)


def in_bfloat16(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention that rounds its inputs and its output to bfloat16, for a model in float32."""

    def rounded(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        inputs = (x.bfloat16() for x in (query, key, value))
        output, weights = attention(module, *inputs, *args, **kwargs)
        return output.float(), weights

    return rounded


def test_of_attention_in_the_embedded_reasoner():
    """Attention alone is in bfloat16, so that nothing else blurs the comparison."""
    ref = "builtin:smollm2-135m-reasoner"
    examples, targets = encoded(ref, 12)
    model = adapted(ref, "float32", layers=8)
    exact = measured(model, separately(model, examples, "sdpa"), targets)
    AttentionInterface.register("rounded_sdpa", in_bfloat16(sdpa_attention_forward))
    AttentionMaskInterface.register("rounded_sdpa", sdpa_mask)
    stock = measured(model, separately(model, examples, "rounded_sdpa"), targets)
    states = packed(model, examples, fuse=False)
    AttentionInterface.register(PACKED_ATTENTION, in_bfloat16(packed_attention))
    try:
        ours = measured(model, states, targets)
    finally:
        AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    check(torch.stack([errors(one, exact) for one in (stock, ours)]))
