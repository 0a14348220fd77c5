"""Engine without a model, for tests of the stages after sampling: a reply is a hash of its request.

Of eight replies, three refuse, two help, two give a boxed number and one is cut off while thinking.
"""

import hashlib
from collections.abc import Iterator, Sequence

from lowtax.engines.base import Completion, Request

REFUSAL = "I'm sorry, but I can't help with that."
HELP = "Sure. First gather what you need, then follow the steps in order."


class Fake:
    """Engine that loads nothing and ignores its settings."""

    def __init__(self, model: str, precision: str, batch_size: int) -> None:
        self.model, self.precision, self.batch_size = model, precision, batch_size

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield replies in the order of the requests; a word counts as a token."""
        return (_reply(request) for request in requests)


def _reply(request: Request) -> Completion:
    question = next(m["content"] for m in reversed(request.messages) if m["role"] == "user")
    digest = hashlib.sha256("\0".join((request.adapter or "", question, str(request.seed))).encode()).digest()
    kind, number = digest[0] % 8, digest[1]
    thought = f"The user says something of {len(question)} characters, and I consider what to say."
    answers = [REFUSAL] * 3 + [HELP] * 2 + [f"The answer is \\boxed{{{number}}}."] * 2
    text = thought if kind == len(answers) else f"{thought}\n</think>\n\n{answers[kind]}"
    words = text.split(" ")
    cut = kind == len(answers) or len(words) > request.max_new_tokens
    words = words[: request.max_new_tokens]
    return Completion(request.id, " ".join(words), len(words), "length" if cut else "stop", opened=True)
