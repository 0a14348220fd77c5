"""The format of a thought, learnt from the chat template: it renders one assistant turn with a thought in it.

Families have their own words: `<think>`, `[THINK]`, `<seed:think>`, channels, or a sentence. No table of them is kept.
A template that takes a thought has a field for it; the text that it writes around this field is the format.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lowtax.data.rendering import CLOSE, OPEN, Markers

THOUGHT, ANSWER = "What-is-considered", "What-is-answered"
FIELDS = ("reasoning_content", "thinking", "reasoning", "thought")  # of an assistant's message
CALL = {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "it"}}}
LITERAL = re.compile(r"""["']type["']: """)  # a list of parts that a template writes as Python or JSON
Render = Callable[[dict[str, Any]], str | None]  # one assistant message -> the conversation; None if refused


def learn(render: Render, prompt: str, words: Sequence[str]) -> Markers | None:
    """Return the texts that a template writes around a thought, or None if it writes no thought.

    Args:
        render: renders a question and this assistant message; None if the template refuses it.
        prompt: the generation prompt after the question.
        words: strings that are one token, or one tag; a text is not split inside them.
    """
    for message in _messages():
        text = render(message) or ""
        before, _, rest = text.partition(THOUGHT)
        closing, answered, _ = rest.partition(ANSWER)
        if not answered or not closing.strip() or THOUGHT in rest or LITERAL.search(closing):
            continue
        if markers := _placed(prompt, before, closing, words):
            return markers
    return _learn_from_call(render, prompt, words)


def _messages() -> Iterator[dict[str, Any]]:
    """Yield an assistant's turn with a thought, in each form that templates take."""
    for name in FIELDS:
        yield {"content": ANSWER, name: THOUGHT}
    text = {"type": "text", "text": ANSWER}
    yield {"content": [{"type": "thinking", "thinking": THOUGHT}, text]}  # Mistral
    yield {"content": {"blocks": [{"type": "thoughts", "text": THOUGHT}, {**text, "type": "response"}]}}  # Apertus


def _learn_from_call(render: Render, prompt: str, words: Sequence[str]) -> Markers | None:
    """Learn from a turn that calls a tool: Gemma 4 and Command-R7B write thoughts only there.

    The closing then reaches to the end of its first token, and the words before an answer follow it.
    """
    for name in FIELDS:
        before, _, rest = (render({"content": "", name: THOUGHT, "tool_calls": [CALL]}) or "").partition(THOUGHT)
        word = first_word(rest, words)
        if word is None or rest[: word.start()].strip():
            continue
        plain = (render({"content": ANSWER}) or "").partition(ANSWER)[0]
        answers = plain[shared(before, plain, words) :]  # the words before an answer
        closing = answers if answers.lstrip().startswith(word[0]) else rest[: word.end()] + answers
        return _placed(prompt, before, closing, words)
    return None


def _placed(prompt: str, before: str, closing: str, words: Sequence[str]) -> Markers | None:
    """Return the markers as they continue the prompt; None if prompt and rendering have nothing to do with each other.

    before: the rendering up to the thought.
    """
    at = shared(prompt, before, words)
    more, opening = prompt[at:], before[at:]
    if not more.strip():
        opened = not opening.strip()
    else:
        word = first_word(closing, words)
        close = word[0] if word else closing.strip()
        if close in more:
            return Markers(_with_tag(before, opening, closing), closing, closed=True, learnt=True)
        if opening.strip():
            return None
        opened = True  # with words that the template leaves out of a finished turn
    return Markers(_with_tag(before, opening, closing), closing, opened=opened, learnt=True)


def _with_tag(before: str, opening: str, closing: str) -> str:
    """Return the opening from its think tag on, if the prompt has that already."""
    if CLOSE in closing and OPEN not in opening and OPEN in before:
        return before[before.rindex(OPEN) :]
    return opening


def shared(one: str, other: str, words: Sequence[str]) -> int:
    """Return the length of the beginning that two texts share; it does not end inside a word."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for word in words:
        if word not in one and word not in other:
            continue
        for start in range(max(0, length - len(word) + 1), length):
            if one.startswith(word, start) or other.startswith(word, start):
                length = start
                break
    return length


def first_word(text: str, words: Sequence[str]) -> re.Match[str] | None:
    """Return the first of the words in a text; of those that begin at one place, the longest."""
    return next(iter(all_words(text, words)), None)


def all_words(text: str, words: Sequence[str]) -> Iterator[re.Match[str]]:
    """Yield the words in a text, in order."""
    present = [word for word in words if word in text]  # of thousands in some vocabularies
    pattern = "|".join(re.escape(word) for word in sorted(present, key=len, reverse=True))
    return re.finditer(pattern, text) if pattern else iter(())
