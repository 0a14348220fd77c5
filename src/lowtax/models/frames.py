"""Models without weights, on torch's meta device: the names and shapes that a model has, and those of its files.

transformers renames the tensors of some checkpoints when it loads them (`language_model.model.layers` becomes
`model.language_model.layers`). Adapters, placements and methods speak the names of the loaded model, and so do the
matrices that lowtax reads from files.
"""

from collections.abc import Iterable
from functools import cache

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from lowtax.common.errors import UserError
from lowtax.models import loading


def skeleton(ref: str, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """Build a model on torch's meta device, where tensors have shapes but no values.

    Args:
        config: used instead of the configuration that `ref` has.

    Raises:
        UserError: There is no such model, or its configuration cannot be read.
    """
    chosen = config or loading.load_config(ref)
    with loading.readable(ref), torch.device("meta"):
        model: PreTrainedModel = loading.model_class(chosen).from_config(chosen, trust_remote_code=False)
    return model


@cache
def frame(ref: str) -> PreTrainedModel:
    """Return the skeleton of a model; it is shared, and must not be changed."""
    return skeleton(ref)


def loaded_names(ref: str, keys: Iterable[str]) -> dict[str, str]:
    """Return the names that the tensors of a checkpoint have in the loaded model, by their stored names.

    Tensors that transformers converts (fused experts) are left out, since no stored tensor is a loaded one. If the
    model's architecture is unknown, names stay as they are.
    """
    keys = list(keys)
    try:
        model = frame(ref)
    except UserError:
        return {key: key for key in keys}
    state = model.state_dict()
    if all(key in state for key in keys):
        return {key: key for key in keys}
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names = {}
    for key in keys:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, converted = key, None
        if converted is None:
            names[key] = name
    return names
