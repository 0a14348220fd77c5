"""The model of a recipe without its weights: a skeleton on torch's meta device, and its shape for the arithmetic.

The configuration is that of a folder or of the hub's cache; of the embedded models and of those in `KNOWN` it is known
here, so that nothing has to be there.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lowtax import adapt, builtin, data, edited, methods, models
from lowtax.checkpoints import Weights
from lowtax.dryrun.offline import Looked, here
from lowtax.errors import UserError
from lowtax.methods import Methods
from lowtax.names import ATTENTION, MLP, in_layer, layer_of
from lowtax.placement import Placement, Targets
from lowtax.probe import Rows, bind
from lowtax.recipe import Arm, EditedArm
from lowtax.shapes import SHAPES, Lora, Shape
from lowtax.sites import sites_of

HEAD = 128  # width of a head in Qwen3, whatever the hidden size
KNOWN = {f"deepseek-ai/DeepSeek-{name}": ("qwen2", shape) for name, shape in SHAPES.items()} | {
    "builtin:smollm2-135m": ("llama", Shape(30, 576, 1536, 9, 3, 49152, tied=True)),
    "builtin:smollm2-135m-reasoner": ("llama", Shape(30, 576, 1536, 9, 3, 49152, tied=True)),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("llama", Shape(32, 4096, 14336, 32, 8, 128256)),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": ("llama", Shape(80, 8192, 28672, 64, 8, 128256)),
    "Qwen/Qwen3-0.6B": ("qwen3", Shape(28, 1024, 3072, 16, 8, 151936, tied=True)),
    "Qwen/Qwen3-1.7B": ("qwen3", Shape(28, 2048, 6144, 16, 8, 151936, tied=True)),
    "Qwen/Qwen3-4B": ("qwen3", Shape(36, 2560, 9728, 32, 8, 151936, tied=True)),
    "Qwen/Qwen3-8B": ("qwen3", Shape(36, 4096, 12288, 32, 8, 151936)),
    "Qwen/Qwen3-14B": ("qwen3", Shape(40, 5120, 17408, 40, 8, 151936)),
    "Qwen/Qwen3-32B": ("qwen3", Shape(64, 5120, 25600, 64, 8, 151936)),
}
"""Kind and dimensions of published models, from their config.json; heads of Qwen3 are `HEAD` wide."""
ANY_MODEL = "owner/name"  # of the hub: a check of it makes and reads nothing
_, ROWS = get_args(Rows)  # how the field of a method is marked that is a `data` entry


@dataclass(frozen=True)
class Trained:
    """What an arm trains: how many numbers, and the LoRA as the memory's arithmetic sees it (None: every weight)."""

    parameters: int
    lora: Lora | None


class Model:
    """The model of a recipe; `shape` and `parameters` are None where its configuration is neither here nor known."""

    def __init__(self, ref: str, looked: Looked) -> None:
        self.ref, self.looked = ref, looked
        self.config = _config(ref)
        self.parameters = None if self.config is None else sum(p.numel() for p in self._bare.parameters())
        self.shape = None if self.parameters is None else _shape(self.config, self.parameters)
        if self.config is None:
            looked.lacks(f"the configuration of {ref}", f"`hf download {ref} config.json`")
        self._made: dict[str, nn.Module] = {}
        looked.model(ref, "the weights of")

    def trained(self, arm: Arm) -> Trained | None:
        """What an arm trains; its placement and methods are tried on the skeleton.

        Raises:
            UserError: A placement or a method does not fit the model.
        """
        chosen = methods.load_all(arm.acts())
        self._refer(chosen)
        if self.parameters is None:
            return None
        placement = arm.where()
        if chosen:
            adapted = self._adapted(placement)
            bind(chosen, adapted, Weights.of(adapted, own_masters=False))
        if placement.kind == "full":
            return Trained(self.parameters, None)
        targets = adapt.targets_in(self._bare, placement)
        return Trained(self._factors(placement, targets), _lora(placement, targets, models.n_layers(self._bare)))

    def edits(self, name: str, edited_arm: EditedArm, of: Arm) -> None:
        """Check the edits of an edited arm.

        Raises:
            UserError: What `edited.check` refuses, or an edit names a module that the source arm has no LoRA on.
        """
        known = [{key: ANY_MODEL if _is_known(ref) else ref for key, ref in edit.items()} for edit in edited_arm.edits]
        edited.check(name, edited_arm.model_copy(update={"edits": known}))
        chosen = methods.load_all(edited_arm.edits)
        self._refer(chosen)
        if self.config is not None:
            for bound in chosen.bound:
                sites_of(self._adapted(of.where()), bound.only)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, if it is at hand; an embedded model is not made for it."""
        what = f"the tokenizer of {self.ref}"
        if self.ref.startswith("builtin:") and not _made(self.ref):
            self.looked.lacks(what, "made by the first run")
            return None
        looked = self.looked if here(self.ref) else Looked()  # else it comes with the weights, which are noted
        return looked.read(lambda: models.load_tokenizer(self.ref), what, f"`hf download {self.ref}`")

    def _refer(self, chosen: Methods) -> None:
        """Look for the models and the rows that methods name."""
        for method in (bound.method for bound in chosen.bound):
            for name, field in type(method).model_fields.items():
                value = getattr(method, name)
                if name in ("aligned", "unaligned") and isinstance(value, str):
                    self.looked.model(value, "the weights of")
                if ROWS in field.metadata:
                    self.looked.rows(data.parse_spec(value), 0)

    @cached_property
    def _bare(self) -> PreTrainedModel:
        """The skeleton, to be looked at."""
        return self._skeleton()

    def _factors(self, placement: Placement, targets: Targets) -> int:
        """Numbers in all factors: rank x (in + out) of a matrix. Where there are experts, PEFT places and counts."""
        if targets.parameters or any(".experts." in name for name, _ in self._bare.named_parameters()):
            return sum(p.numel() for p in self._adapted(placement).parameters() if p.requires_grad)
        weights = {name: self._bare.get_parameter(f"{name}.weight") for name in targets.modules}
        return sum(placement.rank_of(name) * sum(weight.shape) for name, weight in weights.items())

    def _adapted(self, placement: Placement) -> nn.Module:
        """The skeleton with its factors, by PEFT; made once for all arms of that placement."""
        key = placement.model_dump_json()
        if key not in self._made:
            with torch.device("meta"):
                self._made[key] = adapt.adapt(self._skeleton(), placement, self.ref)
        return self._made[key]

    def _skeleton(self) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)  # type: ignore[no-any-return]


def _lora(placement: Placement, targets: Targets, n_layers: int) -> Lora:
    """The placement as the arithmetic of memory sees it: the largest rank, on whole layers."""
    names = targets.modules + targets.parameters
    kinds = {in_layer(name).rpartition(".")[2] for name in names}
    layers = [layer_of(name) for name in names]
    inside = [layer for layer in layers if layer is not None]
    first = min(inside) if len(inside) == len(layers) else 0  # what lies outside the layers may be the embedding
    known = tuple(name for name in MLP + ATTENTION if name in kinds)
    return Lora(max(map(placement.rank_of, names)), known, first, max(inside, default=n_layers - 1))


def _made(ref: str) -> bool:
    """Whether an embedded model is in this machine's cache."""
    name = ref.removeprefix("builtin:")
    return (builtin.cache() / f"{name}-{builtin._version(name)}").exists()


def _is_known(ref: Any) -> bool:
    return isinstance(ref, str) and ref in KNOWN


def _config(ref: str) -> Any:
    """The configuration of a model; None if it is a model of the hub that is neither in the cache nor known."""
    if ref.startswith("builtin:") and ref in KNOWN:
        return _known(ref)
    models.resolve(ref)  # says so where there can be no such model
    try:
        with torch.device("meta"):
            return adapt._skeleton(ref).config
    except UserError:
        if here(ref):
            raise
    return _known(ref) if ref in KNOWN else None


def _known(ref: str) -> Any:
    kind, shape = KNOWN[ref]
    return AutoConfig.for_model(
        kind,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        **({"head_dim": HEAD} if kind == "qwen3" else {}),
    )


def _shape(config: Any, weights: int) -> Shape:
    """The shape of a configuration; it has as many weights as the model, to one in a thousand.

    Keys have their true width. What a `Shape` does not know, such as heads wider than hidden / heads or several
    experts, counts as width of the MLP.
    """
    text = config.get_text_config()
    said = text.to_dict()
    head = said.get("head_dim") or text.hidden_size // text.num_attention_heads
    heads = max(text.hidden_size // head, 1)
    shape = Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        mlp=said.get("intermediate_size") or 4 * text.hidden_size,
        heads=heads,
        kv_heads=said.get("num_key_value_heads") or heads,
        vocabulary=text.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
    more = weights - shape.parameters
    if 1000 * abs(more) < weights:  # biases and norms
        return shape
    return replace(shape, mlp=shape.mlp + round(more / (3 * shape.layers * shape.hidden)))
