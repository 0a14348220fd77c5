"""Best-of-N: many random changes of the request's spelling, until one of them is answered.

Source: Hughes et al. 2024, Best-of-N Jailbreaking, arXiv:2412.03556, the text augmentations: the letters inside words
are scrambled, capitals are drawn at random, and characters are moved by one in ASCII. With sigma = 0.4 the first two
happen with probability sigma^(1/2) for a word and a letter, the third with sigma^3 for a character.

Departures: N is 16 where nothing is set, and 10,000 in the paper; the success over N is the share of requests with any
success, not a fitted power law. White space stays, and letters outside ASCII, which the published code drops, change
their case too. The paper samples at temperature 1: set it in `sampling`.
"""

import math
import random
import re
from collections.abc import Iterator

from pydantic import Field, PositiveInt

from lowtax.attacks.base import MOST, Variant, Wrapping


class BestOfN(Wrapping):
    """The attack `best_of_n`."""

    n: PositiveInt = Field(16, le=MOST, description="augmentations of each request")
    sigma: float = Field(0.4, ge=0, le=1, description="strength of the changes, 0 is none")

    def own_queries(self) -> int:
        """Return the number of augmentations; a budget replaces it."""
        return self.budget or self.n

    def variants(self, goal: str, seed: str) -> Iterator[Variant]:
        """Yield augmentations; each depends on the seed and its number alone."""
        return (Variant(augment(goal, self.sigma, random.Random(f"{seed}-{k}"))) for k in range(MOST))


def augment(text: str, sigma: float, draw: random.Random) -> str:
    """Return a text with scrambled words, random capitals and moved characters."""
    often, seldom = math.sqrt(sigma), sigma**3
    words = [_scrambled(word, draw) if draw.random() < often else word for word in re.split(r"(\s+)", text)]
    letters = [c.swapcase() if c.isalpha() and draw.random() < often else c for c in "".join(words)]
    return "".join(_moved(c, draw) if 32 < ord(c) < 126 and draw.random() < seldom else c for c in letters)


def _scrambled(word: str, draw: random.Random) -> str:
    """Return a word with the letters between its first and its last in random order."""
    if len(word) < 4:
        return word
    middle = list(word[1:-1])
    draw.shuffle(middle)
    return word[0] + "".join(middle) + word[-1]


def _moved(character: str, draw: random.Random) -> str:
    moved = ord(character) + draw.choice((-1, 1))
    return chr(moved) if 32 < moved < 127 else character
