"""A study without its weights and texts, small enough to keep in a repository.

A text becomes its SHA-256 (replies to harmful requests are not kept, and benchmarks have licences of their own);
verdicts, grades, tokens and all figures stay. `lowtax compare` refuses such a folder: hashes say nothing.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

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
    ids = set[str]()
    for folder in ROWS:  # replies before their verdicts
        for path in sorted((study / folder).glob("*.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            of_base = [row for row in rows if row.get("arm") == "base" or row.get("reply_id") in ids]
            ids.update(row["id"] for row in of_base)
            (into / folder).mkdir(exist_ok=True)
            write_text(into / folder / path.name, _lines(json.dumps(row, ensure_ascii=False) for row in of_base))


def _hashed(line: str) -> str:
    row = json.loads(line)
    row.pop("columns", None)
    for name in TEXTS:
        if row.get(name):
            row[name] = hashlib.sha256(json.dumps(row[name], ensure_ascii=False).encode()).hexdigest()
    return json.dumps(row, ensure_ascii=False)


def _lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
