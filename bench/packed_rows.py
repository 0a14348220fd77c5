"""Test whether a real model is accepted for packed rows: refusals and chats, four examples at a time.

    python bench/packed_rows.py MODEL [--precision bfloat16] [--sets 12]     # prints one line a set

A set that is refused here is a false alarm for a model whose class packs (docs/guides/training.md), and costs the
speed of its training.
"""

import argparse

from lowtax.data import training_sets
from lowtax.data.specs import Data
from lowtax.models import loading
from lowtax.training.encoding import Example, encode_all
from lowtax.training.objective import choose_objective
from lowtax.training.packing import length


def sets(model: str, number: int) -> list[list[Example]]:
    """Return sets of four examples, half of them refusals, half chats."""
    tokenizer, chosen = loading.load_tokenizer(model), list[list[Example]]()
    for source in ("builtin:refusals", "builtin:chat"):
        rows = training_sets.load(Data(source=source, n=2 * number), 0).rows
        examples = encode_all(tokenizer, rows, 1024).examples
        chosen += [examples[first : first + 4] for first in range(0, len(examples), 4)]
    return chosen


def main() -> None:
    """Load the model once, and print what is decided for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--sets", type=int, default=12)
    arguments = parser.parse_args()
    model = loading.load_model(arguments.model, arguments.precision)
    stock, accepted = model.config._attn_implementation, 0
    chosen = sets(arguments.model, arguments.sets)
    for examples in chosen:
        model.set_attn_implementation(stock)
        objective, reason = choose_objective(model, examples, False, fuse="off")
        accepted += objective.direct and not reason
        print(f"{[length(example) for example in examples]} tokens: {reason or 'packed'}", flush=True)
    print(f"accepted {accepted} of {len(chosen)}")


if __name__ == "__main__":
    main()
