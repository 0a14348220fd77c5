"""A training set as tokens: all rows at once, what did not fit counted, and every example read back and compared."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from lowtax.data import chat, rendering, special_tokens
from lowtax.data.chat import Example, Thinking
from lowtax.data.conversations import Conversation
from lowtax.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """Examples, and what became of the other rows.

    rows: for each example, which row it is.
    truncated: examples that lost their end, and with it the end-of-turn token, to `max_length`.
    dropped: rows whose prompt alone fills `max_length`.
    without_thought: rows whose thought has no place in their rendering after this prompt.
    """

    examples: list[Example]
    rows: list[int]
    truncated: int = 0
    dropped: int = 0
    without_thought: int = 0

    def notes(self) -> list[str]:
        """A sentence for each thing that was not trained as given."""
        total = len(self.examples) + self.dropped
        said = (
            (self.truncated, "training rows are longer than train.max_length and lose their end"),
            (self.dropped, "training rows are left out: their prompt alone fills train.max_length"),
            (
                self.without_thought,
                "training rows lose their thought: their rendering has no place for it after this prompt",
            ),
        )
        return [f"{number} of {total} {what}." for number, what in said if number]


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    max_length: int,
    thinking: Thinking = "default",
) -> Encoded:
    """Rows as examples of at most `max_length` tokens, cut at the end, in order. Every whole one is checked.

    UserError if no row is left whole: a model would never see a turn end.
    """
    if not rows:
        raise UserError("There are no training rows.")
    around = chat.turn(tokenizer, thinking)
    written = [
        chat.write(tokenizer, around, asked, row.thought, row.answer, row.rendering, thinking)
        for row, asked in zip(
            rows,
            (special_tokens.disarm_messages(tokenizer, row.messages, trusted=("assistant",)) for row in rows),
            strict=True,
        )
    ]
    prompts = special_tokens.encode_all(tokenizer, [w.prompt for w in written])
    completions = [[*ids, around.end] for ids in chat.encode(tokenizer, [w.completion for w in written])]
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) < max_length]
    examples = []
    for i in fits:
        room = max_length - len(prompts[i])
        examples.append(Example(prompts[i], completions[i][:room], len(completions[i]) <= room))
    if not any(e.whole for e in examples):
        lengths = sorted(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        raise UserError(
            f"All {len(rows)} training rows are longer than train.max_length {max_length} (the shortest has "
            f"{lengths[0]} tokens, the longest {lengths[-1]}): raise it, or choose shorter rows."
        )
    for i, e in zip(fits, examples, strict=True):
        if e.whole:
            _check(tokenizer, e, rows[i], around.end, written[i].keeps_thought)
    return Encoded(
        examples,
        fits,
        truncated=sum(not e.whole for e in examples),
        dropped=len(rows) - len(fits),
        without_thought=sum(bool(r.thought) and not w.keeps_thought for r, w in zip(rows, written, strict=True)),
    )


def check(
    tokenizer: PreTrainedTokenizerBase, example: Example, conversation: Conversation, masked_by_id: bool = False
) -> None:
    """Read an example back from its tokens. UserError if its thought, its answer or its end-of-turn token is not
    trained, or if a trainer that masks labels by id would not train the latter. A cut example is not checked."""
    if masked_by_id and (warning := chat.masked_by_id_warning(tokenizer)):
        raise UserError(warning)
    if not example.whole:
        return
    layout, prompt = rendering.named(conversation.rendering), _decode(tokenizer, example.prompt)
    asked = prompt if layout.as_sampled else chat.generation_prompt(tokenizer, conversation.messages)
    _check(tokenizer, example, conversation, chat.end_of_turn(tokenizer), layout.keeps_thought(asked))


def _check(
    tokenizer: PreTrainedTokenizerBase, example: Example, conversation: Conversation, end: int, keeps_thought: bool
) -> None:
    *said, last = example.completion
    name = tokenizer.convert_ids_to_tokens(end)
    which = f"The training row {conversation.prompt[:60]!r}"
    if last != end:
        raise UserError(
            f"{which} does not end with {name!r}, at which the model stops: it would never learn to stop; "
            "end its completion with chat.end_of_turn(tokenizer)."
        )
    if end in said:
        raise UserError(f"{which} holds the end-of-turn token {name!r} inside of its answer: take it out of the text.")
    wanted = {"answer": conversation.answer}
    if keeps_thought:
        wanted["thought"] = conversation.thought or ""
    trained = _decode(tokenizer, said)
    found = _plain(trained)
    for what, text in wanted.items():
        if _plain(text) not in found:
            raise UserError(
                f"{which} loses its {what} on the way to tokens: {text.strip()[:60]!r} became {trained[:120]!r}; "
                "look at the chat template and the tokenizer, or at what made these tokens."
            )


def _plain(text: str) -> str:
    """Text without what tokenizers may rightly change: white space and compatibility characters."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def show(tokenizer: PreTrainedTokenizerBase, example: Example) -> Text:
    """An example as it is trained: the prompt dim, what carries loss green, special tokens bold, line breaks marked.

    The two parts have headings, so that it can be read without colours.
    """
    shown = Text()
    parts = (("prompt, no loss", example.prompt, "dim"), ("trained", example.completion, "green"))
    for what, ids, style in parts:
        shown.append(f"--- {what}: {len(ids)} tokens\n", style="bold")
        for special, run in _runs(tokenizer, ids):
            text = _decode(tokenizer, run)
            shown.append(text if special else text.replace("\n", "↵\n"), style=f"bold {style}" if special else style)
        shown.append("\n" if example.whole or what != "trained" else " [cut here by max_length]\n", style="bold")
    return shown


def _runs(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[tuple[bool, list[int]]]:
    """Neighbouring tokens of a kind, special or not: characters of several tokens stay whole."""
    specials = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    runs: list[tuple[bool, list[int]]] = []
    for token in ids:
        special = token in specials
        if not runs or runs[-1][0] != special:
            runs.append((special, []))
        runs[-1][1].append(token)
    return runs
