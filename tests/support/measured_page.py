"""Measure the page of a study: seconds and memory to write it, and to read it in Chromium.

python measured_page.py INDEX      what `read` returns, as JSON, of a page that is on the disk
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def writing(study: Path, page: Path) -> dict[str, Any]:
    """Seconds, memory and size of `lowtax report`."""
    return _figures("write", study, page)


def _figures(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def write(study: Path, page: Path) -> dict[str, Any]:
    """Write the page by the command, and return seconds, memory and size."""
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
    """Resident memory in megabytes of the largest process with a page of a Chromium that this process started."""
    parents, sizes = {}, {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
            parents[int(process.name)] = int(fields["PPid"])
            if "--type=renderer" in (process / "cmdline").read_text():
                sizes[int(process.name)] = int(fields["VmRSS"].split()[0]) // 1024
        except (OSError, KeyError):
            continue  # it ended meanwhile
    return max((size for number, size in sizes.items() if _is_ours(number, parents)), default=0)


def _is_ours(number: int, parents: dict[int, int]) -> bool:
    while number > 1:
        if number == os.getpid():
            return True
        number = parents.get(number, 0)
    return False


def reading(index: Path) -> dict[str, Any]:
    """Seconds and memory of the page in Chromium, which a process of its own drives; empty where there is none."""
    if find_spec("playwright") is None or shutil.which("chromium") is None:
        return {}
    return _figures("read", index)


def read(index: Path) -> dict[str, Any]:
    """Open the page, filter and search it, and return seconds and memory."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
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
        result["search_memory_mb"] = max(renderer_memory(), result.get("search_memory_mb", 0))
        browser.close()
    return result


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    print(json.dumps({"write": write, "read": read}[what](*(Path(path).resolve() for path in paths))))
