"""The libraries that draw the page's charts: d3 and Observable Plot, as their makers published them.

`page/vendor/manifest.json` names each file with its version, licence, source and SHA-256, and the one style sheet that
Plot puts into a chart, whose text is constant: the page's policy allows it by its hash. `LICENSES.txt` has the licences
of both and of what they include; every page carries them.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from lowtax.report.encoding import source_hash

VENDOR = Path(__file__).parent / "page" / "vendor"
LICENCES = "LICENSES.txt"


@cache
def manifest() -> dict[str, Any]:
    """Return the manifest: `libraries`, in the order in which a page loads them, and `style`."""
    loaded: dict[str, Any] = json.loads((VENDOR / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def scripts() -> tuple[str, ...]:
    """Return the names of the scripts, relative to the page's assets, in the order in which a page loads them."""
    return tuple(f"vendor/{library['file']}" for library in manifest()["libraries"])


def style_source() -> str:
    """Return the source of Plot's style sheet in a Content-Security-Policy."""
    return source_hash(manifest()["style"])


def licences() -> str:
    """Return the licences of the libraries and of what they include."""
    return (VENDOR / LICENCES).read_text(encoding="utf-8")
