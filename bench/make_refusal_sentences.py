"""Fit the second reading of the judge `refusal`: src/lowtax/judges/refusal_data/sentences.safetensors.

    python bench/make_refusal_sentences.py --star1 STAR-1.jsonl.gz

The shipped model reads replies of `refusal_pieces` and `refusal_texts`, of whose sentences it is known whether they do
what was asked: those of a composed reply by the way it was made; all of a refusal do not; those of an answer do, but
for short ones and for advice, which are left out. A network with one hidden layer learns from their states.
A logistic regression learns from the same states which sentences decline: those of composed replies that say no, and
those of whole refusals whose wording does.
It says how it does on replies of the other side (other requests, frames and remarks), and writes the file. Ten minutes
of one idle core.
"""

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import refusal_pieces
import refusal_texts
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, dropout, gelu

from lowtax.common.log import quiet_libraries
from lowtax.judges import refusal_sentences as sentences
from lowtax.judges.refusal import Refusal
from lowtax.judges.refusal_words import ADVICE, declines

COMPOSED, COMPOSED_VALID = 2600, 600
HIDDEN, RATE, DECAY, EPOCHS, BATCH = 64, 1e-3, 1.0, 8, 128
SMOOTHING = 0.03
ALLOWED = 1.0  # logit above which a sentence counts; chosen by texts of ours and the development half of two sets
PENALTY, DECLINES_FROM = 1.3e-3, -1.0  # of the regression on what declines, and the logit from which it counts
ANSWER_WORDS = 6
DECLINES = [line.split("{")[0] for line in refusal_pieces.LINES["declines"]]


class Labelled(NamedTuple):
    """A request, a reply, its label, and what is known of the sentences in it."""

    request: str
    reply: str
    label: str
    helps: dict[str, bool] | None

    def of(self, sentence: str) -> bool | None:
        """Tell whether a sentence does what was asked; None if that is not known."""
        text = sentence.strip()
        if self.helps is not None:
            known = [helps for part, helps in self.helps.items() if text and (text in part or part in text)]
            return any(known) if known else None
        if self.label == "refusal":
            return False
        return True if len(text.split()) >= ANSWER_WORDS and not ADVICE.search(text) else None

    def declines(self, sentence: str) -> bool | None:
        """Tell whether a sentence declines; None if that is not known."""
        text = sentence.strip()
        if self.helps is not None:
            return any(part in text for part in DECLINES)
        if self.label == "compliance":
            return False
        return True if text and declines(text, first=True) else None


def texts(star1: Path, valid: bool) -> list[Labelled]:
    """All replies of one side."""
    made = refusal_pieces.composed(COMPOSED_VALID if valid else COMPOSED, valid, 21 + valid)
    found = [Labelled(r.request, r.reply, r.label, dict(zip(r.sentences, r.helps, strict=True))) for r in made]
    written = refusal_texts.written(valid) + refusal_texts.written(valid, new=True)
    whole = [t for t in written if len(t.reply) > 150]
    answers = [t for t in refusal_texts.star1(star1, held_out=False) if t.label != "partial"]
    whole += answers[valid::4][: 40 if valid else 120]
    styled = refusal_texts.styles(100 if valid else 400, valid, 6, refusal_texts.written(valid))
    whole += [t for t in styled if t.source in ("late", "background")]
    return found + [Labelled(t.request, t.reply, t.label, None) for t in whole if t.label != "partial"]


class Read(NamedTuple):
    """Sentences: their features, whether each helps and declines (nan: not known), their replies and sizes."""

    x: Tensor
    helps: Tensor
    declines: Tensor
    replies: list[int]
    sizes: list[int]


@torch.inference_mode()
def read(judge: Refusal, rows: list[Labelled]) -> Read:
    """The sentences of all replies."""
    states, labels, replies, all_sizes = [], [], [], []
    for n, row in enumerate(rows):
        ids, start, sizes = judge.reader.sentences(row.request, row.reply)
        if not sizes:
            continue
        states.append(sentences.features(judge.reader.states([ids])[0], start, sizes))
        ends = [start + sum(sizes[: k + 1]) for k in range(len(sizes))]
        texts_ = [judge.reader.tokenizer.decode(ids[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
        labels += [[math.nan if known is None else known for known in (row.of(t), row.declines(t))] for t in texts_]
        replies += [n] * len(sizes)
        all_sizes += sizes
        if n % 500 == 0:
            print(f"{n} of {len(rows)} replies are read", flush=True)
    table = torch.tensor(labels)
    return Read(torch.cat(states), table[:, 0], table[:, 1], replies, all_sizes)


class Net(torch.nn.Module):
    """The network of `refusal_sentences`, with dropout before both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(1152, HIDDEN)
        self.out = torch.nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of sentences, in training."""
        return torch.Tensor(self.out(dropout(gelu(self.hidden(dropout(x, 0.2))), 0.3)))[:, 0]


def fit(x: Tensor, helps: Tensor) -> dict[str, Tensor]:
    """Weights of the network, with the logit from which a sentence counts taken off."""
    torch.manual_seed(0)
    net, targets = Net(), helps * (1 - 2 * SMOOTHING) + SMOOTHING
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * (len(x) // BATCH))
    for _ in range(EPOCHS):
        for some in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            binary_cross_entropy_with_logits(net(x[some]), targets[some]).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    weights["out.bias"] -= ALLOWED
    return {name: tensor.half() for name, tensor in weights.items()}


def fit_declines(x: Tensor, declines: Tensor) -> dict[str, Tensor]:
    """Weights of the regression on what declines."""
    layer = torch.nn.Linear(x.shape[1], 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = binary_cross_entropy_with_logits(layer(x)[:, 0], declines) + PENALTY * (layer.weight**2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    bias = layer.bias.detach() - DECLINES_FROM
    return {"declines.weight": layer.weight.detach().half(), "declines.bias": bias.half()}


def fit_both(found: Read) -> dict[str, Tensor]:
    """Weights of the file."""
    helps, declines = ~found.helps.isnan(), ~found.declines.isnan()
    return fit(found.x[helps], found.helps[helps]) | fit_declines(found.x[declines], found.declines[declines])


def report(weights: dict[str, Tensor], found: Read) -> None:
    """Say how many sentences and replies are right."""
    full = {name: tensor.float() for name, tensor in weights.items()}
    replies: dict[int, tuple[bool, bool]] = {}
    for name, logits, true in (
        ("helps", sentences.helping(found.x, full), found.helps),
        ("declines", sentences.declining(found.x, full), found.declines),
    ):
        known = ~true.isnan()
        pairs = zip((logits[known] >= 0).tolist(), true[known].bool().tolist(), strict=True)
        print(f"sentences that {name} (said, true):", dict(Counter(pairs)))
        if name == "helps":
            for n, size, logit, is_true in zip(found.replies, found.sizes, logits.tolist(), true.tolist(), strict=True):
                said, helps = replies.get(n, (False, False))
                replies[n] = said or (logit >= 0 and size >= sentences.SHORTEST), helps or is_true == 1
    print("replies that help (said, true):", dict(Counter(replies.values())))


def main(star1: Path) -> None:
    """Fit, say how it does on the other side, and write the file."""
    sentences.START_TOKENS, sentences.END_TOKENS = 112, 56  # more of a reply to learn from than the judge reads
    judge = Refusal()
    weights = fit_both(read(judge, texts(star1, valid=False)))
    print("of the other side:")
    report(weights, read(judge, texts(star1, valid=True)))
    save_file(weights, sentences.FILE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--star1", type=Path, required=True)
    given = parser.parse_args()
    quiet_libraries()
    main(given.star1)
