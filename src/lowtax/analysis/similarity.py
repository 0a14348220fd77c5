"""Maps of the singular vectors of W + dW against those of W: absolute cosines, k by k.

Source: Shuttleworth et al. 2024, arXiv:2410.21228, whose figures show such maps. Full fine-tuning leaves the diagonal
almost as it was; an intruder dimension of LoRA is a column without any bright cell.

    cosines[i][j] = |<u_i(W), u_j(W + dW)>|         left vectors, by descending singular value

A module is shown for the first seed of each arm that changes it, side by side. By default the modules are, for each of
these, the one in which it has the most intruders, and of several such the one that it pushes most (the spectral norm of
dW relative to that of W).

Departure: which matrices and how many vectors the paper shows could not be read; k is 32 here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lowtax.analysis.decomposition import Weight
from lowtax.analysis.geometry import Source
from lowtax.common import linalg
from lowtax.common.errors import UserError, did_you_mean
from lowtax.common.linalg import Update
from lowtax.models.weights import Weights

Row = dict[str, Any]
VECTORS = 32
SAME = 0.9  # cosine from which a cell of the diagonal counts as unchanged
MOST = 4  # modules that are chosen by default


def maps(
    base: Weights, sources: Sequence[Source], report: Mapping[str, Any], chosen: Sequence[str] = (), k: int = VECTORS
) -> Row:
    """Return the maps of some modules as data, with their text alternative.

    Args:
        sources: the updates. Of each arm the first seed is shown.
        report: that of `geometry.analyze` on the same sources.
        chosen: names of modules, or ends of names such as `layers.3.mlp.up_proj`; by default those with the most
            intruders.
        k: vectors on each side, at most as many as a matrix has.

    Raises:
        UserError: No source that is shown changes such a module.
    """
    epsilon = report["settings"]["epsilon"]
    shown = _shown(sources, report["arms"])
    arms = [arm for _, arm in shown]
    names = dict.fromkeys([_named(name, arms) for name in chosen] or representatives(arms))
    entries: list[Row] = []
    for name in names:
        W = base[name]
        vectors = min(k, *W.shape)
        weight = Weight.of(W, vectors)
        for source, arm in shown:
            if name in _moved(arm):
                cosines = of_update(weight, source.update(name, W), vectors)
                facts = {"module": name, "label": arm["label"], "k": vectors}
                entries.append({**facts, **read(cosines, epsilon), "cosines": _rounded(cosines)})
    return {"k": k, "epsilon": epsilon, "same": SAME, "definitions": DEFINITIONS, "maps": entries}


def of_update(weight: Weight, update: Update, k: int) -> Float[Tensor, "k k"]:
    """Return the absolute cosines of the first k left singular vectors of W (rows) and of W + dW (columns).

    A vector whose singular value is zero to rounding is no direction: its cosines are 0.
    """
    U, values = weight.tuned(update, k)
    before = weight.top[0][:, :k] * _present(weight.top[1][:k])
    return (before.T @ (U * _present(values))).abs().clamp(max=1)


def _present(values: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    return (values > linalg.FAINT * values[0]).float()


def _shown(sources: Sequence[Source], arms: Sequence[Row]) -> list[tuple[Source, Row]]:
    """Return the first seed of each arm, and every source without a seed, with its entry in the report."""
    first: dict[tuple[str, str], tuple[Source, Row]] = {}
    for source, arm in zip(sources, arms, strict=True):
        first.setdefault((source.arm, source.where if source.seed is None else ""), (source, arm))
    return list(first.values())


DEFINITIONS = {
    "cosines": "absolute cosine of each left singular vector of W (a row) with each of W + dW (a column), the first k",
    "diagonal": "share of the diagonal with a cosine of at least `same`; a new strong vector moves all after it",
    "matched": "share of columns with such a cosine in any row that is shown",
    "unmatched": "columns, from 0, whose cosine with every row that is shown is below epsilon: intruders, and vectors "
    "of W from further down",
}


def representatives(arms: Sequence[Row]) -> list[str]:
    """Return for each arm the module with the most intruders, and of several the one that dW pushes most."""
    names = []
    for arm in arms:
        if moved := _moved(arm):
            first = max(moved.values(), key=lambda site: (site["intruders"]["found"], site["relative_spectral_norm"]))
            names.append(first["name"])
    return list(dict.fromkeys(names))[:MOST]


def _moved(arm: Mapping[str, Any]) -> dict[str, Row]:
    return {site["name"]: site for site in arm["sites"] if site["norm"]}


def _named(name: str, arms: Sequence[Row]) -> str:
    """Return the module of this name or end of a name."""
    known = dict.fromkeys(site for arm in arms for site in _moved(arm))
    if name in known:
        return name
    ends = [one for one in known if one.endswith(f".{name}")]
    if len(ends) > 1:
        raise UserError(f"{len(ends)} modules end in {name!r}, such as {ends[0]} and {ends[1]}: name one of them.")
    if not ends:
        raise UserError(f"No update changes a module {name!r}; {did_you_mean(name, known)}")
    return ends[0]


def read(cosines: Float[Tensor, "k k"], epsilon: float) -> Row:
    """Return the text alternative of a map: shares of vectors that are the same, and those without a match."""
    k, best = len(cosines), cosines.amax(dim=0)
    in_place, anywhere = (float((x >= SAME).float().mean()) for x in (cosines.diagonal(), best))
    unmatched = [j for j in range(k) if float(best[j]) < epsilon]
    places = f" ({', '.join(str(j + 1) for j in unmatched[:10])}{', ...' if unmatched[10:] else ''})"
    text = (
        f"of the {k} vectors of W + dW, {in_place:.0%} are those of W at the same place (cosine {SAME:g} or more) and "
        f"{anywhere:.0%} those at any place; {len(unmatched)}{places if unmatched else ''} match none at {epsilon:g}"
    )
    return {"diagonal": round(in_place, 4), "matched": round(anywhere, 4), "unmatched": unmatched, "text": text}


def _rounded(cosines: Float[Tensor, "k k"]) -> list[list[float]]:
    return [[round(float(x), 4) for x in row] for row in cosines]
