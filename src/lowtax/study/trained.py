"""The checkpoints of a finished training run as subjects for sampling, read from its card."""

from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.files import read_json
from lowtax.common.records import row_id
from lowtax.engines.sampling import Subject


def card(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Return the card of a finished training run.

    Raises:
        UserError: The run is not finished.
    """
    if not (folder / "card.json").exists():
        raise UserError(f"Arm {arm!r}, seed {seed} is not trained yet: `lowtax run` or `lowtax train` finishes it.")
    facts: dict[str, Any] = read_json(folder / "card.json")
    return facts


def subjects(folder: Path, arm: str, seed: int, full: bool, base: Subject) -> list[Subject]:
    """Return the checkpoints of a training run: whole models if it was `full`, else adapters."""
    facts = card(folder, arm, seed)
    return [
        Subject(
            arm=arm,
            seed=seed,
            checkpoint=row["name"],
            step=row["step"],
            model=str(folder / row["name"]) if full else base.model,
            adapter=None if full else str(folder / row["name"]),
            made_by=row_id(facts["job"], row["step"], base.made_by),
            trainable_parameters=facts["trainable_parameters"],
            train_seconds=row["seconds"],
        )
        for row in facts["checkpoints"]
    ]
