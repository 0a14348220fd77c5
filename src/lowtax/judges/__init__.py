"""Judges: does a reply refuse, or is it harmful? One file per judge.

To write one, write a class like `Judge`; no base class is needed. A recipe names it as `path/to/file.py:Class`.
"""

from lowtax.judges.base import Judge, Kind, Label, Opinion

__all__ = ["Judge", "Kind", "Label", "Opinion"]
