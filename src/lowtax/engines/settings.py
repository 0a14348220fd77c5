"""Settings of engines: the engine that runs a model, and the way in which it draws replies."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lowtax.common.config import MANY, SEED, Section
from lowtax.data.chat import Thinking, Variables

EMBEDDED, PLAIN, THINKING, EXAM = 96, 512, 2048, 32768  # most tokens of a reply where nothing is set
Decoding = Literal["default", "zero_think", "less_think", "more_think"]


class Sampling(Section):
    """Sampling settings."""

    max_new_tokens: PositiveInt = Field(
        EMBEDDED,
        le=MANY,
        description="tokens after which a reply is cut. If absent, replies of models that think have 2,048, of others "
        "512, and of the built-in models 96; answers to tasks 32,768",
        json_schema_extra={"default": "by the model"},
    )
    temperature: NonNegativeFloat = Field(0.0, le=1e6, description="0 is greedy")
    top_p: PositiveFloat = Field(1.0, le=1.0, description="nucleus sampling: total probability of the likeliest tokens")
    top_k: NonNegativeInt = Field(
        0, le=MANY, description="draw from the k likeliest tokens, and top_p of these alone; 0 is all"
    )
    decoding: Decoding = Field("default", description="decoding mode of SafeChain: shorter or longer thoughts")
    system: str | None = Field(None, description="a system prompt")
    samples: PositiveInt = Field(1, le=100_000, description="replies per prompt")
    seed: NonNegativeInt = Field(
        0, le=SEED, description="every reply's seed derives from this, its prompt and its number"
    )


@dataclass(frozen=True)
class EngineSettings:
    """The engine by name, its precision, and how many rows it decodes together.

    thinking: for chat templates with a switch. chat_template_kwargs: variables of the chat template.
    thinking_tags: the tags of thoughts, instead of those that the chat template shows.
    deterministic: every row is decoded in a batch that its study decides, not the other rows that are missing.
    base_is_the_same: the user's word that adapters fit the model, although it has not the weights they were trained on.
    """

    name: str = "hf"
    precision: str = "auto"
    batch_size: int = 16
    thinking: Thinking = "default"
    base_is_the_same: bool = False
    chat_template_kwargs: Variables = field(default_factory=dict)
    thinking_tags: str | None = None
    deterministic: bool = False
