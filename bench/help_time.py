"""Seconds that `lowtax --help` takes: the median of ten runs after a first that reads the disk.

Run it with `python bench/help_time.py` in an environment that has lowtax installed.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one run."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "help_time.json")
    asked = parser.parse_args()
    command = [str(Path(sys.executable).parent / "lowtax"), "--help"]
    seconds(command)
    runs = [seconds(command) for _ in range(asked.repeats)]
    result = {"median_seconds": round(statistics.median(runs), 3), "seconds": [round(s, 3) for s in runs]}
    write_json(asked.out, {**result, **provenance()})
    print(f"lowtax --help: median {result['median_seconds']} s of {asked.repeats} runs; written to {asked.out}")


if __name__ == "__main__":
    main()
