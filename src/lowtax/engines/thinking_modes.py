"""Decoding modes that shorten or lengthen the thought, to measure how safety depends on the length of thinking.

Source: Jiang et al. 2025, SafeChain, arXiv:2502.12025, section on decoding strategies:

    zero_think   the thought is a line break; the model writes the answer
    less_think   the thought is one sentence which says that little thinking is needed; the model writes the answer
    more_think   where the thought would end, one of two strings is written instead and the model continues to think,
                 up to ten times and within a budget of 10,000 of 16,000 tokens; then the thought is closed

Departures from the published code:
- It works with any chat template, with or without an open think block; the published code supports R1-Distill.
- The sentence of less_think is ours; theirs says the same in other words.
- Engines have no stop string: a finished thought is cut at its close tag, and the rest is dropped. Its tokens are
  counted by its share of the characters. An end of turn inside the thought counts as the close tag.
- A thought is continued from its text, on a new line, so that its tokens may be split differently.
- The request's seed decides which of the two strings is written and how each continuation is drawn.
- Budgets shrink in proportion if max_new_tokens is below 16,000.

As in the paper, a forced thought is not part of the reply: zero_think and less_think give replies without a thought,
the others with one. Compare modes by their answers: a judge that sees the thought compares different texts.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from lowtax.common.errors import UserError, did_you_mean
from lowtax.data.rendering import THINK, Markers
from lowtax.engines.base import Completion, Engine, Request
from lowtax.engines.settings import Decoding as Mode

MODES: tuple[Mode, ...] = get_args(Mode)
LITTLE = "This request is simple enough that I can answer it right away, without thinking it through."
CONTINUATIONS = ("Wait", "Let me think again")


@dataclass(frozen=True)
class Budget:
    """The budget of more_think: tokens of all thoughts, tokens of the whole reply, and the number of continuations."""

    thought: int = 10_000
    total: int = 16_000
    continuations: int = 10

    def within(self, tokens: int) -> "Budget":
        """Return the budget scaled down to so many tokens; at least one of them is left for the answer."""
        if tokens >= self.total:
            return self
        return replace(self, thought=min(self.thought * tokens // self.total, tokens - 1), total=tokens)


def first(request: Request, mode: Mode, opened: bool, markers: Markers = THINK) -> Request:
    """Return the request with the beginning that the mode forces on the reply.

    Args:
        opened: the prompt ends in an open think block.
        markers: the model's format of a thought.

    Raises:
        UserError: There is no such mode, or the request turns thinking off.
    """
    if mode == "default":
        return request
    if mode not in MODES:
        raise UserError(f"There is no decoding mode {mode!r}; {did_you_mean(mode, MODES)}")
    if request.thinking == "off":
        raise UserError(f"Decoding {mode} writes the thought itself: set `thinking` to default instead of off.")
    if markers.closed and not markers.in_tags:
        raise UserError(
            f"Decoding {mode} writes the thought itself, but the chat template allows none here: turn thinking on."
        )
    start = "" if opened else markers.opening
    end = markers.closing
    text = {"zero_think": end, "less_think": LITTLE + end, "more_think": ""}[mode]
    return replace(request, prefix=request.prefix + start + text)


def generate(
    engine: Engine,
    requests: Sequence[Request],
    mode: Mode,
    opened: bool,
    budget: Budget | None = None,
    markers: Markers = THINK,
) -> Iterator[Completion]:
    """Yield one completion for every request, like an engine.

    The text includes the continuations that were inserted; `tokens` counts only what the model wrote.

    Args:
        opened: the chat template leaves a think block open.
        markers: the model's format of a thought.
    """
    forced = [first(request, mode, opened, markers) for request in requests]
    if mode == "default":
        return engine.generate(forced)
    if mode == "more_think":
        return _more(engine, forced, budget or Budget(), markers)
    return (replace(completion, opened=False) for completion in engine.generate(forced))


def _more(engine: Engine, requests: Sequence[Request], budget: Budget, markers: Markers) -> Iterator[Completion]:
    """Work in rounds: all thoughts to be continued and all answers to be written go to the engine together."""
    replies = {request.id: _Reply(request, budget.within(request.max_new_tokens), markers) for request in requests}
    round_ = [reply.next() for reply in replies.values()]
    while round_:
        next_round = []
        for completion in engine.generate(round_):
            reply = replies[completion.id]
            if whole := reply.take(completion):
                yield whole
            else:
                next_round.append(reply.next())
        round_ = next_round


@dataclass
class _Reply:
    """An unfinished reply: its thought so far, and the tokens used."""

    request: Request
    budget: Budget
    markers: Markers
    thought: str = ""
    used: int = 0
    rounds: int = 0
    closed: bool = False

    def next(self) -> Request:
        """Return the next request: more thought, or the answer once the budget of thoughts is used up."""
        draw = random.Random(f"{self.request.seed}-{self.rounds}")
        self.closed = self.rounds > self.budget.continuations or self.used >= self.budget.thought
        if self.closed:
            self.thought = self.thought.rstrip() + self.markers.closing
        elif self.rounds:
            self.thought = f"{self.thought.rstrip()}\n{draw.choice(CONTINUATIONS)}".lstrip()
        return replace(
            self.request,
            prefix=self.request.prefix + self.thought,
            max_new_tokens=(self.budget.total if self.closed else self.budget.thought) - self.used,
            seed=draw.getrandbits(31) if self.rounds else self.request.seed,
        )

    def take(self, part: Completion) -> Completion | None:
        """Add what the model wrote; return the whole reply if it is finished."""
        if part.finish == "failed":
            return replace(part, opened=True)
        if self.closed:
            return replace(part, text=self.thought + part.text, tokens=self.used + part.tokens, opened=True)
        thought = part.text.partition(self.markers.close)[0]
        self.thought += thought
        self.used += math.ceil(part.tokens * len(thought) / len(part.text)) if part.text else part.tokens
        self.rounds += 1
        return None
