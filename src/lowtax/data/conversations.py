"""From a row of a table to a training conversation; and the published safety sets, with their licences.

The facts about DirectRefusal's fields are those of the construction script in git-disl/Safety-Tax and of the three
code bases that read the set; docs/training-data.md has the table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lowtax.errors import UserError
from lowtax.rendering import CLOSE, OPEN, split_reply
from lowtax.tables import Row

REFERENCE_THOUGHT = "I should not answer this question!"  # of every row in the reference's data
Turn = tuple[str, str]  # role and content


@dataclass(frozen=True)
class Conversation:
    """One training row: a request, a thought (None: the model does not think) and an answer.

    system: the system turn. history: (role, content) of the turns before the request; they carry no loss.
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
        """The turns that a model is asked with, as chat templates take them."""
        system = [] if self.system is None else [("system", self.system)]
        return [{"role": role, "content": text} for role, text in [*system, *self.history, ("user", self.prompt)]]


@dataclass(frozen=True)
class Named:
    """A published data set. `unopened`: its responses begin inside the thought, without the opening tag."""

    hub: str
    licence: str
    citation: str
    columns: dict[str, str] = field(default_factory=dict)
    unopened: bool = False
    rendering: str = "standard"


NAMED = {
    "direct-refusal": Named(
        "TianshengHuang/DirectRefusal",
        "none stated; its BeaverTails source is CC-BY-NC-4.0: treat it as non-commercial",
        "Huang et al. 2025, Safety Tax, arXiv:2503.00555",
        columns={"prompt": "prompt", "answer": "refusal"},
        rendering="reference",
    ),
    "safechain": Named(
        "UWNSL/SafeChain",
        "none stated; its prompts are WildJailbreak's (AI2 terms), its answers DeepSeek-R1-Distill-Llama-70B's: "
        "ask before other than research use",
        "Jiang et al. 2025, SafeChain, arXiv:2502.12025",
        columns={"prompt": "instruction", "answer": "response"},
        unopened=True,
    ),
    "star1": Named(
        "UCSC-VLAA/STAR-1",
        "Apache-2.0",
        "Wang et al. 2025, STAR-1, arXiv:2504.01903",
        columns={"prompt": "question", "answer": "response"},
    ),
}


def direct_refusal(row: Row, where: str, rendering: str) -> Conversation | None:
    """A row of DirectRefusal, read as the code read it that the rendering comes from. None: it has no answer.

    `refusal` holds both sides, `Question: ...\\nAnswer: ...`; `prompt` the question again, `response` a harmful answer.
    reference: `prompt`, and all after the first `Answer:`, its leading space too.
    thinksafe: both sides out of `refusal`, stripped.
    safety_tax: both sides out of `refusal`, cut at `\\nAnswer: `; a third piece is dropped.
    standard: as the reference reads it, stripped.
    """
    refusal = cell(row, "refusal", where)
    if rendering.startswith("safety_tax"):
        question, *answers = refusal.split("\nAnswer: ")
        sides = (question.replace("Question: ", ""), answers[0]) if answers else None
    elif rendering == "thinksafe":
        found = re.search(r"question:\s*(.+?)\s*answer:\s*(.+)", refusal, re.IGNORECASE | re.DOTALL)
        sides = (found[1].strip(), found[2].strip()) if found else None
    else:
        _, label, answer = refusal.partition("Answer:")
        sides = (cell(row, "prompt", where), answer) if label else None
        if sides and rendering == "standard":
            sides = (sides[0].strip(), sides[1].strip())
    return Conversation(sides[0], None, sides[1], rendering=rendering) if sides and sides[1].strip() else None


def conversation(
    row: Row, where: str, columns: Mapping[str, str], rendering: str = "standard", unopened: bool = False
) -> Conversation | None:
    """A row with named columns. A think block in the answer is taken apart; None: the block has no end.

    Without a prompt column, `messages` is read: its last assistant turn is trained, what precedes it is context.
    """
    names = {role: columns.get(role, role) for role in ("prompt", "thought", "answer", "system", "messages")}
    if "messages" in columns or (names["prompt"] not in row and names["messages"] in row):
        whole = _from_messages(row, names["messages"], where)
    else:
        prompt = cell(row, names["prompt"], where)
        if "context" in columns and (context := cell(row, columns["context"], where).strip()):
            prompt = f"{prompt}\n\n{context}"
        whole = Conversation(prompt, None, cell(row, names["answer"], where), system=row.get(names["system"]))
    if "thought" in columns and columns["thought"] not in row:
        cell(row, columns["thought"], where)  # says which columns there are
    thought, answer = row.get(names["thought"]) or whole.thought, whole.answer
    if unopened or OPEN in answer or CLOSE in answer:
        parts = split_reply(answer, opened=unopened)
        if not parts.closed:
            return None
        thought, answer = thought or (parts.thought if CLOSE in answer else None), parts.answer
    return replace(whole, thought=thought, answer=answer, rendering=rendering)


def cell(row: Row, column: str, where: str) -> str:
    """The text in a column, with a sentence if there is none."""
    if row.get(column) is None:
        found = ", ".join(map(str, row))
        what = "is empty" if column in row else f"is not there; its columns are {found}"
        raise UserError(f"{where}: the column {column!r} {what}.")
    return str(row[column])


ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT says it, in the keys from and value


def _from_messages(row: Row, column: str, where: str) -> Conversation:
    """A list of turns, up to the last assistant's."""
    given = row[column] if column in row else cell(row, column, where)
    turns = [_turn(turn, where) for turn in given] if isinstance(given, list) else []
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if len(turns) < 2 or turns[-2][0] != "user":
        raise UserError(f"{where}: {column!r} holds no assistant's turn that answers a user's.")
    *history, (_, prompt), (_, answer) = turns
    return Conversation(prompt, None, answer, system=system, history=tuple(history))


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise UserError(f"{where}: a turn must be an object with role and content, not {str(turn)[:40]!r}.")
    said = str(turn.get("role", turn.get("from")))
    role, content = ROLES.get(said, said), turn.get("content", turn.get("value"))
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise UserError(
            f"{where}: a turn of role {said!r} with {type(content).__name__} content cannot be trained on; turns are "
            "text of system, user and assistant."
        )
    return role, content
