"""Training conversations, and how they are made of turns.

The layout of DirectRefusal is that of the construction script in git-disl/Safety-Tax and of the three code bases that
read the set; docs/guides/training-data.md has the table.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lowtax.data import thinking_tags
from lowtax.data.rendering import CLOSE, OPEN
from lowtax.data.specs import TrainOn
from lowtax.data.tables import Row
from lowtax.data.turns import Turn, Unusable, text_of

REFERENCE_THOUGHT = "I should not answer this question!"  # of every row in the reference's data
NEWER = ("prompt_loss", "ordinary", "steer", "rejected")  # fields that older hashes do not have
Earlier = tuple[str, str] | tuple[str, str, str]  # role, content, and the thought of an assistant's turn that has one


@dataclass(frozen=True)
class Conversation:
    """One training row: a request, a thought (None: the model does not think) and an answer.

    system: the system turn. history: the turns before the request, which carry no loss.
    rendering: how thought and answer are laid out.
    prompt_loss: the prompt carries loss too.
    ordinary: the row is marked as ordinary, for a penalty that acts on such rows.
    steer: the instruction under which the untrained model is the teacher of this row, which training does not see.
    rejected: thought and answer of the answer that is rejected in favour of this one.
    """

    prompt: str
    thought: str | None
    answer: str
    system: str | None = None
    history: tuple[Earlier, ...] = ()
    rendering: str = "standard"
    prompt_loss: bool = False
    ordinary: bool = False
    steer: str | None = None
    rejected: tuple[str | None, str] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns before the answer, in the form that chat templates take, which decide about earlier thoughts."""
        system = [] if self.system is None else [("system", self.system)]
        turns = [*system, *self.history, ("user", self.prompt)]
        return [dict(zip(("role", "content", "reasoning_content"), turn, strict=False)) for turn in turns]

    def describe(self) -> dict[str, Any]:
        """Return the fields that decide what is trained, for hashes; newer ones only if they are set."""
        return {name: value for name, value in asdict(self).items() if value or name not in NEWER}


def direct_refusal(row: Row, rendering: str) -> Conversation:
    """Read a row of DirectRefusal as the code did that the rendering comes from.

    `refusal` holds both sides, `Question: ...\\nAnswer: ...`; `prompt` is the question again; `response`, a harmful
    answer, is ignored.

    reference: `prompt`, and all after the first `Answer:`, with its leading space.
    thinksafe: both sides of `refusal`, stripped.
    safety_tax: both sides of `refusal`, split at `\\nAnswer: `; a third piece is dropped.
    standard: as the reference, stripped.

    Raises:
        Unusable: It has no answer.
    """
    refusal = text_of(row.get("refusal"), "the answer")
    if rendering.startswith("safety_tax"):
        question, *answers = refusal.split("\nAnswer: ")
        sides = (question.replace("Question: ", ""), answers[0]) if answers else None
    elif rendering == "thinksafe":
        match = re.search(r"question:\s*(.+?)\s*answer:\s*(.+)", refusal, re.IGNORECASE | re.DOTALL)
        sides = (match[1].strip(), match[2].strip()) if match else None
    else:
        _, label, answer = refusal.partition("Answer:")
        sides = (text_of(row.get("prompt"), "the prompt"), answer) if label else None
        if sides and rendering == "standard":
            sides = (sides[0].strip(), sides[1].strip())
    if not sides or not sides[1].strip():
        raise Unusable("it has no answer")
    return Conversation(sides[0], None, sides[1], rendering=rendering)


def of_turns(
    turns: Sequence[Turn], train_on: TrainOn = "last", opened: bool = False, as_is: bool = False
) -> list[Conversation]:
    """Return the training rows of one conversation: one for each assistant turn that is trained.

    System turns at the beginning are joined by a blank line. Turns after the last assistant's are ignored. A think
    block in an answer is split into thought and answer; `opened` says that the last answer begins inside one, and
    `as_is` leaves the answer as `split_answer` has it.

    Raises:
        Unusable: A turn is empty or out of order, no assistant turn may be trained, or a thought has no end.
    """
    turns = list(turns)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise Unusable("it has no assistant turn")
    first = next(i for i, turn in enumerate(turns) if turn.role != "system")
    system = "\n\n".join(dict.fromkeys(turn.content for turn in turns[:first])) if first else None
    rest, rows = turns[first:], list[Conversation]()
    last = len(rest) - 1
    for i, turn in enumerate(rest):
        chosen = turn.role == "assistant" and turn.trained and (i == last or (train_on == "assistant" and i > 0))
        if not turn.content.strip():
            raise Unusable(f"the {_part_of(i, last)} is empty")
        if chosen:
            if i == 0 or rest[i - 1].role != "user":
                raise Unusable("two assistant turns follow each other" if i else "no request is before its answer")
            thought, answer = split_answer(turn.content, turn.thought, opened and i == last, as_is)
            history = tuple(_earlier(turn) for turn in rest[: i - 1])
            rows.append(Conversation(rest[i - 1].content, thought, answer, system, history))
    if not rows:
        raise Unusable("the data say that its answer carries no loss")
    return rows


def _part_of(i: int, last: int) -> str:
    return {last: "answer", last - 1: "prompt"}.get(i, "content of an earlier turn")


def _earlier(turn: Turn) -> Earlier:
    return (turn.role, turn.content) if turn.thought is None else (turn.role, turn.content, turn.thought)


def split_answer(
    answer: str, thought: str | None = None, opened: bool = False, as_is: bool = False
) -> tuple[str | None, str]:
    """Return thought and answer of a text that may begin with a think block, or with a block of any known family.

    The block ends at its first closing tag, nested blocks aside. A text without an opening tag begins inside the
    thought if `opened` says so, or if a closing tag is in it and no thought is beside it. Tags further on belong to the
    answer, but for a closing tag at its end. An empty block is a thought that is empty.

    as_is: the answer after a block keeps its white space and ends at the next closing tag, as in the code of
        Safety-Tax (`response.split("</think>")[1]`).

    Raises:
        Unusable: The thought has no end, nothing follows it, or another thought is beside it.
    """
    body = answer.lstrip()
    if tags := thinking_tags.begun(body):
        block, rest, ended = thinking_tags.split(body, False, [tags])
        if not ended:
            raise Unusable("its thought has no end")
        return _checked(thought, block, rest)
    if body.startswith(OPEN):
        body, inside = body.removeprefix(OPEN), True
    else:
        before, tag, _ = body.partition(CLOSE)
        inside = opened or (bool(tag) and thought is None and OPEN not in before)
    if not inside:
        return thought, answer
    if CLOSE not in body:
        raise Unusable("its thought has no end")
    end = _end_of_block(body)
    block, rest = body[:end].strip(), body[end + len(CLOSE) :]
    if as_is:
        rest = rest.partition(CLOSE)[0]
    elif OPEN not in rest:
        rest = rest.strip().removesuffix(CLOSE).rstrip()
    else:
        rest = rest.strip()
    return _checked(thought, block, rest)


def _checked(thought: str | None, block: str, answer: str) -> tuple[str | None, str]:
    """Return thought and answer of a text with a block of thought.

    Raises:
        Unusable: Nothing follows the block, or another thought is beside it.
    """
    if not answer.strip():
        raise Unusable("the answer is empty")
    if block and thought and thought.strip() != block:
        raise Unusable("it has two different thoughts")
    return thought or block, answer


def _end_of_block(body: str) -> int:
    """Return where the closing tag of a block is whose opening tag is before `body`; the last one if none matches."""
    depth = 1
    for tag in re.finditer(f"{OPEN}|{CLOSE}", body):
        depth += 1 if tag[0] == OPEN else -1
        if depth == 0:
            return tag.start()
    return body.rindex(CLOSE)
