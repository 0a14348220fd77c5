"""LoRA adapters on disk in PEFT's standard layout: checked, identified, and read or written as factors.

    check_adapter(folder)                                         # a plain LoRA, or a UserError
    check_base(folder, "owner/model")                             # of these weights
    read_adapter(folder).factors["model.layers.3.mlp.up_proj"]    # Factors: dW = b @ a, with alpha / r in b
    write_adapter(folder, adapter)                                # scale 1, one rank for each module

dW has the shape of the weight. PEFT stores a LoRA on an embedding transposed; `Adapter.embeddings` names those modules,
so that they are written as they were read. The checks need neither torch nor PEFT.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lowtax.common.borders import border, exists, expanded
from lowtax.common.errors import UserError
from lowtax.common.files import read_json, read_mapping, write_json
from lowtax.models import tensor_files
from lowtax.models.adapter_fields import require_fields
from lowtax.models.names import matches

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

    from lowtax.common.linalg import Factors

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "lowtax_base.json"
COPY = "copy or save the adapter again"
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
        return base_of(self.config.to_dict())


def is_adapter(ref: str | Path) -> bool:
    """Return True if a path is a folder with a PEFT configuration."""
    return (expanded(ref) / CONFIG).is_file()


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


def base_of(config: Mapping[str, Any]) -> str:
    """Return the model reference that an adapter's configuration names, with its revision if it has one."""
    name, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    return f"{name}@{revision}" if revision and not exists(Path(name)) and "@" not in name else name


def require_base(folder: Path) -> str:
    """Return the model reference that an adapter names as its base.

    Raises:
        UserError: it names none, or the folder is not a PEFT folder of a LoRA.
    """
    if ref := base_of(read_config(folder)):
        return ref
    raise UserError(f"The adapter in {folder} names no base: give the model it was trained on with --base.")


def name_base(config: "LoraConfig", ref: str) -> None:
    """Set the base that a configuration names; a revision goes into its own field, where PEFT reads it."""
    name, at, revision = ref.partition("@")
    of_hub = bool(at) and not Path(ref).exists()
    config.base_model_name_or_path = name if of_hub else ref
    config.revision = revision if of_hub else None


def write_base(folder: Path, ref: str) -> None:
    """Write the fingerprint of an adapter's base into its folder, so that the base is known when it has moved."""
    from lowtax.models.fingerprint import fingerprint

    if (digest := fingerprint(ref)) is not None:
        write_json(folder / BASE, {"model": ref, "sha256": digest})


def is_zero(folder: Path) -> bool:
    """Return True if the second factors of an adapter are all zero, so that it is the base."""
    file = folder / WEIGHTS
    seconds = [name for name in tensor_files.header(file) if "lora_B" in name or "lora_embedding_B" in name]
    return not any(tensor.any() for _, tensor in tensor_files.tensors(file, seconds))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of adapter_config.json in the PEFT folder of a LoRA adapter.

    Raises:
        UserError: the folder is not a PEFT folder with safetensors weights, its adapter is not LoRA, or a field of its
            configuration has a value that cannot be.
    """
    for name in (CONFIG, WEIGHTS):
        _require(folder, name)
    config = read_json(folder / CONFIG, COPY)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type", "unknown") if isinstance(config, dict) else "unknown"
        raise UserError(f"{folder} holds an adapter of type {shorten(str(kind), 40)}, and lowtax handles LoRA only.")
    require_fields(folder / CONFIG, config)
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
    *,
    supported: Collection[str] = (),
    remedy: str = "its update does not follow from its factors; train a plain LoRA",
) -> dict[str, Any]:
    """Check that a folder holds a plain LoRA adapter, W + s B A, and return the content of its adapter_config.json.

    Args:
        folder: a PEFT folder.
        supported: fields of `EXTRAS` that the caller handles too.
        remedy: end of the error message, what to do with an adapter that is more.

    Raises:
        UserError: the folder is not a PEFT folder of a LoRA, or the adapter is more than that.
    """
    config = read_config(folder)
    if settings := extras(config, supported):
        raise UserError(
            f"The adapter in {folder} is more than W + s B A (it has {', '.join(settings.values())}): {remedy}."
        )
    return config


def check_base(folder: Path, ref: str, word: str = "add --base-is-the-same") -> None:
    """Check that an adapter was trained on the weights of the model `ref`, wherever they are.

    Adapters of lowtax have the fingerprint of their base; for others the model that they name is compared, if it is
    on this machine. An adapter that names no base is of any that it fits. `word` is what a user does who knows better.

    Raises:
        UserError: the folder is not a PEFT folder of a LoRA, or its base is another model, or cannot be compared.
    """
    from lowtax.models.fingerprint import fingerprint

    _require(folder, CONFIG)
    named = base_of(read_mapping(folder / CONFIG, advice=COPY))
    recorded = read_json(folder / BASE, COPY) if (folder / BASE).is_file() else {}
    known = recorded.get("sha256") if isinstance(recorded, dict) else None
    if not known and (not named or _same_place(named, ref)):
        return
    now = fingerprint(ref)
    known = known or _fingerprint_of(named)
    if now is not None and known == now:
        return
    if now is None and _same_place(named, ref):
        return  # a hub model that is not here yet: its name decides
    if known and now:
        raise UserError(
            f"The adapter in {folder} was trained on {named!r}, whose weights differ from those of {ref!r}: give its "
            f"own base as the model. If only a setting of the model has changed, {word}."
        )
    raise UserError(
        f"The adapter in {folder} was trained on {named!r}, which is not on this machine to be compared with {ref!r}: "
        f"give that model, or {word} if both have the same weights."
    )


def _same_place(named: str, ref: str) -> bool:
    """Return True if two references name one model: in words, as a path, or as a hub model's folder in its cache."""
    if named == ref:
        return True
    one, two = expanded(named), expanded(ref)
    if exists(one) and exists(two):
        return one.resolve() == two.resolve()
    cached = {f"models--{name.partition('@')[0].replace('/', '--')}" for name in (named, ref)}
    return any(part in cached for path in (one, two) if path.is_absolute() for part in path.parts)


def _fingerprint_of(named: str) -> str | None:
    """Return the fingerprint of the model that an adapter names, or None if it is not on this machine."""
    from lowtax.models.fingerprint import fingerprint

    try:
        return fingerprint(named)
    except UserError:
        return None


def plain_config(folder: Path, *, supported: Collection[str] = (), remedy: str = "train a plain LoRA") -> "LoraConfig":
    """Return PEFT's configuration of a plain LoRA adapter; see `check_adapter`.

    Raises:
        UserError: it is not a plain LoRA adapter, or PEFT cannot read its configuration.
    """
    from peft import PeftConfig

    check_adapter(folder, supported=supported, remedy=remedy)
    with border(f"{folder / CONFIG} cannot be read by PEFT", COPY):
        config: LoraConfig = PeftConfig.from_pretrained(str(folder))
    return config


def read_adapter(folder: Path, ref: str | None = None) -> Adapter:
    """Read the adapter of a PEFT folder; its factors are in float32 with the scale in b.

    Args:
        folder: a PEFT folder.
        ref: the model that it must fit, weight by weight (`lowtax.models.adapter_fit`); None is any.

    Raises:
        UserError: it is not a PEFT folder, the adapter is more than W + s B A on linear layers and embeddings, or it
            does not fit the model.
    """
    from lowtax.common.linalg import Factors

    if ref is not None:
        from lowtax.models.adapter_fit import fitted

        folder = fitted(folder, ref).folder
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
    if ref is None:
        from lowtax.models.adapter_fit import require_quick_patterns

        require_quick_patterns(folder, config, list(parts))
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
    names = [name for name in tensor_files.header(file) if not name.endswith(COPIES)]
    return dict(tensor_files.tensors(file, names))


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
