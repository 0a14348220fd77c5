"""LoRA adapters on disk in PEFT's standard layout: checked, identified, and read or written as factors.

    check_adapter(folder, "owner/model")                          # a plain LoRA of that base, or a UserError
    read_adapter(folder).factors["model.layers.3.mlp.up_proj"]    # Factors: dW = b @ a, with alpha / r in b
    write_adapter(folder, adapter)                                # scale 1, one rank for each module

dW has the shape of the weight. PEFT stores a LoRA on an embedding transposed; `Adapter.embeddings` names those modules,
so that they are written as they were read. The checks need neither torch nor PEFT.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.models.names import matches

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

    from lowtax.common.linalg import Factors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {  # suffix of a factor's name -> which factor, and True for an embedding
    ".lora_A.weight": ("a", False),
    ".lora_B.weight": ("b", False),
    ".lora_embedding_A": ("a", True),
    ".lora_embedding_B": ("b", True),
}
COPIES = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight", ".embed_tokens.weight", ".lm_head.weight")

EXTRAS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""Fields of adapter_config.json that, when set, make an adapter more than W + s B A on linear layers and embeddings."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base as it is; every other named one subtracts something from W."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: its configuration, the scale of each module in it, and dW as factors by module name."""

    config: "LoraConfig"
    scales: dict[str, float]
    factors: dict[str, "Factors"]
    embeddings: frozenset[str] = field(default_factory=frozenset)

    @property
    def base(self) -> str:
        """The model reference that the adapter was trained on."""
        return str(self.config.base_model_name_or_path)


def is_adapter(ref: str | Path) -> bool:
    """Return True if a path is a folder with a PEFT configuration."""
    return (Path(ref).expanduser() / CONFIG).is_file()


def fingerprint(folder: Path, *, weights_only: bool = False, prefix: bytes = b"") -> str:
    """Return the SHA-256 of an adapter's configuration and weights, 64 hex digits.

    Args:
        folder: a PEFT folder.
        weights_only: leave the configuration out, as the ids of stored replies do.
        prefix: bytes to hash before the files.

    Raises:
        UserError: the folder has no such files.
    """
    digest = hashlib.sha256(prefix)
    for name in (WEIGHTS,) if weights_only else (CONFIG, WEIGHTS):
        _require(folder, name)
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of adapter_config.json in the PEFT folder of a LoRA adapter.

    Raises:
        UserError: the folder is not a PEFT folder with safetensors weights, or its adapter is not LoRA.
    """
    for name in (CONFIG, WEIGHTS):
        _require(folder, name)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type", "unknown") if isinstance(config, dict) else "unknown"
        raise UserError(f"{folder} holds an adapter of type {kind}, and lowtax handles LoRA only.")
    return config


def extras(config: Mapping[str, Any], supported: Collection[str] = ()) -> dict[str, str]:
    """Return what makes an adapter more than W + s B A on linear layers and embeddings: field -> field or setting.

    Args:
        config: the content of adapter_config.json.
        supported: fields that the caller handles too; they are left out.
    """
    settings = {name: name for name in EXTRAS if config.get(name)}
    if config.get("bias", "none") != "none":
        settings["bias"] = f"bias: {config['bias']}"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        settings["init_lora_weights"] = f"init_lora_weights: {start}"
    return {name: setting for name, setting in settings.items() if name not in supported}


def check_adapter(
    folder: Path,
    base: str | None = None,
    *,
    supported: Collection[str] = (),
    remedy: str = "its update does not follow from its factors; train a plain LoRA",
) -> dict[str, Any]:
    """Check that a folder holds a plain LoRA adapter, W + s B A, and return the content of its adapter_config.json.

    Args:
        folder: a PEFT folder.
        base: the model reference that the adapter must have been trained on; None is any.
        supported: fields of `EXTRAS` that the caller handles too.
        remedy: end of the error message, what to do with an adapter that is more.

    Raises:
        UserError: the folder is not a PEFT folder of a LoRA, or the adapter is more than that, or of another base.
    """
    config = read_config(folder)
    if base is not None:
        check_base(folder, base)
    if settings := extras(config, supported):
        raise UserError(
            f"The adapter in {folder} is more than W + s B A (it has {', '.join(settings.values())}): {remedy}."
        )
    return config


def check_base(folder: Path, ref: str) -> None:
    """Check that an adapter was trained on the model `ref`.

    Raises:
        UserError: the folder is not a PEFT folder of a LoRA, or its base is another model.
    """
    from lowtax.models import loading

    base = read_config(folder).get("base_model_name_or_path")
    if base not in (ref, loading.resolve(ref)):
        raise UserError(
            f"The adapter in {folder} was trained on {base!r}, not on {ref!r}: an adapter fits only its own base."
        )


def plain_config(folder: Path, *, supported: Collection[str] = (), remedy: str = "train a plain LoRA") -> "LoraConfig":
    """Return PEFT's configuration of a plain LoRA adapter; see `check_adapter`.

    Raises:
        UserError: it is not a plain LoRA adapter, or PEFT cannot read its configuration.
    """
    from peft import PeftConfig

    check_adapter(folder, supported=supported, remedy=remedy)
    try:
        config: LoraConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read by PEFT: {error}.") from error
    return config


def read_adapter(folder: Path) -> Adapter:
    """Read the adapter of a PEFT folder; its factors are in float32 with the scale in b.

    Raises:
        UserError: it is not a PEFT folder, or the adapter is more than W + s B A on linear layers and embeddings.
    """
    from lowtax.common.linalg import Factors

    config = plain_config(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for name, tensor in _tensors(folder / WEIGHTS).items():
        suffix = next((suffix for suffix in PARTS if name.endswith(suffix)), None)
        if suffix is None or tensor.ndim != 2:
            raise UserError(f"The adapter in {folder} has {name} {tuple(tensor.shape)}, which is not a LoRA factor.")
        which, embedding = PARTS[suffix]
        module = name.removeprefix(PREFIX).removesuffix(suffix)
        parts.setdefault(module, {})[which] = tensor.float()
        embeddings |= {module} if embedding else set()
    if half := sorted(module for module, pair in parts.items() if len(pair) < 2):
        raise UserError(f"The adapter in {folder} has only one factor of {half[0]}: save it again.")
    if not parts:
        raise UserError(f"The adapter in {folder} has no LoRA factors: save it again.")
    scales = {module: _scale(config, module, pair["a"].shape[0]) for module, pair in parts.items()}
    factors = {
        module: Factors(pair["a"].T * scales[module], pair["b"].T)
        if module in embeddings
        else Factors(pair["b"] * scales[module], pair["a"])
        for module, pair in parts.items()
    }
    return Adapter(config, scales, factors, frozenset(embeddings))


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write the factors as an adapter that PEFT loads: alpha = r everywhere, so that the scale is 1.

    Ranks, scales and modules of the configuration follow from the factors; its other fields stay. An update of rank 0
    is written as zeros of rank 1, since PEFT has no rank 0. The files appear one after the other: use `atomic_folder`
    to write the folder as a whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from lowtax.common.linalg import Factors

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


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise UserError(f"{folder} is not a PEFT adapter folder: it has no {name}.")


def _tensors(file: Path) -> "dict[str, Tensor]":
    """Read the tensors of an adapter, without the copies of the base's embeddings that PEFT may add."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if not name.endswith(COPIES)}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file ({error}): copy or save the adapter again.") from error


def _scale(config: "LoraConfig", module: str, rank: int) -> float:
    """Return alpha / r of a module, alpha / sqrt(r) for rsLoRA; of several matching patterns PEFT takes the first."""
    alphas = (alpha for pattern, alpha in (config.alpha_pattern or {}).items() if matches(pattern, module))
    return float(next(alphas, config.lora_alpha)) / (rank**0.5 if config.use_rslora else rank)


def _config(adapter: Adapter) -> "LoraConfig":
    """Return PEFT's configuration of the factors: the commonest rank, and the other ranks by full module name."""
    from peft import LoraConfig

    ranks = {name: max(1, update.rank) for name, update in adapter.factors.items()}
    common = max(ranks.values(), key=lambda rank: (list(ranks.values()).count(rank), rank))
    exceptions = {name: rank for name, rank in ranks.items() if rank != common}
    config = adapter.config
    return LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=exceptions,
        alpha_pattern=dict(exceptions),
        target_modules=sorted(ranks),
        lora_dropout=config.lora_dropout,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        task_type=config.task_type,
        inference_mode=True,
    )
