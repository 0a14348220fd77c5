"""Training conversations, and how they are read from the rows of a table.

The layout of DirectRefusal is that of the construction script in git-disl/Safety-Tax and of the three code bases that
read the set; docs/guides/training-data.md has the table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowtax.common.errors import UserError
from lowtax.data.readers import Row, text
from lowtax.data.rendering import CLOSE, OPEN, split_reply

REFERENCE_THOUGHT = "I should not answer this question!"  # of every row in the reference's data
ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT, whose turns have the keys `from` and `value`
Turn = tuple[str, str]  # role and content


@dataclass(frozen=True)
class Conversation:
    """One training row: a request, a thought (None: the model does not think) and an answer.

    system: the system turn. history: (role, content) of the turns before the request, which carry no loss.
    rendering: how thought and answer are laid out.
    """

    prompt: str
    thought: str | None
    answer: str
    system: str | None = None
    history: tuple[Turn, ...] = ()
    rendering: str = "standard"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns before the answer, in the form that chat templates take."""
        system = [] if self.system is None else [("system", self.system)]
        turns = [*system, *self.history, ("user", self.prompt)]
        return [{"role": role, "content": content} for role, content in turns]


def direct_refusal(row: Row, where: str, rendering: str) -> Conversation | None:
    """Read a row of DirectRefusal as the code did that the rendering comes from; None if it has no answer.

    `refusal` holds both sides, `Question: ...\\nAnswer: ...`; `prompt` is the question again; `response`, a harmful
    answer, is ignored.

    reference: `prompt`, and all after the first `Answer:`, with its leading space.
    thinksafe: both sides of `refusal`, stripped.
    safety_tax: both sides of `refusal`, split at `\\nAnswer: `; a third piece is dropped.
    standard: as the reference, stripped.
    """
    refusal = text(row, "refusal", where)
    if rendering.startswith("safety_tax"):
        question, *answers = refusal.split("\nAnswer: ")
        sides = (question.replace("Question: ", ""), answers[0]) if answers else None
    elif rendering == "thinksafe":
        match = re.search(r"question:\s*(.+?)\s*answer:\s*(.+)", refusal, re.IGNORECASE | re.DOTALL)
        sides = (match[1].strip(), match[2].strip()) if match else None
    else:
        _, label, answer = refusal.partition("Answer:")
        sides = (text(row, "prompt", where), answer) if label else None
        if sides and rendering == "standard":
            sides = (sides[0].strip(), sides[1].strip())
    return Conversation(sides[0], None, sides[1], rendering=rendering) if sides and sides[1].strip() else None


def conversation(
    row: Row, where: str, columns: Mapping[str, str], rendering: str = "standard", opened: bool = False
) -> Conversation | None:
    """Read a row whose columns are named by role; None if a think block in its answer has no end.

    A think block in the answer is split into thought and answer; `opened` says that answers begin inside one. Without a
    prompt column, `messages` is read: its last assistant turn is trained, and the turns before it are context.

    Raises:
        UserError: A column is missing or empty, or the turns cannot be trained on.
    """
    names = {role: columns.get(role, role) for role in ("prompt", "thought", "answer", "system", "messages")}
    if "messages" in columns or (names["prompt"] not in row and names["messages"] in row):
        whole = _from_messages(row, names["messages"], where)
    else:
        prompt = text(row, names["prompt"], where)
        if "context" in columns and (context := text(row, columns["context"], where).strip()):
            prompt = f"{prompt}\n\n{context}"
        whole = Conversation(prompt, None, text(row, names["answer"], where), system=row.get(names["system"]))
    if "thought" in columns and columns["thought"] not in row:
        text(row, columns["thought"], where)  # raises the error that names the columns
    thought, answer = row.get(names["thought"]) or whole.thought, whole.answer
    if opened or OPEN in answer or CLOSE in answer:
        parts = split_reply(answer, opened=opened)
        if not parts.closed:
            return None
        thought, answer = thought or (parts.thought if CLOSE in answer else None), parts.answer
    return replace(whole, thought=thought, answer=answer, rendering=rendering)


def _from_messages(row: Row, column: str, where: str) -> Conversation:
    """Read a list of turns, up to the last assistant's."""
    value = row[column] if column in row else text(row, column, where)
    turns = [_turn(turn, where) for turn in value] if isinstance(value, list) else []
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if len(turns) < 2 or turns[-2][0] != "user":
        raise UserError(f"{where}: {column!r} has no assistant turn that answers a user turn.")
    *history, (_, prompt), (_, answer) = turns
    return Conversation(prompt, None, answer, system=system, history=tuple(history))


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise UserError(f"{where}: a turn must be an object with role and content, not {str(turn)[:40]!r}.")
    name = str(turn.get("role", turn.get("from")))
    role, content = ROLES.get(name, name), turn.get("content", turn.get("value"))
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise UserError(
            f"{where}: a turn of role {name!r} with {type(content).__name__} content cannot be trained on; turns are "
            "text of system, user and assistant."
        )
    return role, content
