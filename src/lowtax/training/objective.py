"""The loss of a packed row: summed cross-entropy of its completions, computed only where training needs it.

Logits exist only at positions with loss, a slice at a time, and their gradient is computed with them, so that they are
never stored. Given the hidden states that enter some layer, the layers below it are not run.

This assumes that nothing lies between the last hidden state and the output matrix, and that an example sees itself
alone, by causal attention. The assumption is tested on every model: the shortest examples are also computed by
transformers alone, and if the results differ, transformers' own forward pass is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax.common.errors import UserError
from lowtax.training import fused_layers
from lowtax.training.encoding import Example
from lowtax.training.packing import PACKED_ATTENTION, Row, pack, round_up, use_packed_attention

SLICE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of float32 logits that exist at a time


class TargetLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias` against the target tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "targets size"],
        weight: Float[Tensor, "vocabulary size"],
        bias: Float[Tensor, " vocabulary"] | None,
        targets: Int[Tensor, " targets"],
    ) -> Float[Tensor, ""]:
        """Return the loss in float32, and keep its gradients."""
        needs_grad = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_grad[2] else None
        slice_size = round_up(1 + SLICE_BYTES[hidden.device.type] // (4 * weight.shape[0]))
        for start in range(0, len(targets), slice_size):
            part, labels = hidden[start : start + slice_size], targets[start : start + slice_size, None]
            n = len(part)
            padded = nn.functional.pad(part, (0, 0, 0, round_up(n) - n))
            logits = nn.functional.linear(padded, weight, bias).log_softmax(-1, dtype=torch.float32)
            total -= logits[:n].gather(1, labels).sum()
            if not any(needs_grad):
                continue
            d_logits = logits.exp_()
            d_logits[:n].scatter_add_(1, labels, -torch.ones_like(labels, dtype=torch.float32))
            if d_bias is not None:
                d_bias += d_logits[:n].sum(0)
            d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[start : start + slice_size] = (d_logits @ weight)[:n]
            if d_weight is not None:
                d_weight += d_logits.T @ padded
        ctx.save_for_backward(
            *(None if d is None else d.to(hidden.dtype) for d in (d_hidden, d_weight)),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass by that of the loss."""
        scaled = [None if d is None else d * grads[0].to(d.dtype) for d in ctx.saved_tensors]
        return *scaled, None


class Objective(nn.Module):
    """A model as the loss of packed rows.

    With `direct`, decoder and output matrix are called separately, and logits exist only where there is loss. Without
    it, transformers' own forward pass is called, which sharded weights need.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, direct: bool = True) -> None:
        super().__init__()
        self.model = model
        self.direct = direct
        self._no_split_modules = unwrap(model)._no_split_modules  # FSDP looks here for the layers to wrap

    def forward(self, row: Row, hidden: Float[Tensor, "1 tokens size"] | None = None) -> Float[Tensor, ""]:
        """Return the summed loss of a row.

        Args:
            row: the packed examples.
            hidden: what enters the first layer in place of embeddings; see `layers_from`.
        """
        inner = unwrap(self.model)
        common: dict[str, Any] = {"position_ids": row.positions[None], "use_cache": False}
        if inner.config._attn_implementation == PACKED_ATTENTION:
            common["layout"] = row.layout
        if not self.direct:
            logits = self.model(input_ids=row.ids[None], logits_to_keep=row.sources, **common).logits[0]
            return nn.functional.cross_entropy(logits.float(), row.targets, reduction="sum")
        inputs = {"input_ids": row.ids[None]} if hidden is None else {"inputs_embeds": hidden}
        last = inner.get_decoder()(**inputs, **common).last_hidden_state[0]
        head = inner.get_output_embeddings()
        return TargetLoss.apply(last[row.sources], head.weight, head.bias, row.targets)  # type: ignore[no-any-return, no-untyped-call]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.base_model.model if isinstance(model, PeftModel) else model  # type: ignore[return-value]


@contextmanager
def layers_from(model: nn.Module, first: int) -> Iterator[None]:
    """Let the decoder begin at layer `first` inside the block: what it takes for embeddings enters there."""
    decoder = unwrap(model).get_decoder()
    layers = decoder.layers
    decoder.layers = layers[first:]
    try:
        yield
    finally:
        decoder.layers = layers


class _LayerReached(BaseException):
    """Raised by a hook to end a forward pass at its layer."""


@torch.no_grad()
def hidden_before(objective: Objective, row: Row, first: int) -> Float[Tensor, "1 tokens size"]:
    """Return the hidden states that enter layer `first` on a packed row."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _LayerReached

    layer = unwrap(objective.model).get_decoder().layers[first]
    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        objective(row)
    except _LayerReached:
        return caught[0]
    finally:
        handle.remove()
    raise AssertionError(f"the forward pass did not reach layer {first}")


def choose_objective(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], sharded: bool, fuse: bool = True
) -> tuple[Objective, str]:
    """Return the fastest objective that is exact for a model, and why it is not the fast path (empty if it is).

    The two shortest examples are computed as one row, and one by one by transformers alone.

    Args:
        model: the model to train. Its attention implementation is set, and its layers may be fused.
        examples: all training and validation examples.
        sharded: no process holds whole weights, so that transformers' own forward pass must be used.
        fuse: allow fused layers (`fused_layers`).

    Raises:
        UserError: Packed rows do not give the loss of separate examples in any way.
    """
    inner = unwrap(model)
    stock = inner.config._attn_implementation
    shortest = sorted(examples, key=lambda e: len(e.prompt) + len(e.completion))[:2]
    window = getattr(inner.config, "sliding_window", None)  # not every architecture has one
    if window and max(len(e.prompt) + len(e.completion) for e in examples) > window:
        return Objective(model, direct=False), f"examples reach beyond the model's attention window of {window} tokens"
    if sharded:
        use_packed_attention(inner)
        return Objective(model, direct=False), ""
    was_training = model.training
    model.eval()
    expected = sum(_plain_loss(inner, e) for e in shortest)
    for direct, packed in ((True, True), (False, True), (False, False)):
        if packed:
            use_packed_attention(inner)
        else:
            inner.set_attn_implementation(stock)
        objective = Objective(model, direct)
        if not _differs(objective, shortest, expected):
            break
    else:
        raise UserError(
            f"{type(inner).__name__} does not give the same loss for packed rows as for separate examples, so lowtax "
            "cannot train it; please report this."
        )
    fast = direct and packed
    layers = inner.get_decoder().layers if fast and fuse else ()
    if fused_layers.fuse(layers) and _differs(objective, shortest, expected):
        fused_layers.undo(layers)
    model.train(was_training)
    return objective, "" if fast else f"{type(inner).__name__} does not compute what the fast path assumes"


@torch.no_grad()
def _differs(objective: Objective, examples: Sequence[Example], expected: float) -> bool:
    """Test whether the loss of one row of the examples differs from `expected` by more than rounding.

    A loss that is not a number does not differ: training reports it.
    """
    inner = unwrap(objective.model)
    tolerance = 1e-4 if inner.dtype == torch.float32 else 2e-2
    packed_loss = float(objective(pack(examples).to(inner.device)))
    return abs(packed_loss - expected) > tolerance * max(expected, 1.0)


@torch.no_grad()
def _plain_loss(model: PreTrainedModel, e: Example) -> float:
    """Return the summed loss of one example by transformers alone."""
    ids = torch.tensor([e.prompt + e.completion], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(e.prompt) - 1 : -1]
    return float(nn.functional.cross_entropy(logits.float(), ids[0, len(e.prompt) :], reduction="sum"))
