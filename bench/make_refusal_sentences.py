"""Fit the second reading of the judge `refusal`: src/lowtax/judges/refusal_data/sentences.safetensors.

    python bench/make_refusal_sentences.py --star1 STAR-1.jsonl.gz

The shipped model reads replies of `refusal_pieces` and `refusal_texts`, of whose sentences it is known whether they do
what was asked: those of a composed reply by the way it was made; all of a refusal do not; those of an answer do, but
for short ones and for advice, which are left out. A network with one hidden layer learns from their states.
It says how it does on replies of the other side (other requests, frames and remarks), and writes the file. Half an
hour of a busy core.
"""

import argparse
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
from lowtax.judges.refusal_words import ADVICE

COMPOSED, COMPOSED_VALID = 2600, 600
HIDDEN, RATE, DECAY, EPOCHS, BATCH = 64, 1e-3, 1.0, 8, 128
SMOOTHING = 0.03
ALLOWED = 1.0  # logit above which a sentence counts; chosen by texts of ours and the development half of two sets
ANSWER_WORDS = 6


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


@torch.inference_mode()
def read(judge: Refusal, rows: list[Labelled]) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Features of the sentences with a label, whether they help, and the number of the reply and of the tokens."""
    rows = sorted(rows, key=lambda row: len(row.reply))
    found, helps, whose = [], [], []
    for n, row in enumerate(rows):
        ids, start, sizes = judge.reader.sentences(row.request, row.reply)
        if not sizes:
            continue
        states = sentences.features(judge.reader.states([ids])[0], start, sizes)
        place = start
        for size, state in zip(sizes, states, strict=True):
            known = row.of(judge.reader.tokenizer.decode(ids[place : place + size]))
            place += size
            if known is not None:
                found.append(state)
                helps.append(float(known))
                whose.append((n, size))
        if n % 500 == 0:
            print(f"{n} of {len(rows)} replies are read", flush=True)
    return torch.stack(found), torch.tensor(helps), whose


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


def report(weights: dict[str, Tensor], x: Tensor, helps: Tensor, whose: list[tuple[int, int]]) -> None:
    """Say how many sentences and replies are right."""
    logits = sentences.logits(x, {name: tensor.float() for name, tensor in weights.items()}).tolist()
    true = helps.bool().tolist()
    print("sentences (said, true):", dict(Counter(zip([n >= 0 for n in logits], true, strict=True))))
    replies: dict[int, tuple[bool, bool]] = {}
    for (n, size), logit, is_true in zip(whose, logits, true, strict=True):
        said, known = replies.get(n, (False, False))
        replies[n] = said or (logit >= 0 and size >= sentences.SHORTEST), known or is_true
    print("replies (said, true):", dict(Counter(replies.values())))


def main(star1: Path) -> None:
    """Fit, say how it does on the other side, and write the file."""
    judge = Refusal()
    x, helps, _ = read(judge, texts(star1, valid=False))
    weights = fit(x, helps)
    print("of the other side:")
    report(weights, *read(judge, texts(star1, valid=True)))
    save_file(weights, sentences.FILE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--star1", type=Path, required=True)
    given = parser.parse_args()
    quiet_libraries()
    main(given.star1)
