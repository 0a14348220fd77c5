"""The comparison of packed rows with transformers alone: example by example and token by token, on several lengths.

The tolerance is measured. transformers computes every example twice, by two attentions that are equal in exact
arithmetic (torch's fused one, and three products in a row), and packed rows may differ from the first by a few times
what the second does: little in float32, and in bfloat16 as much as this model's weights make of rounding.
A second test has no tolerance: the loss of an example has a gradient of exactly zero with respect to the embeddings of
its neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax.training.assumptions import decoder_layers
from lowtax.training.encoding import Example
from lowtax.training.packing import Row, length, pack

CHECKED = 4  # examples
LONGEST = 384  # tokens of a checked example: more than the fused layers and the plain attention take
NEIGHBOURS = 48  # tokens of an example in the test for neighbours
RMS, SINGLE = 3.0, 6.0  # times the measured rounding: over the tokens of an example, and at one token
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 5e-4, torch.float16: 1e-4}  # of a loss of one nat

Losses = Float[Tensor, " tokens"]


@dataclass(frozen=True)
class Reference:
    """Examples with their losses by transformers alone.

    examples: at least two, the shortest first; all tokens but the first have loss.
    losses: of each example's tokens.
    rounding: differences of a second, equivalent computation.
    dtype: of the model.
    """

    examples: list[Example]
    losses: list[Losses]
    rounding: list[Losses]
    dtype: torch.dtype

    def rows(self) -> list[Row]:
        """Return the examples as packed rows of two."""
        return [pack(self.examples[i : i + 2]) for i in range(0, len(self.examples), 2)]

    def agrees(self, computed: Sequence[Losses]) -> bool:
        """Test whether losses of the examples' tokens are those of transformers within rounding.

        A loss that is not a number agrees: training reports it.
        """
        everywhere = torch.cat(self.rounding)
        usual, largest = _rms(everywhere), float(everywhere.abs().max())
        for ours, theirs, rounding in zip(computed, self.losses, self.rounding, strict=True):
            floor = FLOOR[self.dtype] * (1 + float(theirs.abs().mean()))
            difference = ours - theirs
            if _rms(difference) > RMS * max(usual, _rms(rounding)) + floor:
                return False
            if float(difference.abs().max()) > SINGLE * largest + 4 * floor:
                return False
        return True


def sample(examples: Sequence[Example]) -> list[Example]:
    """Return examples of several lengths for a comparison: the shortest, the longest, and two between.

    They are cut to `LONGEST` tokens, and all tokens but the first have loss.
    """
    ordered = sorted(examples, key=length)
    last = len(ordered) - 1
    chosen = [ordered[round(last * i / (CHECKED - 1))] for i in range(CHECKED)]
    whole = [(e.prompt + e.completion)[:LONGEST] for e in chosen]
    return [Example(ids[:1], ids[1:]) for ids in whole]


def reference(model: PreTrainedModel, examples: Sequence[Example], second: str) -> Reference:
    """Compute examples by transformers alone.

    Args:
        model: the transformers model, with the attention implementation that it was loaded with.
        examples: the examples.
        second: another attention implementation, for the measure of rounding.

    Raises:
        ValueError: transformers has no such implementation for this model.
    """
    first = model.config._attn_implementation
    losses = [_plain(model, e) for e in examples]
    model.set_attn_implementation(second)
    try:
        rounding = [_plain(model, e) - theirs for e, theirs in zip(examples, losses, strict=True)]
    finally:
        model.set_attn_implementation(first)
    return Reference(list(examples), losses, rounding, model.dtype)


@torch.no_grad()
def _plain(model: PreTrainedModel, e: Example) -> Losses:
    ids = torch.tensor([e.prompt + e.completion], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")


@torch.no_grad()
def agrees(losses: Callable[[Row], Losses], expected: Reference, device: torch.device) -> bool:
    """Test whether packed rows have the losses that transformers computes one by one.

    Args:
        losses: the losses of a row's targets.
        expected: the examples and their losses.
        device: the device of the model.
    """
    computed: list[Losses] = []
    for row in expected.rows():
        computed += torch.split(losses(row.to(device)), list(row.lengths))
    return expected.agrees(computed)


def neighbours_matter(model: PreTrainedModel, loss: Callable[[Row], Tensor], examples: Sequence[Example]) -> bool:
    """Test whether the loss of one of two packed examples depends on the other.

    Args:
        model: the transformers model inside the objective.
        loss: the summed loss of a row.
        examples: two examples.
    """
    cut = [Example(e.prompt, e.completion[: NEIGHBOURS - 1]) for e in examples[:2]]
    row = pack(cut).to(model.device)
    border, targets = row.lengths[0], len(cut[0].completion)
    entered: list[Tensor] = []

    def enter(_: nn.Module, __: object, out: Tensor) -> Tensor:
        entered.append(out.detach().requires_grad_())
        return entered[-1].clone()

    handle = model.get_input_embeddings().register_forward_hook(enter)
    try:
        for own, other in ((slice(targets, None), slice(None, border)), (slice(targets), slice(border, None))):
            part = replace(row, sources=row.sources[own], targets=row.targets[own])
            entered.clear()
            with torch.enable_grad():  # whatever the caller does
                (gradient,) = torch.autograd.grad(loss(part), entered[:1])
            if bool((gradient[0, other].abs() > 0).any()):
                return True
    finally:
        handle.remove()
    return False


def attends_everywhere(model: PreTrainedModel, callers: set[nn.Module]) -> bool:
    """Test whether every layer of a decoder is among those that called the packed attention, or holds one that is."""
    layers = decoder_layers(model)
    if not layers:
        return len(callers) >= int(model.config.get_text_config().num_hidden_layers)
    return all(any(module in callers for module in layer.modules()) for layer in layers)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
