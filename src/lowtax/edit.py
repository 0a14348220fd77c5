"""A trained adapter edited into another one: factors in, factors out, the base read one matrix at a time.

    edit({"name": "project", "k": 16}, Path("adapter"), Path("adapter-projected"))

The result is an adapter in PEFT's layout, of the base it was given with, and `card.json`: method, fields, source, and
for each site ranks, norms, and the cosine of the update before and after, with the numbers that the method decided by.
Methods give their updates as exact factors. `lost` is the distance of what is written to that, relative to its norm:
zero but for float32, unless a `rank` was asked for, which keeps the nearest update of that rank.
"""

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lowtax import __version__, methods
from lowtax.adapterfile import Adapter, read_adapter, write_adapter
from lowtax.errors import UserError
from lowtax.files import atomic_folder, write_json
from lowtax.linalg import Factors, inner
from lowtax.methods import Bound, Edit
from lowtax.sites import Site, Sites, in_scope
from lowtax.weights import Weights, open_weights

Say = Callable[[str], None]
Updates = Mapping[str, Factors]
EXACT = 1e-5  # relative; more than float32 may lose
CARD = "card.json"


@dataclass(frozen=True)
class Edited:
    """An edited adapter on disk, and its card."""

    folder: Path
    card: dict[str, Any]


@dataclass(frozen=True)
class OnDisk:
    """The probe of an edit: other checkpoints can be read, but nothing is run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UserError(f"This method asks for the {name} of a running model, and an edit sees weights alone.")

    def weights(self, model: str) -> Weights:
        """The matrices of another checkpoint, read as they are asked for."""
        return open_weights(model)


@torch.no_grad()
def edit(
    spec: dict[str, Any],
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    rank: int | None = None,
    say: Say = print,
) -> Edited:
    """Write the adapter that a method makes of another, as a whole or not at all.

    Args:
        spec: a method's specification; see `lowtax.methods`.
        adapter: a PEFT LoRA folder.
        out: a folder that is absent or empty.
        base: the model reference that the adapter sits on; that of its configuration if absent.
        rank: the largest rank of any site that the edit changes.

    Raises:
        UserError: a target in use, a method that edits nothing, an adapter that is no plain LoRA or not of this base.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out.")
    bound = methods.load(spec)
    if not isinstance(bound.method, Edit):
        raise UserError(f"Method {spec['name']!r} acts in training, and this adapter is trained: name it in a recipe.")
    given = read_adapter(adapter)
    ref = base or given.base
    weights = open_weights(ref)
    every = sites_from(given, weights)
    sites = {name: every[name] for name in in_scope(every, bound.only)}
    state = bound.method.prepare(sites, OnDisk())
    exact = bound.method.edit(sites, state)
    if bound.only is not None:
        exact = {name: exact[name] for name in sites if name in exact}
    _refuse_broken(exact, str(spec["name"]))
    kept = exact if rank is None else {name: x.truncated(rank) for name, x in exact.items()}
    facts = _facts(spec, bound) | {"adapter": str(adapter), "base": ref, "asked_rank": rank}
    made = _with(given, kept, ref)
    sites_from(made, weights)  # a method may add sites, and those must fit too
    card = _write(out, made, lambda new: facts | _figures(given.factors, exact, new, state))
    say(_sentence(out, card))
    return Edited(out, card)


def sites_from(adapter: Adapter, weights: Weights) -> Sites:
    """The sites of an adapter on disk, by module name; W is read when it is asked for, one matrix at a time.

    Raises:
        UserError: The base lacks a module of the adapter, or has it in another shape.
    """

    def site(name: str, x: Factors) -> Site:
        scale = adapter.scales.get(name, 1.0)
        if (found := weights.shape(name)) != x.shape:
            raise UserError(
                f"The adapter does not fit {weights.ref!r}: {name} is {found[0]} x {found[1]} there, and "
                f"{x.shape[0]} x {x.shape[1]} in the adapter; give the base it was trained on with --base."
            )
        return Site(name, lambda: weights[name], x.a, x.b / scale, scale)

    return {name: site(name, x) for name, x in adapter.factors.items()}


def _facts(spec: dict[str, Any], bound: Bound) -> dict[str, Any]:
    return {
        "made_by": "lowtax edit",
        "version": __version__,
        "method": spec["name"],
        "fields": bound.method.model_dump(),
        "only": bound.only,
        "source": methods.source(type(bound.method)),
    }


def _refuse_broken(exact: Updates, name: str) -> None:
    for site, x in exact.items():
        if not (torch.isfinite(x.b).all() and torch.isfinite(x.a).all()):
            raise UserError(
                f"Method {name!r} gave numbers that are not finite at {site}: check its fields and the weights."
            )


def _with(given: Adapter, updates: Updates, ref: str) -> Adapter:
    """The adapter with some updates replaced, or added, and its base named."""
    config = copy(given.config)
    config.base_model_name_or_path = ref
    return replace(given, config=config, factors={**given.factors, **updates})


def _write(out: Path, adapter: Adapter, card: Callable[[Updates], dict[str, Any]]) -> dict[str, Any]:
    """Write the folder of the edited adapter; its card describes the adapter as read back from there."""
    with atomic_folder(out) as work:
        write_adapter(work, adapter)
        figures = card(read_adapter(work).factors)
        if figures["lost"] > EXACT and figures["asked_rank"] is None:
            raise RuntimeError(f"{figures['method']} lost {figures['lost']:.2g} of the update without a given rank")
        write_json(work / CARD, figures)
    return figures


# --- what the edit did


def _figures(before: Updates, exact: Updates, after: Updates, state: Any) -> dict[str, Any]:
    """Of all sites as one vector, and of each."""
    wanted = {**before, **exact}
    old, new = _norm(before), _norm(after)
    along = sum(float(inner(x, after[name])) for name, x in before.items())
    apart: float = sum(_apart(after[name], x) ** 2 for name, x in wanted.items()) ** 0.5
    return {
        "modules": len(after),
        "changed": len(exact),
        "rank": max(x.rank for x in after.values()),
        "norm_before": old,
        "norm_after": new,
        "cosine": along / (old * new) if old and new else None,
        "lost": apart / norm if (norm := _norm(wanted)) else 0.0,
        "sites": {name: _of_site(name, before, exact, after) | _decided(name, state) for name in after},
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


def _decided(name: str, state: Any) -> dict[str, float]:
    """The numbers in what a method prepared for a site."""
    found = state.get(name) if isinstance(state, dict) else None
    return {k: v for k, v in found.items() if isinstance(v, int | float)} if isinstance(found, dict) else {}


def _norm(updates: Updates) -> float:
    """Of all updates as one vector."""
    return math.sqrt(sum(float(x.sq_norm()) for x in updates.values()))


def _apart(x: Factors, y: Factors) -> float:
    """||X - Y||_F, without the cancellation of ||X||^2 - 2 <X, Y> + ||Y||^2."""
    return float(x.plus(Factors(-y.b, y.a)).svd()[1].norm())


def _sentence(out: Path, found: dict[str, Any]) -> str:
    cosine = "" if found["cosine"] is None else f", cosine {found['cosine']:.4f}"
    lost = f"; rank {found['asked_rank']} lost {found['lost']:.2%} of it" if found["asked_rank"] else ""
    return (
        f"  {out}: {found['changed']} of {found['modules']} updates edited, rank {found['rank']}, "
        f"norm {found['norm_before']:.4g} -> {found['norm_after']:.4g}{cosine}{lost}"
    )
