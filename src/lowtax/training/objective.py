"""The loss of a packed row: summed cross-entropy of its completions, computed only where training needs it.

Logits exist only at positions with loss, a slice at a time, and their gradient is computed with them, so that they are
never stored. Given the hidden states that enter some layer, the layers below it are not run.

This assumes that nothing lies between the last hidden state and the output matrix, and that an example sees itself
alone, by causal attention. `exactness` chooses the objective for which that is true.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax.common.errors import UserError
from lowtax.training import exactness, fused_layers
from lowtax.training.assumptions import accepted, decoder_layers, departures, reads_plainly
from lowtax.training.encoding import Example
from lowtax.training.packing import (
    PACKED_ATTENTION,
    Callers,
    Row,
    UnsupportedAttention,
    round_up,
    separate,
    use_packed_attention,
)

Fuse = Literal["auto", "on", "off"]
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
        weights: Float[Tensor, " targets"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss in float32, of each target times its weight if there are any, and keep its gradients."""
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
            each = logits[:n].gather(1, labels)
            factors = None if weights is None else weights[start : start + slice_size, None]
            total -= (each if factors is None else each * factors).sum()
            if not any(needs_grad):
                continue
            d_logits = logits.exp_()
            d_logits[:n].scatter_add_(1, labels, -torch.ones_like(labels, dtype=torch.float32))
            if factors is not None:
                d_logits[:n].mul_(factors)
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
        return *scaled, None, None


class Objective(nn.Module):
    """A model as the loss of packed rows.

    direct: decoder and output matrix are called separately, and logits exist only where there is loss. Without it,
        transformers' own forward pass is called, which sharded weights need.
    alone: each example has its own forward pass, by transformers alone; then a row should have one example.
    watched: the first row must reach the packed attention in every layer. It is for weights that are sharded, so that
        nothing can be computed beforehand.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, direct: bool = True, *, alone: bool = False, watched: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.direct, self.alone, self.watched = direct, alone, watched
        self._no_split_modules = unwrap(model)._no_split_modules  # FSDP looks here for the layers to wrap

    @property
    def most_examples(self) -> int | None:
        """Return the number of examples that a row should have at most; None if it does not matter."""
        return 1 if self.alone else None

    def forward(self, row: Row, hidden: Float[Tensor, "1 tokens size"] | None = None, first: int = 0) -> Tensor:
        """Return the summed loss of a row, a number in float32.

        Args:
            row: the packed examples.
            hidden: what enters layer `first`; the layers below it are then not run.
            first: see `hidden`.
        """
        if not self.direct:
            return self._losses(row, "sum")
        states = self.states(row, hidden, first)
        head = unwrap(self.model).get_output_embeddings()
        return TargetLoss.apply(states, head.weight, head.bias, row.targets)  # type: ignore[no-any-return, no-untyped-call]

    def losses(self, row: Row) -> Float[Tensor, " targets"]:
        """Return the loss of each target of a row; all its logits exist at a time."""
        return self._losses(row, "none")

    def _losses(self, row: Row, reduction: Literal["none", "sum"]) -> Tensor:
        if self.alone:
            losses = nn.functional.cross_entropy(self.logits(row).float(), row.targets, reduction="none")
            return losses.sum() if reduction == "sum" else losses
        return nn.functional.cross_entropy(self.logits(row).float(), row.targets, reduction=reduction)

    def logits(self, row: Row) -> Float[Tensor, "targets vocabulary"]:
        """Return the logits of each target of a row; all exist at a time."""
        if self.alone:
            return torch.cat([self._alone(*part) for part in separate(row)])
        if self.direct:
            head = unwrap(self.model).get_output_embeddings()
            return nn.functional.linear(self.states(row), head.weight, head.bias)
        if self.watched:
            row = replace(row, layout=replace(row.layout, callers=Callers()))
        logits: Tensor = self.model(input_ids=row.ids[None], logits_to_keep=row.sources, **self._packed(row)).logits[0]
        if self.watched:
            self._require_packed(row.layout.callers or Callers())
        return logits

    def _require_packed(self, callers: Callers) -> None:
        """Check that every layer used the packed attention, once."""
        self.watched = False
        if not exactness.attends_everywhere(unwrap(self.model), callers.modules):
            raise UserError(
                f"{type(unwrap(self.model)).__name__} has layers without the attention of packed rows, so it cannot be "
                "trained with sharded weights here: train it in one process, and please report this."
            )

    def states(
        self, row: Row, hidden: Float[Tensor, "1 tokens size"] | None = None, first: int = 0
    ) -> Float[Tensor, "targets size"]:
        """Return the last hidden states at the positions with loss. `hidden`, `first`: see `forward`."""
        decoder = unwrap(self.model).get_decoder()
        with nullcontext() if hidden is None else _entering(decoder, first, hidden):
            return decoder(input_ids=row.ids[None], **self._packed(row)).last_hidden_state[0][row.sources]  # type: ignore[no-any-return]

    def _packed(self, row: Row) -> dict[str, Any]:
        """Return the arguments that make a row of several examples of a sequence."""
        common: dict[str, Any] = {"position_ids": row.positions[None], "use_cache": False}
        if unwrap(self.model).config._attn_implementation == PACKED_ATTENTION:
            common["layout"] = row.layout
        return common

    def _alone(self, ids: Tensor, sources: Tensor, targets: Tensor) -> Float[Tensor, "targets vocabulary"]:
        """Return the logits of one example, computed as by a user of transformers: without positions, mask or cache."""
        ids = torch.cat([ids, targets[-1:]])[None]
        names = accepted(unwrap(self.model))
        more = {name: value for name, value in (("use_cache", False), ("logits_to_keep", sources)) if name in names}
        logits: Tensor = self.model(input_ids=ids, **more).logits[0]
        return logits if "logits_to_keep" in more else logits[sources]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.base_model.model if isinstance(model, PeftModel) else model  # type: ignore[return-value]


class _Replaced(nn.Module):
    """A stand-in for a layer while hidden states enter above the embeddings.

    A layer below the entrance returns them and is not run; the layer at the entrance takes them for its input. A
    decoder may read the layer's attributes, which are the layer's own.
    """

    def __init__(self, layer: nn.Module, hidden: Tensor, runs: bool) -> None:
        super().__init__()
        self.layer, self.hidden, self.runs = layer, hidden, runs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the hidden states, or the layer's output for them."""
        if not self.runs:
            return self.hidden
        if args:
            return self.layer(self.hidden, *args[1:], **kwargs)
        return self.layer(**kwargs | {"hidden_states": self.hidden})


@contextmanager
def _entering(decoder: nn.Module, first: int, hidden: Tensor) -> Iterator[None]:
    """Let hidden states enter layer `first` inside the block, whatever the layers below and the embeddings return.

    Layers keep their places, since decoders choose masks and rotary angles by place, and nothing is done to the
    hidden states that is done to embeddings.
    """
    layers: nn.ModuleList = decoder.layers  # type: ignore[assignment]
    replaced = [_Replaced(layer, hidden, runs=place == first) for place, layer in enumerate(layers[: first + 1])]
    decoder.layers = nn.ModuleList([*replaced, *layers[first + 1 :]])
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
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], sharded: bool, fuse: Fuse = "auto"
) -> tuple[Objective, str]:
    """Return the fastest objective that is exact for a model, and why it is not the fastest of all (empty if it is).

    What is known of the model's kind comes first (`assumptions`), numbers second (`exactness`). Where packed rows are
    not exact, each example has its own forward pass, by transformers alone.

    Args:
        model: the model to train. Its attention implementation is set, and its layers may be fused.
        examples: all training and validation examples.
        sharded: no process holds whole weights, so that transformers' own forward pass must be used and nothing is
            compared.
        fuse: fused layers (`fused_layers`): on CPUs (auto), on accelerators as well (on), or nowhere (off).
    """
    inner = unwrap(model)
    stock = inner.config._attn_implementation
    reasons = departures(inner, max(len(e.prompt) + len(e.completion) for e in examples))
    if sharded and not reasons:
        use_packed_attention(inner)
        return Objective(model, direct=False, watched=True), ""
    if not reasons:
        was_training = model.training
        model.eval()
        objective = _exact(model, exactness.sample(examples), stock, fuse)
        model.train(was_training)
        if objective:
            plainly = f"{type(inner).__name__} does not compute what the fast path assumes"
            return objective, "" if objective.direct else f"{plainly}: training with transformers' own forward pass"
        reasons = ["a forward pass that does not compute what the fast path assumes"]
        inner.set_attn_implementation(stock)
    return Objective(model, direct=False, alone=True), (
        f"{type(inner).__name__} has {' and '.join(reasons[:2])}: training with transformers' own forward pass, "
        "one example at a time"
    )


def _exact(model: PreTrainedModel | PeftModel, examples: Sequence[Example], stock: str, fuse: Fuse) -> Objective | None:
    """Return the fastest objective whose packed rows are exact on the examples; None if there is none."""
    inner = unwrap(model)
    try:
        expected = exactness.reference(inner, examples, "eager" if stock != "eager" else "sdpa")
    except ValueError:  # transformers has one attention for this class, and so no measure of rounding
        return None
    use_packed_attention(inner)
    decoder = inner.get_decoder()
    direct = decoder is not inner and reads_plainly(inner.get_output_embeddings())
    for objective in [Objective(model, True)] * direct + [Objective(model, False)]:
        if _is_exact(objective, expected):
            layers = decoder_layers(inner) if objective.direct and fuse != "off" else []
            if fused_layers.fuse(layers, fuse == "on") and not exactness.agrees(
                objective.losses, expected, inner.device
            ):
                fused_layers.undo(layers)
            return objective
    return None


def _is_exact(objective: Objective, expected: exactness.Reference) -> bool:
    """Test whether packed rows have the losses of separate examples, and no example depends on its neighbours."""
    inner = unwrap(objective.model)
    callers = Callers()

    def losses(row: Row) -> Float[Tensor, " tokens"]:
        return objective.losses(replace(row, layout=replace(row.layout, callers=callers)))

    try:
        agrees = exactness.agrees(losses, expected, inner.device)
    except UnsupportedAttention:
        return False
    return (
        agrees
        and exactness.attends_everywhere(inner, callers.modules)
        and not exactness.neighbours_matter(inner, objective, expected.examples)
    )
