"""The attacker's texts: how they are asked for again, and how the prompt in them is read.

An attacker that refuses, repeats itself or writes no JSON is asked again, a few times. Then the step has no prompt; it
is counted, and it is never a success.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lowtax.attacks.arena import Arena, Draft

NO_JSON = "no JSON"


@dataclass(frozen=True)
class Written:
    """The outcome of a draft: the attacker's words, the prompt in them, empty with a problem, and all tokens."""

    wrote: str
    prompt: str
    problem: str
    tokens: int


def written(arena: Arena, drafts: Sequence[Draft], read: Callable[[str], str | None]) -> list[Written]:
    """Return what the attacker wrote for each draft, after as many tries as the attack allows.

    Args:
        read: the prompt in a text of the attacker; None if there is none.
    """
    results: dict[int, Written] = {}
    open_ = list(range(len(drafts)))
    for number in range(arena.attack.tries):
        if not open_:
            break
        calls = arena.write([replace(drafts[i], key=(*drafts[i].key, number)) for i in open_])
        prompts = [read(call.text) for call in calls]
        problems = arena.unusable([prompt or "" for prompt in prompts])
        for i, call, prompt, problem in zip(open_, calls, prompts, problems, strict=True):
            if call.finish == "failed":
                problem = "failed"
            elif prompt is None:
                problem = "refused" if "refused" in arena.unusable([call.text]) else NO_JSON
            tokens = call.tokens + (results[i].tokens if i in results else 0)
            results[i] = Written(call.text, "" if problem or prompt is None else prompt, problem, tokens)
        open_ = [i for i in open_ if results[i].problem]
    return [results[i] for i in range(len(drafts))]


def read_json(text: str, name: str) -> str | None:
    """Return the text field of the first JSON object in a text; None if there is no such field or it is empty."""
    value, _ = _first_object(text)
    prompt = value.get(name) if isinstance(value, dict) else None
    return prompt.strip() if isinstance(prompt, str) and prompt.strip() else None


def json_alone(text: str) -> str:
    """Return the first JSON object in a text as it is written there; the text itself if there is none."""
    value, place = _first_object(text)
    return text[place] if isinstance(value, dict) else text


def _first_object(text: str) -> tuple[object, slice]:
    begin = text.find("{")
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text[begin:]) if begin >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None, slice(0, 0)
    return value, slice(begin, begin + end)


def plain(text: str) -> str | None:
    """Return a text that is a prompt as a whole, without quotes around it; None if it is empty."""
    stripped = text.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] == '"':
        stripped = stripped[1:-1].strip()
    return stripped or None
