"""Checkpoints of a training run, and the state a killed run goes on from; each written as a whole or not at all."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowtax import distributed, sharding
from lowtax.errors import UserError
from lowtax.files import atomic_folder, read_json, write_json, write_text
from lowtax.sites import Sites

STATES = (".state", ".state.tmp", ".state.old")  # the last whole one, one being written, the one before until then


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of one arm: a PEFT folder or a whole model, and what it took to get there."""

    name: str
    step: int
    seconds: float
    loss: float
    validation: float | None = None


@dataclass
class Weights:
    """Trained parameters and the float32 copies the optimiser moves; one and the same if already float32, or if the
    framework keeps copies of its own."""

    live: list[nn.Parameter]
    master: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, own_masters: bool) -> "Weights":
        """Those of a model. `own_masters` False leaves copies to the framework."""
        live = [p for p in model.parameters() if p.requires_grad]
        same = [p.dtype == torch.float32 or not own_masters for p in live]
        return cls(live, [p if s else p.detach().float().requires_grad_() for p, s in zip(live, same, strict=True)])

    def hand_over_gradients(self) -> None:
        """Add the gradients of the live weights to those of the masters, in float32."""
        for live, master in zip(self.live, self.master, strict=True):
            if live is not master and live.grad is not None:
                master.grad = live.grad.float() if master.grad is None else master.grad.add_(live.grad)
                live.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the live weights."""
        for live, master in zip(self.live, self.master, strict=True):
            if live is not master:
                live.copy_(master)

    def forget_gradients(self) -> None:
        """As before the first backward pass of a step."""
        for p in (*self.live, *self.master):
            p.grad = None

    # --- a step, as methods see it; `lowtax.gathered` has it otherwise where a framework keeps weights in parts

    def sites(self, sites: Sites) -> Sites:
        """The sites of the live model, as methods shall see them."""
        return sites

    def whole(self, p: Tensor) -> Tensor:
        """A weight of the live model, moved or frozen."""
        return p.detach()

    def derivatives(self, loss: Tensor, live: Sequence[Tensor]) -> list[Tensor]:
        """Of a loss by live weights, apart from the gradients of training."""
        return list(torch.autograd.grad(loss, live))

    def backward(self, acc: Accelerator, loss: Tensor, last: bool) -> None:
        """Of one row. After the last, DeepSpeed makes the optimiser's step too."""
        acc.backward(loss)

    def gather_gradients(self) -> None:
        """Nothing to do: they are here."""

    def clip(self, acc: Accelerator, limit: float) -> float:
        """Clip the gradients; returns their norm before that."""
        return float(acc.clip_grad_norm_(self.master, limit) or 0.0)

    def step(self, optimizer: Any) -> None:
        """The optimiser's step, which the live weights follow."""
        optimizer.step()
        optimizer.zero_grad()
        self.publish()

    def take(self) -> None:
        """Nothing to do: the masters are what a state is read into."""


class Store:
    """The files of one run, in its folder `out`."""

    def __init__(self, out: Path, acc: Accelerator, wrapped: nn.Module, weights: Weights) -> None:
        self.out, self.acc, self.wrapped, self.weights = out, acc, wrapped, weights

    def save(
        self, name: str, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, card: str
    ) -> None:
        """Write checkpoint `name` with its model card."""
        target = self.out / name
        state = self._state(model)
        if not self.acc.is_main_process:
            return
        try:
            with atomic_folder(target, replace=True) as work:
                if isinstance(model, PeftModel):
                    model.save_pretrained(work, state_dict=state, save_embedding_layers=False)
                else:
                    tokenizer.save_pretrained(work)
                    model.save_pretrained(work, state_dict=state)
                write_text(work / "README.md", card)
        except (OSError, RuntimeError, SafetensorError) as error:  # the last two are how libraries report a full disk
            raise _unsaved(target, error) from error

    def _state(self, model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
        """The trained weights, whole and in float32 where there are masters, under the names of the model. Only the
        main process gets them, but where it has a part of them all must take part."""
        best = {id(live): tensor for live, tensor in zip(self.weights.live, self.weights.master, strict=True)}
        named = [
            (name, p) for name, p in model.named_parameters() if p.requires_grad or not isinstance(model, PeftModel)
        ]
        state = {}
        for name, p in named:
            found = sharding.whole(self.acc, best.get(id(p), p))
            if self.acc.is_main_process:
                state[name] = found.to("cpu", copy=True)
        return state

    # --- the state of an unfinished run

    def save_state(self, progress: dict[str, Any], optimizer: Any, states: list[Any]) -> None:
        """Write what a killed run needs to go on: the weights that move, the optimiser, the methods' states."""
        folder, work, old = (self.out / name for name in STATES)
        try:
            if self.acc.is_main_process:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
            self.acc.wait_for_everyone()
            own = {"methods": states, "keeper": sharding.keeper(self.acc)}
            parts = sharding.save_parts(self.acc, self.wrapped, optimizer, work)
            if self.acc.is_main_process:
                if not parts:
                    own |= {"master": [t.detach() for t in self.weights.master], "optimizer": optimizer.state_dict()}
                torch.save(own, work / "own.pt")
                write_json(work / "progress.json", progress)
            self.acc.wait_for_everyone()
            if self.acc.is_main_process:
                shutil.rmtree(old, ignore_errors=True)
                if folder.exists():
                    os.replace(folder, old)
                os.replace(work, folder)
                shutil.rmtree(old, ignore_errors=True)  # that of a full model has 12 bytes a number
            self.acc.wait_for_everyone()
        except (OSError, RuntimeError) as error:
            raise _unsaved(folder, error) from error

    @torch.no_grad()
    def load_state(self, optimizer: Any) -> tuple[dict[str, Any], list[Any]] | None:
        """Go back to the saved state, if there is one; returns its progress and the methods' states."""
        folders = [self.out / name for name in STATES if name != ".state.tmp"]
        folder = next((found for found in folders if (found / "progress.json").exists()), folders[0])
        progress = read_json(folder / "progress.json") if folder.exists() else {"step": 0}
        if len(set(distributed.everyone(self.acc, progress["step"]))) > 1:
            raise UserError(f"The processes do not see the same {folder}: all machines must share that folder.")
        if not progress["step"]:
            return None
        own = torch.load(folder / "own.pt", map_location="cpu", weights_only=True)
        if own["keeper"] != (now := sharding.keeper(self.acc)):
            raise UserError(
                f"{self.out} was left by {own['keeper']}, and {now} cannot go on with it: launch it as before, or "
                f"delete {folder} to begin again."
            )
        if not sharding.load_parts(self.acc, self.wrapped, optimizer, folder):
            for mine, saved in zip(self.weights.master, own["master"], strict=True):
                mine.copy_(saved)
            self.weights.publish()
            optimizer.load_state_dict(own["optimizer"])
        return progress, own["methods"]


def clean(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    (out / "job.json").unlink(missing_ok=True)
    for folder in STATES:
        shutil.rmtree(out / folder, ignore_errors=True)


def _unsaved(target: Path, error: Exception) -> UserError:
    first = str(error).splitlines()[0]
    return UserError(
        f"{target} could not be saved ({first}); free some disk space and repeat the command, which goes on after the "
        "last checkpoint."
    )
