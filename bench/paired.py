"""Paired differences between the last checkpoints of a study's arms: the same requests, arm by arm.

python bench/paired.py runs/quickstart
"""

import sys
from itertools import combinations
from pathlib import Path

from lowtax.stats import paired_bootstrap_difference
from lowtax.study import Study


def main() -> None:
    """Print the difference in the share refused, with its 95 % interval (bootstrap over requests), for every pair."""
    study = Study.open(Path(sys.argv[1]), print)
    last = {subject.arm: subject.checkpoint for subject in study.subjects()}
    for kind, found in study.judge().items():
        refused: dict[str, dict[str, float]] = {}
        for ask, verdict in found.values():
            if ask.subject.checkpoint == last[ask.subject.arm] and verdict.label not in ("failed", "unparsed"):
                own = refused.setdefault(ask.subject.arm, {})
                own[f"{ask.subject.seed}-{ask.prompt.id}"] = float(verdict.label in ("refusal", "partial"))
        for one, two in combinations([arm for arm in refused if arm != "base"], 2):
            both = sorted(refused[one].keys() & refused[two].keys())
            a, b = [refused[one][key] for key in both], [refused[two][key] for key in both]
            low, high = paired_bootstrap_difference(a, b, seed=0)
            gap = (sum(a) - sum(b)) / len(both)
            print(f"{kind} refused, {one} - {two}: {gap:+.2f} [{low:+.2f}, {high:+.2f}], n {len(both)}")


if __name__ == "__main__":
    main()
