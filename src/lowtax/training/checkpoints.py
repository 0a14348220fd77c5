"""Checkpoints of a training run, and the state from which a killed run resumes; each appears whole or not at all."""

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowtax.common.borders import border
from lowtax.common.cards import Progress, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, read_json, write_json, write_text
from lowtax.common.log import say
from lowtax.common.names import CHECKPOINT, is_checkpoint
from lowtax.models.adapters import Adapter, write_base
from lowtax.training import distributed, sharding, start
from lowtax.training.parameters import TrainedParameters

STATE, STABLE = ".state", ".stable"
"""Folders of the state from which a killed run resumes, and of that from which a finished run can be made longer."""
DELETE = "delete the folder that it is in, so that an older state is used, or training begins again"
"""What to do with a damaged state, for its error."""
STATES = (STATE, f"{STATE}.old", STABLE)

State = tuple[dict[str, Any], dict[str, Any]]  # progress.json and own.pt


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
    ref: the base of its adapters. dtype: of saved whole models; adapters are float32.
    beneath: an adapter that is frozen beside the trained factors, and saved with them as one.
    """

    def __init__(
        self,
        out: Path,
        acc: Accelerator,
        wrapped: nn.Module,
        parameters: TrainedParameters,
        ref: str,
        dtype: torch.dtype = torch.float32,
        beneath: Adapter | None = None,
    ) -> None:
        self.out, self.acc, self.wrapped, self.parameters = out, acc, wrapped, parameters
        self.ref, self.dtype, self.beneath = ref, dtype, beneath

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
                if isinstance(model, PeftModel) and self.beneath is not None:
                    start.save(work, model, state, self.beneath)
                    write_base(work, self.ref)
                elif isinstance(model, PeftModel):
                    model.save_pretrained(work, state_dict=state, save_embedding_layers=False)
                    write_base(work, self.ref)
                else:
                    tokenizer.save_pretrained(work)
                    model.save_pretrained(work, state_dict=state)
                    _name_dtype(work / "config.json", self.dtype)
                write_text(work / "README.md", card)
        except (OSError, RuntimeError, SafetensorError) as error:  # the last two are how libraries report a full disk
            raise _unsaved(target, error) from error

    def _state(self, model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
        """Return the weights to save by name: whole, on the host, rounded once from the masters where there are some.

        Only the main process gets them. All processes must call this together, since each may hold a part.
        """
        dtype = torch.float32 if isinstance(model, PeftModel) else self.dtype
        masters = {id(live): m for live, m in zip(self.parameters.live, self.parameters.master, strict=True)}
        named = [
            (name, p) for name, p in model.named_parameters() if p.requires_grad or not isinstance(model, PeftModel)
        ]
        state = {}
        for name, p in named:
            whole = sharding.whole(self.acc, masters.get(id(p), p))
            if self.acc.is_main_process:
                state[name] = whole.to("cpu", dtype, copy=True)
        return state

    def prune(self, kept: Collection[str], step: int) -> None:
        """Delete the checkpoints up to a step that are not to be kept."""
        if self.acc.is_main_process:
            for folder in self.out.glob("checkpoint-*"):
                number = folder.name.removeprefix(CHECKPOINT)
                if is_checkpoint(folder.name) and int(number) <= step and folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)

    # --- the state of an unfinished run

    def save_state(self, progress: dict[str, Any], optimizer: Any, states: list[Any], name: str = STATE) -> None:
        """Write what a killed run needs to resume: trained parameters, optimiser, and the methods' states.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        folder, work, old = (self.out / f"{name}{end}" for end in ("", ".tmp", ".old"))
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
                with (work / "own.pt").open("rb") as handle:
                    os.fsync(handle.fileno())
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
            shutil.rmtree(work, ignore_errors=True)
            raise _unsaved(folder, error) from error

    @torch.no_grad()
    def load_state(
        self, optimizer: Any, usable: Callable[[dict[str, Any]], bool] = bool
    ) -> tuple[dict[str, Any], list[Any]] | None:
        """Restore the newest saved state that is whole, and return its progress and the methods' states; None if none.

        Args:
            usable: tells by its progress whether this run may resume from a state.

        Raises:
            UserError: The processes see different folders, or the state was saved under another sharding.
        """
        for folder in (self.out / name for name in STATES):
            state = self._whole(folder)
            if len(set(distributed.gather(self.acc, state[0]["step"] if state else 0))) > 1:
                raise UserError(f"The processes see different contents of {folder}: all machines must share it.")
            if state is None or not usable(state[0]):
                continue
            progress, own = state
            if own["keeper"] != (layout := sharding.state_layout(self.acc)):
                raise UserError(
                    f"{self.out} holds the state of a run by {own['keeper']}, which {layout} cannot resume: launch it "
                    f"as before, or delete {folder} to start again."
                )
            with border(f"The saved state in {folder} cannot be restored", DELETE):
                if not sharding.load_parts(self.acc, self.wrapped, optimizer, folder):
                    for master, saved in zip(self.parameters.master, own["master"], strict=True):
                        master.copy_(saved)
                    self.parameters.publish()
                    optimizer.load_state_dict(own["optimizer"])
            return progress, own["methods"]
        return None

    def _whole(self, folder: Path) -> State | None:
        """Return the state in a folder; None if there is none, and with a sentence if it is damaged."""
        if not folder.is_dir():
            return None
        try:
            progress, own = read_state(folder)
        except PermissionError as error:
            raise UserError(
                f"{folder} cannot be read ({error.strerror}): give yourself the right to read it."
            ) from error
        except UserError as error:
            say(f"  the saved state in {folder} is damaged and not used ({str(error).removesuffix('.')})")
            return None
        parts = {"methods"} if sharding.keeps_masters(self.acc) else {"methods", "master", "optimizer"}
        whole = own["keeper"] != sharding.state_layout(self.acc) or parts <= own.keys()
        if "master" in own:
            shapes = [tuple(t.shape) for t in self.parameters.master]
            whole = whole and [tuple(t.shape) for t in own["master"]] == shapes
        if whole:
            return progress, own
        say(f"  the saved state in {folder} is damaged and not used (it is incomplete, or of another model)")
        return None


def read_state(folder: Path) -> State:
    """Return the progress and the tensors of a saved state: the border of its files.

    Raises:
        UserError: a file of it is absent, cut or damaged.
        PermissionError: a file of it may not be read.
    """
    progress = read_card(folder / "progress.json", Progress, DELETE)
    file = folder / "own.pt"
    if not file.is_file():
        raise UserError(f"{file} is absent.")
    with file.open("rb") as handle, border(f"{file} cannot be read", DELETE):
        own = torch.load(handle, map_location="cpu", weights_only=True)
        if not isinstance(own, dict) or not isinstance(own.get("keeper"), str):
            raise ValueError("own.pt does not say how it was saved")
        tensors = own.get("master", [])
        if not isinstance(tensors, list) or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError("own.pt has no tensors")
        if not isinstance(own.get("methods", []), list) or not isinstance(own.get("optimizer", {}), dict):
            raise ValueError("own.pt has no state of the methods or of the optimiser")
    return progress, own


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the precision of the saved weights into a configuration, which has that of training."""
    config = read_json(path)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = str(dtype).removeprefix("torch.")
    write_json(path, config)


def clean(out: Path) -> None:
    """Remove the files that only an unfinished run needs."""
    (out / "job.json").unlink(missing_ok=True)
    for name in (STATE, f"{STATE}.tmp", f"{STATE}.old", f"{STABLE}.tmp", f"{STABLE}.old"):
        shutil.rmtree(out / name, ignore_errors=True)


def _unsaved(target: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(
        f"{target} could not be saved ({reason}); free some disk space and repeat the command, which resumes "
        "from the last saved state."
    )
