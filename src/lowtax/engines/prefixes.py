"""Replies that begin with text of an attack: the engine's prefix, in the format of the model's thoughts.

A text in the thought follows the tag that opens it. A text in the answer follows a thought without words where the
chat template opens one. As in `thinking_modes`, what is written for the model is not part of its reply.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from lowtax.common.errors import UserError
from lowtax.common.records import Attacked
from lowtax.data import chat
from lowtax.data.rendering import THINK, Markers
from lowtax.engines.base import Request
from lowtax.models import loading

if TYPE_CHECKING:
    from lowtax.engines.sampling import Ask


def begun(requests: Sequence[Request], asks: "Sequence[Ask]") -> list[Request]:
    """Return the requests of these asks, with the prefixes that their prompts' attacks write.

    A model without a tokenizer on this machine (one behind a server) counts as one that thinks in `<think>` tags and
    whose template opens no thought.

    Raises:
        UserError: An attack writes a thought where the model has none.
    """
    done = list[Request]()
    formats: dict[str, tuple[Markers, str]] = {}
    for request, ask in zip(requests, asks, strict=True):
        attacked = ask.prompt.attacked
        if attacked is None or not attacked.prefix:
            done.append(request)
            continue
        if attacked.part == "thought" and request.thinking == "off":
            raise _no_thought(attacked.attack)
        if ask.subject.model not in formats:
            formats[ask.subject.model] = _format(ask.subject.model, request)
        done.append(replace(request, prefix=prefix(attacked, *formats[ask.subject.model])))
    return done


def prefix(attacked: Attacked, markers: Markers, prompt: str) -> str:
    """Return the text after the prompt with which a reply begins.

    Args:
        markers: the model's format of a thought.
        prompt: a prompt as the chat template writes it.

    Raises:
        UserError: The attack writes a thought, and the prompt leaves none.
    """
    opened = markers.opens(prompt)
    if attacked.part == "thought" and (markers.closes(prompt) or (markers.closed and not markers.in_tags)):
        raise _no_thought(attacked.attack)
    if attacked.part == "thought":
        end = markers.closing if attacked.closed else ""
        return (markers.after(prompt) if opened else markers.opening) + attacked.prefix + end
    if opened:
        return markers.closing + attacked.prefix
    return markers.before_answer + attacked.prefix


def _no_thought(attack: str) -> UserError:
    return UserError(
        f"The attack {attack} begins the thought, but thinking is off or the chat template allows none here: turn "
        "thinking on, or use `prefill`, which begins the answer."
    )


def answer_lead(model: str, request: Request) -> str:
    """Return the text with which an answer begins at once: it ends the thought that the chat template opens."""
    return prefix(Attacked(attack="", request=""), *_format(model, request))


def _format(model: str, request: Request) -> tuple[Markers, str]:
    """Return the model's format of a thought, and a prompt as its chat template writes it."""
    try:
        tokenizer = loading.load_tokenizer(model)
        markers = chat.markers_of(tokenizer, request.thinking, request.variables, request.tags)
        prompt = chat.generation_prompt(tokenizer, list(request.messages), request.thinking, request.variables)
    except (OSError, ValueError, UserError, TemplateError):
        return THINK, ""
    return markers, prompt
