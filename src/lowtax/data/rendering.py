"""Renderings: how a thought and an answer are laid out as the text that a model is to write; and a reply taken apart.

Pure text: tokens and chat templates are chat.py's. One data set is rendered in several ways by the code that was
published for it (DirectRefusal: three), and results differ with it, so that a rendering has a name and is recorded.
"""

from dataclasses import dataclass

from lowtax.errors import UserError, did_you_mean

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Rendering:
    """`opening + thought + closing + label + answer`; chat.py adds the end-of-turn token.

    opening, closing: what stands before and after a thought. A think block that the prompt opens is not opened again.
    label: put before an answer that does not hold it.
    strip: the thought and the answer lose the white space at their ends.
    only_opened: a thought is written only where the prompt opens a think block.
    as_sampled: False takes a think block that the prompt opens off the prompt, and trains its opening tag too:
        what the model is trained on is then not what it is asked with.
    says: one line for the table in docs/training-data.md.
    """

    opening: str
    closing: str
    says: str
    label: str = ""
    strip: bool = False
    only_opened: bool = False
    as_sampled: bool = True

    def prompt(self, prompt: str) -> str:
        """The prompt that is trained on, from the one that is sampled from."""
        if self.as_sampled or not opens(prompt):
            return prompt
        return prompt.rstrip().removesuffix(OPEN)

    def keeps_thought(self, prompt: str) -> bool:
        """Whether a thought has a place after this prompt: never in a think block that the prompt closes."""
        return opens(prompt) or not (self.only_opened or prompt.rstrip().endswith(CLOSE))

    def completion(self, prompt: str, thought: str | None, answer: str, before_answer: str = "") -> str:
        """What the model is to write after `prompt`, which is the sampled one. `before_answer` is what the chat
        template itself writes before an answer without a thought."""
        if self.strip:
            thought, answer = thought and thought.strip(), answer.strip()
        if self.label and self.label.strip() not in answer:
            answer = self.label + answer
        opened = opens(prompt) and self.as_sampled
        if opened and not self.opening.startswith(OPEN):
            raise UserError(
                f"This rendering begins a thought with {self.opening.strip()!r}, but the chat template has opened "
                f"{OPEN} already: choose another rendering, such as `standard`, for this model."
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
    """A rendering by its name."""
    if name not in RENDERINGS:
        raise UserError(f"There is no rendering {name!r}; {did_you_mean(name, RENDERINGS)}")
    return RENDERINGS[name]


def opens(prompt: str) -> bool:
    """Whether a prompt leaves the model inside a think block."""
    return prompt.rstrip().endswith(OPEN)


@dataclass(frozen=True)
class Parts:
    """A reply taken apart. `closed` is False when a think block was opened and never ended."""

    thought: str
    answer: str
    closed: bool


def split_reply(text: str, opened: bool) -> Parts:
    """Separate thinking from answer. `opened` says that the prompt already ended with `<think>`.

    An unfinished thought has no answer: everything is thought, the answer is empty.
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
