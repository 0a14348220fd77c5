"""The tokens beside a training example: what the frozen base reads instead of its prompt, and the rejected answer."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from lowtax.data import steering
from lowtax.data.chat import Thinking, Variables
from lowtax.data.conversations import Conversation
from lowtax.training.encoding import Encoded, Example, encode_all, prompts_of

Form = tuple[int, Thinking, Variables | None, str | None]  # the arguments of `encode_all` after the rows


def with_companions(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Conversation], encoded: Encoded, form: Form
) -> Encoded:
    """Return encoded rows with a teacher's prompt where a row is ordinary or steered, and with rejected answers.

    The teacher reads the prompt of the example itself, or the instruction of the row before its request. A pair whose
    rejected answer does not fit or is refused loses it.

    Args:
        tokenizer: the tokenizer.
        rows: the conversations.
        encoded: their examples.
        form: the arguments of `encode_all` after the rows.
    """
    used = [rows[i] for i in encoded.rows]
    steered = [i for i, row in enumerate(used) if row.steer]
    requests = [replace(used[i], prompt=steering.steered(used[i].prompt, used[i].steer or "")) for i in steered]
    prompts = dict(zip(steered, prompts_of(tokenizer, requests, *form[1:]) if requests else [], strict=True))
    losers = _rejected(tokenizer, used, form)
    examples = [
        replace(e, teacher=prompts.get(i, e.prompt if row.ordinary else None), rejected=losers.get(i))
        for i, (e, row) in enumerate(zip(encoded.examples, used, strict=True))
    ]
    return replace(encoded, examples=examples)


def _rejected(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Conversation], form: Form) -> dict[int, Example]:
    """Return the rejected examples by the number of the row."""
    pairs = [i for i, row in enumerate(rows) if row.rejected is not None]
    if not pairs:
        return {}
    losers = [replace(rows[i], thought=r[0], answer=r[1]) for i in pairs if (r := rows[i].rejected) is not None]
    encoded = encode_all(tokenizer, losers, *form)
    return {pairs[number]: e for number, e in zip(encoded.rows, encoded.examples, strict=True)}
