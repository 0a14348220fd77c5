"""Model cards of checkpoints with what their study measured: rates, also as `model-index`, and the frontier."""

import shutil
from pathlib import Path

from lowtax.common.borders import read_text
from lowtax.common.errors import UserError
from lowtax.common.files import atomic_file, write_text
from lowtax.common.names import below, is_link
from lowtax.models.model_card import with_rates
from lowtax.report.stored import read
from lowtax.report.subjects import BASE

CARD, PICTURE = "README.md", "frontier.png"


def write_cards(folder: Path) -> int:
    """Write the rates of a study's table into the model cards of its checkpoints; return the number of cards.

    A card that lowtax did not write, or whose section of rates was removed, stays as it is.

    Raises:
        UserError: the study has no table, or a folder of a checkpoint is a link.
    """
    study = read(folder)
    if not study.rows:
        raise UserError(f"{folder} has no table: `lowtax compare {folder}` writes it.")
    picture = folder / PICTURE
    written = 0
    for row in study.rows:
        if row["arm"] == BASE or row["checkpoint"] is None:
            continue
        for seed in sorted(below(folder / "arms", row["arm"]).glob("seed-*")):
            checkpoint = seed / row["checkpoint"]
            if not (checkpoint / CARD).is_file():
                continue
            if checkpoint.is_symlink() or (checkpoint / CARD).is_symlink():
                raise is_link(checkpoint)
            card = with_rates(read_text(checkpoint / CARD), row, str(study.table.get("judge", "")), picture.is_file())
            if card is None:
                continue
            if picture.is_file():
                with atomic_file(checkpoint / PICTURE) as work:
                    shutil.copyfile(picture, work)
            write_text(checkpoint / CARD, card)
            written += 1
    return written
