"""Checkpoints of a training run, and the state from which a killed run resumes; each appears whole or not at all."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, read_json, write_json, write_text
from lowtax.models.adapters import write_base
from lowtax.training import distributed, sharding
from lowtax.training.parameters import TrainedParameters

STATES = (".state", ".state.tmp", ".state.old")  # the newest, one being written, the previous one until that is whole


@dataclass(frozen=True)
class Checkpoint:
    """A saved PEFT adapter or whole model: its folder, step, training seconds, and losses per trained token."""

    name: str
    step: int
    seconds: float
    loss: float
    validation: float | None = None


class Store:
    """The files of one run.

    out: the run's folder.
    acc, wrapped: the accelerator, and the objective as it prepared it.
    ref: the base of its adapters.
    """

    def __init__(
        self, out: Path, acc: Accelerator, wrapped: nn.Module, parameters: TrainedParameters, ref: str
    ) -> None:
        self.out, self.acc, self.wrapped, self.parameters, self.ref = out, acc, wrapped, parameters, ref

    def save(
        self, name: str, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, card: str
    ) -> None:
        """Write checkpoint `name` with its model card.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        target = self.out / name
        state = self._state(model)
        if not self.acc.is_main_process:
            return
        try:
            with atomic_folder(target, replace=True) as work:
                if isinstance(model, PeftModel):
                    model.save_pretrained(work, state_dict=state, save_embedding_layers=False)
                    write_base(work, self.ref)
                else:
                    tokenizer.save_pretrained(work)
                    model.save_pretrained(work, state_dict=state)
                write_text(work / "README.md", card)
        except (OSError, RuntimeError, SafetensorError) as error:  # the last two are how libraries report a full disk
            raise _unsaved(target, error) from error

    def _state(self, model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
        """Return the weights to save by name: whole, on the host, and in float32 where there are masters.

        Only the main process gets them. All processes must call this together, since each may hold a part.
        """
        masters = {id(live): m for live, m in zip(self.parameters.live, self.parameters.master, strict=True)}
        named = [
            (name, p) for name, p in model.named_parameters() if p.requires_grad or not isinstance(model, PeftModel)
        ]
        state = {}
        for name, p in named:
            whole = sharding.whole(self.acc, masters.get(id(p), p))
            if self.acc.is_main_process:
                state[name] = whole.to("cpu", copy=True)
        return state

    # --- the state of an unfinished run

    def save_state(self, progress: dict[str, Any], optimizer: Any, states: list[Any]) -> None:
        """Write what a killed run needs to resume: trained parameters, optimiser, and the methods' states.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        folder, work, old = (self.out / name for name in STATES)
        try:
            if self.acc.is_main_process:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
            self.acc.wait_for_everyone()
            own = {"methods": states, "keeper": sharding.state_layout(self.acc)}
            parts = sharding.save_parts(self.acc, self.wrapped, optimizer, work)
            if self.acc.is_main_process:
                if not parts:
                    own |= {"master": [t.detach() for t in self.parameters.master], "optimizer": optimizer.state_dict()}
                torch.save(own, work / "own.pt")
                write_json(work / "progress.json", progress)
            self.acc.wait_for_everyone()
            if self.acc.is_main_process:
                shutil.rmtree(old, ignore_errors=True)
                if folder.exists():
                    os.replace(folder, old)
                os.replace(work, folder)
                shutil.rmtree(old, ignore_errors=True)  # of a full model it has 12 bytes a parameter
            self.acc.wait_for_everyone()
        except (OSError, RuntimeError) as error:
            raise _unsaved(folder, error) from error

    @torch.no_grad()
    def load_state(self, optimizer: Any) -> tuple[dict[str, Any], list[Any]] | None:
        """Restore the saved state, and return its progress and the methods' states; None if there is none.

        Raises:
            UserError: The processes see different folders, or the state was saved under another sharding.
        """
        folders = [self.out / name for name in STATES if name != ".state.tmp"]
        folder = next((one for one in folders if (one / "progress.json").exists()), folders[0])
        progress = read_json(folder / "progress.json") if folder.exists() else {"step": 0}
        if len(set(distributed.gather(self.acc, progress["step"]))) > 1:
            raise UserError(f"The processes see different contents of {folder}: all machines must share that folder.")
        if not progress["step"]:
            return None
        own = torch.load(folder / "own.pt", map_location="cpu", weights_only=True)
        if own["keeper"] != (layout := sharding.state_layout(self.acc)):
            raise UserError(
                f"{self.out} holds the state of a run by {own['keeper']}, which {layout} cannot resume: launch it as "
                f"before, or delete {folder} to start again."
            )
        if not sharding.load_parts(self.acc, self.wrapped, optimizer, folder):
            for master, saved in zip(self.parameters.master, own["master"], strict=True):
                master.copy_(saved)
            self.parameters.publish()
            optimizer.load_state_dict(own["optimizer"])
        return progress, own["methods"]


def clean(out: Path) -> None:
    """Remove the files that only an unfinished run needs."""
    (out / "job.json").unlink(missing_ok=True)
    for folder in STATES:
        shutil.rmtree(out / folder, ignore_errors=True)


def _unsaved(target: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(
        f"{target} could not be saved ({reason}); free some disk space and repeat the command, which resumes after the "
        "last checkpoint."
    )
