"""Data as text that a browser reads as data alone."""

import json
import math
import re

import pytest
from injections import INJECTIONS

from lowtax.report.encoding import as_block, as_chunk, as_json, as_lines, as_script, source_hash

UNSAFE = re.compile("[<>&\u2028\u2029]")


def string_of(script: str) -> str:
    """The text of the second string of a script, as a browser reads it."""
    match = re.fullmatch(r"lowtaxData\('([a-z0-9-]+)', '((?:[^'\\\n]|\\.)*)'\);\n", script)
    assert match, script
    return json.loads('"' + match[2].replace('"', '\\"') + '"')


@pytest.mark.parametrize("text", [*INJECTIONS, "\ud800", 'a"b\\"c', "é\U0001f600"])
def test_a_text_comes_back_and_acts_nowhere(text: str):
    value = {text: [text, 1.5, None, True]}
    script, block = as_script("requests-1", as_json(value)), as_block("overview", as_json(value))
    assert json.loads(string_of(script)) == value
    inner = block.removeprefix('<script type="application/json" id="data-overview">').removesuffix("</script>\n")
    assert json.loads(inner) == value
    assert not UNSAFE.search(inner)
    assert not UNSAFE.search(script)
    script.encode()
    block.encode()


@pytest.mark.parametrize("text", [*INJECTIONS, "\ud800", "*\\/", "\\*/", "**/", "*/*/", "/*"])
def test_the_comment_of_a_chunk_has_the_text_and_no_end_before_its_own(text: str):
    value = {text: [text, "\r"]}
    script = as_chunk("requests-0", as_lines(7, [as_json(value), as_json({"b": 1})]))
    match = re.fullmatch(r"lowtaxData\('requests-0', \(\) => \{/\*(.*?)\*/\}\);\n", script, re.DOTALL)
    assert match
    assert "*/" not in match[1]
    first, line, other = match[1].split("\n")
    assert (first, json.loads(line), other) == ("7", value, '{"b":1}')
    script.encode()


def test_numbers_that_json_lacks_are_null():
    assert as_json([1.0, math.nan, {"x": (math.inf, 2)}]) == '[1.0,null,{"x":[null,2]}]'


def test_the_hash_of_a_script_is_that_of_csp():
    # The example of the specification of Content-Security-Policy, section 2.3.1 of MDN's page of it.
    assert source_hash("doSomething();") == "'sha256-RFWPLDbv2BY+rCkDzsE+0fr8ylGr2R2faWMhq4lfEQc='"
