"""A made study and its page, and a browser to open it."""

from collections.abc import Iterator
from pathlib import Path
from shutil import which

import large_study
import pytest
from watched_page import Watched

from lowtax.report import bundle


@pytest.fixture(scope="session")
def made_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three arms with two checkpoints, 40 prompts of each kind, two judges and ten questions."""
    return large_study.make(tmp_path_factory.mktemp("made") / "study", 40, words=12)


@pytest.fixture(scope="session")
def made_page(made_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that study: its index.html."""
    return bundle.write([made_study], tmp_path_factory.mktemp("page") / "page").path


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium of the system, without a window; while it is there, its event loop runs in the tests' thread."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def watched(browser: object) -> Iterator[Watched]:
    """A page that must have no fault at the end of a test."""
    own = Watched(browser)
    yield own
    own.context.close()
    assert own.faults == []
