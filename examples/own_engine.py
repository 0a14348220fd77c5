"""An engine of your own: it answers every request with the same sentence.

Use it with `--engine examples/own_engine.py:Parrot`. An engine is made with a model, a precision and a batch size, and
turns requests into completions, in any order. A request carries its own adapter and seed, so one engine serves the
base and all checkpoints.
"""

from collections.abc import Iterator, Sequence

import lowtax as lt


class Parrot:
    """Repeat the last message of the user, after a thought."""

    def __init__(self, model: str, precision: str, batch_size: int) -> None:
        self.model = model

    def generate(self, requests: Sequence[lt.Request]) -> Iterator[lt.Completion]:
        """Yield one completion for every request."""
        for request in requests:
            words = ["I", "repeat.", "</think>", *request.messages[-1]["content"].split()]
            written = words[: request.max_new_tokens]
            yield lt.Completion(
                id=request.id,
                text=" ".join(written),
                tokens=len(written),
                finish="stop" if len(written) == len(words) else "length",
                opened=True,  # the prompt ended with <think>, so the text begins inside the thought
            )
