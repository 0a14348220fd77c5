"""Renderings: the layout of a thought and an answer in the text that a model learns to write; and the way back.

This is pure text; tokens and chat templates are in `lowtax.data.chat`. One data set is rendered in several ways by the
code that was published for it (DirectRefusal: three). Results depend on it, so a rendering has a name and is recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lowtax.common.errors import UserError, did_you_mean
from lowtax.data import thinking_tags
from lowtax.data.thinking_tags import Tags

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Markers:
    """A model's own format of a reply: `opening + thought + closing + answer + ending`, as its chat template writes it.

    opening: the text between the prompt and a thought. closing: the text between a thought and its answer.
    before_answer: the text between the prompt and an answer without a thought (Qwen3: an empty think block).
    ending: the text between an answer and the token that ends the turn.
    opened: the prompt ends inside a thought. closed: the prompt ends after an empty thought, or the template writes
        none in this position of its switch. In formats with think tags, the text of each prompt decides instead.
    learnt: the template has a field for thoughts, which shows the format; otherwise it is that of R1.
    """

    opening: str = f"{OPEN}\n"
    closing: str = f"\n{CLOSE}\n\n"
    before_answer: str = ""
    ending: str = ""
    opened: bool = False
    closed: bool = False
    learnt: bool = False

    @property
    def in_tags(self) -> bool:
        """True if the thought is in `<think>` tags."""
        return CLOSE in self.closing

    @cached_property
    def tags(self) -> Tags:
        """The words around a thought, with all forms of a known family."""
        words = (part.strip() for part in (self.opening, self.closing, self.close, self.before_answer, self.ending))
        return thinking_tags.of_format(*words)

    @property
    def lead(self) -> str:
        """The text that comes before an answer and before a thought alike."""
        if self.in_tags:
            return self.opening.partition(OPEN)[0]
        return "" if self.opened or self.closed else self.before_answer

    @property
    def close(self) -> str:
        """The end of a thought alone, without the words that the template writes before an answer."""
        closing = self.closing.strip()
        return closing.removesuffix(self.before_answer.strip()).strip() or closing

    def opens(self, prompt: str) -> bool:
        """Return whether a prompt ends inside a thought."""
        return opens(prompt) if self.in_tags else self.opened

    def closes(self, prompt: str) -> bool:
        """Return whether a prompt ends after an empty thought, so that another has no place."""
        return prompt.rstrip().endswith(CLOSE) if self.in_tags else self.closed

    def after(self, prompt: str) -> str:
        """Return the text between a prompt that ends inside a thought and the words of this thought."""
        if not self.in_tags:
            return self.opening
        return self.opening.partition(OPEN)[2] if prompt.endswith(OPEN) else ""


THINK = Markers()


@dataclass(frozen=True)
class Rendering:
    """The layout `opening + thought + closing + label + answer`; `lowtax.data.chat` adds the end-of-turn token.

    A layout in think tags is written in the model's own words where the model has others.

    opening, closing: the text before and after a thought. A think block that the prompt opens is not opened again.
    label: the text before an answer that does not contain it.
    strip: remove white space around the thought and around the labelled answer.
    only_opened: write a thought only if the prompt opens a think block.
    as_sampled: if False, remove the think block that the prompt opens, and train its opening tag too. The prompt that
        is trained on then differs from the one that is sampled from.
    own: the model's own format, as far as its template shows one; also the line breaks around its tags.
    description: one line for the table in docs/guides/training-data.md.
    """

    opening: str
    closing: str
    description: str
    label: str = ""
    strip: bool = False
    only_opened: bool = False
    as_sampled: bool = True
    own: bool = False

    def prompt(self, prompt: str) -> str:
        """Return the prompt to train on, given the one to sample from."""
        if self.as_sampled or not opens(prompt):
            return prompt
        return prompt.rstrip().removesuffix(OPEN)

    def keeps_thought(self, prompt: str, markers: Markers = THINK) -> bool:
        """Return whether a thought is written after this prompt; not after a think block that the prompt closes."""
        return markers.opens(prompt) or not (self.only_opened or markers.closes(prompt))

    def completion(self, prompt: str, thought: str | None, answer: str, markers: Markers = THINK) -> str:
        """Return the text that the model learns to write after `prompt`, the one to sample from.

        Raises:
            UserError: The rendering does not fit a prompt that opens a think block.
        """
        if self.label and self.label.strip() not in answer:
            answer = self.label + answer
        if self.strip:
            thought, answer = thought and thought.strip(), answer.strip()
        opened = markers.opens(prompt) and self.as_sampled
        if opened and not self.opening.startswith(OPEN):
            raise UserError(
                f"This rendering begins a thought with {self.opening.strip()!r}, but the chat template already opens "
                f"{OPEN if markers.in_tags else 'one'}: choose another rendering for this model, such as `standard`."
            )
        layout = self._in_words_of(markers)
        if thought is None or not self.keeps_thought(prompt, markers):
            return (markers.before_answer or (layout.closing.lstrip() if opened else "")) + answer
        if not opened:
            return layout.opening + thought + layout.closing + answer
        # A prompt that ends in a bare <think> lacks the line break that the opening may have.
        return layout.after(prompt) + thought + layout.closing + answer

    def _in_words_of(self, markers: Markers) -> Markers:
        """Return the texts around a thought in this layout, for a model with these markers."""
        in_tags = self.opening.startswith(OPEN)
        if self.own or (in_tags and not markers.in_tags):
            return markers
        return replace(markers, opening=markers.lead + self.opening, closing=self.closing)


RENDERINGS = {
    "standard": Rendering(
        f"{OPEN}\n",
        f"\n{CLOSE}\n\n",
        "The model's own layout, learnt from its template; else line breaks inside the think block and a blank line "
        "after it. Texts as they are.",
        own=True,
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
        "arXiv 2503.00555, SafeChain subset: the same with line breaks around the thought; what an answer begins with "
        "follows the label.",
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


@dataclass(frozen=True)
class Parts:
    """The thought and the answer of a reply. `closed` is False if its think block has no end."""

    thought: str
    answer: str
    closed: bool


def split_reply(text: str, opened: bool | None, markers: Markers = THINK) -> Parts:
    """Split a reply into thought and answer, by the rules of `thinking_tags.split`.

    Besides the model's own format, a reply may begin with the tags of any known family.

    Args:
        opened: the prompt ended inside a thought; None if that is not known.
        markers: the model's format of a thought.
    """
    return Parts(*thinking_tags.split(text, opened, [markers.tags], thinking_tags.FAMILIES))


def split_stored(text: str, tags: str | None = None, opened: bool | None = None) -> Parts:
    """Split a reply of which only the text is known, each by itself: another row of its file decides nothing.

    Args:
        tags: the family or pair of its tags (`thinking_tags.parse`); any known one by default.
        opened: the prompt ended inside a thought; None if that is not known.

    Raises:
        UserError: There is no such family.
    """
    return Parts(*thinking_tags.split(text, opened, thinking_tags.parse(tags)))


def unopened(replies: Sequence[str], tags: str | None = None) -> int:
    """Return the number of stored replies that end a thought which they do not begin."""

    def thought(reply: str, opened: bool | None) -> bool:
        return bool(split_stored(reply, tags, opened).thought)

    return sum(thought(reply, None) and not thought(reply, False) for reply in replies)


def opened_note(replies: Sequence[str], tags: str | None = None) -> str | None:
    """Return a sentence if most stored replies end a thought that they do not begin and others have none, else None.

    Their prompts opened the thought, so that the others may have been cut in it.
    """
    parts = [split_stored(reply, tags) for reply in replies]
    without, bare = sum(part.closed and not part.thought for part in parts), unopened(replies, tags)
    if not without or 2 * bare <= len(replies):
        return None
    return (
        f"{bare:,} of {len(replies):,} replies end a thought that they do not begin, so their prompts opened it; "
        f"{without:,} have no closing tag and count as answers: if they were cut in their thought, add --opened"
    )
