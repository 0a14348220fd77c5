"""Check of adapters for vLLM, from their files alone and before a model is loaded. Written for vLLM 0.32 (`lora/`).

vLLM adds s B A to the output of a layer, separately for every row: LoRA of ranks up to 512 on the model's linear layers
and embeddings, with rsLoRA, and with ranks and alphas per module (PEFT's rule for `rank_pattern` and `alpha_pattern`).
It refuses some other adapters only once it is running, and serves some without the part that it does not know. The
check turns both into an error at once.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lowtax.common.errors import UserError
from lowtax.models import tensor_files
from lowtax.models.adapters import PARTS, WEIGHTS, extras, read_config

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allows as max_lora_rank

_MERGE = "merge it with PEFT's merge_and_unload in float32, and give the merged folder as the model"
_OURS = "merge it with `lowtax merge`, and give the merged folder as the model"
_CONVERT = "convert it to a plain LoRA with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
_RETRAIN = "train a plain LoRA"

# Field of adapter_config.json -> advice for an adapter that sets it; the others are merged with PEFT.
REMEDIES = {
    "init_lora_weights": _CONVERT,
    "target_parameters": _OURS,
    "layer_replication": _RETRAIN,
    "alora_invocation_tokens": _RETRAIN,
    "arrow_config": _RETRAIN,
    "monteclora_config": _RETRAIN,
    "use_bdlora": _RETRAIN,
    "use_qalora": _RETRAIN,
}
IGNORED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")  # copies of the base's, to vLLM nothing


@dataclass(frozen=True)
class Served:
    """An adapter that vLLM serves: the folder to load, and the largest rank in its configuration."""

    folder: Path
    rank: int


def check(folder: Path) -> Served:
    """Return the adapter in a folder if vLLM serves it unchanged.

    Raises:
        UserError: The folder has no PEFT adapter in safetensors, or one that is more than s B A.
    """
    config = read_config(folder)
    if not isinstance(config.get("r"), int):
        raise UserError(f"The adapter in {folder} has no rank r in its configuration: save it again with PEFT.")
    for name, setting in extras(config, supported=("fan_in_fan_out",)).items():
        remedy = REMEDIES.get(name, _MERGE)
        raise UserError(f"vLLM does not serve the adapter in {folder} (it has {setting}): {remedy}.")
    if names := _not_factors(folder / WEIGHTS):
        raise UserError(
            f"vLLM does not serve the adapter in {folder} ({len(names)} of its weights are not LoRA factors of a "
            f"layer, for example {names[0]}): {_MERGE}."
        )
    rank = max(config["r"], *(config.get("rank_pattern") or {0: 0}).values())
    if rank > RANKS[-1]:
        raise UserError(f"The adapter in {folder} has rank {rank}, but vLLM serves ranks up to {RANKS[-1]}: {_OURS}.")
    return Served(folder, rank)


def room(rank: int) -> int:
    """Return vLLM's smallest max_lora_rank for `rank`; a larger one costs memory and time in every row."""
    return next(allowed for allowed in RANKS if allowed >= rank)


def _not_factors(weights: Path) -> list[str]:
    """Return the names of weights that vLLM cannot use; only the header of the file is read."""
    names = [re.sub(r"(\.lora_[AB])\.[^.]+\.weight$", r"\1.weight", name) for name in tensor_files.header(weights)]
    return sorted(name for name in names if not name.endswith((*PARTS, *IGNORED)))
