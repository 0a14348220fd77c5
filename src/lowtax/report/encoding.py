"""Data as text that a browser reads as data alone, in a script file or inside a page.

A chunk of a bundle is a script file, since a page that is opened as a file may load no other kind. It hands the page a
string of JSON, which is parsed: no word of the data is ever a program, a tag or a key such as `__proto__` of an object
literal.
"""

import base64
import hashlib
import json
import math
import re
from typing import Any

CALL = "lowtaxData"  # of data.js
ESCAPED = re.compile("[<>&'\\\\\u2028\u2029\ud800-\udfff]")
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


def as_script(name: str, value: Any) -> str:
    """Return a script that hands a value to the page: the call of a function with its name and its JSON."""
    text = ESCAPED.sub(lambda match: "\\\\" if match[0] == "\\" else f"\\u{ord(match[0]):04x}", as_json(value))
    return f"{CALL}('{name}', '{text}');\n"


def as_block(name: str, value: Any) -> str:
    """Return a value as a block of JSON inside a page, which ends with no tag in it."""
    text = IN_PAGE.sub(lambda match: f"\\u{ord(match[0]):04x}", as_json(value))
    return f'<script type="application/json" id="data-{name}">{text}</script>\n'


def source_hash(text: str) -> str:
    """Return the source of an inline script or style in a Content-Security-Policy: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
