"""How far the checkpoints of a study are from their base, for its table.

    norm            ||dW||_F over all matrices that the arm adapts, as one vector
    relative_norm   the same, divided by ||W||_F of these matrices
    rank            the largest rank of a LoRA's updates; None for full fine-tuning

An adapter's norm comes from its factors; that of a full fine-tuning from all of its matrices, embeddings too, minus
the base's, one at a time. The figures are kept in `updates.json` by what made the checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lowtax.adapterfile import read_adapter
from lowtax.analyze import of_tuned
from lowtax.errors import UserError
from lowtax.files import read_json, write_json
from lowtax.linalg import Dense
from lowtax.sample import Subject
from lowtax.weights import Weights, open_weights

Say = Callable[[str], None]
Update = dict[str, Any]
FILE = "updates.json"


def measured(subjects: Sequence[Subject], model: str, path: Path, say: Say) -> dict[str, Update]:
    """The figures of every checkpoint, by `made_by`; those that the file has are not computed again.

    Where matrices cannot be read (a deleted checkpoint, fused experts, a quantised base), that is said and they are
    left out: all else in the table is known without them.
    """
    found: dict[str, Update] = read_json(path) if path.exists() else {}
    missing = [subject for subject in subjects if subject.checkpoint is not None and subject.made_by not in found]
    try:
        base = open_weights(model) if missing else None
    except UserError as error:
        say(f"  no update norms: {error}")
        return found
    squares: dict[str, float] = {}
    for subject in missing:
        assert base is not None
        try:
            found[subject.made_by] = _figures(subject, base, squares)
        except UserError as error:
            say(f"  no update norm of {subject.arm}, seed {subject.seed}, {subject.checkpoint}: {error}")
            continue
        write_json(path, found)
    return found


def cell(group: Sequence[Subject], found: Mapping[str, Update]) -> Update | None:
    """Of one checkpoint for all seeds: mean norms, the largest rank; None if any is not known."""
    figures = [found.get(subject.made_by) for subject in group]
    known = [one for one in figures if one is not None]
    if len(known) < len(figures):
        return None
    ranks = [one["rank"] for one in known if one["rank"] is not None]
    means = {name: mean(one[name] for one in known) for name in ("norm", "relative_norm")}
    return means | {"rank": max(ranks, default=None)}


def _figures(subject: Subject, base: Weights, squares: dict[str, float]) -> Update:
    """Of one checkpoint. `squares` keeps ||W||_F^2 of the base's matrices from one to the next."""
    if subject.adapter is not None:
        factors = read_adapter(Path(subject.adapter)).factors
        moved = {name: float(x.sq_norm()) for name, x in factors.items()}
        rank = max(x.rank for x in factors.values())
    else:
        source = of_tuned(subject.model, base)
        moved, rank = {}, None
        for name in source.names:
            W = base[name]
            moved[name] = float(source.update(name, W).sq_norm())
            squares[name] = float(Dense(W).sq_norm())
    for name in moved.keys() - squares.keys():
        squares[name] = float(Dense(base[name]).sq_norm())
    norm = max(sum(moved.values()), 0.0) ** 0.5  # of factors that cancel, the sum of squares may be rounded below 0
    return {"norm": norm, "relative_norm": norm / sum(squares[name] for name in moved) ** 0.5, "rank": rank}
