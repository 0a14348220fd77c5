"""The assumptions of packed rows, checked on a model's configuration and modules before anything is computed.

A packed row is right if tokens meet in attention alone, and if that attention is softmax over all earlier tokens of the
example: no sinks, soft cap or bias, no window shorter than the longest example, and no convolution, recurrence or
linear attention anywhere. `exactness` then compares numbers, which also finds what nobody has a name for.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# Values of `layer_types` that are softmax attention, or layers in which tokens do not meet.
PLAIN_LAYERS = frozenset(
    "full_attention attention sliding_attention chunked_attention global local sparse dense moe mlp".split()
)
WINDOWS = frozenset(
    "sliding_window sliding_window_size attention_window attention_window_size attention_chunk_size window_size "
    "local_attention local_window_size".split()
)
MIXERS = re.compile(
    "Mamba|SSM|DeltaNet|DeltaAttention|Lightning|LinearAttn|LinearAttention|Rglru|RGLRU|Rwkv|RWKV|LSTM|Recurrent|"
    "Retention|ShortConv|Indexer|Hyena"
)
SINKS = re.compile(r"(^|_)(sinks?|s_aux)($|_)")
STATE = frozenset("A_log dt_bias time_decay time_mix_key rg_lru".split())
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def departures(model: PreTrainedModel, longest: int) -> list[str]:
    """Return what keeps a model from packed rows, as noun phrases; empty if nothing is known.

    Args:
        model: the transformers model, without PEFT's wrapper.
        longest: tokens of the longest example.
    """
    config: dict[str, Any] = model.config.get_text_config().to_dict()
    parts = decoder_layers(model) or [model.get_decoder()]
    reasons = [*_of_configuration(config, longest), *(reason for part in parts for reason in _of_modules(part))]
    if model._is_stateful:
        reasons.append("a recurrent state")
    if not model._can_set_attn_implementation():
        reasons.append("its own attention")
    if "position_ids" not in accepted(model.get_decoder()):
        reasons.append("no positions that restart with each example")
    return list(dict.fromkeys(reasons))


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of the decoder; an empty list if it has none under the usual name."""
    layers = getattr(model.get_decoder(), "layers", None)  # GPT-2 and others call them h or blocks
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def accepted(module: nn.Module) -> frozenset[str]:
    """Return the names of the arguments that a module's forward pass declares."""
    return frozenset(inspect.signature(module.forward).parameters)


def is_random(model: PreTrainedModel) -> bool:
    """Test whether the frozen part of a model draws random numbers in training: dropout of any kind."""
    config = model.config.get_text_config().to_dict()
    rates = {name: value for name, value in config.items() if "drop" in name and isinstance(value, (int, float))}
    return any(rate > 0 for name, rate in rates.items() if not name.startswith(("classifier", "summary")))


def _of_configuration(config: dict[str, Any], longest: int) -> Iterator[str]:
    kinds = [kind for name in ("layer_types", "layers_block_type", "block_types") for kind in config.get(name) or ()]
    if other := sorted({str(kind) for kind in kinds} - PLAIN_LAYERS):
        yield f"layers of the kind {' and '.join(other)}"
    for name, value in config.items():
        if name in WINDOWS and isinstance(value, int) and 0 < value < longest:
            yield f"an attention window of {value} tokens, and examples of up to {longest}"
        if value and re.search(r"attn|attention|qk", name) and re.search(r"soft_?cap|logit_cap", name):
            yield "a soft cap on its attention scores"
    if config.get("alibi") or "relative" in str(config.get("position_embedding_type")):
        yield "a bias on its attention scores"
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        yield "attention to later tokens"
    if config.get("is_encoder_decoder") or config.get("add_cross_attention"):
        yield "an encoder"


def _of_modules(part: nn.Module) -> Iterator[str]:
    mixers = [type(m).__name__ for m in part.modules() if isinstance(m, nn.RNNBase) or MIXERS.search(type(m).__name__)]
    if mixers:
        yield f"layers that are no softmax attention ({min(mixers, key=len)})"
    for module in part.modules():
        if isinstance(module, CONVOLUTIONS):
            yield "a convolution over tokens"
        own = dict(module.named_parameters(recurse=False))
        if any(SINKS.search(name) for name in own):
            yield "attention sinks"
        if STATE & own.keys():
            yield "a recurrent state"


def reads_plainly(head: Any) -> bool:
    """Test whether an output layer is a matrix and a bias, and nothing more."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    return not (head._forward_hooks or head._forward_pre_hooks) and isinstance(head.weight, torch.Tensor)
