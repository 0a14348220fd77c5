"""Tasks from the options of `lowtax evaluate`: names or files of questions, and the sampling settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowtax.benchmarks.base import TABLE, Task
from lowtax.common.borders import expanded
from lowtax.common.errors import UserError, did_you_mean
from lowtax.data import readers
from lowtax.engines.settings import Sampling

# DeepSeek-R1's recommendation, and the settings of arXiv:2507.17075 with its eight seeds.
DEFAULT = {"max_new_tokens": 32768, "temperature": 0.6, "top_p": 0.95}
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": {"samples": 8}, "reference": {"samples": 8}}
CHOICES = ("choices", "options")
LETTERS = {"a", "b", "c", "d"}
QUESTIONS, ANSWERS = ("question", "problem", "prompt"), ("answer", "gold", "final_answer", "solution")


def tasks(names: Sequence[str], preset: str | None, exam: dict[str, Any], drawn: dict[str, Any]) -> dict[str, Task]:
    """Return the tasks by name.

    Args:
        names: a name, a file of questions, or `path/to/file.py:Class` each.
        exam: fields of a task. drawn: fields of its sampling. Values that are None are ignored.

    Raises:
        UserError: A preset, a task or a file does not exist, or two tasks have one name.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"Unknown preset {preset!r}; {did_you_mean(preset, PRESETS)}")
    fields = {key: value for key, value in exam.items() if value is not None}
    if "file" in fields and len(names) > 1:
        raise UserError(f"--file has the questions of one task (found {len(names)} of --task): give one at a time.")
    sampling = Sampling(
        **(DEFAULT | PRESETS[preset or "default"] | {key: value for key, value in drawn.items() if value is not None})
    )
    by_name: dict[str, Task] = {}
    for spec in names:
        name, implied = named(spec)
        if "file" in implied and "file" in fields:
            raise UserError(f"The task {spec!r} is a file of questions already: remove --file.")
        if name in by_name:
            raise UserError(f"Two tasks are called {name!r}: rename a file, or evaluate them into two folders.")
        by_name[name] = Task(**{"preset": preset or "default", "sampling": sampling} | fields | implied)
    return by_name


def named(spec: str) -> tuple[str, dict[str, str]]:
    """Return the name of a task, and the settings that a file path implies.

    Raises:
        UserError: It is neither a task nor a file.
    """
    path, colon, attribute = spec.rpartition(":")
    if spec in TABLE:
        return spec, {}
    if colon and path.endswith(".py"):
        return attribute, {"benchmark": spec}
    where = expanded(spec)
    if where.is_file():
        return where.name.split(".")[0], {"file": spec, "benchmark": _kind(where)}
    raise UserError(
        f"There is no task {spec!r}; {did_you_mean(spec, TABLE)} Give a file of questions, or path/to/file.py:Class."
    )


def _kind(path: Path) -> str:
    """Return the benchmark that reads a file of questions, by the columns of its first row."""
    columns = {name.lower() for name in readers.read_table(path)[0]}
    if columns & set(CHOICES) or columns >= LETTERS:
        return "multiple_choice"
    if columns & set(QUESTIONS) and columns & set(ANSWERS):
        return "math"
    raise UserError(
        f"{path} has the columns {', '.join(sorted(columns))}: questions with options need `question`, `choices` (or "
        "A, B, C, D) and `answer`, open questions `question` and `answer`; for a named task, --task NAME --file FILE."
    )
