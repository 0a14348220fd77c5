"""Fields of an adapter_config.json that decide how an adapter acts, checked before PEFT reads them.

PEFT takes values of any type and fails on them later, somewhere in a model, or goes on for ever.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError

from lowtax.common.borders import brief, reason
from lowtax.common.errors import UserError
from lowtax.models.names import MOST_LAYERS


def _pattern(text: str) -> str:
    """Return a regular expression.

    Raises:
        ValueError: it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise ValueError(f"it is no regular expression: {reason(error)}") from error
    return text


Pattern = Annotated[str, Field(max_length=10_000), AfterValidator(_pattern)]
Rank = Annotated[int, Field(strict=True, gt=0, le=1_000_000)]
Number = Annotated[float, Field(strict=True, ge=-1e9, le=1e9)]
Layer = Annotated[int, Field(strict=True, ge=0, lt=MOST_LAYERS)]


class _Fields(BaseModel):
    """The fields of an adapter_config.json that decide how its factors act; others are left to PEFT."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    base_model_name_or_path: str | None = Field(None, max_length=4096)
    revision: str | None = Field(None, max_length=4096)
    task_type: str | None = None
    r: Rank = 8
    lora_alpha: Number = 8
    lora_dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    target_modules: Pattern | list[str] | None = None
    exclude_modules: Pattern | list[str] | None = None
    rank_pattern: dict[Pattern, Rank] | None = None
    alpha_pattern: dict[Pattern, Number] | None = None
    layers_to_transform: Layer | list[Layer] | None = None
    layers_pattern: Pattern | list[Pattern] | None = None
    bias: str = "none"
    use_rslora: StrictBool | None = None
    fan_in_fan_out: StrictBool | None = None
    inference_mode: StrictBool | None = None
    init_lora_weights: StrictBool | str | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None


def require_fields(path: Path, config: Mapping[str, Any]) -> None:
    """Check the fields of an adapter's configuration.

    Args:
        path: the file, for errors.
        config: its content.

    Raises:
        UserError: a field has a value that PEFT cannot have written.
    """
    try:
        _Fields.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where, message = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} cannot be read: {where} is {brief(config.get(where))} ({message}); copy or save the adapter again."
        ) from error
