"""Make the stored study of tests/golden again: `PYTHONPATH=tests/support python tests/golden/make.py`.

Only a change of format that is meant needs it.

A tiny random model is trained by two arms over two seeds, one arm is edited, the fake engine replies, and every stage
writes its files. Weights are left out, since they differ in their last bits between processors; everything that is
left is the same on every machine, but for the times, versions and hardware in the cards.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import yaml
from golden_study import FOLDER, RECIPE, rows, stub_model

from lowtax.study import recipe, study

KEPT = (".json", ".jsonl", ".yaml", ".md")
LEFT_OUT = ("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def main() -> None:
    """Write tests/golden/study, in place of the one that is there."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        stub_model(Path("model"))
        rows()
        Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        study.Study(recipe.load("recipe.yaml"), Path("study")).run()
        shutil.rmtree(FOLDER / "study", ignore_errors=True)
        for path in sorted(Path("study").rglob("*")):
            if path.suffix in KEPT and path.name not in LEFT_OUT:
                target = FOLDER / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        listing = sorted(str(p.relative_to("study")) for p in Path("study").rglob("*") if p.is_file())
        (FOLDER / "listing.json").write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
