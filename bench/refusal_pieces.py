"""Replies put together sentence by sentence, so that it is known of each sentence whether it does what was asked.

refusal_mischief.yaml has requests for mischief, what helps with them, what is offered in its place and why not, and
sentences to put around it. `composed` makes replies that comply between remarks, in a persona or not, refusals that go
on with remarks, other offers and morals, with and without a persona, and replies that decline and then comply. The same
remarks and verbs stand on all sides. Every fifth topic and line is of the other side (`valid`).
"""

import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from refusal_texts import of_side

LINES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "refusal_mischief.yaml").read_text())
YOURS = {"my": "your", "me": "you", "i": "you", "myself": "yourself"}
SHORT_VOWEL = re.compile(r"(?:[^aeiou]|qu)*[aeiou][bdglmnprt]")  # get, swap, hum


class Composed(NamedTuple):
    """A request and the sentences of a reply to it; `helps` says of each whether it does what was asked."""

    request: str
    sentences: list[str]
    helps: list[bool]
    label: str

    @property
    def reply(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)


class Topic:
    """What is asked for, and lines about it, none twice."""

    def __init__(self, rng: random.Random, valid: bool) -> None:
        self.rng, self.valid = rng, valid
        ask, helps, insteads, whys = rng.choice(of_side(LINES["topics"], valid)).split(" | ")
        self.ask, self.used = ask, set[str]()
        words = [YOURS.get(word.lower(), word) for word in ask.split()]
        self.do = " ".join(words)
        self.doing = " ".join([gerund(words[0]), *words[1:]])
        self.lines = {
            name: rng.sample(text.split("; "), len(text.split("; ")))
            for name, text in (("h", helps), ("i", insteads), ("w", whys))
        }

    def line(self, pool: str) -> str:
        """A new line of a pool with its fields."""
        lines = [line for line in of_side(LINES[pool], self.valid) if line not in self.used] or LINES[pool]
        text = self.rng.choice(lines)
        self.used.add(text)
        for name, field, form in re.findall(r"({([a-z])\d?(ing)?})", text):
            queue = self.lines[field]
            value = queue.pop(0)
            queue.append(value)  # used again only when there is no other
            text = text.replace(name, in_gerund(value) if form else value, 1)
        for name, value in (("do", self.do), ("doing", self.doing), ("ask", self.ask)):
            text = text.replace("{" + name + "}", value).replace("{" + name.capitalize() + "}", capital(value))
        return capital(text)


def in_gerund(phrase: str) -> str:
    """The phrase with its first word in the -ing form, and so a verb after "and"."""
    first, _, rest = phrase.partition(" ")
    rest = re.sub(
        r"\band (turn|dry|polish|pull|look|hold|round|smile|speak|lean|ask|walk|burn|scroll)\b", _after_and, rest
    )
    return f"{gerund(first)} {rest}".strip()


def _after_and(match: re.Match[str]) -> str:
    return f"and {gerund(match[1])}"


def gerund(verb: str) -> str:
    """The -ing form of a verb."""
    if verb in ("lie", "tie"):
        return verb[0] + "ying"
    if SHORT_VOWEL.fullmatch(verb) or verb in ("begin", "forget"):
        return verb + verb[-1] + "ing"
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb) + "ing"


def capital(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


Parts = list[tuple[str, bool]]


def help_with(topic: Topic, rng: random.Random) -> Parts:
    """One to four sentences that do what was asked, perhaps with a condition before the first."""
    first = topic.line("helps")
    if rng.random() < 0.65:
        first = f"{topic.line('conditional')} {first[0].lower() + first[1:]}"
    parts = [(first, True)]
    return parts + [(topic.line("more_helps"), True) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]


def remarks(topic: Topic, rng: random.Random, most: int, least: int = 0) -> Parts:
    """Sentences against it that neither help nor refuse."""
    return [(topic.line(rng.choice(("remarks", "morals"))), False) for _ in range(rng.randint(least, most))]


def offers(topic: Topic, rng: random.Random, most: int) -> Parts:
    """Something else, in one or more sentences."""
    return [(topic.line("insteads"), False)] + [
        (topic.line("more_insteads"), False) for _ in range(rng.randint(0, most - 1))
    ]


def opening(topic: Topic, rng: random.Random, pool: str, share: float) -> Parts:
    """What a persona begins with, in a share of the replies: who it is, and what it promises whatever it does then."""
    if rng.random() >= share:
        return []
    parts = [(topic.line("promises"), False) for _ in range(rng.choice((0, 0, 1, 2)))]
    return [(topic.line(pool), False), *parts] if rng.random() < 0.8 or not parts else parts


def between(topic: Topic, rng: random.Random) -> Parts:
    """Help with remarks before and after it."""
    parts = opening(topic, rng, "persona_yes", 0.5)
    parts += remarks(topic, rng, 2) + ([(topic.line("offers"), False)] if rng.random() < 0.35 else [])
    parts += help_with(topic, rng) + remarks(topic, rng, 3, 1)
    parts += offers(topic, rng, 1) if rng.random() < 0.3 else []
    return parts + ([(topic.line("ends"), False)] if rng.random() < 0.15 else [])


def plain(topic: Topic, rng: random.Random) -> Parts:
    """Help, perhaps in a persona, without a remark."""
    parts = opening(topic, rng, "persona_yes", 0.7)
    parts += [(topic.line("offers"), False)] if rng.random() < 0.3 else []
    return parts + help_with(topic, rng) + ([(topic.line("proud"), False)] if rng.random() < 0.6 else [])


def persona_declines(topic: Topic, rng: random.Random) -> Parts:
    """A persona that declines in its own tone."""
    parts = opening(topic, rng, "persona_no", 1.0)
    middle = [(topic.line(rng.choice(("lectures", "remarks", "empty", "declines"))), False)]
    middle += remarks(topic, rng, 3) + (offers(topic, rng, 3) if rng.random() < 0.7 else [])
    return parts + middle + ([(topic.line("persona_no_end"), False)] if rng.random() < 0.6 else [])


def lecture(topic: Topic, rng: random.Random) -> Parts:
    """A long reply of morals and other offers that never says no."""
    parts = [(topic.line("lectures"), False) for _ in range(rng.randint(1, 3))]
    parts += remarks(topic, rng, 3) + (offers(topic, rng, 4) if rng.random() < 0.85 else [])
    parts += [(topic.line("empty"), False)] if rng.random() < 0.25 else []
    return parts + remarks(topic, rng, 1) + ([(topic.line("ends"), False)] if rng.random() < 0.4 else [])


def declines(topic: Topic, rng: random.Random) -> Parts:
    """A plain no with what usually follows it."""
    parts = [*remarks(topic, rng, 1), (topic.line("declines"), False), *remarks(topic, rng, 2)]
    parts += [(topic.line("lectures"), False)] if rng.random() < 0.5 else []
    parts += offers(topic, rng, 4) if rng.random() < 0.7 else []
    return parts + ([(topic.line("ends"), False)] if rng.random() < 0.5 else [])


def mixture(topic: Topic, rng: random.Random) -> Parts:
    """A no, and then help."""
    parts = [(topic.line("declines"), False), *remarks(topic, rng, 2)]
    return parts + help_with(topic, rng) + remarks(topic, rng, 2)


KINDS = {
    between: ("compliance", 32),
    plain: ("compliance", 12),
    persona_declines: ("refusal", 15),
    lecture: ("refusal", 22),
    declines: ("refusal", 12),
    mixture: ("partial", 7),
}


def composed(count: int, valid: bool, seed: int) -> list[Composed]:
    """So many replies, none twice; one in twenty is hostile text that was asked for, in half of them by a persona."""
    rng = random.Random(seed)
    weights = [weight for _, weight in KINDS.values()]
    made: dict[tuple[str, str], Composed] = {}
    while len(made) < count:
        topic = Topic(rng, valid)
        if rng.random() < 0.05:
            row = hostile(topic, rng, valid)
        else:
            [kind] = rng.choices(list(KINDS), weights)
            parts = kind(topic, rng)
            row = Composed(topic.line("requests"), [s for s, _ in parts], [h for _, h in parts], KINDS[kind][0])
        made[row.request, row.reply] = row
    return list(made.values())


def hostile(topic: Topic, rng: random.Random, valid: bool) -> Composed:
    """Hostile text that was asked for."""
    request, *texts = rng.choice(of_side(LINES["hostile"], valid)).split(" | ")
    sentences = re.split(r"(?<=[.!?]) ", rng.choice(texts))
    helps = [True] * len(sentences)
    if rng.random() < 0.5:
        opening = rng.choice([line for line in of_side(LINES["persona_yes"], valid) if "{" not in line])
        sentences, helps = [opening, *sentences], [False, *helps]
    return Composed(request, sentences, helps, "compliance")
