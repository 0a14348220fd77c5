"""Norms of the updates that the checkpoints of a study make to their base, for its table.

    norm            ||dW||_F over all matrices that the arm adapts, taken as one vector
    relative_norm   the same, divided by ||W||_F of these matrices
    rank            the largest rank of an adapter's updates; None for full fine-tuning

An adapter's norm comes from its factors. For full fine-tuning, the base's matrices are subtracted from the checkpoint's
one at a time, embeddings included; the update of an adapter on such a checkpoint is that of both. `updates.json`
stores the figures by `made_by`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lowtax.analysis.geometry import of_subject
from lowtax.common.cards import Updates, read_card
from lowtax.common.errors import UserError
from lowtax.common.files import write_json
from lowtax.common.linalg import Dense
from lowtax.common.log import say
from lowtax.common.records import Subject
from lowtax.models.adapters import read_adapter
from lowtax.models.weights import Weights, open_weights

Update = dict[str, Any]
FILE = "updates.json"


def measured(subjects: Sequence[Subject], model: str, path: Path) -> dict[str, Update]:
    """Return the figures of every checkpoint, by `made_by`. Figures in the file are not computed again.

    Matrices that cannot be read (a deleted checkpoint, fused experts, a quantised base) are reported and left out: the
    rest of the table does not need them.
    """
    figures: dict[str, Update] = read_card(path, Updates) if path.exists() else {}
    missing = [subject for subject in subjects if subject.checkpoint is not None and subject.made_by not in figures]
    try:
        base = open_weights(model) if missing else None
    except UserError as error:
        say(f"  no update norms: {error}")
        return figures
    squares: dict[str, float] = {}
    for subject in missing:
        assert base is not None
        try:
            figures[subject.made_by] = _figures(subject, base, squares)
        except UserError as error:
            say(f"  no update norm of {subject.arm}, seed {subject.seed}, {subject.checkpoint}: {error}")
            continue
        write_json(path, figures)
    return figures


def cell(group: Sequence[Subject], figures: Mapping[str, Update]) -> Update | None:
    """Return the mean norms and the largest rank of one checkpoint over its seeds; None if one is missing."""
    updates = [figures[subject.made_by] for subject in group if subject.made_by in figures]
    if len(updates) < len(group):
        return None
    ranks = [update["rank"] for update in updates if update["rank"] is not None]
    means = {name: mean(update[name] for update in updates) for name in ("norm", "relative_norm")}
    return means | {"rank": max(ranks, default=None)}


def logit_change(group: Sequence[Subject], effects: Mapping[str, float]) -> dict[str, float]:
    """Return the mean effect of one checkpoint over its seeds as a cell of the table; nothing if one is unknown."""
    known = [effects[subject.made_by] for subject in group if subject.made_by in effects]
    return {"logit_change": mean(known)} if known and len(known) == len(group) else {}


def _figures(subject: Subject, base: Weights, squares: dict[str, float]) -> Update:
    """Return the figures of one checkpoint. `squares` caches ||W||_F^2 of the base's matrices between calls."""
    if subject.adapter is not None and subject.model == base.ref:
        factors = read_adapter(Path(subject.adapter), base.ref).factors
        moved = {name: float(x.sq_norm()) for name, x in factors.items()}
        rank = max(x.rank for x in factors.values())
    else:
        source = of_subject(subject, base)
        moved, rank = {}, None
        for name in source.names:
            W = base[name]
            moved[name] = float(source.update(name, W).sq_norm())
            squares[name] = float(Dense(W).sq_norm())
    for name in moved.keys() - squares.keys():
        squares[name] = float(Dense(base[name]).sq_norm())
    norm = max(sum(moved.values()), 0.0) ** 0.5  # the squares of factors that cancel may be rounded below 0
    return {"norm": norm, "relative_norm": norm / sum(squares[name] for name in moved) ** 0.5, "rank": rank}
