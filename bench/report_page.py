"""The page of a made study of 100,000 replies: seconds and memory to write it, and to read it in Chromium.

    python bench/report_page.py [--prompts 6350]

The study has the base and six checkpoints, replies of 60 words after thoughts of 120, and two judges
(`tests/support/large_study.py`). Writing: the command `lowtax report`, with its start. Reading: from the disk; the
first paint and the complete first view, a filter over all prompts, and a search of all texts; memory is the resident
memory of the process that has the page. Without playwright or Chromium, writing alone is measured.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lowtax.common.files import write_json
from lowtax.common.provenance import provenance

FOLDER = Path(__file__).parent
RESULT = FOLDER / "results" / "report_page.json"
sys.path.insert(0, str(FOLDER.parent / "tests" / "support"))


def writing(study: Path, page: Path) -> dict[str, Any]:
    """Seconds, memory and size of `lowtax report`."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lowtax", "report", study, "--out", page], check=True, capture_output=True, text=True
    )
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "write_seconds": round(time.perf_counter() - began, 1),
        "write_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "write_memory_mb": round(usage.ru_maxrss / 1024),
        "page_mb": round(sum(path.stat().st_size for path in page.rglob("*") if path.is_file()) / 1e6, 1),
        "said": done.stdout.strip().rpartition("(")[2].removesuffix(")"),
    }


def renderer_memory() -> int:
    """Resident memory in megabytes of the largest process of Chromium that has a page."""
    sizes = [0]
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_text()
            if process.name.isdigit() and "--type=renderer" in command:
                lines = (process / "status").read_text().splitlines()
                sizes.append(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")))
        except OSError:
            continue
    return max(sizes)


def reading(index: Path) -> dict[str, Any]:
    """Seconds and memory of the page in Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if (program := shutil.which("chromium")) is None:
        return {}
    result: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()

        def timed(name: str, began: float) -> None:
            result[name] = round(time.perf_counter() - began, 2)

        began = time.perf_counter()
        page.goto(index.as_uri())
        page.wait_for_selector("html[data-ready]")
        timed("first_view_seconds", began)
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        result["first_paint_seconds"] = round(page.evaluate(paint) / 1000, 2)
        began = time.perf_counter()
        page.goto(f"{index.as_uri()}#replies")
        page.locator("#view-replies .card").first.wait_for()
        timed("replies_seconds", began)
        view = page.locator("#view-replies")
        began = time.perf_counter()
        view.get_by_label("Show", exact=True).select_option("only-a")
        timed("filter_seconds", began)
        view.get_by_label("Show", exact=True).select_option("")
        result["memory_mb"] = renderer_memory()
        began = time.perf_counter()
        view.get_by_placeholder("words in the prompt").fill("sure. never never")
        view.get_by_label("in replies too").check()
        page.wait_for_timeout(300)
        while view.locator(".count").inner_text().startswith("Searching"):
            result["search_memory_mb"] = max(renderer_memory(), result.get("search_memory_mb", 0))
            page.wait_for_timeout(50)
        timed("search_seconds", began)
        browser.close()
    return result


def main() -> None:
    """Make the study, measure its page, and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=6350, help="of each kind")
    prompts = parser.parse_args().prompts
    import large_study

    with tempfile.TemporaryDirectory() as folder:
        study = large_study.make(Path(folder) / "study", prompts, words=60)
        figures = writing(study, Path(folder) / "page")
        figures |= reading(Path(folder) / "page" / "index.html")
    figures |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    write_json(RESULT, figures | provenance())


if __name__ == "__main__":
    main()
