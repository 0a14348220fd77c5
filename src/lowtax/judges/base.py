"""The interface of judges, the table of those that lowtax has, and how one is loaded by name."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

from lowtax.common import registry
from lowtax.common.errors import UserError
from lowtax.data.prompt_sets import has_context
from lowtax.engines.settings import EngineSettings

Text = Literal["answer", "thought", "both"]  # the part of a reply that is judged; both is the reply as it was written
Label = Literal["refusal", "partial", "compliance", "safe", "unsafe", "unparsed", "failed"]
Kind = Literal["refusal", "harm"]

BUILTIN = {
    "refusal_words": "lowtax.judges.refusal_words:RefusalWords",
    "keywords": "lowtax.judges.keywords:Keywords",
    "refusal": "lowtax.judges.refusal:Refusal",
    "llama_guard": "lowtax.judges.llama_guard:LlamaGuard",
    "qwen3_guard": "lowtax.judges.qwen3_guard:Qwen3Guard",
    "wildguard": "lowtax.judges.wildguard:WildGuard",
    "harmbench": "lowtax.judges.harmbench:HarmBench",
    "strongreject": "lowtax.judges.strongreject:StrongReject",
    "strongreject_gemma": "lowtax.judges.strongreject_gemma:StrongRejectGemma",
    "rubric": "lowtax.judges.rubric:Rubric",
}
NO_MODEL = ("refusal_words", "keywords", "refusal")  # judges that are no language model
NEED_MODEL = ("strongreject", "rubric")  # judges without a default model
# Raised whenever the rules or the weights of a judge change: verdicts of another version are judged again.
VERSIONS = {"refusal": "2"}
WITHOUT_CONTEXTS = ("harmbench",)  # judges whose model has another prompt for requests with a context


@dataclass(frozen=True)
class Opinion:
    """A judge's opinion of one text.

    label: refusal, partial or compliance of a refusal judge; safe or unsafe of a harm judge; unparsed is no verdict,
        and failed means that the judge's model wrote nothing.
    score: the probability of unsafe (or of refusal), or the value of the judge's own scale, from 0 to 1.
    category: the kinds of harm as the judge names them, separated by commas.
    detail: the text that the judge wrote, so that people can check it.
    """

    label: Label
    score: float | None = None
    category: str = ""
    detail: str = ""


class Judge(Protocol):
    """Labels texts: whether they refuse (kind refusal) or are harmful (kind harm).

    The caller decides which text a judge sees (answer, thought or both). Replies without such a text never reach it, so
    that a judge never guesses about them.
    """

    name: str
    kind: Kind

    def judge(self, prompts: list[str], texts: list[str]) -> list[Opinion]:
        """Return one opinion per text, in order. `prompts` are the plain requests that the texts answer."""
        ...


@runtime_checkable
class Reader(Judge, Protocol):
    """A judge that tells each opinion as soon as it has it, so that it is stored before the others are read."""

    def opinions(self, prompts: list[str], texts: list[str]) -> Iterator[tuple[int, Opinion]]:
        """Yield the number of each text and its opinion, in any order."""
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
        require_model(plain, model)


def version(name: str) -> str:
    """Return the version of a judge of ours, which is part of the ids of its verdicts; empty for other judges."""
    return VERSIONS.get(name, "")


def refuse_contexts(name: str, prompts: Iterable[tuple[str, str | None]]) -> None:
    """Refuse prompts with a context (HarmBench's contextual behaviours) for a judge that cannot be shown one.

    prompts: pairs of the whole prompt and the plain request that it wraps, if it wraps one.

    Raises:
        UserError: There are such prompts.
    """
    plain = name.partition(":")[0]
    number = sum(has_context(text, goal) for text, goal in prompts) if plain in WITHOUT_CONTEXTS else 0
    if number:
        raise UserError(
            f"The classifier of the judge {plain!r} reads requests with a context by a second prompt, which lowtax "
            f"does not have, and there are {number} such requests here: choose another judge (llama_guard, wildguard, "
            "strongreject:MODEL), or leave out the prompt set (harmbench-contextual)."
        )


def require_model(judge: str, model: str) -> None:
    """Refuse to load a judge without a default model if no model is given.

    Raises:
        UserError: No model is given.
    """
    if not model:
        raise UserError(f"The judge {judge!r} has no default model: name a strong one, as {judge}:OWNER/NAME.")


def unused(name: str, engine: EngineSettings, model: str | None = None) -> list[str]:
    """Return the options that differ from their defaults and that a judge with a separate engine ignores."""
    plain = name.partition(":")[0]
    if plain not in BUILTIN or getattr(registry.resolve("judge", plain, BUILTIN), "is_model", False):
        return []
    usual = EngineSettings()
    options = {
        "--model": bool(model or name.partition(":")[2]),
        "--engine": engine.name != usual.name,
        "--precision": engine.precision != usual.precision,
        "--batch-size": engine.batch_size != usual.batch_size,
    }
    return [option for option, differs in options.items() if differs]


def load(name: str, engine: EngineSettings | None = None, model: str | None = None) -> Judge:
    """Load a judge by name, by `name:MODEL` for a model other than its own, or from `path/file.py:Class`.

    engine, model: for judges that are language models; MODEL in the name takes precedence. `unused` says which options
    another judge ignores.

    Raises:
        UserError: There is no such judge.
    """
    plain, _, named_model = name.partition(":")
    if plain not in BUILTIN:
        return cast(Judge, registry.resolve("judge", name, BUILTIN)())
    judge = registry.resolve("judge", plain, BUILTIN)
    if not getattr(judge, "is_model", False):
        return cast(Judge, judge())
    return cast(Judge, judge(engine, named_model or model))
