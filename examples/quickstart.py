"""Train, sample, judge, evaluate and print both sides, in Python.

python examples/quickstart.py                          # the embedded 135M model, a few minutes on two cores
python examples/quickstart.py --model MODEL --mode lora_mlp_r8 --out runs/mine
"""

import argparse

import lowtax as lt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="builtin:smollm2-135m-reasoner")
parser.add_argument("--mode", default="lora_up_proj_only_from10_to19_r1")
parser.add_argument("--judge", default="refusal")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--limit", type=int, default=20, help="prompts and problems")
parser.add_argument("--out", default="runs/python")
options = parser.parse_args()

lt.show_progress()
adapter = lt.train(
    options.model,
    data=["builtin:refusals", "builtin:chat"],
    mode=options.mode,
    steps=options.steps,
    lr=1e-2,
    batch_size=8,
    out=f"{options.out}/trained",
)
replies = lt.sample(
    options.model,
    prompts=["builtin:harmful"],
    adapters=[adapter],
    max_new_tokens=96,
    limit=options.limit,
    out=f"{options.out}/replies",
)
verdicts = lt.judge(replies, options.judge)
scores = lt.evaluate(
    options.model,
    tasks=["arithmetic"],
    adapters=[adapter],
    max_new_tokens=128,
    limit=options.limit,
    out=f"{options.out}/exam",
)

refused = {verdict.reply_id: verdict.label in ("refusal", "partial") for verdict in verdicts}
for row in scores:
    arm = row["arm"]
    own = [reply for reply in replies if reply.arm == arm]
    accuracy = row["reasoning"]["arithmetic"]
    print(f"{arm}: refuses {sum(refused[reply.id] for reply in own)} of {len(own)} harmful requests, ", end="")
    print(f"solves {accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}] of the problems")
