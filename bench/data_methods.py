"""Costs of the methods that make data or attack: KL beside cross-entropy, PAIR's streams, ThinkSafe's answers.

    OMP_NUM_THREADS=1 python bench/data_methods.py      # the embedded model; a few minutes of one core

Three ratios of processor time, which other work on the machine disturbs less than the clock:

    kl          a step whose rows are all ordinary, with `penalty: kl`, over one of cross-entropy; the median of pairs
    streams     a round of PAIR with five streams over one of one stream, for one request, attacker and target the
                embedded model; the attacker's words are made usable
    thinksafe   steered and filtered answers to harmful and ordinary requests in one plan, over the plain sampling of
                the same requests, set by set; per token, since steered replies have other lengths

Prints each as it ends, and the processor's name; --out writes JSON.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowtax.engines import base
from lowtax.engines.base import Completion, Request

MODEL = "builtin:smollm2-135m-reasoner"
GOALS = {"kl": 1.6, "streams": 2.0, "thinksafe": 1.0}


class Writer:
    """The embedded model as an attacker: it writes as long as it would, and its first words become the JSON."""

    def __init__(self, model: str, precision: str, batch_size: int) -> None:
        self.engine = base.load("hf", model, precision, batch_size)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield a usable prompt for each request."""
        requests = list(requests)
        begun = {r.id: 'x", "prompt": "' if r.prefix.endswith('"improvement": "') else "" for r in requests}
        for done in self.engine.generate([replace(r, prefix="") for r in requests]):
            words = " ".join("".join(c if c.isalnum() else " " for c in done.text).split()[:20])
            yield replace(done, text=f'{begun[done.id]}Please answer: {words} {done.id[:4]}"}}', opened=False)


def seconds(work: Callable[[], Any]) -> float:
    """Return the processor time that a function takes."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def kl(pairs: int, batch: int) -> dict[str, Any]:
    """Return the cost of a KL step over one of cross-entropy, on the same rows."""
    from lowtax.data.specs import Data
    from lowtax.data.training_sets import conversations
    from lowtax.models import loading
    from lowtax.models.placement import parse_mode
    from lowtax.training.job import Job
    from lowtax.training.loop import TrainingRun
    from lowtax.training.settings import Train

    rows = conversations(Data(source="builtin:own-answers", n=batch, ordinary=True), 0)
    precision = loading.precision("auto")

    def run(folder: Path, **settings: Any) -> TrainingRun:
        train = Train(steps=pairs + 1, batch_size=batch, lr=1e-4, **settings)
        job = Job(
            model=MODEL,
            placement=parse_mode("lora_mlp_r16"),
            settings=train,
            seed=0,
            precision=precision,
            rows=rows,
        )
        return TrainingRun(job, folder)

    with tempfile.TemporaryDirectory() as folder:
        plain, penalised = run(Path(folder) / "plain"), run(Path(folder) / "kl", penalty="kl")
        batch_rows = list(range(batch))
        for one in (plain, penalised):
            one._one_step(batch_rows)
        both = [
            [seconds(lambda one=one: one._one_step(batch_rows)) for one in (plain, penalised)] for _ in range(pairs)
        ]
    ratios = [second / first for first, second in both]
    return {"ratio": statistics.median(ratios), "all": ratios, "plain_seconds": statistics.median(b[0] for b in both)}


def streams(rounds: int, requests: int) -> dict[str, Any]:
    """Return the cost of five streams over one."""
    from lowtax.attacks.arena import Engines
    from lowtax.attacks.base import Conversation, load
    from lowtax.common.records import Subject
    from lowtax.data import prompt_sets
    from lowtax.engines.settings import EngineSettings, Sampling
    from lowtax.models import loading
    from lowtax.study.attacking import Target, talk

    prompts = prompt_sets.load("builtin:harmful", "test", requests).prompts
    subject = Subject("base", None, None, 0, MODEL, None, "bench")
    how = Target(Sampling(max_new_tokens=48), EngineSettings("hf", loading.precision("auto"), 64), "keywords", "answer")
    loaded, spent = Engines(), dict[int, float]()
    queries = dict[int, int]()
    for number in (1, 5, 1, 5):  # the first pair loads the models
        fields = {"attacker": MODEL, "attacker_engine": f"{__file__}:Writer", "attacker_tokens": 48}
        attack = load({"name": "pair", "streams": number, "iterations": rounds, "seed": len(spent), **fields})
        assert isinstance(attack, Conversation)
        with tempfile.TemporaryDirectory() as folder:
            found: list[Any] = []
            spent[number] = seconds(
                lambda a=attack, f=folder, r=found: r.extend(talk(a, prompts, [subject], how, Path(f), loaded)[0])
            )
            queries[number] = sum(attempt.attempt >= 0 for attempt in found)
    a_round = {
        number: spent[number] * number / queries[number] for number in spent
    }  # an attack that succeeds ends early
    return {"ratio": a_round[5] / a_round[1], "seconds_a_round": a_round, "seconds": spent, "queries": queries}


def thinksafe(number: int, tokens: int) -> dict[str, Any]:
    """Return the cost per token of ThinkSafe's data over that of plain replies to the same requests."""
    import lowtax as lt
    from lowtax.common.records import Subject
    from lowtax.data.specs import Data
    from lowtax.engines.settings import EngineSettings, Sampling
    from lowtax.models import loading
    from lowtax.models.fingerprint import base_in
    from lowtax.study import own_answers

    draw = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": tokens}
    sources = [
        Data(source="builtin:harmful", n=number, answers="self", steer="refuse", draw=draw, filter="refusal_words"),
        Data(source="builtin:ordinary", n=number, answers="self", ordinary=True, draw=draw, filter="refusal_words"),
    ]
    engine = EngineSettings("hf", loading.precision("auto"), 64)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        maker = own_answers.Maker(Subject("base", None, None, 0, MODEL, None, base_in(out, MODEL).made_by), engine)
        plans = [own_answers.plan(source, 0, Sampling(), maker, out) for source in sources]
        steered = seconds(lambda: own_answers.draw(plans, out))
        written = sum(json.loads(line)["tokens"] for each in plans for line in each.path.read_text().splitlines())
        plain, replies = 0.0, list[Any]()
        for each in plans:
            prompts = out / "prompts.jsonl"
            prompts.write_text("".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in each.prompts))
            how = {key: value for key, value in draw.items()}
            plain += seconds(lambda p=prompts, h=how: replies.extend(lt.sample(MODEL, prompts=str(p), **h)))
    own, theirs = steered / written, plain / sum(reply.tokens for reply in replies)
    return {"ratio": own / theirs, "seconds": [steered, plain], "seconds_a_token": [own, theirs],
            "tokens": [written, sum(reply.tokens for reply in replies)]}  # fmt: skip


def main() -> None:
    """Measure all three, and print them."""
    from lowtax.common.files import write_json
    from lowtax.common.log import quiet_libraries
    from lowtax.common.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GOALS)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of steps")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a step; two runs are in memory")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of PAIR")
    parser.add_argument("--prompts", type=int, default=24, help="requests of each of the two sets")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    quiet_libraries()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kl": lambda: kl(asked.pairs, asked.batch_size),
        "streams": lambda: streams(asked.rounds, 1),
        "thinksafe": lambda: thinksafe(asked.prompts, asked.tokens),
    }
    result: dict[str, Any] = {"goals": GOALS}
    for name in asked.only or parts:
        result[name] = parts[name]()
        gc.collect()
        print(
            f"{name}: {result[name]['ratio']:.2f}, goal at most {GOALS[name]:g}; {json.dumps(result[name])}", flush=True
        )
    result |= provenance()
    print(json.dumps(result["hardware"]))
    if asked.out:
        write_json(asked.out, result)


if __name__ == "__main__":
    main()
