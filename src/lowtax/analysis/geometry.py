"""The geometry of weight updates: adapters, or fully fine-tuned checkpoints, against their base, matrix by matrix.

    source = of_adapter(Path("runs/14b/arms/MODE/seed-0/checkpoint-5000"))
    report = analyze(open_weights(base), [source])

Every W is read and decomposed once for all sources. Besides the adapters, memory holds one W at a time (one for each
core if they are small), and for a tuned checkpoint also its counterpart and their difference. `analyze_site` describes
the measures.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowtax.analysis.decomposition import Weight
from lowtax.common.errors import UserError
from lowtax.common.linalg import Dense, Update
from lowtax.common.log import say
from lowtax.models.adapters import base_of as adapter_base
from lowtax.models.adapters import check_adapter, read_adapter
from lowtax.models.weights import Weights, open_weights

if TYPE_CHECKING:
    from lowtax.common.records import Subject


from jaxtyping import Float

from lowtax.common import linalg
from lowtax.common.linalg import Factors
from lowtax.models.names import in_layer, layer_of
from lowtax.models.rounding import ROWS, Rounding

CLUSTER = 0.1  # of a singular value: the distance of values whose vectors may have mixed with its own
SIDES = ("left", "right", "both")


@dataclass(frozen=True)
class Settings:
    """The settings of an analysis.

    top: singular directions of W on each side, for overlaps. tested: singular vectors of W + dW, for intruders. exact:
    decompose large matrices completely, which takes minutes for each.
    """

    top: int = 16
    tested: int = 10
    epsilon: float = 0.5
    exact: bool = False

    @property
    def known(self) -> int:
        """The number of directions of W that are computed if it is too large for all."""
        return max(self.top, 2 * self.tested)


def describe(name: str, weight: Weight, update: Update, settings: Settings) -> dict[str, Any]:
    """Return the anatomy of one update as data; all figures of a zero update are 0."""
    W, k = weight.matrix, min(settings.top, *weight.matrix.shape)
    S = _spectrum(update, settings)
    norm, spectral = float(update.sq_norm()) ** 0.5, float(S[0]) if S.numel() else 0.0
    whole = isinstance(update, Factors) or len(S) == min(W.shape)
    U, values, V = (part[..., :k] for part in weight.top)
    return {
        "name": name,
        "layer": layer_of(name),
        "module": in_layer(name),
        "shape": list(W.shape),
        "rank": update.rank if isinstance(update, Factors) else None,
        "norm": norm,
        "relative_norm": norm / float(linalg.norm(W)),
        "spectral_norm": spectral,
        "relative_spectral_norm": spectral / float(weight.values[0]),
        "stable_rank": linalg.stable_rank(S, norm**2),
        "effective_rank": linalg.effective_rank(S) if whole else None,
        "top": k,
        "overlap": linalg.overlap(update, U, V),
        "random_overlap": linalg.random_overlap(update.shape, k),
        "weighted_overlap": linalg.overlap(update, U, V, values),
        "random_weighted_overlap": linalg.random_overlap(update.shape, k, weighted=True),
        "intruders": intruders(weight, update, spectral, settings),
        "bfloat16": unmoved(W, update).figures(),
    }


def _spectrum(update: Update, settings: Settings) -> Float[Tensor, " k"]:
    """Return the singular values of an update that may be above zero; of a large matrix only the first unless exact."""
    if isinstance(update, Factors):
        return update.svd()[1]
    if settings.exact or min(update.shape) <= linalg.SMALL:
        squares: Tensor = torch.linalg.eigvalsh(linalg.gram(update.matrix))
        return squares.flip(0).clamp(min=0).sqrt()
    return linalg.top_singular(update.matrix, 1)[1]


def intruders(weight: Weight, update: Update, spectral: float, settings: Settings) -> dict[str, int]:
    """Count the intruders among the first singular vectors of W + dW.

    Args:
        spectral: ||dW||_2.
    """
    tested = min(settings.tested, *weight.matrix.shape)
    counts = {"tested": tested, "found": 0, "rotated": 0, "undecided": 0}
    if not spectral:
        return counts
    U, S = weight.tuned(update, tested)
    energies = weight.energies(U)
    met = energies.max(dim=0).values >= settings.epsilon**2
    outside = 1 - energies.sum(dim=0)
    decided = met | (outside < settings.epsilon**2) if weight.whole is None else torch.full_like(met, True)
    window = (CLUSTER * S).clamp(max=spectral)
    rotated = (energies * ((weight.values[:, None] - S).abs() <= window)).sum(dim=0) > 0.5
    return counts | {
        "found": int((~met & decided).sum()),
        "rotated": int((~met & decided & rotated).sum()),
        "undecided": int((~decided).sum()),
    }


def unmoved(W: Float[Tensor, "out in"], update: Update) -> Rounding:
    """Return what rounding W + dW to bfloat16 leaves of dW. The rows of W are processed in blocks."""
    rounding = Rounding()
    for start in range(0, len(W), ROWS):
        rows = slice(start, start + ROWS)
        part = update.matrix[rows] if isinstance(update, Dense) else update.b[rows] @ update.a
        rounding.add(W[rows], part, torch.bfloat16)
    return rounding


Row = dict[str, Any]
SIDE_BY_SIDE = 2**22  # entries; smaller matrices are analysed several at a time


@dataclass(frozen=True, eq=False)
class Source:
    """The updates of one checkpoint. `update` returns that of a module, from its name and W."""

    arm: str
    where: str
    kind: str
    names: list[str]
    update: Callable[[str, Tensor], Update]
    seed: int | None = None
    checkpoint: str | None = None
    note: str | None = None


def of_adapter(folder: Path, arm: str | None = None, seed: int | None = None, ref: str | None = None) -> Source:
    """Return the updates of a PEFT adapter. `ref` is the model that it must fit, weight by weight.

    Raises:
        UserError: The folder holds no adapter, one that is more than a plain LoRA, or one of another model.
    """
    factors = read_adapter(folder, ref).factors
    name = folder.resolve().name
    return Source(arm or name, str(folder), "adapter", list(factors), lambda n, W: factors[n], seed, name)


def of_tuned(ref: str, base: Weights, arm: str | None = None, seed: int | None = None) -> Source:
    """Return the updates of a fully fine-tuned checkpoint: its matrices minus those of the base, in float32.

    A base that is stored in float32 is rounded as the checkpoint is: training began there, and where a weight did not
    move, the rounding of both is the same. The rounding of a base alone is 0.14 % of it in bfloat16.

    Raises:
        UserError: There is no such model, or its shape is not that of the base.
    """
    tuned = open_weights(ref)
    names = [name for name in base if name in tuned]
    if not names:
        raise UserError(f"{ref!r} and {base.ref!r} have no matrix in common: give the base that it was tuned from.")
    for name in names:
        if tuned.shape(name) != base.shape(name):
            raise UserError(
                f"{name} is {tuned.shape(name)} in {ref!r} and {base.shape(name)} in {base.ref!r}: give the base that "
                "it was tuned from."
            )
    rounded = sorted({kind for kind in (base.dtype(names[0]), tuned.dtype(names[0])) if kind != "float32"})
    note = f"dW is a difference of matrices stored in {' and '.join(rounded)}: their rounding is part of it"
    last = Path(ref).name

    def update(name: str, W: Tensor) -> Update:
        if base.dtype(name) == "float32" and (kind := tuned.dtype(name)) in ("bfloat16", "float16"):
            W = W.to(getattr(torch, kind)).float()
        return Dense(tuned[name] - W)

    return Source(arm or last, ref, "tuned", names, update, seed, last, note if rounded else None)


def of_both(folder: Path, ref: str, base: Weights, arm: str | None = None, seed: int | None = None) -> Source:
    """Return the updates of an adapter on a fully fine-tuned checkpoint: those of both to the base, in float32.

    Raises:
        UserError: One of the two does not fit.
    """
    tuned, factors = of_tuned(ref, base, arm, seed), read_adapter(folder, ref).factors

    def update(name: str, W: Tensor) -> Update:
        below = tuned.update(name, W)
        return Dense(below.matrix + factors[name].dense()) if isinstance(below, Dense) and name in factors else below

    return replace(tuned, where=str(folder), update=update, checkpoint=folder.name)


def of_subject(subject: "Subject", base: Weights) -> Source:
    """Return the updates of a checkpoint of a study."""
    if subject.adapter is None:
        return of_tuned(subject.model, base, subject.arm, subject.seed)
    if subject.model == base.ref:
        return of_adapter(Path(subject.adapter), subject.arm, subject.seed, base.ref)
    return of_both(Path(subject.adapter), subject.model, base, subject.arm, subject.seed)


def last_of(subjects: Sequence["Subject"]) -> list["Subject"]:
    """Return the last checkpoint of every arm and seed of a study, in the study's order."""
    return list({(s.arm, s.seed): s for s in subjects if s.checkpoint is not None}.values())


def of_study(subjects: Sequence["Subject"], base: Weights) -> list[Source]:
    """Return the updates of the last checkpoint of every arm and seed of a study, in the study's order."""
    return [of_subject(subject, base) for subject in last_of(subjects)]


def base_of(adapters: Sequence[Path]) -> str:
    """Return the base on which all adapters were trained.

    Raises:
        UserError: There is none, or there are several.
    """
    bases = {adapter_base(check_adapter(folder)) for folder in adapters}
    if len(bases) != 1:
        raise UserError(
            "--tuned needs --base M, the model that was fine-tuned."
            if not bases
            else f"The adapters were trained on {' and '.join(sorted(bases))}: analyse those of one base at a time."
        )
    return bases.pop()


def analyze(base: Weights, sources: Sequence[Source], settings: Settings | None = None) -> Row:
    """Return the anatomy of every source's updates: settings, definitions, and an entry for each source.

    Raises:
        UserError: A source has a module that the base does not have, or in another shape.
    """
    settings = settings or Settings()
    names = sorted({name for source in sources for name in source.names}, key=_order)
    for source in sources:
        if unknown := [name for name in source.names if name not in base]:
            raise UserError(f"{source.where} changes {unknown[0]}, which is not in {base.ref!r}: give its own base.")

    def sites(name: str) -> list[Row | None]:
        weight = Weight.of(base[name], settings.known, settings.exact)
        return [_site(name, weight, source, settings) if name in source.names else None for source in sources]

    by_name = dict(_each(sites, names, base))
    columns = [[row for name in names if (row := by_name[name][i])] for i in range(len(sources))]
    return {
        "base": base.ref,
        "settings": asdict(settings),
        "definitions": DEFINITIONS,
        "arms": [
            _entry(label, source, rows) for label, source, rows in zip(labels(sources), sources, columns, strict=True)
        ],
    }


def _each(
    sites: Callable[[str], list[Row | None]], names: Sequence[str], base: Weights
) -> Iterator[tuple[str, list[Row | None]]]:
    """Yield the sites of every name. Small matrices run in parallel, one on each core: one alone cannot use several."""
    cores = torch.get_num_threads()
    small = [name for name in names if base.shape(name)[0] * base.shape(name)[1] <= SIDE_BY_SIDE]
    large = [name for name in names if name not in small]
    if len(small) > 1:
        try:
            with ThreadPoolExecutor(min(cores, 8), initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from zip(small, pool.map(sites, small), strict=True)
        finally:
            torch.set_num_threads(cores)
    for done, name in enumerate(large if len(small) > 1 else names, start=1):
        yield name, sites(name)
        if done % 10 == 0 and done < len(large):
            say(f"  {done} of {len(large)} large matrices")


def _site(name: str, weight: Weight, source: Source, settings: Settings) -> Row:
    update = source.update(name, weight.matrix)
    if update.shape != tuple(weight.matrix.shape):
        raise UserError(
            f"{name} is {update.shape} in {source.where} and {tuple(weight.matrix.shape)} in the base: give its own "
            "base with --base."
        )
    return describe(name, weight, update, settings)


def _order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layers by number."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def labels(sources: Sequence[Source]) -> list[str]:
    """Return a name for each source: its arm, with the seed, or else the place, if others have the same."""
    arms = [source.arm for source in sources]
    longer = [s.where if s.seed is None else f"{s.arm}, seed {s.seed}" for s in sources]
    return [arm if arms.count(arm) == 1 else other for arm, other in zip(arms, longer, strict=True)]


def _entry(label: str, source: Source, sites: list[Row]) -> Row:
    facts = {name: getattr(source, name) for name in ("arm", "seed", "checkpoint", "kind", "where", "note")}
    return {"label": label, **facts, "summary": summary(sites), "sites": sites}


def summary(sites: Sequence[Row]) -> Row:
    """Return figures over all sites: norms as of one vector, medians of ranks, mean overlaps, sums of counts."""
    moved = [site for site in sites if site["norm"]]
    weights = sum((site["norm"] / site["relative_norm"]) ** 2 for site in moved)
    effective = [site["effective_rank"] for site in moved if site["effective_rank"] is not None]
    changed = sum(site["bfloat16"]["wanted"] for site in moved)
    unmoved = sum(site["bfloat16"]["share_unmoved"] * site["bfloat16"]["wanted"] for site in moved)
    figures: Row = {
        "sites": len(sites),
        "moved": len(moved),
        "norm": sum(site["norm"] ** 2 for site in moved) ** 0.5,
        "relative_norm": (sum(site["norm"] ** 2 for site in moved) / weights) ** 0.5 if moved else 0.0,
        "relative_spectral_norm": median(site["relative_spectral_norm"] for site in moved) if moved else 0.0,
        "stable_rank": median(site["stable_rank"] for site in moved) if moved else 0.0,
        "effective_rank": median(effective) if effective else None,
        "unmoved": unmoved / changed if changed else 0.0,
    }
    for kind in ("overlap", "weighted_overlap"):
        for of in (kind, f"random_{kind}"):
            figures[of] = {side: mean(site[of][side] for site in moved) if moved else 0.0 for side in SIDES}
    counts = ("tested", "found", "rotated", "undecided")
    return figures | {"intruders": {what: sum(site["intruders"][what] for site in moved) for what in counts}}


DEFINITIONS = {
    "norm": "||dW||_F; relative_norm divides by ||W||_F, spectral_norm is ||dW||_2, relative_spectral_norm by ||W||_2",
    "stable_rank": "||dW||_F^2 / ||dW||_2^2",
    "summary": "over sites that moved: norms as of one long vector, medians of relative_spectral_norm and of ranks, "
    "means of overlaps, sums of counts",
    "effective_rank": "exp of the entropy of singular values divided by their sum (Roy & Vetterli 2007); null where a "
    "large dense dW was not decomposed",
    "overlap": "share of ||dW||_F^2 in the top singular directions of W: left U'dW, right dW V, both U'dW V",
    "weighted_overlap": "the same with directions weighted by S / ||S||",
    "random_overlap": "what a dW of random direction has: k/out, k/in, and their product; weighted 1/out, 1/in",
    "intruders": "of the first `tested` left singular vectors of W + dW, `found` have |cosine| < epsilon with all of "
    "W's; `rotated` of these lie mostly where W's singular values are within 10 %; `undecided` were not counted",
    "bfloat16": "entries that dW changes, and of these the share that rounding W + dW to bfloat16 leaves unmoved",
}
