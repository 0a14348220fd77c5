"""LoRA adapters on disk in PEFT's standard layout, read and written as factors without a model.

    read_adapter(folder).factors["model.layers.3.mlp.up_proj"]    # Factors: dW = b @ a, alpha / r inside of b
    write_adapter(folder, adapter)                                # scale 1, ranks module by module

dW has the shape of the weight. PEFT keeps a LoRA on an embedding the other way round (its product is the transpose);
`Adapter.embeddings` names those, so that they are written as they were read.
"""

from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowtax.errors import UserError
from lowtax.linalg import Factors
from lowtax.names import matches

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {  # how the names of factors end -> which factor, and whether of an embedding
    ".lora_A.weight": ("a", False),
    ".lora_B.weight": ("b", False),
    ".lora_embedding_A": ("a", True),
    ".lora_embedding_B": ("b", True),
}
COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight", ".embed_tokens.weight", ".lm_head.weight")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # these take something out of W when they begin


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA: what its configuration says, the scale of each module in it, and dW as factors by module name."""

    config: LoraConfig
    scales: dict[str, float]
    factors: dict[str, Factors]
    embeddings: frozenset[str] = field(default_factory=frozenset)

    @property
    def base(self) -> str:
        """The model reference that the adapter was trained on."""
        return str(self.config.base_model_name_or_path)


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a PEFT folder, its factors in float32 with the scale in b.

    Raises:
        UserError: No PEFT folder, or an adapter that is more than W + s B A on linear layers and embeddings.
    """
    config = plain_config(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for name, tensor in _tensors(folder / WEIGHTS).items():
        end = next((end for end in PARTS if name.endswith(end)), None)
        if end is None or tensor.ndim != 2:
            raise UserError(f"The adapter in {folder} has {name} {tuple(tensor.shape)}, which is no LoRA factor.")
        which, embedding = PARTS[end]
        module = name.removeprefix(PREFIX).removesuffix(end)
        parts.setdefault(module, {})[which] = tensor.float()
        embeddings |= {module} if embedding else set()
    if half := sorted(module for module, found in parts.items() if len(found) < 2):
        raise UserError(f"The adapter in {folder} has only one factor of {half[0]}: save it again.")
    if not parts:
        raise UserError(f"The adapter in {folder} has no LoRA factors.")
    scales = {module: _scale(config, module, found["a"].shape[0]) for module, found in parts.items()}
    factors = {
        module: Factors(found["a"].T * scales[module], found["b"].T)
        if module in embeddings
        else Factors(found["b"] * scales[module], found["a"])
        for module, found in parts.items()
    }
    return Adapter(config, scales, factors, frozenset(embeddings))


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write the factors as an adapter that PEFT loads: alpha = r everywhere, so that the scale is 1.

    What the configuration says of ranks, scales and modules is replaced by what the factors are; the rest is kept. An
    update of rank 0 is written as zeros of rank 1, for PEFT knows no rank 0. The files appear one after the other: for
    a folder as a whole or not at all, write beside its place and rename.
    """
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.factors.items():
        x = (
            update
            if update.rank
            else Factors(update.b.new_zeros(update.shape[0], 1), update.a.new_zeros(1, update.shape[1]))
        )
        if name in adapter.embeddings:
            named = {"lora_embedding_A": x.b.T, "lora_embedding_B": x.a.T}
        else:
            named = {"lora_A.weight": x.a, "lora_B.weight": x.b}
        tensors |= {f"{PREFIX}{name}.{end}": t.detach().float().cpu().contiguous() for end, t in named.items()}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS} could not be written ({error}); free some disk space and repeat."
        ) from error
    _config(adapter).save_pretrained(str(folder))


def lora_config(folder: Path) -> LoraConfig:
    """The configuration in a PEFT folder.

    Raises:
        UserError: It is no PEFT folder, or no LoRA.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a PEFT adapter folder: it has no {name}.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read by PEFT: {error}.") from error
    if not isinstance(config, LoraConfig):
        raise UserError(f"{folder} holds a {config.peft_type} adapter, and this works on LoRA only.")
    return config


def more_than_lora(config: LoraConfig) -> list[str]:
    """What makes an adapter more than W + s B A."""
    found = {
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "layer_replication": config.layer_replication,
        "use_dora": config.use_dora,
        "lora_bias": config.lora_bias,
        f"bias: {config.bias}": config.bias != "none",
        f"init_lora_weights: {config.init_lora_weights}": str(config.init_lora_weights).startswith(CHANGES_BASE),
    }
    return [what for what, there in found.items() if there]


def plain_config(folder: Path) -> LoraConfig:
    """The configuration in a PEFT folder, if the adapter is W + s B A on whole linear layers and embeddings.

    Raises:
        UserError: It is no PEFT folder, no LoRA, or more than that.
    """
    config = lora_config(folder)
    elsewhere = {"target_parameters": config.target_parameters, "fan_in_fan_out": config.fan_in_fan_out}
    if found := [*more_than_lora(config), *(what for what, there in elsewhere.items() if there)]:
        raise UserError(
            f"The adapter in {folder} is more than W + s B A on linear layers (it has {', '.join(found)}): its update "
            "is not known from its factors."
        )
    return config


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, without the copies of the base's embeddings that PEFT may add."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if not name.endswith(COPIES)}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file ({error}): copy or save the adapter again.") from error


def _scale(config: LoraConfig, module: str, rank: int) -> float:
    """alpha / r of a module, alpha / sqrt(r) for rsLoRA; of several patterns that match PEFT takes the first."""
    own = (alpha for pattern, alpha in (config.alpha_pattern or {}).items() if matches(pattern, module))
    return float(next(own, config.lora_alpha)) / (rank**0.5 if config.use_rslora else rank)


def _config(adapter: Adapter) -> LoraConfig:
    """PEFT's words for the factors as they are: ranks by full name where they differ from the commonest."""
    ranks = {name: max(1, update.rank) for name, update in adapter.factors.items()}
    common = max(ranks.values(), key=lambda rank: (list(ranks.values()).count(rank), rank))
    own = {name: rank for name, rank in ranks.items() if rank != common}
    kept = adapter.config
    return LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=own,
        alpha_pattern=dict(own),
        target_modules=sorted(ranks),
        lora_dropout=kept.lora_dropout,
        base_model_name_or_path=kept.base_model_name_or_path,
        revision=kept.revision,
        task_type=kept.task_type,
        inference_mode=True,
    )
