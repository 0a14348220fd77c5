"""The base class of all settings that a recipe can hold."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

SEED = 2**63 - 1  # the largest that torch takes
MANY = 10**9  # more steps, rows or tokens than anyone has


class Section(BaseModel):
    """A part of a recipe. It is immutable, and an unknown key is an error.

    later: fields that came after the first stored studies. They are not written while they have their default, so that
        the cards and row ids of those studies stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name in self.later & values.keys():
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                del values[name]
        return values
