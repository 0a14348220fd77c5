"""The commands `tasks-path` and `lm-eval`: our tasks and engines in lm-evaluation-harness."""

import typer

from lowtax.common.log import tell


def tasks_path() -> None:
    """Print the folder of our lm-evaluation-harness tasks.

    Example: lm_eval --include_path "$(lowtax tasks-path)" --tasks lowtax_arithmetic --model hf ...
    """
    from importlib import resources

    tell(resources.files("lowtax").joinpath("interop/lm_eval_tasks"))


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with our engines and tasks.

    This is its own command line, with the model `lowtax` and the tasks `lowtax_*`.

    Example: lowtax lm-eval run --model lowtax --model_args pretrained=builtin:smollm2-135m --tasks lowtax_arithmetic
    """
    from lowtax.common.log import quiet_libraries

    quiet_libraries()
    from lowtax.interop import lm_eval as lm_eval_model

    lm_eval_model.main(context.args)


# Pass all arguments on to lm-eval.
LM_EVAL_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
