"""Data as text that a browser reads as data alone, in a script file or inside a page.

A part of the data is a script file, since a page that is opened as a file may load no other kind. It hands the page a
string of JSON, or of lines of it, which is parsed: no word of the data is ever a program, a tag, or a key such as
`__proto__` of an object literal.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

CALL = "lowtaxData"  # of data.js
NAMED = {"\\": "\\\\", "\n": "\\n"}
ESCAPED = re.compile("[<>&'\\\\\n\u2028\u2029\ud800-\udfff]")
IN_PAGE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def as_json(value: Any) -> str:
    """Return a value as compact JSON. A number that is not finite, which JSON does not have, becomes null."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def as_lines(first: int, lines: Sequence[str]) -> str:
    """Return the text of a chunk: the number of its first prompt, and a line of JSON for each prompt."""
    return "\n".join([str(first), *lines])


def as_script(name: str, text: str) -> str:
    """Return a script that hands a text to the page: the call of a function with its name and the text."""
    text = ESCAPED.sub(lambda match: NAMED.get(match[0]) or f"\\u{ord(match[0]):04x}", text)
    return f"{CALL}('{name}', '{text}');\n"


def as_block(name: str, text: str) -> str:
    """Return JSON, or lines of it, as a block inside a page: no tag in it ends the block."""
    text = IN_PAGE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return f'<script type="application/json" id="data-{name}">{text}</script>\n'


def source_hash(text: str) -> str:
    """Return the source of an inline script or style in a Content-Security-Policy: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
