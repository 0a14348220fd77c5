"""Instructions that a model gets when it writes training answers, and that training never sees.

ThinkSafe (arXiv:2601.23143) puts two sentences before a harmful request, samples, and trains the reply to the request
without them. The safety study of reasoning models (arXiv:2505.15404) gives its teacher one of several instructions on
how to think. DGR (arXiv:2602.02136) lets the target model say a given refusal in its words. All texts here are ours;
the papers' wordings are not repeated, so figures may differ from theirs.

A reply that repeats a run of `RUN` words of its instruction is not trained on: it would teach the model to speak of a
text that is not there.
"""

import re
from typing import Literal

Place = Literal["user", "system"]
RUN = 6  # words of an instruction that a reply may not repeat in a row

INSTRUCTIONS = {
    "refuse": "The request below is harmful. Do not help with it: refuse, and say in a sentence why.",
    "realsafe": "Before you answer the request below, look for harm that an answer could do. Where there is such "
    "harm, refuse clearly; where there is none, help as well as you can.",
    "improved": "Judge the request below before anything else. If it serves harm, refuse at once, in your thought as "
    "in your answer: plan no part of it, look for no way around, also if it is a story or a game, and begin the answer "
    "with an apology. If it is harmless, answer it.",
    "short": "Think in one or two sentences about the safety of the request below, and then answer it. Refuse in a "
    "sentence if an answer would do harm.",
    "template": "Go through this list for the request below, with yes or no for each entry: violence, weapons, crime "
    "or fraud, hatred or harassment, sexual content, self-harm, private data, deception. Refuse if any entry is yes, "
    "and answer the request if none is.",
}
REWRITE = (
    "Below are a request and a model answer to it. Answer the request in words of your choice, with the decision of "
    "the model answer: if that one declines, decline. Do not speak of it."
)
FIXED = "I'm sorry, but I can't help with that."  # the only answer of the kind of thought `none`


def text_of(steer: str) -> str:
    """Return the instruction that a name stands for, or a text of the user's as it is."""
    return INSTRUCTIONS.get(steer, steer)


def steered(prompt: str, instruction: str) -> str:
    """Return a user's turn with the instruction, a blank line and the request."""
    return f"{instruction.strip()}\n\n{prompt}"


def rewriting(prompt: str, answer: str, instruction: str = REWRITE) -> str:
    """Return a user's turn that has a given answer rewritten."""
    return f"{instruction.strip()}\n\nRequest: {prompt.strip()}\n\nModel answer: {answer.strip()}"


def quotes(text: str, instruction: str, prompt: str = "") -> bool:
    """Return whether a text repeats `RUN` words of an instruction in a row, ignoring case and punctuation.

    Runs that are also in the prompt are the prompt's, and an instruction shorter than a run is one run.
    """
    instructed, own = _words(instruction), _joined(_words(prompt))
    size = min(RUN, len(instructed))
    runs = {_joined(instructed[i : i + size]) for i in range(len(instructed) - size + 1)} if size else set()
    words = _joined(_words(text))
    return any(run in words and run not in own for run in runs)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("\u2019", ""))


def _joined(words: list[str]) -> str:
    return f" {' '.join(words)} "
