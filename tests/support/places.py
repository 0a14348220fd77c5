"""Folders that tests read: the repository, its tests, and the published data, which not every machine has."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PUBLISHED = ROOT.parent / "shared" / "data"
