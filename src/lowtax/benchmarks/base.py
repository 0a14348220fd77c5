"""The settings of a benchmark in a recipe."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from lowtax.common.config import Section
from lowtax.engines.settings import Sampling


class Task(Section):
    """A reasoning task."""

    benchmark: str | None = Field(
        None, description="the benchmark (docs/reference/benchmarks.md); the task's name if absent"
    )
    file: str | None = Field(None, description="a local copy of the benchmark's questions, or your own questions")
    n: PositiveInt | None = Field(
        None, description="number of problems, chosen by the seed; all if absent, 100 if generated"
    )
    split: str | None = Field(None, description="the split; the one that is usually evaluated if absent")
    subset: str | None = Field(None, description="mmlu: subjects, separated by commas; reasoning_gym: a data set")
    seed: NonNegativeInt = Field(0, description="decides problems and order of options, the same for every arm")
    preset: Literal["default", "paper", "reference"] = Field(
        "default", description="paper: the paper's prompts; reference: its code's extraction of answers, too"
    )
    checker: str | None = Field(
        None, description="a model that checks the boxed answers which the rules reject; reported separately"
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=32768, temperature=0.6, top_p=0.95), description="sampling of answers"
    )
