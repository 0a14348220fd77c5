"""Encode a training set as tokens: all rows at once, overlong rows counted, every example decoded and compared."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from lowtax.common.display import as_text
from lowtax.common.errors import UserError
from lowtax.data import chat, rendering, special_tokens
from lowtax.data.chat import ConversationText, Thinking, Turn, Variables
from lowtax.data.conversations import Conversation
from lowtax.data.row_tokens import text_of, tokens_of

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A training conversation as tokens; only the completion carries loss.

    With `prompt_loss` all but the first token, before which there is nothing, is completion.

    whole: the completion is complete; False if `max_length` cut off its end.
    teacher: the prompt after which the frozen base is compared with the model on this completion; None if it is not.
    rejected: the example that is rejected in favour of this one.
    """

    prompt: list[int]
    completion: list[int]
    whole: bool = True
    teacher: list[int] | None = None
    rejected: "Example | None" = None


@dataclass(frozen=True)
class Encoded:
    """The examples of a training set, and counts of the rows that were cut or dropped.

    rows: row number of each example.
    truncated: examples that `max_length` cut, so that they have no end-of-turn token.
    dropped: rows whose prompt alone fills `max_length`.
    without_thought: rows whose thought has no place in their rendering after this prompt.
    refused: rows that the chat template or the check refuses, of which `reason` is the first sentence.
    lost: rows with a system or user turn that the chat template leaves out.
    unthinking: rows without a thought, trained directly after a prompt after which the model thinks.
    template: sentences about a chat template whose format differs from that of the rows.
    """

    examples: list[Example]
    rows: list[int]
    truncated: int = 0
    dropped: int = 0
    without_thought: int = 0
    refused: int = 0
    reason: str = ""
    lost: int = 0
    unthinking: int = 0
    template: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return a sentence for each way in which rows are not trained as they are in the data."""
        total = len(self.examples) + self.dropped + self.refused
        counts = (
            (self.truncated, "training rows are longer than train.max_length and lose their end"),
            (self.dropped, "training rows are left out: their prompt alone fills train.max_length"),
            (
                self.without_thought,
                "training rows lose their thought: their rendering has no place for it after this prompt",
            ),
            (self.refused, f"training rows are skipped; the first: {self.reason.removesuffix('.')}"),
            (self.lost, "training rows lose a system or user turn: the chat template leaves it out"),
            (
                self.unthinking,
                "training rows have no thought and nothing in its place: they teach the model to answer without one",
            ),
        )
        return [*(f"{number} of {total} {text}." for number, text in counts if number), *self.template]


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    max_length: int,
    thinking: Thinking = "default",
    variables: Variables | None = None,
    tags: str | None = None,
) -> Encoded:
    """Return rows as examples of at most `max_length` tokens, in order; longer ones lose their end.

    Every whole example is checked, as by `check`. A row that fails, or that the chat template refuses, is skipped.

    Args:
        thinking: position of the chat template's thinking switch.
        variables: variables of the chat template, such as reasoning_effort.
        tags: the tags of thoughts, instead of those that the template shows.

    Raises:
        UserError: There are no rows, none fits as a whole (the model would never see a turn end), or more than half of
            them are refused.
    """
    if not rows:
        raise UserError("There are no training rows.")
    around = chat.turn(tokenizer, thinking, variables, tags)
    texts = [_attempt(text_of, tokenizer, around, row, thinking, variables) for row in rows]
    refused = [text for text in texts if isinstance(text, str)]
    _check_share(refused, len(texts))
    places = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    rows, written = [rows[i] for i in places], [text for text in texts if not isinstance(text, str)]
    encoded = tokens_of(tokenizer, around, written)
    fits = [i for i, (prompt, _) in enumerate(encoded) if len(prompt) < max_length]
    examples = []
    for i in fits:
        prompt, completion = encoded[i]
        room = max_length - len(prompt)
        examples.append(Example(prompt, completion[:room], len(completion) <= room))
    if not any(e.whole for e in examples):
        lengths = sorted(len(prompt) + len(completion) for prompt, completion in encoded)
        raise UserError(
            f"All {len(rows)} training rows are longer than train.max_length {max_length} (the shortest has "
            f"{lengths[0]} tokens, the longest {lengths[-1]}): raise it, or choose shorter rows."
        )
    faults = [
        _attempt(_check, tokenizer, e, replace(rows[i], prompt_loss=False), around.end, written[i].keeps_thought)
        if e.whole
        else None
        for i, e in zip(fits, examples, strict=True)
    ]
    dropped = len(rows) - len(fits)
    refused += [fault for fault in faults if fault is not None]
    _check_share(refused, len(texts))
    right = [(i, e) for i, e, fault in zip(fits, examples, faults, strict=True) if fault is None]
    return Encoded(
        [_with_prompt_loss(e) if rows[i].prompt_loss else e for i, e in right],
        [places[i] for i, _ in right],
        truncated=sum(not e.whole for e in examples),
        dropped=dropped,
        refused=len(refused),
        reason=refused[0] if refused else "",
        without_thought=sum(bool(r.thought) and not w.keeps_thought for r, w in zip(rows, written, strict=True)),
        lost=sum(_loses_turn(row, text) for row, text in zip(rows, written, strict=True)),
        unthinking=0 if thinking == "off" else _unthinking(rows, written, around),
        template=tuple(chat.template_notes(tokenizer, around, _in_plain_tags(rows, written), len(rows))),
    )


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    thinking: Thinking = "default",
    variables: Variables | None = None,
    tags: str | None = None,
) -> list[list[int]]:
    """Return the prompts of rows as tokens, without their answers; the arguments are those of `encode_all`."""
    around = chat.turn(tokenizer, thinking, variables, tags)
    written = [text_of(tokenizer, around, row, thinking, variables) for row in rows]
    return special_tokens.encode_all(tokenizer, [text.prompt for text in written])


def _loses_turn(row: Conversation, text: ConversationText) -> bool:
    """Return whether a system or user turn is not in the prompt: R1's template keeps the last system turn alone."""
    turns = [message["content"].strip() for message in row.messages if message["role"] != "assistant"]
    if all(content in text.prompt for content in turns):
        return False
    prompt = _normalised(text.prompt.replace(special_tokens.MARK, "").replace(special_tokens.HIDING, ""))
    return any(_normalised(content) not in prompt for content in turns)


def _unthinking(rows: Sequence[Conversation], written: Sequence[ConversationText], around: Turn) -> int:
    """Return the number of rows without a thought whose answer directly follows the prompt of a reasoner."""
    markers = around.markers
    if not around.reasons or markers.before_answer.strip():
        return 0
    return sum(
        row.thought is None and not (markers.opens(text.prompt) or markers.closes(text.prompt))
        for row, text in zip(rows, written, strict=True)
    )


def _in_plain_tags(rows: Sequence[Conversation], written: Sequence[ConversationText]) -> int:
    """Return the number of rows whose thought is written in think tags, if their model has no other words."""
    return sum(
        bool(row.thought) and text.keeps_thought and rendering.named(row.rendering).opening.startswith(rendering.OPEN)
        for row, text in zip(rows, written, strict=True)
    )


def _attempt(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | str:
    """Return a result, or the sentence of the error that a user can fix."""
    try:
        return do(*args, **kwargs)
    except UserError as error:
        return str(error)


def _check_share(refused: Sequence[str], total: int) -> None:
    """Raise the first of the errors if they are of more than half of the rows."""
    if 2 * len(refused) > total:
        raise UserError(refused[0])


def _with_prompt_loss(example: Example) -> Example:
    return replace(example, prompt=example.prompt[:1], completion=[*example.prompt[1:], *example.completion])


def check(
    tokenizer: PreTrainedTokenizerBase, example: Example, conversation: Conversation, masked_by_id: bool = False
) -> None:
    """Decode an example and compare it with its conversation. A cut example is not checked.

    Args:
        tokenizer: the tokenizer that made the example.
        example: the example.
        conversation: the row it was made from.
        masked_by_id: also require that a trainer which masks labels by token id would train the end-of-turn token.

    Raises:
        UserError: Thought, answer or end-of-turn token is missing from what is trained.
    """
    if masked_by_id and (warning := chat.masked_by_id_warning(tokenizer)):
        raise UserError(warning)
    if not example.whole:
        return
    layout, prompt = rendering.named(conversation.rendering), _decode(tokenizer, example.prompt)
    as_sampled = layout.as_sampled and not conversation.prompt_loss
    sampled_prompt = prompt if as_sampled else chat.generation_prompt(tokenizer, conversation.messages)
    around = chat.turn(tokenizer)
    _check(tokenizer, example, conversation, around.end, layout.keeps_thought(sampled_prompt, around.markers))


def _check(
    tokenizer: PreTrainedTokenizerBase, example: Example, conversation: Conversation, end: int, keeps_thought: bool
) -> None:
    *body, last = example.completion
    name = tokenizer.convert_ids_to_tokens(end)
    row = f"The training row {conversation.prompt[:60]!r}"
    if last != end:
        raise UserError(
            f"{row} does not end with {name!r}, at which the model stops, so it would never learn to stop; "
            "end its completion with chat.end_of_turn(tokenizer)."
        )
    expected = {"answer": conversation.answer}
    if keeps_thought:
        expected["thought"] = conversation.thought or ""
    spelled = end in body or any(name in text for text in expected.values())
    if spelled and not conversation.prompt_loss:
        raise UserError(f"{row} has the end-of-turn token {name!r} inside its answer: remove it from the text.")
    trained = _decode(tokenizer, body)
    normalised = _normalised(trained)
    for part, text in expected.items():
        if _normalised(text) not in normalised:
            raise UserError(
                f"{row} loses its {part} in tokenization: {text.strip()[:60]!r} became {trained[:120]!r}; "
                "check the chat template and the tokenizer, or what made these tokens."
            )


def _normalised(text: str) -> str:
    """Return a text without what tokenizers may change: white space and compatibility characters."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def show(tokenizer: PreTrainedTokenizerBase, example: Example) -> Text:
    """Return an example as it is trained: the prompt dim, the completion green, special tokens bold.

    Line breaks are marked, and headings separate the two parts, so that it can be read without colours.
    """
    shown = Text()
    parts = (("prompt, no loss", example.prompt, "dim"), ("trained", example.completion, "green"))
    for heading, ids, style in parts:
        shown.append(f"--- {heading}: {len(ids)} tokens\n", style="bold")
        for special, run in _runs(tokenizer, ids):
            text = as_text(_decode(tokenizer, run))
            shown.append(text if special else text.replace("\n", "↵\n"), style=f"bold {style}" if special else style)
        shown.append("\n" if example.whole or heading != "trained" else " [cut here by max_length]\n", style="bold")
    return shown


def _runs(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[tuple[bool, list[int]]]:
    """Split tokens into runs of special and ordinary ones; characters of several tokens stay whole in a run."""
    specials = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    runs: list[tuple[bool, list[int]]] = []
    for token in ids:
        special = token in specials
        if not runs or runs[-1][0] != special:
            runs.append((special, []))
        runs[-1][1].append(token)
    return runs
