"""Attacks that lead several conversations at once, with an attacker that writes JSON (`pair`, `crescendo`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from pydantic import Field

from lowtax.attacks.arena import Case
from lowtax.attacks.base import Conversation


class Led(Protocol):
    """One conversation of an attack."""

    @property
    def case(self) -> Case:
        """The request, and the model that is attacked."""
        ...


T = TypeVar("T", bound=Led)


class LedConversations(Conversation):
    """Several conversations with each target, in step."""

    begin_json: bool | None = Field(
        None, description="begin the attacker's JSON for it; if absent, unless its engine is openai"
    )

    def begins_json(self) -> bool:
        """Return whether the attacker's JSON is begun for it."""
        return self.attacker_engine != "openai" if self.begin_json is None else self.begin_json

    def live(self, talks: Sequence[T], sent: Mapping[int, int], is_open: Callable[[T], bool]) -> list[T]:
        """Return the conversations that are open, and of each case no more than its budget has left.

        Args:
            sent: the number of queries so far, by the identity of the case.
        """
        room, live = {case: self.queries - number for case, number in sent.items()}, list[T]()
        for talk in talks:
            if is_open(talk) and room[id(talk.case)] > 0:
                room[id(talk.case)] -= 1
                live.append(talk)
        return live
