"""What the card of a finished training tells: its checkpoints, as something to be asked."""

from pathlib import Path
from typing import Any

from lowtax.errors import UserError
from lowtax.files import read_json
from lowtax.records import row_id
from lowtax.sample import Subject


def card(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """The card of a training that is finished.

    Raises:
        UserError: It is not.
    """
    if not (folder / "card.json").exists():
        raise UserError(f"Arm {arm!r}, seed {seed} is not trained yet: `lowtax run` or `lowtax train` finishes it.")
    found: dict[str, Any] = read_json(folder / "card.json")
    return found


def subjects(folder: Path, arm: str, seed: int, full: bool, base: Subject) -> list[Subject]:
    """The checkpoints of a training; they are whole models if it was `full`, else adapters."""
    found = card(folder, arm, seed)
    return [
        Subject(
            arm=arm,
            seed=seed,
            checkpoint=row["name"],
            step=row["step"],
            model=str(folder / row["name"]) if full else base.model,
            adapter=None if full else str(folder / row["name"]),
            made_by=row_id(found["job"], row["step"], base.made_by),
            trainable_parameters=found["trainable_parameters"],
            train_seconds=row["seconds"],
        )
        for row in found["checkpoints"]
    ]
