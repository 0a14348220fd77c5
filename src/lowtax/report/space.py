"""A page as a static Space of the Hugging Face hub: the README.md that makes a folder of files one."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from lowtax.common.display import as_markdown
from lowtax.common.files import write_text
from lowtax.report.stored import Stored

LONGEST = 60  # characters of a title or a short description that the hub takes


def write_readme(folder: Path, studies: Sequence[Stored]) -> None:
    """Write the README.md of a Space into the folder of a page: its settings, and a sentence on what it shows."""
    names = " and ".join(study.name for study in studies)
    settings = {
        "title": names[:LONGEST],
        "emoji": "\N{SHIELD}",
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "tags": ["lowtax", "safety-alignment"],
        "short_description": "Replies, verdicts and intervals of a study"[:LONGEST],
    }
    front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    text = f"The page of {as_markdown(names)}, made by `lowtax report`. Some of its texts are harmful.\n"
    write_text(folder / "README.md", f"---\n{front}---\n\n# {as_markdown(names)}\n\n{text}")
