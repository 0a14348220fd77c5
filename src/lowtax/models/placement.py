"""Placements: the weights that training moves, all of them or a LoRA of some rank on some modules of some layers.

The thirteen mode strings of the reference implementation of arXiv:2507.17075 (YihaoXue/lora-safety-reasoning
@ bc85c7c, train.py) are aliases of a `Placement`, eight of them with a regulariser, whose penalty is that of the code
(`as_published`). Its alpha is 16 at every rank, so
that its scale alpha / rank is 16 at rank 1 and 0.25 at rank 64; `alpha_per_rank` removes this confound.
"""

import copy
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

from lowtax.common.borders import brief
from lowtax.common.errors import UserError
from lowtax.models.names import (
    LAYERS_FORMS,
    MLP,
    MOST_LAYERS,
    chosen,
    in_layer,
    layers_in,
    matches,
    near,
    read_layers,
    spelled_out,
)

_DORA = "no engine serves DoRA beside the base and other adapters; train plain LoRA, of a higher rank or with rslora."
_START = (
    "write `methods: [{name: pissa}]` for PiSSA, which saves a LoRA that can be measured; other starts change the base."
)
UNSERVED = {"dora": _DORA, "use_dora": _DORA, "init_lora_weights": _START, "pissa": _START, "init": _START}
"""Fields of PEFT that people look for, with what to do instead."""


@dataclass(frozen=True)
class Targets:
    """Modules and parameters that a placement selects in one model, by full name."""

    modules: list[str]
    parameters: list[str]


Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
Rank = Annotated[int, Field(gt=0, le=1_000_000)]


class Placement(BaseModel):
    """Full fine-tuning, or LoRA: factors of `rank` on `modules` and `parameters` of `layers`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["full", "lora"] = Field("lora", description="full: every weight; lora: low-rank factors")
    modules: tuple[str, ...] = Field(
        MLP, description="linear modules by name, or mlp, attention, all-linear; none if only parameters are given"
    )
    parameters: tuple[str, ...] = Field((), description="weights of no linear module, such as mlp.experts.down_proj")
    layers: tuple[Layer, Layer] | str | None = Field(
        None, description="all if absent; first and last, both included; or text such as 'middle third'"
    )
    rank: Rank = Field(1, description="rank of the factors")
    ranks: dict[str, Rank] = Field(
        default_factory=dict, description="name -> its own rank; the first name that matches counts"
    )
    alpha: PositiveFloat = Field(16.0, le=1e9, description="the product of the factors is scaled by alpha / rank")
    alpha_per_rank: PositiveFloat | None = Field(
        None, le=1e9, description="alpha is this times the rank, instead of alpha"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank)")
    dropout: float = Field(0.05, ge=0, lt=1, description="on what enters the factors; 0 with parameters")

    @model_validator(mode="before")
    @classmethod
    def _can_be_measured(cls, values: Any) -> Any:
        for name in UNSERVED.keys() & (values.keys() if isinstance(values, dict) else set()):
            raise UserError(f"A placement has no {name}: {UNSERVED[name]}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _parameters_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("parameters") and "modules" not in values:
            return {**values, "modules": ()}
        return values

    @field_validator("modules", "parameters", mode="before")
    @classmethod
    def _spelled_out(cls, names: Any) -> Any:
        names = [names] if isinstance(names, str) else names
        return (
            spelled_out(names) if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names) else names
        )

    @field_validator("ranks", mode="before")
    @classmethod
    def _ranks_spelled_out(cls, ranks: Any) -> Any:
        if not isinstance(ranks, dict) or not all(isinstance(key, str) for key in ranks):
            return ranks
        by_name = dict[str, Any]()
        for key, rank in ranks.items():
            for name in spelled_out([key]):
                by_name.setdefault(name, rank)
        return by_name

    @field_validator("layers", mode="before")
    @classmethod
    def _readable(cls, layers: Any) -> Any:
        if isinstance(layers, str):
            read_layers(layers)
        elif isinstance(layers, list | tuple) and len(layers) != 2:
            raise UserError(f"layers {layers!r} is not a pair of first and last layer; the forms are {LAYERS_FORMS}.")
        return layers

    @model_validator(mode="after")
    def _consistent(self) -> "Placement":
        if isinstance(self.layers, tuple) and self.layers[0] > self.layers[1]:
            raise UserError(
                f"layer range {self.layers[0]}..{self.layers[1]} is empty: the first layer comes after the last."
            )
        fields = ("layers", "parameters", "ranks", "alpha_per_rank", "rslora")
        set_fields = [name for name in fields if getattr(self, name)]
        if self.kind == "full" and set_fields:
            raise UserError(
                f"kind: full trains every weight, so that {' and '.join(set_fields)} cannot be set; use kind: lora."
            )
        if self.kind == "lora" and not (self.modules or self.parameters):
            raise UserError("A LoRA needs a name in modules or parameters, for example modules: [up_proj].")
        if self.parameters and self.dropout:
            raise UserError(f"LoRA on parameters cannot have dropout ({self.dropout:g}): set dropout: 0.")
        if self.alpha_per_rank and self.alpha != 16:
            raise UserError(
                f"alpha {self.alpha:g} and alpha_per_rank {self.alpha_per_rank:g} exclude each other: remove one."
            )
        return self

    def rank_of(self, name: str) -> int:
        """Return the rank on the module or parameter with this full name."""
        return next((rank for pattern, rank in self.ranks.items() if matches(pattern, name)), self.rank)

    def alpha_at(self, rank: int) -> float:
        """Return alpha for a module of this rank."""
        return self.alpha_per_rank * rank if self.alpha_per_rank else self.alpha

    def layers_of(self, n_layers: int) -> list[int]:
        """Return the selected layers of a model of `n_layers`, ascending."""
        return layers_in(self.layers, n_layers)

    def targets(self, modules: Sequence[str], parameters: Sequence[str], n_layers: int) -> Targets:
        """Select from the linear `modules` and the other `parameters` of a model, in their order.

        `layers` restricts names inside the layers; others, such as lm_head, are selected by name alone.

        Raises:
            UserError: a name matches nothing, or a key of `ranks` nothing that is selected.
        """
        layers = self.layers_of(n_layers)
        fused = sorted({in_layer(name) for name in parameters if ".experts." in name})
        aside = f" (its experts are fused: name {' or '.join(fused)} under parameters)" if fused else ""
        targets = Targets(
            chosen(self.modules, modules, layers, "linear module", aside),
            chosen(self.parameters, parameters, layers, "parameter"),
        )
        adapted = targets.modules + targets.parameters
        for pattern in self.ranks:
            if not any(matches(pattern, name) for name in adapted):
                raise UserError(f"ranks: {pattern!r} matches nothing that is adapted; {near(pattern, adapted)}")
        return targets


@dataclass(frozen=True)
class Alias:
    """A form of mode string, its description, the regulariser if any, and the modules.

    Capital letters stand for names and numbers: M a module, I and J layers, R the rank, B beta, K the size of the
    subspace.
    """

    form: str
    says: str
    regulariser: dict[str, Any] | None = None
    modules: tuple[str, ...] = ("mlp",)


RAW = {"side": "left", "weighted": True, "relative": False}
DOWN = {"only": ["down_proj"]}
UNIFORM, RELATIVE, BOTH = {"weighted": False}, {"relative": True}, {"side": "both"}
ALIASES = (
    Alias("full", "every weight", None, ()),
    Alias("lora_qkvo_mlp_rR", "attention and MLP", None, ("attention", "mlp")),
    Alias("lora_mlp_rR", "MLP"),
    Alias("lora_M_only_rR", "module M of every layer, or mlp", None, ("M",)),
    Alias("lora_M_only_fromI_toJ_rR", "module M, or mlp, of layers I to J, both included", None, ("M",)),
    Alias("lora_mlp_orthogonal_rR_betaB_kK", "MLP, all regularised", RAW),
    Alias("lora_mlp_orthogonal_norm_rR_betaB_kK", "MLP, all regularised", RAW | RELATIVE),
    Alias("lora_mlp_orthogonal_down_rR_betaB_kK", "MLP, down_proj regularised", RAW | DOWN),
    Alias("lora_mlp_orthogonal_down_norm_rR_betaB_kK", "MLP, down_proj regularised", RAW | RELATIVE | DOWN),
    Alias("lora_mlp_orthogonal_down_uniform_rR_betaB_kK", "MLP, down_proj regularised", RAW | UNIFORM | DOWN),
    Alias(
        "lora_mlp_orthogonal_down_uniform_norm_rR_betaB_kK",
        "MLP, down_proj regularised",
        RAW | UNIFORM | RELATIVE | DOWN,
    ),
    Alias("lora_mlp_orthogonal_norm_both_rR_betaB_kK", "MLP, all regularised", RAW | RELATIVE | BOTH),
    Alias("lora_mlp_orthogonal_uniform_norm_both_rR_betaB_kK", "MLP, all regularised", RAW | UNIFORM | RELATIVE | BOTH),
)
PARTS = {"M": ".+?", "B": r"[\d.]+(?:e-?\d+)?"} | dict.fromkeys("IJRK", r"[0-9]{1,6}")


def _read(mode: str) -> tuple[Alias, dict[str, str]]:
    for alias in ALIASES:
        pattern = re.sub("[A-Z]", lambda letter: f"(?P<{letter[0]}>{PARTS[letter[0]]})", alias.form)
        if match := re.fullmatch(pattern, mode):
            return alias, match.groupdict()
    forms = [alias.form for alias in ALIASES]
    nearest = difflib.get_close_matches(mode[:100], forms, n=3, cutoff=0.5) or forms[:5]
    raise UserError(
        f"Unknown mode {brief(mode)}; the nearest forms are {', '.join(nearest)}, with R a rank, M a module such as "
        "up_proj, I and J layers, B a weight such as 0.1 and K a number of singular directions."
    )


def parse_mode(mode: str) -> Placement:
    """Return the `Placement` of a mode string of the reference.

    Raises:
        UserError: the string has no known form; the nearest forms are named.
    """
    alias, part = _read(mode)
    if not alias.modules:
        return Placement(kind="full", modules=())
    rank, layers = int(part["R"]), (int(part["I"]), int(part["J"])) if "I" in part else None
    if rank < 1:
        raise UserError(f"Mode {mode!r} has rank {rank}: a rank is at least 1.")
    return Placement(modules=tuple(part.get(name, name) for name in alias.modules), layers=layers, rank=rank)


def mode_methods(mode: str, published: bool = True) -> list[dict[str, Any]]:
    """Return the regulariser of a mode string as specifications for `methods.load_all`; empty for most.

    Args:
        published: the penalty of the reference's code; False is the corrected one, which mode strings named before.
    """
    alias, part = _read(mode)
    if alias.regulariser is None:
        return []
    try:
        beta, k = float(part["B"]), int(part["K"])
    except ValueError as error:
        raise UserError(f"Mode {mode!r}: beta {part['B']!r} is not a number.") from error
    if k < 1:
        raise UserError(f"Mode {mode!r} has k {k}: at least one singular direction is needed.")
    spec = {"name": "orthogonal", "beta": beta, "k": k, **copy.deepcopy(alias.regulariser)}
    return [spec | {"as_published": True} if published else spec]
