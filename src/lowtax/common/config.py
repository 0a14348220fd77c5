"""The base class of all settings that a recipe can hold."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe. It is immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
