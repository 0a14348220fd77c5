"""Placements applied to a model: trainable weights are marked, LoRA factors made by PEFT, and both summarised.

For mixture-of-experts models of transformers 5 whose experts were modules before (Qwen3-MoE, DeepSeek-V3 and more),
PEFT 0.21 reads names such as up_proj as the fused parameters of the experts, even if a dense layer or a shared expert
is meant. Its targets are therefore compared with those of the placement, and a difference is an error.
"""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lowtax.common.errors import UserError
from lowtax.models import loading
from lowtax.models.adapters import name_base
from lowtax.models.frames import skeleton
from lowtax.models.names import OTHER_MODALITY, in_layer, layer_of, spans
from lowtax.models.placement import Placement, Targets


def adapt(model: PreTrainedModel, placement: Placement, ref: str) -> PreTrainedModel | PeftModel:
    """Mark the trainable weights of a model, all or new LoRA factors in float32, and return it.

    The second factor is zero and the first is random, from torch's global generator. The adapter's configuration names
    `ref` as its base.

    Raises:
        UserError: the placement does not fit the model.
    """
    if placement.kind == "full":
        return model.requires_grad_(True)
    targets = targets_in(model, placement)
    try:
        with warnings.catch_warnings():
            # PEFT warns about patterns that match parameters, although it applies them.
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
            adapted = get_peft_model(model, _lora_config(placement, targets))
    except ValueError as error:
        advice = _on_experts(model)
        reason = f"a {model.config.model_type} model{advice}" if advice else " ".join(str(error).split())
        raise UserError(f"PEFT cannot place this LoRA: {reason}") from error
    tuner = adapted.base_model
    adapted_names = {*tuner.targeted_module_names, *tuner.targeted_parameter_names}
    if adapted_names != {*targets.modules, *targets.parameters}:
        raise UserError(
            f"The placement selects {_some(targets.modules + targets.parameters)}, but PEFT adapts "
            f"{_some(sorted(adapted_names))}: a {model.config.model_type} model{_on_experts(model)}"
        )
    name_base(adapted.peft_config["default"], ref)
    return adapted  # type: ignore[return-value]


def targets_in(model: PreTrainedModel, placement: Placement) -> Targets:
    """Return the modules and parameters that a LoRA placement selects in a model.

    Of a model of several modalities these are in its text decoder, which alone sees text, unless the placement names
    modules such as vision_tower.

    Raises:
        UserError: a name matches nothing, or matches one of two weights that the model ties.
    """
    everywhere = any(OTHER_MODALITY.search(name) for name in (*placement.modules, *placement.parameters))
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and (everywhere or not OTHER_MODALITY.search(name))
        and "Router" not in type(module).__name__  # Llama 4's is a linear module with several outputs
    ]
    modules = [name for name, _ in layers]
    of_modules = {f"{name}.weight" for name in modules}
    parameters = [
        name
        for name, p in model.named_parameters()
        if p.ndim in (2, 3) and name not in of_modules and (everywhere or not OTHER_MODALITY.search(name))
    ]
    targets = placement.targets(modules, parameters, loading.n_layers(model))
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is not None and outputs.weight is inputs.weight:
        tied = [name for name, module in layers if module is inputs or module is outputs]
        if named := [name for name in tied if name in targets.modules]:
            raise UserError(
                f"The model ties {' and '.join(tied)}, and a LoRA on {' and '.join(named)} would move one without the "
                "other: remove both from modules."
            )
    return targets


def first_trained_layer(model: nn.Module) -> int:
    """Return the lowest transformer layer with a trainable parameter; 0 if one is outside the layers or none exists."""
    trained = [layer_of(name) for name, p in model.named_parameters() if p.requires_grad]
    return min((layer or 0 for layer in trained), default=0)


@dataclass(frozen=True)
class TrainableSummary:
    """Summary of the weights that a placement trains in one model; `share` is that of the base's weights."""

    modules: list[str]
    parameters: list[str]
    layers: list[int]
    trainable_parameters: int
    total_parameters: int
    share: float

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def describe(self) -> str:
        """Return the summary as text: a line per kind of module, and the figures."""
        kinds = dict[str, list[str]]()
        for name in self.modules + self.parameters:
            kinds.setdefault(in_layer(name), []).append(name)
        lines = []
        for kind, names in kinds.items():
            layers = [layer for name in names if (layer := layer_of(name)) is not None]
            lines.append(f"{len(names)} x {kind}" + (f" in layers {spans(layers)}" if layers else ""))
        share = f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters ({self.share:.4%})"
        return "\n".join([*lines, share])


def trainable_summary(ref: str, placement: Placement) -> TrainableSummary:
    """Summarise what `placement` trains in the model `ref`, from its configuration alone: no weights are loaded.

    PEFT itself places the factors, on torch's meta device, where tensors have shapes but no values.

    Raises:
        UserError: the model does not exist, or the placement does not fit it.
    """
    model = skeleton(ref)
    with torch.device("meta"):
        total = sum(p.numel() for p in model.parameters())
        if placement.kind == "full":
            targets = Targets([name for name, module in model.named_modules() if [*module.parameters(False)]], [])
        else:
            targets = targets_in(model, placement)
        trained = [p.numel() for p in adapt(model, placement, ref).parameters() if p.requires_grad]
    layers = {layer for name in targets.modules + targets.parameters if (layer := layer_of(name)) is not None}
    share = sum(trained) / total
    return TrainableSummary(targets.modules, targets.parameters, sorted(layers), sum(trained), total, share)


def _lora_config(placement: Placement, targets: Targets) -> LoraConfig:
    """Return PEFT's configuration of the placement.

    Ranks are listed by full name, since PEFT sorts its patterns when it saves them, and takes the first match when it
    loads them.
    """
    ranks = {name: placement.rank_of(name) for name in targets.modules + targets.parameters}
    exceptions = {name: rank for name, rank in ranks.items() if rank != placement.rank}
    return LoraConfig(
        r=placement.rank,
        lora_alpha=_whole(placement.alpha_at(placement.rank)),  # type: ignore[arg-type]
        rank_pattern=exceptions,
        alpha_pattern={
            name: _whole(placement.alpha_at(rank)) for name, rank in exceptions.items() if placement.alpha_per_rank
        },
        use_rslora=placement.rslora,
        lora_dropout=placement.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        task_type="CAUSAL_LM",
    )


def _whole(number: float) -> float:
    """Return a whole number as an int, which some readers of adapters expect."""
    return int(number) if number.is_integer() else number


def _on_experts(model: PreTrainedModel) -> str:
    """Return the end of an error about a mixture of experts whose MLP names PEFT converts; empty for other models."""
    names = [name for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name]
    if not names:
        return ""
    fused = ", ".join(dict.fromkeys(in_layer(name) for name in names))
    return (
        " has fused experts, and PEFT reads MLP names as theirs. What works is attention, and the experts under "
        f"parameters: placement: {{modules: [attention], parameters: [{fused}], rank: 4, dropout: 0}}."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
