"""Sizes of published models: weights, LoRA factors, and the activations that a block keeps for the backward pass.

The activations are those that autograd keeps for transformers' Qwen2 block with `sdpa`, to the byte on a CPU (the test
counts them). Torch is not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowtax.models.names import ATTENTION, MLP, in_layer, layer_of


@dataclass(frozen=True)
class Shape:
    """A Qwen2-like decoder (biases on q, k and v), from the numbers of its config.json."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def kv(self) -> int:
        """Width of the keys."""
        return self.hidden // self.heads * self.kv_heads

    def linear(self, module: str) -> tuple[int, int]:
        """Return (in, out) of a linear module of a block."""
        h, m, kv = self.hidden, self.mlp, self.kv
        sizes = {"q_proj": (h, h), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (h, h)}
        return (sizes | {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)})[module]

    @property
    def block(self) -> int:
        """Number of weights of one block: linear modules, biases of q, k and v, two norms."""
        linear = sum(i * o for i, o in map(self.linear, MLP + ATTENTION))
        return linear + self.hidden + 2 * self.kv + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Number of weights of one embedding matrix."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Number of all weights."""
        return self.layers * self.block + (1 if self.tied else 2) * self.embedding + self.hidden

    def activation(self, c: int, lora: tuple[str, ...] | None = None) -> int:
        """Return the bytes per token that one block keeps for the backward pass.

        Full: c (6h + 2kv + 4m) + 8h for the norms' float32 input + 4 heads + 8. LoRA: no inputs of frozen weights, but
        8 bytes an input and 4 a module where a factor is trained (the input in float32, dropout and its mask; rank 1).

        Args:
            c: bytes of a number in the precision of computation.
            lora: modules with LoRA factors; None trains all weights.
        """
        h, m, kv = self.hidden, self.mlp, self.kv
        common = 8 * h + 4 * self.heads + 8
        if lora is None:
            return c * (6 * h + 2 * kv + 4 * m) + common
        return c * (2 * h + 2 * kv + 3 * m) + common + sum(8 * self.linear(name)[0] + 4 for name in lora)


SHAPES = {
    "R1-Distill-Qwen-1.5B": Shape(28, 1536, 8960, 12, 2, 151936),
    "R1-Distill-Qwen-7B": Shape(28, 3584, 18944, 28, 4, 152064),
    "R1-Distill-Qwen-14B": Shape(48, 5120, 13824, 40, 8, 152064),
    "R1-Distill-Qwen-32B": Shape(64, 5120, 27648, 40, 8, 152064),
}
"""Dimensions of Qwen2.5, from the config.json of deepseek-ai's distilled models; their two embeddings are not tied."""


def shape_of(config: Any, parameters: int) -> Shape:
    """Return the shape of a transformers configuration, with as many weights as the model to one in a thousand.

    Keys have their true width. What a `Shape` has no field for, such as heads wider than hidden / heads or several
    experts, is counted as width of the MLP.
    """
    text = config.get_text_config()
    fields = text.to_dict()
    head = fields.get("head_dim") or text.hidden_size // text.num_attention_heads
    heads = max(text.hidden_size // head, 1)
    shape = Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        mlp=fields.get("intermediate_size") or 4 * text.hidden_size,
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        vocabulary=text.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
    more = parameters - shape.parameters
    if 1000 * abs(more) < parameters:  # biases and norms
        return shape
    return replace(shape, mlp=shape.mlp + round(more / (3 * shape.layers * shape.hidden)))


@dataclass(frozen=True)
class Lora:
    """LoRA factors of `rank` on some modules of the layers `first` to `last`, both included."""

    rank: int
    modules: tuple[str, ...]
    first: int
    last: int

    def parameters(self, shape: Shape) -> int:
        """Return the number of weights of the factors."""
        one_layer = sum(self.rank * sum(shape.linear(name)) for name in self.modules)
        return one_layer * (self.last - self.first + 1)


def lora_of(names: Sequence[str], rank: int, n_layers: int) -> Lora:
    """Return the adapter of modules and parameters with these names as the memory arithmetic takes it: on whole layers.

    rank: the largest.
    """
    kinds = {in_layer(name).rpartition(".")[2] for name in names}
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    first = min(layers) if len(layers) == len(names) else 0  # what is outside the layers may be the embedding
    modules = tuple(name for name in MLP + ATTENTION if name in kinds)
    return Lora(rank, modules, first, max(layers, default=n_layers - 1))
