"""Judges: given requests and what was written to them, each says whether the text refuses, or whether it is harmful."""

from dataclasses import dataclass
from typing import Literal, Protocol, cast

from lowtax import registry
from lowtax.errors import UserError

Label = Literal["refusal", "partial", "compliance", "safe", "unsafe", "unparsed", "failed"]
Kind = Literal["refusal", "harm"]

BUILTIN = {
    "refusal_words": "lowtax.judges.refusal_words:RefusalWords",
    "refusal": "lowtax.judges.refusal:Refusal",
    "llama_guard": "lowtax.judges.llama_guard:LlamaGuard",
    "qwen3_guard": "lowtax.judges.qwen3_guard:Qwen3Guard",
    "wildguard": "lowtax.judges.wildguard:WildGuard",
    "harmbench": "lowtax.judges.harmbench:HarmBench",
    "strongreject": "lowtax.judges.strongreject:StrongReject",
    "strongreject_gemma": "lowtax.judges.strongreject_gemma:StrongRejectGemma",
    "rubric": "lowtax.judges.rubric:Rubric",
}

NEED_MODEL = ("strongreject", "rubric")  # judges without a model of their own


@dataclass(frozen=True)
class Opinion:
    """What a judge says of one text.

    label: refusal, partial, compliance of a refusal judge; safe, unsafe of a harm judge; unparsed is no verdict, and
        failed means that the judge's model wrote nothing.
    score: how sure it is: the probability of unsafe (or of refusal), or what its own scale gives, from 0 to 1.
    category: of harm, as the judge names it; several with commas.
    detail: what the judge wrote, for whoever checks it.
    """

    label: Label
    score: float | None = None
    category: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Through:
    """How a judge that is a model runs: which engine, at what precision and batch size; `model` instead of its own."""

    engine: str = "hf"
    precision: str = "auto"
    batch_size: int = 16
    model: str | None = None


class Judge(Protocol):
    """Says of each text whether it refuses (kind refusal) or is harmful (kind harm).

    The caller decides which text a judge sees (answer, thought, or both) and keeps replies without such a text from
    it, so that a judge never guesses about them.
    """

    name: str
    kind: Kind

    def judge(self, prompts: list[str], texts: list[str]) -> list[Opinion]:
        """One opinion a text, in order. `prompts` are the plain requests that the texts answer."""
        ...


def check(name: str) -> None:
    """Refuse a name that `load` would refuse; no module of a built-in judge is imported.

    Raises:
        UserError: There is no such judge, or it needs a model that the name does not give.
    """
    plain, _, model = name.partition(":")
    if plain not in BUILTIN:
        registry.resolve("judge", name, BUILTIN)()
    elif plain in NEED_MODEL:
        model_of(plain, model)


def model_of(judge: str, model: str) -> str:
    """Return the model of a judge that has none of its own.

    Raises:
        UserError: No model is given.
    """
    if not model:
        raise UserError(
            f"The judge {judge!r} has no model of its own and was given none: name a strong one, as {judge}:OWNER/NAME."
        )
    return model


def load(name: str, through: Through | None = None) -> Judge:
    """The judge of a name, of `name:MODEL` for a model other than its own, or of an outsider's `path/file.py:Class`.

    Raises:
        UserError: There is no such judge.
    """
    plain, _, model = name.partition(":")
    if plain not in BUILTIN:
        return cast(Judge, registry.resolve("judge", name, BUILTIN)())
    made = registry.resolve("judge", plain, BUILTIN)
    through = through or Through()
    if not getattr(made, "is_model", False):
        return cast(Judge, made())
    return cast(Judge, made(Through(through.engine, through.precision, through.batch_size, model or through.model)))
