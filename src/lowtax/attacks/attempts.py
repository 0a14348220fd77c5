"""The steps of an attack that talks, as its file has them."""

from lowtax.common.records import Row


class Attempt(Row):
    """One step of an attack on a case: what the attacker wrote, and what came of it.

    attempt: the number of the query, from 0; -1 if no prompt came of what the attacker wrote, for the reason `problem`.
    wrote: the attacker's own words. prompt: what was sent. reply: the id of the target's reply.
    score: of the judge that steers, from 0 to 1. refused: the reply refuses, by the words of refusals.
    attacker_tokens: of all tries of this step.
    """

    arm: str
    seed: int | None
    checkpoint: str | None
    request: str
    goal: str
    attempt: int
    stream: int = 0
    depth: int = 0
    variant: str = ""
    wrote: str = ""
    problem: str = ""
    prompt: str = ""
    reply: str = ""
    score: float | None = None
    refused: bool = False
    attacker_tokens: int = 0
