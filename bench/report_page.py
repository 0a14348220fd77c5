"""The page of a made study of 100,000 replies: seconds and memory to write it, and to read it in Chromium.

    python bench/report_page.py [--prompts 6350]

The study has the base and six checkpoints, replies of 60 words after thoughts of 120, and two judges
(`tests/support/large_study.py`). Writing: the command `lowtax report`, with its start. Reading: from the disk; the
first paint and the complete first view, a filter over all prompts, and a search of all texts; memory is the resident
memory of the process that has the page. Without playwright or Chromium, writing alone is measured.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

FOLDER = Path(__file__).parent
RESULT = FOLDER / "results" / "report_page.json"
sys.path.insert(0, str(FOLDER.parent / "tests" / "support"))


def main() -> None:
    """Make the study, measure its page, and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=6350, help="of each kind")
    prompts = parser.parse_args().prompts
    import large_study
    from measured_page import reading, writing

    with tempfile.TemporaryDirectory() as folder:
        study = large_study.make(Path(folder) / "study", prompts, words=60)
        figures = writing(study, Path(folder) / "page")
        figures |= reading(Path(folder) / "page" / "index.html")
    figures |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    write_json(RESULT, figures | provenance())


if __name__ == "__main__":
    main()
