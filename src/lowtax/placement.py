"""Which weights training moves: all of them, or a LoRA of some rank on some modules of some layers.

Every mode string of the reference implementation of arXiv:2507.17075 is an alias of a `Placement`.
Its alpha is 16 at every rank, so the scale alpha / rank is 16 at rank 1 and 1 at rank 16.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lowtax.errors import UserError

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Placement(BaseModel):
    """Full fine-tuning, or LoRA with `rank` on `modules` of `layers` (first and last, both included)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["full", "lora"] = "lora"
    modules: tuple[str, ...] = MLP
    layers: tuple[NonNegativeInt, NonNegativeInt] | None = None
    rank: PositiveInt = 1
    alpha: PositiveFloat = 16.0
    dropout: float = 0.05

    @model_validator(mode="after")
    def _ordered(self) -> "Placement":
        if self.layers and self.layers[0] > self.layers[1]:
            raise UserError(
                f"layer range {self.layers[0]}..{self.layers[1]} is empty: the first layer comes after the last."
            )
        return self

    def target_modules(self, module_names: list[str], n_layers: int) -> list[str]:
        """Full names of the linear modules to adapt. `module_names` are those of the model."""
        if self.layers and self.layers[1] >= n_layers:
            raise UserError(
                f"Layers {self.layers[0]}..{self.layers[1]} are outside the model, which has layers 0..{n_layers - 1}."
            )
        first, last = self.layers or (0, n_layers - 1)
        pattern = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:.+\.)?([^.]+)$")
        found = [
            name
            for name in module_names
            if (m := pattern.search(name)) and first <= int(m[1]) <= last and m[2] in self.modules
        ]
        missing = set(self.modules) - {name.rpartition(".")[2] for name in found}
        if missing:
            raise UserError(
                f"The model has no linear module named {', '.join(sorted(missing))} in layers {first}..{last}; "
                "name modules as the model does, for example up_proj."
            )
        return found


ALIASES: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    (r"full", "every weight", None),
    (r"lora_qkvo_mlp_r(?P<r>\d+)", "attention and MLP", ATTENTION + MLP),
    (r"lora_mlp_r(?P<r>\d+)", "MLP", MLP),
    (r"lora_(?P<m>[a-z]+(?:_proj)?)_only_r(?P<r>\d+)", "one module of every layer", ()),
    (r"lora_(?P<m>[a-z]+(?:_proj)?)_only_from(?P<i>\d+)_to(?P<j>\d+)_r(?P<r>\d+)", "one module of layers I..J", ()),
)
EXAMPLES = "full, lora_qkvo_mlp_rR, lora_mlp_rR, lora_M_only_rR, lora_M_only_fromI_toJ_rR"


def parse_mode(mode: str) -> Placement:
    """The `Placement` that a mode string of the reference means."""
    for pattern, _, modules in ALIASES:
        if m := re.fullmatch(pattern, mode):
            if modules is None:
                return Placement(kind="full", modules=())
            part = m.groupdict()
            name = part.get("m")
            chosen = modules or (MLP if name == "mlp" else (str(name),))
            layers = (int(part["i"]), int(part["j"])) if part.get("i") else None
            if int(part["r"]) < 1:
                raise UserError(f"Mode {mode!r} has rank {part['r']}: a rank is at least 1.")
            return Placement(modules=chosen, layers=layers, rank=int(part["r"]))
    raise UserError(
        f"Unknown mode {mode!r}: the forms are {EXAMPLES} (R a rank, M a module such as up_proj, I and J layers)."
    )
