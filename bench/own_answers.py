"""Draw the embedded reasoner's answers to the ordinary requests and chats again, and count those that differ.

    python bench/own_answers.py            # compares with the shipped rows
    python bench/own_answers.py --write    # replaces them

They are drawn greedily in float32, which rounds least. Another processor may still differ in a few.
"""

import argparse
import json
import tempfile
from pathlib import Path

import lowtax as lt
from lowtax.data import shipped

FILE = shipped.FOLDER / shipped.FILES["own-answers"]


def drawn() -> dict[str, dict[str, str]]:
    """Return id -> row, for the answers that the model finished."""
    requests = [*shipped.rows("builtin:ordinary", "train"), *shipped.rows("builtin:chat")]
    ids = {row["prompt"]: row["id"] for row in requests}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ids))
        replies = lt.sample(
            "builtin:smollm2-135m-reasoner", prompts=str(prompts), max_new_tokens=96, precision="float32"
        )
        rows = [
            {"id": ids[reply.prompt], "prompt": reply.prompt, "thought": reply.thought, "answer": reply.answer}
            for reply in replies
            if reply.closed and reply.finish == "stop"
        ]
    return {row["id"]: row for row in sorted(rows, key=lambda row: row["id"])}


def main() -> None:
    """Draw, and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    new, old = drawn(), {row["id"]: row for row in shipped.rows("builtin:own-answers")}
    if parser.parse_args().write:
        FILE.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new.values()))
    print(f"{sum(new.get(id_) != row for id_, row in old.items())} of {len(old)} answers differ")


if __name__ == "__main__":
    main()
