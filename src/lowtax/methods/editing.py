"""Edit a trained adapter: factors in, factors out, with the base read one matrix at a time.

    edit({"name": "project", "k": 16}, Path("adapter"), Path("adapter-projected"))

The result is an adapter in PEFT's layout for the same base, and `card.json`: method, fields, source, and for each site
ranks, norms, and the cosine of the update before and after, with the numbers by which the method decided. Methods give
their updates as exact factors. `lost` is the distance of what is written from the exact update, relative to its norm:
zero up to float32, unless a `rank` is given, which keeps the nearest update of that rank.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from torch import Tensor

from lowtax import __version__
from lowtax.common.errors import UserError
from lowtax.common.files import atomic_folder, write_json
from lowtax.common.linalg import Factors, inner
from lowtax.common.log import say
from lowtax.methods import loading, running
from lowtax.methods.base import Edit, Position, Probe
from lowtax.methods.loading import ConfiguredMethod
from lowtax.methods.running import RunningModel
from lowtax.methods.sites import Site, Sites, in_scope
from lowtax.models.adapters import (
    Adapter,
    check_base,
    is_adapter,
    name_base,
    read_adapter,
    require_base,
    write_adapter,
    write_base,
)
from lowtax.models.embedded import BUILTIN
from lowtax.models.names import layer_of
from lowtax.models.weights import Weights, open_weights

Updates = Mapping[str, Factors]
EXACT = 1e-5  # relative; more than float32 rounding loses
CARD, MADE_BY = "card.json", "lowtax edit"


@dataclass(frozen=True)
class EditedAdapter:
    """An edited adapter on disk, and its card."""

    folder: Path
    card: dict[str, Any]


class OfflineProbe(Probe):
    """A probe without a model: it reads other checkpoints.

    Every member but `weights` raises a UserError.
    """

    def weights(self, ref: str) -> Weights:
        """Return the matrices of another checkpoint, each read when it is accessed."""
        return open_weights(ref)

    def weight(self, name: str) -> Tensor:
        """Raise a UserError."""
        raise _no_model("the weight of a layer")

    def mean_states(self, source: str, n: int) -> Tensor:
        """Raise a UserError."""
        raise _no_model("states after prompts")

    def writers(self) -> list[str]:
        """Raise a UserError."""
        raise _no_model("the layers of a model")

    def trials(
        self, directions: Tensor, harmful: str, ordinary: str, used: int, n: int
    ) -> tuple[float, list[running.Trial]]:
        """Raise a UserError."""
        raise _no_model("answers")

    def variances(self, source: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Raise a UserError."""
        raise _no_model("variances")

    def directions(self, source: str, names: Iterable[str], k: int) -> NoReturn:
        """Raise a UserError."""
        raise _no_model("directions")

    def gradients(self, source: str, sites: Sites) -> NoReturn:
        """Raise a UserError."""
        raise _no_model("gradients")

    def rows_before(self, first: str, second: str, units: Tensor) -> NoReturn:
        """Raise a UserError."""
        raise _no_model("the rows of a layer")

    def states(self, source: str, layer: int, position: Position, steer: str | None = None) -> NoReturn:
        """Raise a UserError."""
        raise _no_model("hidden states")

    def state_gradients(
        self, source: str, sites: Sites, layer: int, position: Position, members: Sequence[int], loss: Any
    ) -> NoReturn:
        """Raise a UserError."""
        raise _no_model("gradients")


class EditProbe(OfflineProbe):
    """The probe of an edit: it also reads the base, and runs it with the adapter for states, variances and trials.

    Args:
        base: the weights that the adapter is on. adapter: its folder; None for a whole model.
    """

    def __init__(self, base: Weights, adapter: Path | None) -> None:
        self._base, self._model = base, RunningModel(base.ref, adapter)

    def weight(self, name: str) -> Tensor:
        """Return the base's weight of a linear layer."""
        return self._base[name]

    def mean_states(self, source: str, n: int) -> Tensor:
        """Return the mean state after each layer but the last, at the last token of n prompts."""
        return self._model.states(source, n)

    def variances(self, source: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Return, for each input channel of a module, the sample variance over all tokens of the rows."""
        return self._model.variances(source, names)

    def writers(self) -> list[str]:
        """Return the names of the linear layers that write to the residual stream."""
        return running.writers(self._base)

    def trials(
        self, directions: Tensor, harmful: str, ordinary: str, used: int, n: int
    ) -> tuple[float, list[running.Trial]]:
        """Return what removing each direction from all residual writes does, on further prompts."""
        return self._model.trials(directions, harmful, ordinary, used, n)


def _no_model(request: str) -> UserError:
    return UserError(f"This method needs {request} of a running model, and an edit reads stored weights only.")


@torch.no_grad()
def edit(
    spec: dict[str, Any],
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    rank: int | None = None,
) -> EditedAdapter:
    """Write the adapter that a method makes of another; it appears whole or not at all.

    Args:
        spec: the method's specification; see `lowtax.methods.loading`.
        adapter: a PEFT LoRA folder; for methods that act on whole weights also the folder of a whole model, or
            builtin:NAME, of which an adapter on that model is made.
        out: a folder that is absent or empty.
        base: the model that the adapter belongs to; the one in its configuration if None.
        rank: the largest rank of any site that the edit changes.

    Raises:
        UserError: `out` is not empty, the method does not edit, or the adapter is not a plain LoRA of this base.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out.")
    configured = loading.load(spec)
    if not isinstance(configured.method, Edit):
        raise UserError(
            f"Method {spec['name']!r} acts in training, and this adapter is already trained: name it in a recipe."
        )
    whole = (adapter.is_dir() and not is_adapter(adapter)) or str(adapter).startswith(BUILTIN)
    ref = str(adapter) if whole else base or require_base(adapter)
    if base is None and not whole:
        check_base(adapter, ref, "name it by --base")
    original = _none(configured, spec, ref) if whole else read_adapter(adapter, ref)
    weights = open_weights(ref)
    all_sites = whole_sites(weights) if whole else sites_from(original, weights)
    sites = {name: all_sites[name] for name in in_scope(all_sites, configured.only)}
    state = configured.method.prepare(sites, EditProbe(weights, None if whole else adapter))
    exact = configured.method.edit(sites, state)
    if configured.only is not None:
        exact = {name: exact[name] for name in sites if name in exact}
    _require_finite(exact, str(spec["name"]))
    updates = exact if rank is None else {name: x.truncated(rank) for name, x in exact.items()}
    facts = _facts(spec, configured) | {"adapter": str(adapter), "base": ref, "asked_rank": rank}
    facts |= configured.method.figures(state)
    edited = _with_updates(original, updates, ref)
    sites_from(edited, weights)  # a method may add sites, which must fit too
    card = _write(out, edited, lambda new: facts | _figures(original.factors, exact, new, state))
    say(_sentence(out, card))
    return EditedAdapter(out, card)


def sites_from(adapter: Adapter, weights: Weights) -> Sites:
    """Return the sites of an adapter on disk by module name; each W is read when it is accessed.

    Raises:
        UserError: The base lacks a module of the adapter, or has it in another shape.
    """

    def site(name: str, x: Factors) -> Site:
        scale = adapter.scales.get(name, 1.0)
        if (shape := weights.shape(name)) != x.shape:
            raise UserError(
                f"The adapter does not fit {weights.ref!r}: {name} is {shape[0]} x {shape[1]} there, and "
                f"{x.shape[0]} x {x.shape[1]} in the adapter; name the base it was trained on with --base."
            )
        return Site(name, lambda: weights[name], x.a, x.b / scale, scale)

    return {name: site(name, x) for name, x in adapter.factors.items()}


def whole_sites(weights: Weights) -> Sites:
    """Return the linear layers of a whole model as sites of rank 0, whose update is nothing yet; no embeddings."""

    def site(name: str) -> Site:
        out, inp = weights.shape(name)
        return Site(name, lambda: weights[name], torch.zeros(0, inp), torch.zeros(out, 0), 1.0)

    return {name: site(name) for name in weights if layer_of(name) is not None}


def _none(configured: ConfiguredMethod, spec: dict[str, Any], ref: str) -> Adapter:
    """Return the adapter that changes nothing, to edit a whole model from.

    Raises:
        UserError: The method edits adapters alone.
    """
    if not configured.method.whole:
        raise UserError(
            f"Method {spec['name']!r} edits adapters, and {ref} is a whole model or none: give a LoRA's folder."
        )
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0)
    name_base(config, ref)
    return Adapter(config, {}, {})


def _facts(spec: dict[str, Any], configured: ConfiguredMethod) -> dict[str, Any]:
    """Return what the card says about the method."""
    return {
        "made_by": MADE_BY,
        "version": __version__,
        "method": spec["name"],
        "fields": configured.method.model_dump(),
        "only": configured.only,
        "source": loading.source(type(configured.method)),
    }


def _require_finite(exact: Updates, name: str) -> None:
    for site, x in exact.items():
        if not (torch.isfinite(x.b).all() and torch.isfinite(x.a).all()):
            raise UserError(
                f"Method {name!r} returned numbers that are not finite at {site}: check its fields and the weights."
            )


def _with_updates(adapter: Adapter, updates: Updates, ref: str) -> Adapter:
    """Return an adapter with some updates replaced or added, and with its base named."""
    config = copy(adapter.config)
    name_base(config, ref)
    return replace(adapter, config=config, factors={**adapter.factors, **updates})


def _write(out: Path, adapter: Adapter, card: Callable[[Updates], dict[str, Any]]) -> dict[str, Any]:
    """Write the folder as a whole, and return its card, which describes the adapter as read back."""
    with atomic_folder(out) as work:
        write_adapter(work, adapter)
        figures = card(read_adapter(work).factors)
        if figures["lost"] > EXACT and figures["asked_rank"] is None:
            raise RuntimeError(f"{figures['method']} lost {figures['lost']:.2g} of the update without a given rank")
        write_base(work, adapter.base)
        write_json(work / CARD, figures)
    return figures


# --- the figures of the card


def _figures(before: Updates, exact: Updates, after: Updates, state: Any) -> dict[str, Any]:
    """Return the figures of all sites as one vector, and of each site."""
    expected = {**before, **exact}
    old, new = _norm(before), _norm(after)
    along = sum(float(inner(x, after[name])) for name, x in before.items())
    distance: float = sum(_distance(after[name], x) ** 2 for name, x in expected.items()) ** 0.5
    return {
        "modules": len(after),
        "changed": len(exact),
        "rank": max(x.rank for x in after.values()),
        "norm_before": old,
        "norm_after": new,
        "cosine": along / (old * new) if old and new else None,
        "lost": distance / norm if (norm := _norm(expected)) else 0.0,
        "sites": {name: _of_site(name, before, exact, after) | _state_figures(name, state) for name in after},
    }


def _of_site(name: str, before: Updates, exact: Updates, after: Updates) -> dict[str, Any]:
    old, new = ({name: updates[name]} if name in updates else {} for updates in (before, after))
    norms = _norm(old), _norm(new)
    along = float(inner(old[name], new[name])) if old else 0.0
    return {
        "changed": name in exact,
        "rank_before": old[name].rank if old else 0,
        "rank": new[name].rank,
        "norm_before": norms[0],
        "norm_after": norms[1],
        "cosine": along / (norms[0] * norms[1]) if all(norms) else None,
    }


def _state_figures(name: str, state: Any) -> dict[str, float]:
    """Return the numbers in the state that a method prepared for a site."""
    of_site = state.get(name) if isinstance(state, dict) else None
    return {k: v for k, v in of_site.items() if isinstance(v, int | float)} if isinstance(of_site, dict) else {}


def _norm(updates: Updates) -> float:
    """Return the norm of all updates as one vector."""
    return math.sqrt(sum(float(x.sq_norm()) for x in updates.values()))


def _distance(x: Factors, y: Factors) -> float:
    """Return ||X - Y||_F without the cancellation of ||X||^2 - 2 <X, Y> + ||Y||^2."""
    return float(x.plus(Factors(-y.b, y.a)).svd()[1].norm())


def _sentence(out: Path, figures: dict[str, Any]) -> str:
    cosine = "" if figures["cosine"] is None else f", cosine {figures['cosine']:.4f}"
    lost = f"; rank {figures['asked_rank']} lost {figures['lost']:.2%} of it" if figures["asked_rank"] else ""
    return (
        f"  {out}: {figures['changed']} of {figures['modules']} updates edited, rank {figures['rank']}, "
        f"norm {figures['norm_before']:.4g} -> {figures['norm_after']:.4g}{cosine}{lost}"
    )
