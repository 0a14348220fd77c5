"""A page in a browser that tells of everything that a page must not do."""

from pathlib import Path


class Watched:
    """A page in a browser, with what went wrong in it and what it fetched."""

    def __init__(self, browser: object, bypass_csp: bool = False, **options: object) -> None:
        self.context = browser.new_context(bypass_csp=bypass_csp, **options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.faults.append(m.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.fetched.append(request.url))

    def open(self, index: Path, view: str = "") -> object:
        """Open a view of a page from its file, and wait until it is ready."""
        self.page.goto(f"{index.as_uri()}{view and '#'}{view}")
        self.page.locator(f'html[data-ready][data-shows="{view and "#"}{view}"]').wait_for()
        return self.page

    def elsewhere(self, folder: Path) -> list[str]:
        """The addresses that were fetched and are not in a folder."""
        return [url for url in self.fetched if not url.startswith((folder.as_uri(), "data:,", "blob:"))]
