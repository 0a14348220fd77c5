"""Chat templates: the exact tokens that a model is trained on and sampled from.

A training example is always `prompt ids + completion ids`, tokenised separately. The prompt ids are those after which
the model is sampled (the template's generation prompt). To render the assistant turn through the template instead would
drop the thinking of R1-Distill and train a context that is never sampled. To tokenise both together could join the last
prompt token with the first of the reply, which sampling never does.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from lowtax.common.borders import reason
from lowtax.common.errors import UserError
from lowtax.data import rendering, template_limits, thinking_tags, thoughts
from lowtax.data.rendering import CLOSE, OPEN, THINK, Markers
from lowtax.data.thinking_tags import Tags
from lowtax.data.thoughts import ANSWER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Thinking = Literal["default", "on", "off"]
Switch = Thinking | Literal["off_if_possible"]  # of a request: off where the template has a switch, else the default
Variables = Mapping[str, Any]  # of a template, by name: reasoning_effort, thinking_budget, date_string ...
SWITCHES = ("enable_thinking", "thinking")  # its names in templates: Qwen3, SmolLM3 ...; DeepSeek-V3.1, Granite
TODAY = "strftime_now"  # the function that templates call for today's date
RESERVED = frozenset(
    "add_generation_prompt chat_template continue_final_message conversation documents max_length messages padding "
    "return_assistant_tokens_mask return_dict return_tensors tokenize tokenizer_kwargs tools truncation".split()
)
QUESTION = "What is asked?"
MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_]+\]")  # texts that are special tokens in the models that use them


@dataclass(frozen=True)
class Turn:
    """The text and tokens that a chat template puts around an assistant's turn.

    end: the token that ends the turn, at which the model stops in a chat.
    markers: the texts around its thought and its answer.
    ends_with: the text that ends the turn in the template and is no token; the turn ends with the eos token instead.
    no_tokens: markers that look like special tokens and are none in this tokenizer.
    reasons: the template or the vocabulary knows thoughts.
    """

    end: int
    markers: Markers = THINK
    ends_with: str = ""
    no_tokens: tuple[str, ...] = ()
    reasons: bool = True

    @property
    def before_answer(self) -> str:
        """The text before an answer without a thought (Qwen3: an empty think block)."""
        return self.markers.before_answer


@dataclass(frozen=True)
class ConversationText:
    """One training conversation as text, without its end-of-turn token. `keeps_thought`: it contains the thought."""

    prompt: str
    completion: str
    keeps_thought: bool


def generation_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    thinking: Switch = "default",
    variables: Variables | None = None,
) -> str:
    """Return the text after which the model writes its reply.

    `on` and `off` need a template with a thinking switch; `on` also suits a template that always opens a think block,
    and `off_if_possible` any template.

    Args:
        variables: variables of the template (`chat_template_kwargs`), such as reasoning_effort.

    Raises:
        UserError: The template has no such switch or variable, or the tokenizer has no template.
    """
    if thinking == "default":
        return _render(tokenizer, messages, variables)
    on, off = (_render(tokenizer, messages, variables, switch=switch) for switch in (True, False))
    if on == off and thinking != "off_if_possible" and not (thinking == "on" and thinking_tags.ends_open(on)):
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} has no thinking switch, so thinking cannot be turned "
            f"{thinking}: leave `thinking` at default."
        )
    return on if thinking == "on" else off


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], thinking: Thinking = "default"
) -> list[int]:
    """Return the token ids of `generation_prompt`; the template contains the special tokens."""
    return encode(tokenizer, [generation_prompt(tokenizer, messages, thinking)])[0]


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens that the text does not contain."""
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]]


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    variables: Variables | None = None,
    switch: bool | None = None,
    prompt: bool = True,
) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so prompts cannot be "
            "rendered; use an instruct or reasoning model, or set tokenizer.chat_template."
        )
    options: dict[str, Any] = {} if switch is None else dict.fromkeys(SWITCHES, switch)
    options |= {"tokenize": False, "add_generation_prompt": prompt, **_checked(tokenizer, variables or {})}
    text = _applied(tokenizer, messages, options)
    contents = [message["content"].strip()[:40] for message in messages if isinstance(message["content"], str)]
    if any(contents) and not any(content and content in text for content in contents):
        # Templates for text and pictures (Llama-Guard-3-1B) take a list of parts, and write nothing of a string.
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return _applied(tokenizer, parts, options)
    return text


def _applied(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], options: dict[str, Any]
) -> str:
    """Return what the template writes; templates that were written for calls of tools get an empty list of them.

    Raises:
        TemplateError: The template refuses the messages, or fails on them.
    """
    names = tokenizer.chat_template
    if isinstance(names, dict) and "default" not in names:
        options = {"chat_template": next(iter(names.values())), **options}
    template = options.get("chat_template") or (names.get("default") if isinstance(names, dict) else names)
    variables = {**tokenizer.special_tokens_map, **options}
    template_limits.require_bounded(str(template), tokenizer.name_or_path, messages, variables)
    try:
        return _written(tokenizer, messages, options)
    except TemplateError as error:
        refusal = error
    try:
        return _written(tokenizer, messages, {**options, "tools": []})
    except TemplateError:
        raise refusal from None


def _written(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], options: dict[str, Any]
) -> str:
    """Return what the template writes: the border of all templates.

    Raises:
        TemplateError: The template refuses the messages, or fails on them in any way.
    """
    try:
        return str(tokenizer.apply_chat_template([*messages], **options))
    except TemplateError:
        raise
    except Exception as error:
        raise TemplateError(reason(error)) from error


def _checked(tokenizer: "PreTrainedTokenizerBase", variables: Variables) -> dict[str, Any]:
    """Return the variables as the template takes them.

    Raises:
        UserError: The template does not use one of them.
    """
    template = tokenizer.chat_template
    source = " ".join(template.values()) if isinstance(template, dict) else str(template)
    for name in variables:
        if name in RESERVED:
            raise UserError(f"chat_template_kwargs has {name!r}, which lowtax sets itself: remove it.")
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise UserError(
                f"chat_template_kwargs has {name!r}, which the chat template of {tokenizer.name_or_path!r} does not "
                "use: correct the name, or remove it."
            )
    if TODAY not in variables:
        return dict(variables)
    try:
        day = date.fromisoformat(str(variables[TODAY]))
    except ValueError as error:
        raise UserError(
            f"chat_template_kwargs: {TODAY} is {variables[TODAY]!r}, but must be a date such as 2026-01-31."
        ) from error
    return {**variables, TODAY: day.strftime}


def turn(
    tokenizer: "PreTrainedTokenizerBase",
    thinking: Thinking = "default",
    variables: Variables | None = None,
    tags: str | None = None,
) -> Turn:
    """Return what the template writes around a thought and an answer, as rendered turns show it.

    Args:
        tags: the tags of thoughts (`thinking_tags.parse`), instead of those that the template shows.

    Raises:
        UserError: Nothing ends a turn, or the template refuses a question.
    """
    markers, end, after = _learnt(tokenizer, thinking, variables, tags)
    if end is None:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} ends a turn without an end-of-turn token, and its "
            "tokenizer has no eos token: set tokenizer.eos_token, or use an instruct model."
        )
    words = _words(tokenizer)
    ends_with = "" if thoughts.first_word(after, words) else after.strip()
    return Turn(end, markers, ends_with, _no_tokens(markers, words), markers.learnt or _knows_tags(tokenizer))


def markers_of(
    tokenizer: "PreTrainedTokenizerBase",
    thinking: Switch = "default",
    variables: Variables | None = None,
    tags: str | None = None,
) -> Markers:
    """Return the texts around a thought and an answer, also where nothing ends a turn.

    Args:
        tags: the tags of thoughts (`thinking_tags.parse`), instead of those that the template shows.

    Raises:
        UserError: The template refuses a question.
    """
    return _learnt(tokenizer, thinking, variables, tags)[0]


def thinks(tokenizer: "PreTrainedTokenizerBase", tags: str | None = None) -> bool:
    """Return whether a model thinks before it answers, as far as its template, its vocabulary or `tags` show it.

    Raises:
        UserError: The template refuses a question.
    """
    if tags is not None:
        return True
    return bool(tokenizer.chat_template) and (markers_of(tokenizer).learnt or _knows_tags(tokenizer))


def _learnt(
    tokenizer: "PreTrainedTokenizerBase", thinking: Switch, variables: Variables | None, tags: str | None
) -> tuple[Markers, int | None, str]:
    """Return the markers of a turn, the token that ends it, and the text after its answer."""
    question, prompt = _question(tokenizer, thinking, variables)
    words = _words(tokenizer)

    def rendered(switch: bool | None, message: dict[str, Any]) -> str | None:
        try:
            turns = [*question, {"role": "assistant", **message}]
            return _render(tokenizer, turns, variables, switch, prompt=False)
        except TemplateError:  # a template for first turns only, or for other messages
            return None

    switch = None if thinking == "default" else thinking == "on"
    text = rendered(switch, {"content": ANSWER}) or prompt + ANSWER
    before, _, after = text.partition(ANSWER)
    after = _without_next_turn(text, after, words)
    learnt = thoughts.learn(partial(rendered, switch), prompt, words) if tags is None else None
    for other in (True, False) if learnt is None and tags is None else ():
        # A template that writes thoughts in another position of its switch writes none in this one.
        shown = thoughts.learn(partial(rendered, other), _render(tokenizer, question, variables, other), words)
        learnt = learnt or (shown and replace(shown, opened=False, closed=True))
    whole = _with_answer(learnt or _from_table(tokenizer, prompt, tags), prompt, before, words)
    end, ending = _end(tokenizer, before, after, whole)
    return replace(whole, ending=ending), end, after


def _from_table(tokenizer: "PreTrainedTokenizerBase", prompt: str, tags: str | None) -> Markers | None:
    """Return the format with the tags of an option, or those that a template or a vocabulary has without showing more.

    It is laid out as R1's. None if they are R1's own tags, or if there are none.
    """
    if tags is not None:
        family: Tags | None = thinking_tags.parse(tags)[0]
    elif prompt.rstrip().endswith((OPEN, CLOSE)) or _knows_tags(tokenizer):
        return None
    else:
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        family = thinking_tags.mentioned([*_templates(tokenizer), " ".join(added)], prompt)
    if family is None or family.opening == OPEN:
        return None
    text = prompt.rstrip()
    opened, closed = text.endswith(family.opening), text.endswith(family.closing)
    line = "\n" if family.nested else ""
    opening = ("" if prompt != text else line) if opened else family.opening + line
    return Markers(opening, f"{line}{family.closing}{line}{line}", opened=opened, closed=closed, learnt=True)


def _question(
    tokenizer: "PreTrainedTokenizerBase", thinking: Switch, variables: Variables | None
) -> tuple[list[Message], str]:
    """Return a conversation that the template accepts, and its generation prompt; some want a system turn."""
    user = {"role": "user", "content": QUESTION}
    refusals = []
    for messages in ([user], [{"role": "system", "content": "Be kind."}, user]):
        try:
            return messages, generation_prompt(tokenizer, messages, thinking, variables)
        except TemplateError as error:
            refusals.append(error)
    raise UserError(
        f"The chat template of {tokenizer.name_or_path!r} refuses a question ({refusals[0]}): set what it needs in "
        "chat_template_kwargs, or use another template."
    )


def _with_answer(markers: Markers | None, prompt: str, before: str, words: list[str]) -> Markers:
    """Return the markers with the text before an answer without a thought. `before` is the rendering up to it."""
    if before.startswith(prompt):
        answers = before[len(prompt) :]
    elif markers and markers.closed and not markers.in_tags:
        answers = before[thoughts.shared(prompt, before, words) :]
        close = markers.closing.strip()
        answers = answers.rpartition(close)[2] if close else answers
    else:
        answers = ""
    if markers and not (markers.in_tags and markers.closed):
        return replace(markers, before_answer=answers)
    lead, markers = answers.partition(CLOSE)[0].partition(OPEN)[0], markers or THINK
    opening = f"{lead}{OPEN}{markers.opening.partition(OPEN)[2]}"
    return replace(markers, opening=opening, before_answer=answers)


def _without_next_turn(text: str, after: str, words: list[str]) -> str:
    """Return the text after an answer up to the next turn, which some templates always open (Command-R7B).

    A turn opens with the first token of the conversation that comes again.
    """
    tokens = [match[0] for match in thoughts.all_words(text, words)]
    opener = next((token for token in tokens if tokens.count(token) > 1), None)
    head = after.partition(opener)[0] if opener else after
    return head if thoughts.first_word(head, words) else after


def _end(tokenizer: "PreTrainedTokenizerBase", before: str, after: str, markers: Markers) -> tuple[int | None, str]:
    """Return the token that ends a turn, and the text between an answer and it.

    This is the special token after the answer, or the tokenizer's eos if there is none. The two differ where eos
    ends a document and not a turn (Llama-3, Qwen2.5 base). Where several tokens follow an answer (Command, Kimi-K3), a
    turn ends where the user's turn ends in the same tokens; Phi-3 adds the end of the document, which is not trained.
    """
    words = [word for word in _words(tokenizer) if word not in (OPEN, CLOSE)]
    ends = list(thoughts.all_words(after, words))
    user = [match[0] for match in thoughts.all_words(before.rpartition(QUESTION)[2], words)]
    eos = None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    if ends:
        tokens = [match[0] for match in ends]
        runs = [_same(tokens[i:], user) for i in range(len(tokens))]
        longest = max(runs)
        last = runs.index(longest) + longest - 1 if longest else len(tokens) - 1
        word = ends[last]
        end = int(tokenizer.convert_tokens_to_ids(word[0]))
        if word[0] not in markers.closing or eos in (None, end):
            return end, after[ends[0].start() : word.start()]
        # The token ends thoughts too (Solar-Open), so a model cannot stop at it.
        return eos, after[ends[0].start() : word.end()]
    return eos, ""


def _same(one: list[str], other: list[str]) -> int:
    """Return the number of items that two lists share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _words(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the strings that the tokenizer has added as tokens, without white space; and the think tags."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return sorted({word for word in added if word.strip()} | {OPEN, CLOSE})


def _no_tokens(markers: Markers, words: list[str]) -> tuple[str, ...]:
    """Return the parts of the markers that look like special tokens and are none."""
    texts = (markers.opening, markers.closing, markers.before_answer, markers.ending)
    parts = dict.fromkeys(part for text in texts for part in MARKER.findall(text))
    return tuple(part for part in parts if part not in words)


def _knows_tags(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the template or the vocabulary has think tags."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    in_template = any(tag in text for tag in (OPEN, CLOSE) for text in _templates(tokenizer))
    return in_template or not added.isdisjoint((OPEN, CLOSE))


def _templates(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the sources of all chat templates of a tokenizer."""
    template = tokenizer.chat_template
    return [*map(str, template.values())] if isinstance(template, dict) else [str(template)]


def template_notes(tokenizer: "PreTrainedTokenizerBase", around: Turn, thoughts_written: int, total: int) -> list[str]:
    """Return a sentence for each way in which the format of the rows is not the model's own.

    Args:
        around: what the template writes around a turn.
        thoughts_written: the number of rows that are trained with a thought, of this total.
    """
    name, notes = tokenizer.name_or_path, []
    if thoughts_written and not around.reasons:
        notes.append(
            f"{thoughts_written} of {total} training rows have a thought, but the chat template of {name!r} has no "
            f"place for one and the model knows no think tags: it is trained as text between {OPEN} and {CLOSE}."
        )
    if around.no_tokens:
        listed = " and ".join(map(repr, around.no_tokens))
        notes.append(
            f"The chat template of {name!r} writes {listed} around thoughts or answers, but its tokenizer has no such "
            "token, so this is trained as plain text: add the tokens, or use the model's own template."
        )
    if around.ends_with:
        end = tokenizer.convert_ids_to_tokens(around.end)
        notes.append(
            f"The chat template of {name!r} ends turns with {around.ends_with!r}, but its tokenizer has no such token: "
            f"rows end with {end!r} instead, and earlier turns in prompts with that text."
        )
    return notes


def mark_tokens(tokenizer: "PreTrainedTokenizerBase", markers: Markers) -> frozenset[int]:
    """Return the special tokens that mark a thought or an answer, and so are part of a reply's text."""
    own = f"{markers.opening}{markers.closing}{markers.before_answer}"
    ids = sorted(_special(tokenizer))
    names = map(str, tokenizer.convert_ids_to_tokens(ids))
    return frozenset(i for i, name in zip(ids, names, strict=True) if name in thinking_tags.WHOLE or name in own)


def decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int], marks: frozenset[int] = frozenset()) -> str:
    """Return the text of a reply without special tokens, except these `marks`."""
    marked = not marks.isdisjoint(ids)
    if marked:
        special = _special(tokenizer) - marks
        ids = [i for i in ids if i not in special]
    return str(tokenizer.decode(ids, skip_special_tokens=not marked, clean_up_tokenization_spaces=False))


def _special(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that are left out of a decoded text."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the token that ends an assistant's turn: the last one trained, at which an engine has to stop."""
    return turn(tokenizer).end


def stop_warning(tokenizer: "PreTrainedTokenizerBase", stops: Iterable[int]) -> str | None:
    """Return a warning if the model stops at no token that ends its chat turns, else None."""
    end, stops = end_of_turn(tokenizer), sorted(stops)
    if end in stops:
        return None
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(stop)) for stop in stops) or "nothing"
    return (
        f"Chat turns of {tokenizer.name_or_path!r} end with {tokenizer.convert_ids_to_tokens(end)!r}, but the model "
        f"stops at {names} only: add {end} to eos_token_id in its generation_config.json, or its replies run on in "
        "other programs."
    )


def masked_by_id_warning(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a warning if labels that are masked by token id would lose the end of the turn, else None.

    lowtax masks by position and does not depend on it. Collators that set labels to -100 wherever the input is the pad
    token (transformers' DataCollatorForLanguageModeling) do; the model then never learns to stop.
    """
    end = end_of_turn(tokenizer)
    if tokenizer.pad_token_id != end:
        return None
    return (
        f"The pad token of {tokenizer.name_or_path!r} is its end-of-turn token {tokenizer.pad_token!r}: labels "
        "masked by id lose it, and the model never learns to stop; set another pad token or mask by position."
    )


def stops(tokenizer: "PreTrainedTokenizerBase", ends: Iterable[int]) -> frozenset[int]:
    """Return the tokens that end a reply: those that a model names and its end of turn, except within a thought."""
    if not tokenizer.chat_template:
        return frozenset(ends)
    around = turn(tokenizer)
    words = _words(tokenizer)
    inside = {word[0] for word in thoughts.all_words(around.markers.closing, words)}
    return frozenset({*ends} - {*tokenizer.convert_tokens_to_ids(sorted(inside))} | {around.end})


def write(
    tokenizer: "PreTrainedTokenizerBase",
    around: Turn,
    messages: list[Message],
    thought: str | None,
    answer: str,
    style: str = "standard",
    thinking: Thinking = "default",
    variables: Variables | None = None,
) -> ConversationText:
    """Return the text of one training conversation.

    Raises:
        UserError: The chat template refuses the messages, or the rendering does not fit it.
    """
    layout, markers = rendering.named(style), around.markers
    try:
        prompt = generation_prompt(tokenizer, messages, thinking, variables)
    except TemplateError as error:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} refuses a training row ({error}); its roles are "
            f"{', '.join(message['role'] for message in messages)}, its last turn {messages[-1]['content'][:60]!r}."
        ) from error
    keeps_thought = layout.keeps_thought(prompt, markers)
    end = str(tokenizer.convert_ids_to_tokens(around.end))
    if thought is not None and keeps_thought and end in markers.closing:
        raise UserError(
            f"The chat template of {tokenizer.name_or_path!r} ends thoughts with {end!r}, at which the model stops, so "
            "no thought can be trained: set tokenizer.eos_token to the token that ends a whole turn."
        )
    completion = layout.completion(prompt, thought, answer, markers) + markers.ending
    return ConversationText(layout.prompt(prompt), completion, keeps_thought)
