"""The matrix of families (`matrix`): nothing is a traceback, and what was trained can be measured.

The whole matrix takes minutes: `make test-zoo`. Without it, a few families that differ most are run.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import FAMILIES
from matrix import AFTER, OK, PLACEMENTS, cells

FEW = ("qwen3", "qwen2_moe", "gemma3")
CHOSEN = FAMILIES if os.environ.get("LOWTAX_ZOO") else FEW


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHOSEN)
def test_a_family(tmp_path: Path, name: str):
    row = cells(name, tmp_path)
    assert row["full"] == OK, row["full"]
    if any(row[step] == OK for step in PLACEMENTS):
        assert {step: row[step] for step in AFTER} == dict.fromkeys(AFTER, OK)
    for text in row.values():
        assert text == OK or text == "-" or "\n" not in text
