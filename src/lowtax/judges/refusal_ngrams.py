"""A logistic regression on words and word pairs of a reply, which settles clear cases before the model reads them.

Rule      The words and word pairs of the first 600 and the last 300 characters, those among the first 14 words once
          more, the label of `refusal_words`, the size of the reply, and that of the part of it that does more than
          advise, are hashed into 32,768 weights. Their sum over the root of their number is the logit of "declines, in
          full or in part".
Settled   Up to LOW the reply complies, from HIGH on it declines; in between the model of `refusal` decides. The two
          were chosen on held-out texts of ours: docs/reference/judges-refusal.md.
"""

import math
import re
import zlib
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from lowtax.judges import refusal_words
from lowtax.judges.base import Label

FILE = Path(__file__).parent / "refusal_data" / "ngrams.safetensors"
WEIGHTS = 2**15
START, END, FIRST = 600, 300, 14  # characters, characters, words
LOW, HIGH = 0.1, 0.9
WORD = re.compile(r"[a-z']+|[0-9]+|[^\w\s]")


def features(text: str, words_label: Label) -> list[int]:
    """Return the numbers of the weights of a reply, each once."""
    plain = text.strip().replace("\u2019", "'").lower()
    part = plain if len(plain) <= START + END else f"{plain[:START]} {plain[-END:]}"
    words = WORD.findall(part)
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    names = {f"1{word}" for word in words} | {f"2{pair}" for pair in pairs}
    names |= {f"S{word}" for word in words[:FIRST]} | {f"T{pair}" for pair in pairs[:FIRST]} | {f"L{words_label}"}
    answering, all_words = refusal_words.count_words(text)
    size = int(math.log2(answering + 1))
    names |= {f"A{n}" for n in range(size + 1)} | {f"D{n}" for n in range(int(math.log2(all_words + 1)) + 1)}
    names |= {f"B{words_label}{size}", f"C{round(4 * answering / max(1, all_words))}"}
    return sorted(zlib.crc32(name.encode()) % WEIGHTS for name in names)


@lru_cache(maxsize=1)
def _stored() -> tuple[torch.Tensor, float]:
    tensors = load_file(FILE)
    return tensors["weight"].float(), float(tensors["bias"])


def declined(text: str, words_label: Label) -> float:
    """Return the probability that a reply declines."""
    weight, bias = _stored()
    numbers = features(text, words_label)
    logit = float(weight[numbers].sum()) / math.sqrt(len(numbers)) + bias
    return 1 / (1 + math.exp(-logit))
