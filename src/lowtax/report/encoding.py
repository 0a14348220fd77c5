"""Data as text that a browser reads as data alone, in a script file or inside a page.

A part of the data is a script file, since a page that is opened as a file may load no other kind. It hands the page a
string of JSON, which is parsed: no word of the data is ever a program, a tag, or a key such as `__proto__` of an object
literal. A chunk of texts is a comment in a function, whose source the page reads and which is never called: browsers
keep each string of a program in their heap until they next clean it up, which doubled the memory of a search.
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
COMMENT_END = re.compile("\\*/|[\ud800-\udfff]")  # in JSON only inside of strings, where a slash may have an escape
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


def as_chunk(name: str, text: str) -> str:
    """Return a script that hands lines of JSON to the page: the call of a function with its name and a commented text.

    The page takes the text from the source of the function, between the comment's ends.
    """
    text = COMMENT_END.sub(lambda match: "*\\/" if match[0] == "*/" else f"\\u{ord(match[0]):04x}", text)
    return f"{CALL}('{name}', () => {{/*{text}*/}});\n"


def as_block(name: str, text: str) -> str:
    """Return JSON, or lines of it, as a block inside a page: no tag in it ends the block."""
    text = IN_PAGE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return f'<script type="application/json" id="data-{name}">{text}</script>\n'


def source_hash(text: str) -> str:
    """Return the source of an inline script or style in a Content-Security-Policy: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
