"""Renderings: the layout of a thought and an answer in the text that a model learns to write; and the way back.

This is pure text; tokens and chat templates are in `lowtax.data.chat`. One data set is rendered in several ways by the
code that was published for it (DirectRefusal: three). Results depend on it, so a rendering has a name and is recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lowtax.common.errors import UserError, did_you_mean

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Rendering:
    """The layout `opening + thought + closing + label + answer`; `lowtax.data.chat` adds the end-of-turn token.

    opening, closing: the text before and after a thought. A think block that the prompt opens is not opened again.
    label: the text before an answer that does not contain it.
    strip: remove white space around the thought and around the answer.
    only_opened: write a thought only if the prompt opens a think block.
    as_sampled: if False, remove the think block that the prompt opens, and train its opening tag too. The prompt that
        is trained on then differs from the one that is sampled from.
    description: one line for the table in docs/guides/training-data.md.
    """

    opening: str
    closing: str
    description: str
    label: str = ""
    strip: bool = False
    only_opened: bool = False
    as_sampled: bool = True

    def prompt(self, prompt: str) -> str:
        """Return the prompt to train on, given the one to sample from."""
        if self.as_sampled or not opens(prompt):
            return prompt
        return prompt.rstrip().removesuffix(OPEN)

    def keeps_thought(self, prompt: str) -> bool:
        """Return whether a thought is written after this prompt; not after a think block that the prompt closes."""
        return opens(prompt) or not (self.only_opened or prompt.rstrip().endswith(CLOSE))

    def completion(self, prompt: str, thought: str | None, answer: str, before_answer: str = "") -> str:
        """Return the text that the model learns to write after `prompt`, the one to sample from.

        `before_answer` is the text that the chat template itself writes before an answer without a thought.

        Raises:
            UserError: The rendering does not fit a prompt that opens a think block.
        """
        if self.strip:
            thought, answer = thought and thought.strip(), answer.strip()
        if self.label and self.label.strip() not in answer:
            answer = self.label + answer
        opened = opens(prompt) and self.as_sampled
        if opened and not self.opening.startswith(OPEN):
            raise UserError(
                f"This rendering begins a thought with {self.opening.strip()!r}, but the chat template already opens "
                f"{OPEN}: choose another rendering for this model, such as `standard`."
            )
        if thought is None or not self.keeps_thought(prompt):
            return (before_answer or (self.closing.lstrip() if opened else "")) + answer
        if not opened:
            return self.opening + thought + self.closing + answer
        # A prompt that ends in a bare <think> lacks the line break that the opening may have.
        missing = self.opening.removeprefix(OPEN) if prompt.endswith(OPEN) else ""
        return missing + thought + self.closing + answer


RENDERINGS = {
    "standard": Rendering(
        f"{OPEN}\n",
        f"\n{CLOSE}\n\n",
        "The models' own layout: line breaks inside the think block, a blank line after it; texts as they are.",
    ),
    "reference": Rendering(
        OPEN,
        CLOSE,
        "arXiv 2507.17075: no line breaks, the answer's leading space kept; a thought for R1-Distill and others whose "
        "prompt opens one, none for Qwen.",
        only_opened=True,
    ),
    "reference_as_published": Rendering(
        OPEN,
        CLOSE,
        "The same with the prompt of the reference's code, which ends before `<think>`: not the sampled prompt.",
        only_opened=True,
        as_sampled=False,
    ),
    "thinksafe": Rendering(
        f"{OPEN}\n",
        f"\n{CLOSE}\n\n",
        "arXiv 2601.23143: the standard layout, thought and answer stripped.",
        strip=True,
    ),
    "safety_tax": Rendering(
        "<|im_start|>think\n ",
        "<|im_start|>answer\n",
        "arXiv 2503.00555, DirectRefusal: s1's markers, and the answer labelled. Plain text to models without ChatML.",
        label="Answer: ",
        strip=True,
    ),
    "safety_tax_cot": Rendering(
        "<|im_start|>think\n\n",
        "\n<|im_start|>answer\n",
        "arXiv 2503.00555, SafeChain subset: the same with line breaks around the thought.",
        label="Answer: ",
        strip=True,
    ),
}


def named(name: str) -> Rendering:
    """Return the rendering of this name.

    Raises:
        UserError: There is none.
    """
    if name not in RENDERINGS:
        raise UserError(f"There is no rendering {name!r}; {did_you_mean(name, RENDERINGS)}")
    return RENDERINGS[name]


def opens(prompt: str) -> bool:
    """Return whether a prompt ends inside a think block."""
    return prompt.rstrip().endswith(OPEN)


def opened_by_prompts(replies: Iterable[str]) -> bool:
    """Return True if the prompts of stored replies opened the think block: a reply ends a block that none began."""
    return any(CLOSE in reply and not reply.lstrip().startswith(OPEN) for reply in replies)


@dataclass(frozen=True)
class Parts:
    """The thought and the answer of a reply. `closed` is False if its think block has no end."""

    thought: str
    answer: str
    closed: bool


def split_reply(text: str, opened: bool) -> Parts:
    """Split a reply into thought and answer. `opened` says that the prompt ended with `<think>`.

    If the thought has no end, all of the reply is thought and the answer is empty.
    """
    body = text
    if body.lstrip().startswith(OPEN):
        body, opened = body.lstrip()[len(OPEN) :], True
    if CLOSE in body:
        thought, _, answer = body.rpartition(CLOSE)
        return Parts(thought.strip(), answer.strip(), True)
    if opened:
        return Parts(body.strip(), "", False)
    return Parts("", body.strip(), True)
