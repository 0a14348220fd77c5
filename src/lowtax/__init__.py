"""Safety alignment of reasoning LLMs without the safety tax.

    import lowtax as lt

    adapter = lt.train("builtin:smollm2-135m-reasoner", data=["builtin:refusals"], mode="lora_mlp_r8", out="runs/mine")
    replies = lt.sample("builtin:smollm2-135m-reasoner", prompts=["builtin:harmful"], adapters=[adapter])
    verdicts = lt.judge(replies, "refusal")

The names in `__all__` are the public API; anything else is internal and may move. Names are loaded when they are first
used, so that `import lowtax` is quick and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowtax.benchmarks.base import Benchmark as Benchmark
    from lowtax.benchmarks.base import Score as Score
    from lowtax.benchmarks.base import Task as Task
    from lowtax.benchmarks.stored_answers import grade as grade
    from lowtax.common.errors import UserError as UserError
    from lowtax.common.linalg import Factors as Factors
    from lowtax.common.log import show_progress as show_progress
    from lowtax.common.records import Grade as Grade
    from lowtax.common.records import Prompt as Prompt
    from lowtax.common.records import Reply as Reply
    from lowtax.common.records import Verdict as Verdict
    from lowtax.engines.base import Completion as Completion
    from lowtax.engines.base import Engine as Engine
    from lowtax.engines.base import Request as Request
    from lowtax.judges.base import Judge as Judge
    from lowtax.judges.base import Kind as JudgeKind  # noqa: F401
    from lowtax.judges.base import Opinion as Opinion
    from lowtax.methods.base import Edit as Edit
    from lowtax.methods.base import Method as Method
    from lowtax.methods.base import Probe as Probe
    from lowtax.methods.base import State as State
    from lowtax.methods.sites import Site as Site
    from lowtax.methods.sites import Sites as Sites
    from lowtax.models.placement import Placement as Placement
    from lowtax.models.placement import parse_mode as parse_mode
    from lowtax.study.api import analyze as analyze
    from lowtax.study.api import compare as compare
    from lowtax.study.api import edit as edit
    from lowtax.study.api import evaluate as evaluate
    from lowtax.study.api import judge as judge
    from lowtax.study.api import merge as merge
    from lowtax.study.api import run as run
    from lowtax.study.api import sample as sample
    from lowtax.study.api import train as train
    from lowtax.study.consistency.run import consistency as consistency
    from lowtax.study.recipe import Recipe as Recipe
    from lowtax.study.recipe import load as load_recipe  # noqa: F401
    from lowtax.study.study import Study as Study
    from lowtax.training.job import Job as Job

__version__ = "0.1.0"

# Public name -> the module that defines it, or module:name where it has another name there.
PUBLIC = {
    # verbs
    "run": "study.api",
    "train": "study.api",
    "sample": "study.api",
    "judge": "study.api",
    "evaluate": "study.api",
    "grade": "benchmarks.stored_answers",
    "compare": "study.api",
    "consistency": "study.consistency.run",
    "edit": "study.api",
    "merge": "study.api",
    "analyze": "study.api",
    "show_progress": "common.log",
    # nouns
    "Study": "study.study",
    "Recipe": "study.recipe",
    "load_recipe": "study.recipe:load",
    "Placement": "models.placement",
    "parse_mode": "models.placement",
    "Job": "training.job",
    "Prompt": "common.records",
    "Reply": "common.records",
    "Verdict": "common.records",
    "Grade": "common.records",
    "UserError": "common.errors",
    # to extend
    "Method": "methods.base",
    "Edit": "methods.base",
    "State": "methods.base",
    "Probe": "methods.base",
    "Site": "methods.sites",
    "Sites": "methods.sites",
    "Factors": "common.linalg",
    "Engine": "engines.base",
    "Request": "engines.base",
    "Completion": "engines.base",
    "Judge": "judges.base",
    "JudgeKind": "judges.base:Kind",
    "Opinion": "judges.base",
    "Benchmark": "benchmarks.base",
    "Score": "benchmarks.base",
    "Task": "benchmarks.base",
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'lowtax' has no attribute {name!r}")
    module, _, attribute = PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(f"lowtax.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
