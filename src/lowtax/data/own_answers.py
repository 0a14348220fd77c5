"""Settings of answers that a model writes for training: how they are drawn, and which of them are trained."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lowtax.common.config import MANY, SEED, Section

Answers = Literal["given", "self", "rewrite", "fixed", "rollout"]
Verdicts = Literal["safe", "unsafe", "refusal", "partial", "compliance"]
DRAWN = ("self", "rewrite")  # answers that a model writes before training
PROMPTS_ALONE = ("self", "fixed", "rollout")  # answers for which a source is read for its prompts


class Draw(Section):
    """Sampling of answers for training; what is absent is as in the recipe's `sampling`."""

    temperature: NonNegativeFloat | None = Field(None, le=1e6, description="0 is greedy")
    top_p: PositiveFloat | None = Field(None, le=1.0, description="nucleus sampling")
    top_k: NonNegativeInt | None = Field(None, le=MANY, description="0 is all")
    max_new_tokens: PositiveInt | None = Field(None, le=MANY, description="tokens after which an answer is cut")
    seed: NonNegativeInt | None = Field(None, le=SEED, description="seed of the answers; the same for all arms")
    attempts: PositiveInt = Field(
        1, le=1000, description="answers drawn for a prompt until one can be trained; 1 draws none again"
    )

    def changes(self) -> dict[str, Any]:
        """Return the settings that replace the recipe's."""
        fields = self.model_dump(exclude={"attempts"})
        return {name: value for name, value in fields.items() if value is not None}


class Filter(Section):
    """The judge that decides which answers are trained. `JUDGE` alone is its short form."""

    judge: str = Field(description="a judge (docs/reference/judges.md)")
    text: Literal["answer", "thought", "both"] = Field("both", description="the text that it reads beside the prompt")
    keeps: list[Verdicts] | None = Field(
        None,
        description="the verdicts of answers that are used; if absent safe and refusal, of rows that are `ordinary` "
        "safe and compliance, and of rejected answers unsafe and compliance. An answer without a verdict is dropped",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, values: Any) -> Any:
        return {"judge": values} if isinstance(values, str) else values

    def passing(self, ordinary: bool, rejected: bool = False) -> tuple[str, ...]:
        """Return the verdicts of answers that are used: of ordinary rows, of rejected answers, or of others."""
        if self.keeps:
            return tuple(self.keeps)
        return ("unsafe", "compliance") if rejected else ("safe", "compliance" if ordinary else "refusal")
