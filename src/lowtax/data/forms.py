"""Forms of training rows: which columns hold the conversation, told from the row itself, and its turns.

Every form that a user's tools write is read into the same turns: prompt and completion, messages, ShareGPT, Alpaca, the
chosen side of a preference pair, KTO, plain columns. Columns that a recipe names come first.
docs/guides/training-data.md has the table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowtax.data.readers import is_missing
from lowtax.data.tables import Row, is_turn
from lowtax.data.turns import (
    THOUGHTS,
    Role,
    Turn,
    Unusable,
    as_turns,
    content_of,
    ends_with_answer,
    is_empty,
    is_parts,
    is_turns,
    only_thought,
    optional_text,
    text_of,
    transcript,
    turns_of,
)

MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "contents", "input")
PROMPTS = ("prompt", "instruction", "question", "query", "request", "problem", "user", "human")
INPUTS = ("input",)  # prompts where there is no other
ANSWERS = ("answer", "completion", "chosen", "output", "response", "reply", "refusal", "solution", "assistant")
CONTEXTS = {"instruction": ("input", "context"), "question": ("context",)}  # the prompt's second part, by its column
SYSTEMS = ("system", "system_prompt", "systeminstruction", "system_instruction")
LABELS = ("label", "kto_tag", "is_safe")  # false: an answer that is not to be learnt (KTO, LLaMA-Factory, BeaverTails)
# Columns to which the answer refers, and which are no text of the conversation.
BESIDE = ("tools", "functions", "images", "image", "videos", "audios", "choices", "options")
CHOSEN = ("chosen", "chosen_messages", "preferred_output")
REJECTED = ("rejected", "rejected_messages", "non_preferred_output")
MORE_THOUGHTS = ("complex_cot", "chain_of_thought", "cot")  # columns of data sets that a recipe gives no columns for
FLAGS = {"on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high"}  # a setting, and no thought
CORE = frozenset({"prompt", "answer", "messages"})  # parts that make a conversation
PAIR: tuple[Role, Role] = ("user", "assistant")
OWN, ALPACA, PREFERENCE = "prompt and answer", "Alpaca", "preference pairs (the chosen side)"
PAIRS = "preference pairs"  # both sides


class LeftOut(Exception):
    """A row that is not to be learnt, though it could be. Its text is the reason in few words."""


class UnknownForm(Exception):
    """A row whose columns are of no known form.

    columns: all of them. answers: those that may hold the answer, if there are several.
    """

    def __init__(self, columns: Sequence[str], answers: Sequence[str]) -> None:
        super().__init__(columns, answers)
        self.columns, self.answers = columns, answers


@dataclass(frozen=True)
class Form:
    """The columns of a row by their part in the conversation.

    name: words for people.
    columns: part -> column: messages, or prompt and answer; context, system, history, label.
    thoughts: columns of which at most one holds the last turn's thought.
    named: parts whose columns the recipe names.
    beside: columns of a recognised form to which its answer may refer, and which are no text.
    """

    name: str
    columns: Mapping[str, str]
    thoughts: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()
    beside: tuple[str, ...] = ()

    def unused(self, row: Row) -> list[str]:
        """Return the columns with a value that are not part of the conversation."""
        used = {*self.columns.values(), *self.thoughts, *REJECTED}
        return [str(column) for column, value in row.items() if column not in used and column and not is_empty(value)]


def rejected_form(row: Row, form: Form) -> Form:
    """Return the form of the rejected side of a preference pair, given that of its chosen side.

    Raises:
        Unusable: The row has no rejected answer, or its form no column of an answer.
    """
    columns = _by_name(row)
    names = [form.columns.get("rejected"), *(columns.get(name) for name in REJECTED)]
    column = next((name for name in names if name is not None and not is_empty(row.get(name))), None)
    if column is None or "answer" not in form.columns:
        raise Unusable("it has no rejected answer")
    return replace(form, columns={**form.columns, "answer": column}, thoughts=())


def prompt_of(row: Row, column: str | None) -> str:
    """Return the prompt of a row whose answer is not used: the text in its column, by default one of the usual names.

    Raises:
        Unusable: It is missing, blank or no text.
    """
    columns = _by_name(row)
    name = column or next((columns[name] for name in PROMPTS if name in columns), None)
    return _prompt(row, _flat(name, "", columns))[-1].content if name else text_of(None, "the prompt")


def recognise(row: Row, named: Mapping[str, str]) -> Form:
    """Return the form of a row. `named`: part -> column, as the recipe names them.

    Raises:
        UnknownForm: Its columns are of no known form, or several may hold the answer.
    """
    by_name = _by_name(row)
    parts = _parts(row, by_name, named)
    for part in ("system", "label", "history"):
        if column := _beside(part, row, by_name, parts, explicit=bool(named)):
            parts[part] = column
    columns = {**parts, **{part: column for part, column in named.items() if part != "thought"}}
    if "thought" in named:
        thoughts = [named["thought"]]
    else:
        names = THOUGHTS if named else (*THOUGHTS, *MORE_THOUGHTS)
        free = (by_name[name] for name in names if name in by_name and by_name[name] not in columns.values())
        thoughts = [column for column in free if not _is_flag(row[column])]
    explicit = frozenset(named)
    beside = () if explicit & CORE else tuple(by_name[name] for name in BESIDE if name in by_name)
    return Form(_name(columns, row, explicit), columns, tuple(thoughts), explicit, beside)


def _is_flag(value: Any) -> bool:
    """Return whether the value of a column such as `reasoning` says how to think, and is no thought itself."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in FLAGS)


def _by_name(row: Row) -> dict[str, str]:
    """Return the columns by their lower-case name without white space around it."""
    return {str(column).strip().lower(): column for column in reversed(row)}


def _parts(row: Row, by_name: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of messages, or of prompt, answer and context."""
    if "messages" in named:
        return {"messages": named["messages"]}
    present = {name: column for name, column in by_name.items() if not is_missing(row[column])}
    for columns in (present, by_name):
        if parts := _detected(row, columns, named):
            return parts
    if turns := next((by_name[name] for name in MESSAGES[:2] if name in by_name), None):
        return {"messages": turns}
    answers = [column for column in row if str(column).strip().lower() in ANSWERS]
    raise UnknownForm([*map(str, row)], answers if len(answers) > 1 else [])


def _detected(row: Row, columns: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str] | None:
    """Return the parts that these columns are, the first of the forms that fits."""
    if "prompt" in named or "answer" in named:
        prompt = named.get("prompt") or _only(PROMPTS, columns)
        answer = named.get("answer") or _only(ANSWERS, columns)
        if answer and (prompt or _holds_turns(row.get(answer)) or transcript(str(row.get(answer)))):
            return {"answer": answer} | ({"prompt": prompt} if prompt else {})
        return None
    turns = next((columns[n] for n in MESSAGES if n in columns and _holds_turns(row[columns[n]])), None)
    if "prompt" in columns and "answer" in columns:
        return _flat(columns["prompt"], columns["answer"], columns)
    if chosen := next((columns[name] for name in CHOSEN if name in columns), None):
        prompt = next((columns[name] for name in PROMPTS if name in columns), None)
        return {"messages": turns, "answer": chosen} if turns and not prompt else _flat(prompt, chosen, columns)
    if turns and (answer := _only(ANSWERS, columns)) and not ends_with_answer(row[turns]):
        return {"messages": turns, "answer": answer}
    if turns:
        return {"messages": turns}
    for prompt_name, answer_name in (("prompt", "completion"), ("instruction", "output")):
        if prompt_name in columns and answer_name in columns:
            return _flat(columns[prompt_name], columns[answer_name], columns)
    names = PROMPTS if any(name in columns for name in PROMPTS) else INPUTS
    prompt, answer = _only(names, columns), _only(ANSWERS, columns)
    return _flat(prompt, answer, columns) if prompt and answer else None


def _flat(prompt: str | None, answer: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of a row with the columns of a prompt and an answer; the prompt may be in the answer's turns."""
    parts = {"answer": answer} | ({"prompt": prompt} if prompt else {})
    contexts = CONTEXTS.get((prompt or "").strip().lower(), ())
    if context := next((columns[name] for name in contexts if name in columns), None):
        parts["context"] = context
    return parts


def _only(names: Iterable[str], columns: Mapping[str, str]) -> str | None:
    """Return the only column with one of these names; None if there is none, or more than one."""
    present = [columns[name] for name in names if name in columns]
    return present[0] if len(present) == 1 else None


def _holds_turns(value: Any) -> bool:
    value = as_turns(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _beside(part: str, row: Row, columns: Mapping[str, str], parts: Mapping[str, str], explicit: bool) -> str | None:
    """Return the column of a system text, a label or an earlier conversation, if the row has it.

    explicit: the recipe names columns, so that columns of other forms are left alone.
    """
    names = {"system": SYSTEMS[:1] if explicit else SYSTEMS, "label": LABELS, "history": ("history",)}[part]
    column = next((columns[name] for name in names if name in columns), None)
    if column is None or column in parts.values():
        return None
    if part == "label" and _truth(row[column], ones=parts.get("answer", "").lower() == "completion") is None:
        return None
    alpaca = parts.get("prompt", "").strip().lower() == "instruction" and not explicit
    return column if part != "history" or alpaca else None


def _truth(value: Any, ones: bool = False) -> bool | None:
    """Return a truth value, also written as text; with `ones`, 1 and 0 are such. None if it is something else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return bool(value) if ones and value in (0, 1) else None


def _name(columns: Mapping[str, str], row: Row, named: frozenset[str]) -> str:
    """Return words for a form."""
    prompt, answer, messages = (columns.get(part, "") for part in ("prompt", "answer", "messages"))
    if named & CORE:
        parts = [part for part in ("messages", "prompt", "context", "answer") if part in columns]
        return ", ".join(f"{part}={columns[part]}" for part in parts)
    if answer.strip().lower() in CHOSEN:
        return PREFERENCE
    kto = " with KTO's labels" if "label" in columns else ""
    if messages:
        turns = as_turns(row.get(messages))
        first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
        share = "from" in first and not is_missing(first["from"])
        return ("ShareGPT" if share else "messages (TRL, OpenAI)") + kto
    if (prompt.strip().lower(), answer.strip().lower()) == ("instruction", "output"):
        return ALPACA + kto
    of_turns = ", lists of turns" if is_turns(as_turns(row.get(answer))) else ""
    asked = f"{prompt}, {columns['context']}" if "context" in columns else prompt
    return f"{asked} and {answer}{of_turns}{kto}"


# --- turns of a row


def turns_of_row(row: Row, form: Form, selected: Iterable[str] = ()) -> list[Turn]:
    """Return the turns of a row, system text and earlier turns first.

    Args:
        row: the row.
        form: its form.
        selected: columns by which the recipe selects rows; a label among them leaves none out.

    Raises:
        LeftOut: Its label is false.
        Unusable: It cannot be trained on.
    """
    columns = form.columns
    label = columns.get("label")
    if label is not None and label not in selected and _truth(row.get(label), ones=True) is False:
        raise LeftOut("the label is false")
    for column in form.beside:
        if not is_empty(row.get(column)):
            raise Unusable(f"it has {column}")
    turns = _conversation(row, columns)
    last = next((i for i in reversed(range(len(turns))) if turns[i].role == "assistant"), None)
    beside = [only_thought([row.get(column)], f"the column {column!r}") for column in form.thoughts]
    if last is not None and (thought := only_thought([*beside, turns[last].thought])):
        turns[last] = replace(turns[last], thought=thought)
    system = _system(row.get(columns["system"]), columns["system"]) if "system" in columns else None
    return [*([Turn("system", system)] if system is not None else []), *turns]


def _system(value: Any, column: str) -> str | None:
    """Return a system text, which may have parts (Anthropic) or be a turn with parts (Gemini)."""
    inner = value.get("parts", value.get("content")) if isinstance(value, dict) else value
    if isinstance(inner, list) and inner and all(isinstance(part, dict) for part in inner):
        return content_of(inner, "system").content
    return optional_text(inner, f"the column {column!r}")


def _optional(row: Row, columns: Mapping[str, str], part: str) -> str | None:
    return optional_text(row.get(columns[part]), f"the column {columns[part]!r}") if part in columns else None


def _conversation(row: Row, columns: Mapping[str, str]) -> list[Turn]:
    """Return the turns of messages, or of prompt and answer; those of an answer may contain the prompt's."""
    answer = _answer(row.get(columns["answer"]), columns["answer"]) if "answer" in columns else []
    if "messages" in columns:
        return [*turns_of(row.get(columns["messages"]), f"the column {columns['messages']!r}"), *answer]
    if "prompt" not in columns:
        turns = transcript(answer[0].content) if len(answer) == 1 else answer
        if not any(turn.role == "user" for turn in turns):
            raise Unusable("it has no prompt")
        return turns
    prompt = _prompt(row, columns)
    whole = {turn.content.strip() for turn in answer}
    if any(turn.role == "user" for turn in answer) and all(turn.content.strip() in whole for turn in prompt):
        return answer
    return [*_history(row.get(columns["history"]) if "history" in columns else None), *prompt, *answer]


def _prompt(row: Row, columns: Mapping[str, str]) -> list[Turn]:
    value, what = as_turns(row.get(columns["prompt"])), f"the column {columns['prompt']!r}"
    if is_turns(value) or is_turn(value):
        return turns_of(value, what)
    context = _optional(row, columns, "context")
    text = content_of(value, "user").content if is_parts(value) else optional_text(value, what)
    if context is not None:
        text = f"{text}\n\n{context.strip()}" if text is not None else context
    if columns["answer"].strip().lower() in ("chosen", "rejected") and (spoken := transcript(text or "")):
        return [turn for turn in spoken if turn.content]
    return [Turn("user", text_of(text, what))]


def _answer(value: Any, column: str) -> list[Turn]:
    value, what = as_turns(value), f"the column {column!r}"
    if is_turns(value) or is_turn(value):
        return turns_of(value, what)
    if is_parts(value):
        return [content_of(value, "assistant")]
    return [Turn("assistant", text_of(value, what))]


def _history(value: Any) -> list[Turn]:
    """Return the turns of Alpaca's history, a list of pairs of request and answer."""
    if is_empty(value):
        return []
    if is_turns(value):
        return turns_of(value, "the column 'history'")
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise Unusable("the column 'history' is no list of pairs")
    return [
        Turn(role, text_of(text, "the column 'history'"))
        for pair in value
        for role, text in zip(PAIR, pair, strict=True)
    ]
