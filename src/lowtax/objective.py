"""The summed cross-entropy of a packed row's completions, computed no wider and no deeper than training needs.

Logits exist only where there is loss, a slice at a time, and their gradient is made with them, so that they are
never stored. Where hidden states below some layer are given, the layers below are not run.

Whether an architecture really computes what this assumes (nothing between the last hidden state and the output
matrix, nothing but causal attention within an example) is not guessed: the first examples are computed in the
plain way too, and if the two differ, transformers' own forward pass is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax import attention, fusing
from lowtax.data.chat import Example
from lowtax.errors import UserError
from lowtax.packing import Row, pack, rounded

SLICE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of float32 logits that exist at a time


class TargetLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias` (tokens, vocabulary) against `targets`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """hidden (targets, size), weight (vocabulary, size), bias (vocabulary,) -> scalar, float32."""
        wants = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants[2] else None
        slice_ = rounded(1 + SLICE_BYTES[hidden.device.type] // (4 * weight.shape[0]))
        for start in range(0, len(targets), slice_):
            part, wanted = hidden[start : start + slice_], targets[start : start + slice_, None]
            n = len(part)
            filled = nn.functional.pad(part, (0, 0, 0, rounded(n) - n))
            logits = nn.functional.linear(filled, weight, bias).log_softmax(-1, dtype=torch.float32)
            total -= logits[:n].gather(1, wanted).sum()
            if not any(wants):
                continue
            d_logits = logits.exp_()
            d_logits[:n].scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=torch.float32))
            if d_bias is not None:
                d_bias += d_logits[:n].sum(0)
            d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[start : start + slice_] = (d_logits @ weight)[:n]
            if d_weight is not None:
                d_weight += d_logits.T @ filled
        ctx.save_for_backward(
            *(None if d is None else d.to(hidden.dtype) for d in (d_hidden, d_weight)),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients were made in the forward pass; here they only take the factor of the loss."""
        made = [None if d is None else d * grads[0].to(d.dtype) for d in ctx.saved_tensors]
        return *made, None


class Objective(nn.Module):
    """A model seen as the loss of packed rows. `direct` calls decoder and output matrix by themselves; otherwise
    transformers' own forward pass is called, which sharded weights need."""

    def __init__(self, model: PreTrainedModel | PeftModel, direct: bool = True) -> None:
        super().__init__()
        self.model = model
        self.direct = direct
        self._no_split_modules = bare(model)._no_split_modules  # FSDP looks here for the layers to wrap

    def forward(self, row: Row, hidden: Tensor | None = None) -> Tensor:
        """Summed loss of a row; `hidden` (1, tokens, size) enters layer `first`, if it is given."""
        inner = bare(self.model)
        common: dict[str, Any] = {"position_ids": row.positions[None], "use_cache": False}
        if inner.config._attn_implementation == attention.NAME:
            common["layout"] = row.layout
        if not self.direct:
            logits = self.model(input_ids=row.ids[None], logits_to_keep=row.sources, **common).logits[0]
            return nn.functional.cross_entropy(logits.float(), row.targets, reduction="sum")
        given = {"input_ids": row.ids[None]} if hidden is None else {"inputs_embeds": hidden}
        last = inner.get_decoder()(**given, **common).last_hidden_state[0]
        head = inner.get_output_embeddings()
        return TargetLoss.apply(last[row.sources], head.weight, head.bias, row.targets)  # type: ignore[no-any-return, no-untyped-call]


def bare(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT one, or itself."""
    return model.base_model.model if isinstance(model, PeftModel) else model  # type: ignore[return-value]


@contextmanager
def layers_from(model: nn.Module, first: int) -> Iterator[None]:
    """Meanwhile the decoder begins at layer `first`: what it takes for embeddings enters there."""
    decoder = bare(model).get_decoder()
    whole = decoder.layers
    decoder.layers = whole[first:]
    try:
        yield
    finally:
        decoder.layers = whole


class _Reached(BaseException):
    """Stops a forward pass where a hook has what it wants."""


@torch.no_grad()
def hidden_before(objective: Objective, row: Row, first: int) -> Tensor:
    """What enters layer `first` on a packed row: (1, tokens, size)."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    layer = bare(objective.model).get_decoder().layers[first]
    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        objective(row)
    except _Reached:
        return caught[0]
    finally:
        handle.remove()
    raise AssertionError(f"layer {first} was never reached")


def prepared(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], sharded: bool, fuse: bool = True
) -> tuple[Objective, str]:
    """The objective that is exact for this model, and a sentence if it is not the fast one.

    The two shortest of the examples are computed together and one by one, by transformers alone. `fuse` says whether
    layers may become one operation for each half (`fused`).
    """
    inner = bare(model)
    stock = inner.config._attn_implementation
    few = sorted(examples, key=lambda e: len(e.prompt) + len(e.completion))[:2]
    window = getattr(inner.config, "sliding_window", None)  # not every architecture has one
    if window and max(len(e.prompt) + len(e.completion) for e in examples) > window:
        return Objective(model, direct=False), f"examples reach beyond the model's attention window of {window} tokens"
    if sharded:
        inner.set_attn_implementation(attention.NAME)
        return Objective(model, direct=False), ""
    was_training = model.training
    model.eval()
    wanted = sum(_plainly(inner, e) for e in few)
    for direct, name in ((True, attention.NAME), (False, attention.NAME), (False, stock)):
        inner.set_attn_implementation(name)
        objective = Objective(model, direct)
        if not abs(_together(objective, few) - wanted) > _tolerance(inner) * max(wanted, 1.0):  # so that NaN passes
            break
    else:
        raise UserError(
            f"With {type(inner).__name__} packed rows do not give the loss of separate examples, so that it cannot be "
            "trained here; please report it."
        )
    fast = direct and name == attention.NAME
    layers = inner.get_decoder().layers if fast and fuse else ()
    if fusing.fuse(layers) and abs(_together(objective, few) - wanted) > _tolerance(inner) * max(wanted, 1.0):
        fusing.undo(layers)
    model.train(was_training)
    return objective, "" if fast else f"{type(inner).__name__} does not compute what the fast path assumes"


def _tolerance(model: PreTrainedModel) -> float:
    return 1e-4 if model.dtype == torch.float32 else 2e-2


@torch.no_grad()
def _together(objective: Objective, examples: Sequence[Example]) -> float:
    return float(objective(pack(examples).to(bare(objective.model).device)))


@torch.no_grad()
def _plainly(model: PreTrainedModel, e: Example) -> float:
    ids = torch.tensor([e.prompt + e.completion], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(e.prompt) - 1 : -1]
    return float(nn.functional.cross_entropy(logits.float(), ids[0, len(e.prompt) :], reduction="sum"))
