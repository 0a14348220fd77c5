"""A study without its weights and texts, small enough to keep in a repository, and the pooling of several over seeds.

A text becomes its SHA-256 (replies to harmful requests are not kept, and benchmarks have licences of their own);
verdicts, grades, tokens and all figures stay. `lowtax compare` is not for such a folder: it would judge the hashes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from lowtax.common.files import write_text

TEXTS = ("prompt", "text", "thought", "answer", "goal", "messages", "detail")
ROWS = ("replies", "answers", "verdicts", "grades")
SIZE = 5_000_000  # bytes; files of settings and figures are smaller


def keep(study: Path, into: Path) -> None:
    """Copy a study's rows, cards and figures into a folder, without weights and with hashes for texts."""
    for path in sorted(study.rglob("*")):
        kept = into / path.relative_to(study)
        if "report" in kept.parts or path.suffix not in (".json", ".jsonl", ".yaml") or path.stat().st_size > SIZE:
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name in ROWS:
            write_text(kept, _lines(_hashed(line) for line in path.read_text().splitlines()))
        else:
            shutil.copyfile(path, kept)


def bases(study: Path, into: Path) -> None:
    """Begin a study with the rows of the untrained model that a kept one has."""
    into.mkdir(parents=True, exist_ok=True)
    if (record := study / "base.json").exists():  # studies of earlier versions have none
        shutil.copyfile(record, into / record.name)  # ids of rows are made of it
    for name, (of_base, _) in _divided(study).items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(into / name, _lines(of_base))


def _divided(study: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return the lines of each file of rows, by its path in the study: those of the base, and the others."""
    ids, divided = set[str](), dict[str, tuple[list[str], list[str]]]()
    for folder in ROWS:  # replies before their verdicts
        for path in sorted((study / folder).glob("*.jsonl")):
            of_base, others = divided[f"{folder}/{path.name}"] = ([], [])
            for line in path.read_text().splitlines():
                row = json.loads(line)
                if row.get("arm") == "base" or row.get("reply_id") in ids:
                    ids.add(row["id"])
                    of_base.append(line)
                else:
                    others.append(line)
    return divided


def pool(studies: Sequence[Path], into: Path) -> None:
    """Make one study of the kept ones, which are the same recipe with other seeds; a row of several is there once."""
    recipe = yaml.safe_load((studies[0] / "recipe.yaml").read_text())
    recipe["seeds"] = sorted({seed for study in studies for seed in _seeds(study)})
    for study in reversed(studies):
        shutil.copytree(study, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*ROWS))
    write_text(into / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    for folder in ROWS:
        for name in sorted({path.name for study in studies for path in (study / folder).glob("*.jsonl")}):
            files = [path for study in studies if (path := study / folder / name).exists()]
            rows = {json.loads(line)["id"]: line for path in files for line in path.read_text().splitlines()}
            (into / folder).mkdir(exist_ok=True)
            write_text(into / folder / name, _lines(rows.values()))


def _seeds(study: Path) -> list[int]:
    return list(yaml.safe_load((study / "recipe.yaml").read_text())["seeds"])


def _hashed(line: str) -> str:
    row = json.loads(line)
    row.pop("columns", None)
    for name in TEXTS:
        if row.get(name):
            row[name] = hashlib.sha256(json.dumps(row[name], ensure_ascii=False).encode()).hexdigest()
    return json.dumps(row, ensure_ascii=False)


def _lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
