"""Texts to learn the judge `refusal` from: triples of a request, a reply, and what the reply is.

`grammar` expands refusal_texts.yaml, which we wrote: families of requests (harmful ones, harmless ones in dangerous
words, discriminating premises, nonsense about groups, private data, history, definitions ...), each with frames of
refusals, partial refusals and compliance. The same vocabulary stands on all sides, so that no word decides. `mixed`
puts such replies to other requests. `written` are pairs that were written whole, one by one, in the styles of many
models (refusal_written.jsonl). The rest were written by people and models for other ends: our built-in data, Dolly and
GSM8K answers (compliance), STAR-1 answers (labelled by hand in refusal_star1.json, or plain declines).
`styles` puts sentences that decide nothing before answers and refusals, refusals after long backgrounds, and replies of
a few words to any request (refusal_styles.yaml).

Every fifth frame, topic and written request is of the other side (`valid`): what a judge is chosen by, it never saw.
"""

import gzip
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lowtax.data import shipped
from lowtax.judges.refusal_words import RefusalWords

HERE = Path(__file__).parent
GRAMMAR: dict[str, Any] = yaml.safe_load((HERE / "refusal_texts.yaml").read_text())
STYLES: dict[str, list[str]] = yaml.safe_load((HERE / "refusal_styles.yaml").read_text())
SHARES = {"refusal": 0.42, "partial": 0.13, "compliance": 0.45}
FIFTH = 5
NEW = """hostile_text inability redirecting thought something_else_declined late_refusal
    persona moral_remark wrapped hedged redirecting_only partial_kinds long_refusal late_refusal_two homonym_remark
    asked_and_moral""".split()
LEADS = 0.12  # of the replies, whatever they are, begin with a sentence that says nothing
SMALL = 10  # pools of fewer lines are shared by both sides
TAG = re.compile(r"<(\w+)(\??)>")


class Triple(NamedTuple):
    """A request, a reply to it, and refusal, partial or compliance; `source` says where the reply comes from."""

    request: str
    reply: str
    label: str
    source: str


def of_side(lines: list[str], valid: bool) -> list[str]:
    """The lines of one side; all of them if one side would be empty."""
    return [line for n, line in enumerate(lines) if (n % FIFTH == FIFTH - 1) == valid] or lines


def grammar(count: int, valid: bool, seed: int) -> list[Triple]:
    """Triples from the grammar, none twice."""
    rng = random.Random(seed)
    names = list(GRAMMAR["families"])
    weights = [GRAMMAR["families"][name]["weight"] for name in names]
    found: dict[Triple, None] = {}
    while len(found) < count:
        [name] = rng.choices(names, weights)
        [label] = rng.choices(list(SHARES), list(SHARES.values()))
        family = GRAMMAR["families"][name]
        if label in family:
            fields = dict(zip(family["fields"], rng.choice(of_side(family["topics"], valid)).split(" | "), strict=True))
            request = filled(rng.choice(family["requests"]), fields)
            frame = rng.choice(of_side(family[label], valid))
            frame = f"<lead> {frame}" if rng.random() < LEADS else frame
            reply = filled(expanded(frame, rng, valid), fields)
            found[Triple(request[0].upper() + request[1:], reply, label, name)] = None
    return list(found)


def mixed(prompts: list[str], families: list[str], label: str, count: int, valid: bool, seed: int) -> list[Triple]:
    """Requests from elsewhere with replies that name no topic: refusals of what is harmless, help with what is not."""
    rng = random.Random(seed)
    lines = [line for name in families for line in of_side(GRAMMAR["families"][name][label], valid) if "{" not in line]
    return [
        Triple(rng.choice(prompts), filled(expanded(rng.choice(lines), rng, valid), {}), label, "mixed")
        for _ in range(count)
    ]


def expanded(frame: str, rng: random.Random, valid: bool) -> str:
    """The frame with a line of each pool that it names."""

    def line(found: re.Match[str]) -> str:
        pool = GRAMMAR["pools"][found[1]]
        if found[2] and rng.random() < 0.5:
            return ""
        return str(rng.choice(pool if len(pool) < SMALL else of_side(pool, valid)))

    while TAG.search(frame):
        frame = TAG.sub(line, frame)
    return frame


def filled(frame: str, fields: dict[str, str]) -> str:
    """The frame with its fields, capitals at the start of sentences, and single spaces."""
    for name, value in fields.items():
        frame = frame.replace("{" + name + "}", value).replace(
            "{" + name.capitalize() + "}", value[0].upper() + value[1:]
        )
    frame = re.sub(r" +", " ", frame).strip()
    return re.sub(r"(^|[.!?] )([a-z])", lambda found: found[1] + found[2].upper(), frame)


def styles(count: int, valid: bool, seed: int, base: list[Triple]) -> list[Triple]:
    """Replies in the styles of refusal_styles.yaml, none twice; requests and replies of `base` are used in half of
    them.

    Of the rows 40 % are answers with a disclaimer before or after them, 15 % refusals with one, 20 % refusals after a
    background and 10 % backgrounds alone, 15 % replies of a few words.
    """
    rng = random.Random(seed)
    by_label = {label: [t for t in base if t.label == label] for label in SHARES}
    makers = (before_answer, before_refusal, late, background, short)
    found: dict[Triple, None] = {}
    while len(found) < count:
        [make] = rng.choices(makers, (40, 15, 20, 10, 15))
        found[make(rng, valid, by_label)] = None
    return list(found)


Labelled = dict[str, list[Triple]]


def pick(rng: random.Random, pool: str, valid: bool, count: int = 1) -> list[str]:
    """So many different lines of a pool of refusal_styles.yaml, from one side."""
    return rng.sample(of_side(STYLES[pool], valid), count)


def before_answer(rng: random.Random, valid: bool, base: Labelled) -> Triple:
    """An answer with a sentence or two before it, or one after it."""
    answer = rng.choice([t for t in base["compliance"] if len(t.reply) > 60])
    lead = " ".join(pick(rng, "before", valid, rng.choice((1, 1, 1, 2))))
    gap = rng.choice((" ", " ", "\n\n"))
    text = f"{lead}{gap}{answer.reply}"
    if rng.random() < 0.2:
        text = f"{answer.reply}{gap}{pick(rng, 'after', valid)[0]}"
    return Triple(answer.request, text, "compliance", "before_answer")


def before_refusal(rng: random.Random, valid: bool, base: Labelled) -> Triple:
    """A refusal with the same sentences before it."""
    refusal = rng.choice(base["refusal"])
    return Triple(refusal.request, f"{pick(rng, 'before', valid)[0]} {refusal.reply}", "refusal", "before_refusal")


def late(rng: random.Random, valid: bool, base: Labelled) -> Triple:
    """A refusal after sentences about the subject, or about any subject."""
    request, fields = topic(rng, valid)
    if rng.random() < 0.4:
        request = rng.choice(base["refusal"]).request
        ends = [line for line in of_side(STYLES["late"], valid) if "{" not in line]
        text = " ".join([*rng.sample(STYLES["long"], rng.randint(5, 10)), rng.choice(ends)])
    else:
        text = " ".join([*rng.sample(STYLES["background"], rng.randint(5, 12)), *pick(rng, "late", valid)])
    return Triple(request, filled(text, fields), "refusal", "late")


def background(rng: random.Random, valid: bool, base: Labelled) -> Triple:
    """The same sentences in answer to a request for them."""
    _, fields = topic(rng, valid)
    request = rng.choice(STYLES["background_requests"])
    text = " ".join([*rng.sample(STYLES["background"], rng.randint(5, 12)), *pick(rng, "ending", valid)])
    return Triple(filled(request, fields), filled(text, fields), "compliance", "background")


def short(rng: random.Random, valid: bool, base: Labelled) -> Triple:
    """A refusal or an answer of a few words."""
    if rng.random() < 0.25:
        request, reply = pick(rng, "short_answers", valid)[0].split(" | ")
        return Triple(request, reply, "compliance", "short")
    request = rng.choice(base["refusal"]).request
    return Triple(request, pick(rng, "short", valid)[0], "refusal", "short")


def topic(rng: random.Random, valid: bool) -> tuple[str, dict[str, str]]:
    """A request of the grammar's harmful family, and the fields of its topic."""
    family = GRAMMAR["families"]["harmful"]
    fields = dict(zip(family["fields"], rng.choice(of_side(family["topics"], valid)).split(" | "), strict=True))
    request = filled(rng.choice(family["requests"]), fields)
    return request[0].upper() + request[1:], fields


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, compressed or not."""
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return [json.loads(line) for line in text.decode().splitlines() if line.strip()]


def written(valid: bool, new: bool = False) -> list[Triple]:
    """Pairs that were written whole; those of one request are on one side. `new`: those of NEW families alone."""
    rows = [row for row in jsonl(HERE / "refusal_written.jsonl") if (row["family"] in NEW) == new]
    sides = [hashlib.sha256(row["request"].encode()).digest()[0] % FIFTH == 0 for row in rows]
    return [
        Triple(row["request"], row["reply"], row["label"], "written")
        for row, side in zip(rows, sides, strict=True)
        if side == valid
    ]


def built_in() -> list[Triple]:
    """Our own refusals and answers."""
    harmful = [row for row in jsonl(shipped.FOLDER / "harmful.jsonl") if row["split"] == "train"]
    return [Triple(row["prompt"], row["refusal"], "refusal", "builtin") for row in harmful] + [
        Triple(row["prompt"], row["answer"], "compliance", "builtin") for row in jsonl(shipped.FOLDER / "chat.jsonl")
    ]


def dolly(path: Path) -> list[Triple]:
    """Answers that people wrote."""
    rows = jsonl(path)
    return [Triple(f"{r['instruction']}\n{r['context']}".strip(), r["response"], "compliance", "dolly") for r in rows]


def gsm8k(path: Path, count: int, seed: int) -> list[Triple]:
    """Worked answers to school mathematics."""
    rows = random.Random(seed).sample(jsonl(path), count)
    return [Triple(row["question"], row["answer"], "compliance", "gsm8k") for row in rows]


def star1(path: Path, held_out: bool) -> list[Triple]:
    """STAR-1 answers with a label: every second row is held out for measuring. A row that refusal_star1.json does not
    name has one if its wording declines plainly."""
    by_hand = json.loads((HERE / "refusal_star1.json").read_text())
    labels = {int(row): label for label, rows in by_hand.items() for row in rows}
    rows = [row for row in jsonl(path) if (int(row["id"]) % 2 == 1) == held_out]
    replies = [row["response"].split("</think>")[-1].strip() for row in rows]
    plain = RefusalWords().judge([""] * len(replies), replies)
    found = []
    for row, reply, opinion in zip(rows, replies, plain, strict=True):
        label = labels.get(int(row["id"]), "refusal" if opinion.label == "refusal" else "")
        if label:
            found.append(Triple(row["question"], reply, label, "star1"))
    return found
