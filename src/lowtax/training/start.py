"""The weights of another arm, from which a run starts.

A run that starts from an adapter continues it in one of three ways, so that its first step sees the weights of that
adapter:

    the same modules and ranks    the adapter's own factors are trained on (where alpha / r differs by a power of two,
                                  as after an edit, they are multiplied by it)
    another LoRA                  W + dW: the adapter is frozen beside the new factors, whose second one is zero
    full fine-tuning              dW is added to W in float32, in the copies that the optimiser moves

What is saved of the second is one adapter on the same base: the frozen factors and the new ones in one, of summed rank.
A run that starts from whole weights has them as its base.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowtax.common.cards import ArmCard, read_card
from lowtax.common.errors import UserError
from lowtax.common.linalg import Factors
from lowtax.common.log import say
from lowtax.common.names import below
from lowtax.methods.sites import ADAPTER, FROZEN
from lowtax.models import tensor_files
from lowtax.models.adapter_fit import fitted, unfit
from lowtax.models.adapters import WEIGHTS, Adapter, check_base, read_adapter, write_adapter
from lowtax.training import sharding
from lowtax.training.parameters import TrainedParameters


@dataclass(frozen=True)
class Start:
    """A checkpoint of another arm, of the same seed.

    arm: its name. checkpoint: its folder's name; None is the last.
    folder: of the arm's run. whole: its checkpoints are whole models.
    made_by: the hash of everything that decides its weights.
    before: the checkpoint of whole weights that its adapter is on; None is the model.
    """

    arm: str
    checkpoint: str | None
    folder: Path
    whole: bool
    made_by: str
    before: "Start | None" = None

    def describe(self) -> dict[str, str]:
        """Return what decides the weights, as a part of a job."""
        return {"arm": self.arm, "checkpoint": self.checkpoint or "last", "made_by": self.made_by}

    def path(self) -> Path:
        """Return the checkpoint's folder.

        Raises:
            UserError: The arm is not finished, or has no such checkpoint.
        """
        card = self.folder / "card.json"
        if not card.exists():
            raise UserError(
                f"Arm {self.arm!r} is not finished in {self.folder}, and another arm starts from it: `lowtax train` or "
                "`lowtax run` makes it first."
            )
        names = [row["name"] for row in read_card(card, ArmCard)["checkpoints"]]
        name = self.checkpoint or names[-1]
        if name not in names:
            raise UserError(f"Arm {self.arm!r} has no {name} to start from; it has {', '.join(names)}.")
        return below(self.folder, name)

    def base(self, model: str) -> str:
        """Return the reference of the weights that the run loads; `model` is that of the study.

        Raises:
            UserError: The arm is not finished.
        """
        if self.whole:
            return str(self.path())
        return self.before.base(model) if self.before else model

    def folders(self) -> list[Path]:
        """Return the folders of runs that it is made of: its own, and that of the whole weights below."""
        return [self.folder, *(self.before.folders() if self.before else [])]

    def moved(self, before: Path, after: Path) -> "Start":
        """Return the same start in a copy of the study's folder."""
        below_it = self.before and self.before.moved(before, after)
        return replace(self, folder=after / self.folder.relative_to(before), before=below_it)

    def adapter(self) -> Path | None:
        """Return the folder of the adapter that the run continues; None if it starts from whole weights."""
        return None if self.whole else self.path()


def require_supported(acc: Accelerator, start: Start) -> None:
    """Refuse to start from an adapter under ZeRO and FSDP.

    Raises:
        UserError: The framework keeps weights in parts.
    """
    if not start.whole and sharding.keeps_masters(acc):
        raise UserError(
            f"A run that starts from the adapter {start.arm!r} needs whole weights, which ZeRO and FSDP split: train "
            "it in one process or with plain data parallelism."
        )


def begin(model: PreTrainedModel | PeftModel, folder: Path, ref: str) -> Adapter | None:
    """Put an adapter into a model that is about to be trained by LoRA: into its factors, or frozen beside them.

    Args:
        model: with new factors; one without factors stays as it is.
        folder: of the adapter. ref: the base of both.

    Returns:
        The adapter if it is frozen beside the new factors.

    Raises:
        UserError: The adapter is of another base, or more than a plain LoRA.
    """
    check_base(folder, ref)
    adapter = read_adapter(folder, ref)
    if not isinstance(model, PeftModel):
        return None
    layers = {
        name.rpartition("base_model.model.")[2]: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if _is_alike(layers, adapter):
        _continue(layers, adapter, folder)
        return None
    _freeze_beside(model, folder, ref)
    return adapter


def _is_alike(layers: Mapping[str, LoraLayer], adapter: Adapter) -> bool:
    """Test whether new factors can take the values of an adapter without rounding."""
    ranks = {name: x.rank for name, x in adapter.factors.items()}
    if ranks != {name: layer.r[ADAPTER] for name, layer in layers.items()}:
        return False
    return all(math.frexp(adapter.scales[name] / layer.scaling[ADAPTER])[0] == 0.5 for name, layer in layers.items())


@torch.no_grad()
def _continue(layers: Mapping[str, LoraLayer], adapter: Adapter, folder: Path) -> None:
    """Copy the factors of an adapter into those of a model."""
    stored = _stored(folder)
    for name, layer in layers.items():
        a, b = _factors(layer)
        ours, theirs = float(layer.scaling[ADAPTER]), adapter.scales[name]
        own = stored.get(name)
        if own is None:  # names of another tool, or an embedding
            x = adapter.factors[name]
            own = (x.b.T / theirs, x.a.T) if name in adapter.embeddings else (x.a, x.b / theirs)
        a.copy_(own[0])
        b.copy_(own[1] if ours == theirs else own[1] * (theirs / ours))


def _stored(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of each linear layer as they are stored, by module."""
    tensors = dict(tensor_files.tensors(folder / WEIGHTS))
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix("base_model.model."): (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])
        for name in names
    }


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return the trained factors of a layer."""
    if ADAPTER in layer.lora_A:
        return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]


def _freeze_beside(model: PeftModel, folder: Path, ref: str) -> None:
    """Add an adapter to a model, frozen and without dropout; every layer adds it before the new factors."""
    with unfit(folder, ref):
        model.load_adapter(str(fitted(folder, ref).folder), FROZEN, torch_device=str(model.device))
    model.base_model.set_adapter([FROZEN, ADAPTER])
    for module in model.modules():
        if isinstance(module, LoraLayer) and FROZEN in module.r:
            module.lora_dropout[FROZEN] = nn.Identity()
    for name, p in model.named_parameters():
        if f".{FROZEN}" in name:
            p.requires_grad_(False)


@torch.no_grad()
def merge(trained: TrainedParameters, model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter's update to the weights that full fine-tuning moves, in the optimiser's float32 copies.

    Raises:
        UserError: The adapter changes a weight that is not trained by itself.
    """
    masters = {id(live): master for live, master in zip(trained.live, trained.master, strict=True)}
    for name, update in adapter.factors.items():
        master = masters[id(model.get_submodule(name).weight)]
        master += update.dense().to(master)
    trained.publish()
    rounded = not all(live is master for live, master in zip(trained.live, trained.master, strict=True))
    say("  the adapter is merged in float32" + (", and rounded once for the forward pass" if rounded else ""))


def save(work: Path, model: PeftModel, state: dict[str, Any], beneath: Adapter) -> None:
    """Write a model's new factors and those frozen beside them as one adapter on the same base."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False, selected_adapters=[ADAPTER])
        own = read_adapter(Path(folder))
    write_adapter(work, joined(beneath, own))


def joined(first: Adapter, second: Adapter) -> Adapter:
    """Return one adapter that is the sum of two: at each module the factors of both, with their scales in b."""
    factors: dict[str, Factors] = {**first.factors, **second.factors}
    for name in first.factors.keys() & second.factors.keys():
        factors[name] = first.factors[name].plus(second.factors[name])
    return replace(
        second,
        factors={name: factors[name] for name in sorted(factors)},
        embeddings=first.embeddings | second.embeddings,
        scales=dict.fromkeys(factors, 1.0),
    )
