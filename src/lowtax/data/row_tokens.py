"""Training rows as texts and as tokens, in which no content has a special token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowtax.data import chat, special_tokens
from lowtax.data.chat import ConversationText, Thinking, Turn, Variables
from lowtax.data.conversations import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[int]]  # of the prompt, and of the completion with the token that ends the turn


def text_of(
    tokenizer: "PreTrainedTokenizerBase",
    around: Turn,
    row: Conversation,
    thinking: Thinking = "default",
    variables: Variables | None = None,
) -> ConversationText:
    """Return the text of a row.

    Args:
        around: what the chat template writes around a turn (`chat.turn`).
        thinking: position of the chat template's thinking switch.
        variables: variables of the chat template, such as reasoning_effort.

    Raises:
        UserError: The chat template refuses the row, or its rendering does not fit it.
    """
    messages = special_tokens.disarm_messages(tokenizer, row.messages, with_thoughts=("assistant",))
    thought = None if row.thought is None else special_tokens.disarm(tokenizer, row.thought)
    answer = special_tokens.disarm(tokenizer, row.answer)
    return chat.write(tokenizer, around, messages, thought, answer, row.rendering, thinking, variables)


def tokens_of(tokenizer: "PreTrainedTokenizerBase", around: Turn, texts: Sequence[ConversationText]) -> list[Tokens]:
    """Return the tokens of texts, prompt and completion apart."""
    prompts = special_tokens.encode_all(tokenizer, [text.prompt for text in texts])
    completions = special_tokens.encode_all(tokenizer, [text.completion for text in texts])
    return [(prompt, [*ids, around.end]) for prompt, ids in zip(prompts, completions, strict=True)]
