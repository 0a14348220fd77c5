"""Hidden states of a model in training at one position of each row: the end of its prompt, or of its thought."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.data import chat, rendering, special_tokens, steering
from lowtax.data.conversations import Conversation
from lowtax.methods.base import Position
from lowtax.training.encoding import prompts_of
from lowtax.training.objective import unwrap
from lowtax.training.packing import MAX_ROW, group_by_length

if TYPE_CHECKING:
    from lowtax.training.probe import ModelProbe


def cut(probe: "ModelProbe", source: str, position: Position, steer: str | None) -> list[list[int]]:
    """Return the tokens of each row of a source up to a position, which is the last of them.

    Args:
        probe: the probe, which reads the rows of the source.
        source: a `data` entry.
        position: the end of the prompt, or of the thought that follows it.
        steer: an instruction before the request.

    Raises:
        UserError: A row has no thought whose end is the position.
    """
    rows = probe.conversations(source)
    if steer:
        rows = [replace(row, prompt=steering.steered(row.prompt, steer)) for row in rows]
    form = probe.form[1:]
    prompts = prompts_of(probe.tokenizer, rows, *form)
    if position == "prompt":
        return prompts
    if not all(row.thought for row in rows):
        missing = sum(not row.thought for row in rows)
        raise UserError(
            f"position: thought needs rows with thoughts, and {missing} of the {len(rows)} rows of {source} have none: "
            "name other rows, or use position: prompt."
        )
    around = chat.turn(probe.tokenizer, *form)
    thoughts = [_thought(probe.tokenizer, row, ids, around) for row, ids in zip(rows, prompts, strict=True)]
    return [ids + thought for ids, thought in zip(prompts, thoughts, strict=True)]


def _thought(tokenizer: PreTrainedTokenizerBase, row: Conversation, prompt: list[int], around: Any) -> list[int]:
    """Return the tokens of a row's thought with the words that end it."""
    text = tokenizer.decode(prompt, skip_special_tokens=False)
    layout = rendering.named(row.rendering)
    written = layout.completion(str(text), row.thought, "", around.markers)
    return special_tokens.encode_all(tokenizer, [written.rstrip()])[0]


@torch.no_grad()
def states(probe: "ModelProbe", texts: list[list[int]], layer: int) -> Float[Tensor, "rows size"]:
    """Return the states after a layer at the last token of each text, in float32."""
    result: dict[int, Tensor] = {}
    with probe.evaluating():
        for members in group_by_length([len(ids) for ids in texts], MAX_ROW[probe.device.type]):
            part = packed_states(probe, [texts[i] for i in members], layer)
            result |= dict(zip(members, part, strict=True))
    return torch.stack([result[i] for i in range(len(texts))])


def packed_states(probe: "ModelProbe", texts: list[list[int]], layer: int) -> Float[Tensor, "rows size"]:
    """Return the same for a few texts, with gradients. Each text has its own forward pass.

    Raises:
        UserError: The model has no such layer.
    """
    decoder: Any = unwrap(probe.objective.model).get_decoder()
    layers: nn.ModuleList = decoder.layers
    if layer >= len(layers):
        raise UserError(f"The model has the layers 0 to {len(layers) - 1}, and a method names layer {layer}.")
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, out: Any) -> None:
        caught.append((out[0] if isinstance(out, tuple) else out)[0, -1].float())

    handle = layers[layer].register_forward_hook(catch)
    try:
        for ids in texts:
            decoder(input_ids=torch.tensor([ids], device=probe.device), use_cache=False)
    finally:
        handle.remove()
    return torch.stack(caught)
