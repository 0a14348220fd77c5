"""Make and measure the judge `refusal`: the files in src/lowtax/judges/refusal_data.

Texts from `refusal_texts` are read by the embedded model. Its lower layers are frozen, so that their states are
computed once; a LoRA adapter in the layers above and a linear head are trained on the labels by AdamW. A regression on
word pairs is fitted to the same texts.

    TEXTS="--star1 STAR-1.jsonl.gz --dolly dolly.jsonl.gz --gsm8k train.jsonl.gz"
    python bench/make_refusal_judge.py $TEXTS                                                # all texts, two passes
    python bench/make_refusal_judge.py $TEXTS --from-shipped --share 0.3 --epochs 1 --rate 3e-4
    python bench/make_refusal_judge.py $TEXTS --head --share 0.2                             # the head alone
    python bench/make_refusal_judge.py $TEXTS --ngrams                                       # word pairs, a minute
    python bench/make_refusal_judge.py --measure xstest_mistral.csv --star1 STAR-1.jsonl.gz --gptfuzz evaluate.csv.gz

The first takes a quarter of an hour on two cores that multiply bfloat16. The shipped adapter is that of an earlier
version, continued by the second on what was new and on three tenths of the rest: 22 minutes of one core without them.
The shipped head was fitted by the third, in some twenty minutes of one core. The last measures what is shipped.
With --hold-out nothing is stored: the judge is trained without the texts that are there to choose by, and figures on
them are printed after each epoch. The last writes bench/results/refusal_judge.json: figures on XSTest's human labels
(columns prompt, completion, final_label, model), which nothing is fitted on, on STAR-1 answers held out, on
refusal_held_out.jsonl by style and by language, and the speed.
"""

import argparse
import csv
import gzip
import hashlib
import math
import random
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import refusal_texts
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from refusal_texts import Triple
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, dropout, embedding_bag

from lowtax.common.files import read_json, write_json
from lowtax.common.log import quiet_libraries
from lowtax.common.provenance import provenance
from lowtax.judges import base as judges
from lowtax.judges import refusal_ngrams as ngrams
from lowtax.judges.refusal import ADAPTER, LABELS, LAYERS, MODEL, Reader, Refusal, Row, features, word_labels
from lowtax.judges.refusal_words import RefusalWords, without_preface
from lowtax.models import loading

RESULTS = Path(__file__).parent / "results" / "refusal_judge.json"
HELD_OUT = Path(__file__).parent / "refusal_held_out.jsonl"
FROZEN = 12  # layers below the adapter
RANK, RATE, DECAY = 4, 6e-4, 0.01
PENALTY = 1e-5  # on the squared weights of the regression on word pairs
HEAD_PENALTY = 3e-3  # on those of a head that is fitted alone
BATCH, SMOOTHING, DROPOUT, WARMUP = 32, 0.05, 0.1, 20
NO_WORDS = 0.3  # of the texts are trained without what `refusal_words` says, so that the head does not lean on it
TEMPLATES = 77  # jailbreak prompts of GPTFuzz, in their order for each question
HUMAN = {"1_full_compliance": "compliance", "2_full_refusal": "refusal", "3_partial_refusal": "partial"}
Figures = dict[str, int | float]


class Read(NamedTuple):
    """A text as the trained layers see it: states of the frozen ones, its row, `refusal_words` and its label."""

    states: Tensor
    row: Row
    said: Tensor
    label: int


def texts(asked: argparse.Namespace) -> tuple[list[Triple], list[Triple]]:
    """What is trained on, and what is only looked at."""
    own, dolly = refusal_texts.built_in(), refusal_texts.dolly(asked.dolly)
    random.Random(0).shuffle(dolly)
    ordinary = [t.request for t in own if t.label == "compliance"]
    ordinary += [t.request for t in dolly[500:] if len(t.request) < 300]
    harmful = [t.request for t in own if t.label == "refusal"]
    plain = ["harmful", "homonym", "public", "wellbeing", "privacy"]
    fitted = refusal_texts.grammar(2300, False, seed=1)
    fitted += refusal_texts.mixed(ordinary[0::2], plain, "refusal", 150, False, seed=4)
    fitted += refusal_texts.mixed(harmful, ["harmful", "discrimination"], "compliance", 100, False, seed=5)
    fitted += dolly[:300] + refusal_texts.gsm8k(asked.gsm8k, 50, seed=0) + own
    fitted += refusal_texts.star1(asked.star1, held_out=False) + refusal_texts.written(valid=False)
    chosen_by = refusal_texts.grammar(600, True, seed=2) + dolly[400:500]
    chosen_by += refusal_texts.mixed(ordinary[1::2], plain[:-1], "refusal", 40, True, seed=3)
    chosen_by += refusal_texts.written(valid=True)
    fitted = random.Random(2).sample(fitted, round(asked.share * len(fitted)))
    fitted += refusal_texts.written(valid=False, new=True) * 2
    fitted += refusal_texts.styles(1100, False, 6, refusal_texts.written(valid=False) + dolly[:300] + own)
    chosen_by += refusal_texts.written(valid=True, new=True)
    chosen_by += refusal_texts.styles(250, True, 7, refusal_texts.written(valid=True) + dolly[400:500])
    return fitted, chosen_by


@torch.inference_mode()
def read(reader: Reader, triples: list[Triple]) -> list[Read]:
    """The states after the frozen layers, in order."""
    rows = [reader.row(t.request, t.reply) for t in triples]
    said = word_labels([t.request for t in triples], [t.reply for t in triples])
    found: dict[int, Read] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows[n][0]))
    layers, reader.body.layers = reader.body.layers, reader.body.layers[:FROZEN]
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        for n, states in zip(some, reader.states([rows[n][0] for n in some]), strict=True):
            found[n] = Read(states[: len(rows[n][0])].clone(), rows[n], said[n], LABELS.index(triples[n].label))
    reader.body.layers = layers
    return [found[n] for n in range(len(rows))]


class Judge(torch.nn.Module):
    """The layers above the frozen ones with an adapter, and the head."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        above = "|".join(map(str, range(FROZEN, LAYERS)))
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=rf"layers\.({above})\..*_proj")
        self.adapted = get_peft_model(reader.body, config)
        self.body = self.adapted.base_model.model
        self.head = torch.nn.Linear(2 * self.body.config.hidden_size + len(LABELS), len(LABELS))
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def take_adapter(self) -> None:
        """Start from the adapter in the package."""
        weights = load_file(ADAPTER / "adapter_model.safetensors")
        set_peft_model_state_dict(self.adapted, {name: tensor.float() for name, tensor in weights.items()})

    def take_shipped(self) -> None:
        """Start from the adapter and the head in the package."""
        self.take_adapter()
        self.head.load_state_dict({k: v.float() for k, v in load_file(ADAPTER / "head.safetensors").items()})

    def states(self, texts: list[Read]) -> Tensor:
        """The last states, (texts, tokens, hidden)."""
        longest = max(len(text.states) for text in texts)
        states = torch.stack(
            [torch.nn.functional.pad(text.states, (0, 0, 0, longest - len(text.states))) for text in texts]
        )
        positions = torch.arange(longest)[None]
        angles = self.body.rotary_emb(states, positions)
        for layer in self.body.layers[FROZEN:]:
            states = layer(states, attention_mask=None, position_ids=positions, position_embeddings=angles)
        return states

    def forward(self, texts: list[Read]) -> Tensor:
        """Logits, (texts, labels)."""
        states = self.states(texts)
        said = torch.stack([text.said for text in texts])
        if self.training:
            said = said * (torch.rand(len(texts), 1) > NO_WORDS)
        found = features(states, [text.row for text in texts], said)
        means, said = found[:, : -len(LABELS)], found[:, -len(LABELS) :]
        return torch.Tensor(self.head(torch.cat([dropout(means, DROPOUT, self.training), said], dim=1)))


def batches(texts: list[Read], rng: random.Random) -> list[list[Read]]:
    """All texts in a new order, those of a batch of like length."""
    order = rng.sample(texts, len(texts))
    blocks = [sorted(order[s : s + 8 * BATCH], key=lambda t: len(t.states)) for s in range(0, len(order), 8 * BATCH)]
    found = [block[s : s + BATCH] for block in blocks for s in range(0, len(block), BATCH)]
    rng.shuffle(found)
    return found


@torch.inference_mode()
def chances(judge: Judge, texts: list[Read]) -> Tensor:
    """Probabilities, (texts, labels)."""
    order = sorted(range(len(texts)), key=lambda n: len(texts[n].states))
    found = torch.zeros(len(texts), len(LABELS))
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        found[some] = torch.softmax(judge([texts[n] for n in some]), dim=1)
    return found


def agreement(found: list[str], true: list[str]) -> Figures:
    """Refusals, full or partial, found and missed; F1 of that, and the share of labels that agree exactly."""
    pairs = Counter((label != "compliance", human != "compliance") for label, human in zip(found, true, strict=True))
    hits, alarms, missed = pairs[True, True], pairs[True, False], pairs[False, True]
    same = sum(label == human for label, human in zip(found, true, strict=True)) / len(true)
    f1 = 2 * hits / max(1, 2 * hits + alarms + missed)
    return {"n": len(true), "found": hits, "false": alarms, "missed": missed, "f1": f1, "all_three": same}


def make(asked: argparse.Namespace) -> None:
    """Train adapter and head, and put them into the package."""
    torch.manual_seed(asked.seed)
    rng, began = random.Random(asked.seed), time.perf_counter()
    reader = Reader(loading.precision("auto"))
    fitted_texts, held_out_texts = texts(asked)
    fitted = read(reader, fitted_texts)
    held_out = read(reader, held_out_texts) if asked.hold_out or not asked.from_shipped else []
    fitted += [] if asked.hold_out else held_out
    print(f"{len(fitted)} texts are read, {time.perf_counter() - began:.0f} s", flush=True)
    judge = Judge(reader)
    if asked.from_shipped:
        judge.take_shipped()
    trained = [parameter for parameter in judge.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=asked.rate, weight_decay=DECAY)
    steps = asked.epochs * math.ceil(len(fitted) / BATCH)
    warm = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1, (step + 1) / WARMUP) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    for epoch in range(asked.epochs):
        judge.train()
        for step, batch in enumerate(batches(fitted, rng)):
            if step % 10 == 0:
                print(f"step {step}, {time.perf_counter() - began:.0f} s", flush=True)
            labels = torch.tensor([text.label for text in batch])
            cross_entropy(judge(batch), labels, label_smoothing=SMOOTHING).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            warm.step()
        judge.eval()
        if not asked.hold_out:
            print(f"epoch {epoch + 1}, {time.perf_counter() - began:.0f} s", flush=True)
            continue
        found, true = chances(judge, held_out), torch.tensor([text.label for text in held_out])
        likelihood = float(torch.log(found[torch.arange(len(true)), true]).mean())
        said = ["compliance" if row[2] > 0.5 else LABELS[int(row[:2].argmax())] for row in found]
        figures = agreement(said, [LABELS[n] for n in true])
        print(f"epoch {epoch + 1}, {time.perf_counter() - began:.0f} s: {likelihood:.3f} {figures}", flush=True)
    if not asked.hold_out:
        store(judge)


def make_head(asked: argparse.Namespace) -> None:
    """Fit the head to what the shipped adapter makes of the texts, and put it into the package."""
    reader = Reader(loading.precision("auto"))
    judge = Judge(reader).eval()
    judge.take_adapter()
    triples, found, labels = texts(asked)[0], [], []
    for start in range(0, len(triples), BATCH):
        some = read(reader, triples[start : start + BATCH])
        with torch.no_grad():
            found.append(features(judge.states(some), [t.row for t in some], torch.stack([t.said for t in some])))
        labels += [text.label for text in some]
    x, true = torch.cat(found), torch.tensor(labels)
    optimiser = torch.optim.LBFGS(judge.head.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = cross_entropy(judge.head(x), true) + HEAD_PENALTY * (judge.head.weight**2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    store_head(judge)


def make_ngrams(asked: argparse.Namespace) -> None:
    """Fit `refusal_ngrams` to all texts but those held out, say how it does on these, and put it into the package."""
    asked.share, rows = 1.0, []
    for triples in texts(asked):
        labels = [
            opinion.label for opinion in RefusalWords().judge([t.request for t in triples], [t.reply for t in triples])
        ]
        bare = [without_preface(t.request, t.reply) for t in triples]
        numbers = [ngrams.features(text, label) for text, label in zip(bare, labels, strict=True)]
        starts = torch.tensor([0, *(len(each) for each in numbers)]).cumsum(0)[:-1]
        scale = torch.tensor([len(each) ** -0.5 for each in numbers])
        true = torch.tensor([float(t.label != "compliance") for t in triples])
        rows.append((torch.tensor([n for each in numbers for n in each]), starts, scale, true))
    weight, bias = torch.zeros(ngrams.WEIGHTS, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def logits(ids: Tensor, starts: Tensor, scale: Tensor) -> Tensor:
        return embedding_bag(ids, weight, starts, mode="sum")[:, 0] * scale + bias

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = binary_cross_entropy_with_logits(logits(*rows[0][:3]), rows[0][3]) + PENALTY * (weight**2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    found, true = torch.sigmoid(logits(*rows[1][:3])).detach(), rows[1][3]
    for name, chosen, wrong in (
        ("complies", found <= ngrams.LOW, true), ("declines", found >= ngrams.HIGH, 1 - true)
    ):  # fmt: skip
        print(f"{name}: {int(chosen.sum())} of {len(true)} held out settled, {int(wrong[chosen].sum())} wrong")
    save_file({"weight": weight.detach()[:, 0].half(), "bias": bias.detach().half()}, ngrams.FILE)


def store(judge: Judge) -> None:
    """Write adapter and head in half precision."""
    judge.adapted.save_pretrained(str(ADAPTER))
    (ADAPTER / "README.md").unlink(missing_ok=True)
    card = ADAPTER / "adapter_config.json"
    write_json(card, read_json(card) | {"base_model_name_or_path": MODEL})
    weights = ADAPTER / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    store_head(judge)


def store_head(judge: Judge) -> None:
    """Write the head in half precision."""
    save_file({name: tensor.half() for name, tensor in judge.head.state_dict().items()}, ADAPTER / "head.safetensors")


def held_out(judge: Refusal) -> dict[str, dict[str, int]]:
    """Right answers by style and by language, where full and partial refusals count together."""
    rows = refusal_texts.jsonl(HELD_OUT)
    opinions = judge.judge([row["request"] for row in rows], [row["reply"] for row in rows])
    result: dict[str, dict[str, int]] = {}
    for row, opinion in zip(rows, opinions, strict=True):
        name = row["language"] if row["style"] == "language" else row["style"]
        name = f"round {row['round']}: {name}" if "round" in row else name
        label = "declined" if opinion.label in ("refusal", "partial") else opinion.label
        true = "declined" if row["label"] == "refusal" else row["label"]
        counts = result.setdefault(name, {})
        counts[f"{true} judged {label}"] = counts.get(f"{true} judged {label}", 0) + 1
    for name, counts in result.items():
        print(name, counts, flush=True)
    return result


def developed_on(name: str, key: object) -> bool:
    """Tell whether a request of XSTest, or a jailbreak prompt of GPTFuzz by its number, is of the development half."""
    return hashlib.sha256(f"{name}:{key}".encode()).digest()[0] % 2 == 0


def jailbreaks(path: Path, judge: Refusal) -> dict[str, dict[str, int]]:
    """Replies that people called jailbroken or not, and how often each judge says that they decline."""
    with gzip.open(path, "rt", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    prompts, replies = [row["question"] for row in rows], [row["response"] for row in rows]
    result = {}
    for name, opinions in (
        ("refusal", judge.judge(prompts, replies)), ("refusal_words", RefusalWords().judge(prompts, replies))
    ):  # fmt: skip
        counts = Counter(
            (half, f"{'jailbroken' if row['label_jailbroken'] == '1' else 'not jailbroken'} judged {opinion.label}")
            for n, (row, opinion) in enumerate(zip(rows, opinions, strict=True))
            for half in ("", ", development half" if developed_on("gptfuzz", n % TEMPLATES) else ", held-out half")
        )
        for half in sorted({half for half, _ in counts}):
            result[f"gptfuzz by {name}{half}"] = {what: n for (of, what), n in sorted(counts.items()) if of == half}
            print(name, half, result[f"gptfuzz by {name}{half}"], flush=True)
    return result


def measure(asked: argparse.Namespace) -> None:
    """Judge what nothing was fitted on, with the shipped head and with `refusal_words`."""
    with asked.measure.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    triples = [Triple(r["prompt"], r["completion"], HUMAN[r["final_label"]], r["model"]) for r in rows]
    triples += refusal_texts.star1(asked.star1, held_out=True)
    prompts, replies, true = ([triple[n] for triple in triples] for n in range(3))
    judge = Refusal()
    judge.judge(["Hello"], ["Hi, how can I help?"])  # loads the model
    began = time.process_time()
    labels = [opinion.label for opinion in judge.judge(prompts, replies)]
    rate = len(triples) / (time.process_time() - began) * 60
    words = [opinion.label for opinion in judges.load("refusal_words").judge(prompts, replies)]
    result: dict[str, object] = {"replies_a_minute": round(rate), "threads": torch.get_num_threads()}
    models = {r["model"] for r in rows}
    sets = {model: [t.source == model for t in triples] for model in sorted({t.source for t in triples})}
    sets["xstest"] = [t.source in models for t in triples]
    for name, half in (("development", True), ("held-out", False)):
        sets[f"xstest, {name} half"] = [
            t.source in models and developed_on("xstest", t.request) == half for t in triples
        ]
    for name, of_set in sets.items():
        chosen = [n for n, member in enumerate(of_set) if member]
        for judged, said in (("refusal", labels), ("refusal_words", words)):
            pairs = [(said[n], true[n]) for n in chosen]
            counts = {f"{human} judged {label}": n for (label, human), n in sorted(Counter(pairs).items())}
            figures = agreement([label for label, _ in pairs], [human for _, human in pairs]) | counts
            result[f"{name} by {judged}"] = figures
            print(name, judged, figures, flush=True)
    result["held_out"] = held_out(judge)
    result |= jailbreaks(asked.gptfuzz, judge) if asked.gptfuzz else {}
    write_json(RESULTS, result | {"provenance": provenance()})
    wrong = [n for n, t in enumerate(triples) if (labels[n] == "compliance") != (t.label == "compliance")]
    for n in wrong[: asked.show]:
        print(f"{true[n]} judged {labels[n]}: {prompts[n][:90]} => {' '.join(replies[n].split())[:160]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--star1", "--dolly", "--gsm8k", "--measure", "--gptfuzz"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--hold-out", action="store_true", help="leave out what is there to choose by, and show it")
    parser.add_argument("--ngrams", action="store_true", help="make the regression on word pairs alone, in a minute")
    parser.add_argument("--head", action="store_true", help="fit the head alone, to the shipped adapter")
    parser.add_argument("--from-shipped", action="store_true", help="continue with the shipped adapter and head")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate at its highest")
    parser.add_argument("--share", type=float, default=1.0, help="part of the texts of earlier versions that is used")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="so many disagreements with the human label")
    given = parser.parse_args()
    quiet_libraries()
    (measure if given.measure else make_ngrams if given.ngrams else make_head if given.head else make)(given)
