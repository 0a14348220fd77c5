"""Servers that drip, flood, lie and repeat the key: each bad reply fails alone, in time, and without the key."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import hostile_server as hostile
import pytest
from hostile_server import KEY, Hostile, drips, http, reply

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Prompt, Reply, Subject
from lowtax.engines import base, sampling
from lowtax.engines.base import Completion, Request
from lowtax.engines.redaction import Redaction
from lowtax.engines.settings import EngineSettings, Sampling

VISIBLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069]*")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "LOWTAX_RPM", "LOWTAX_ADAPTERS", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LOWTAX_TIMEOUT", "1")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    made = Hostile()
    monkeypatch.setenv("LOWTAX_BASE_URL", made.url)
    yield made
    made.close()


def request(text: str, tokens: int = 20) -> Request:
    return Request(text, ({"role": "user", "content": text},), None, tokens)


def completions(names: list[str], batch: int = 128) -> dict[str, Completion]:
    engine = base.load("openai", "m", "auto", batch)
    engine.server.first_wait = 0.01
    rows = {each.id: each for each in engine.generate([request(name) for name in names])}
    assert rows.keys() == set(names)
    return rows


def leaks(text: str) -> bool:
    """Return whether a text has the key, in some spelling or torn apart."""
    plain = "".join(re.findall(r"[!-~]", text)).lower()
    return any(spelling in text.lower() or spelling in plain for spelling in hostile.spellings())


def test_there_are_enough_behaviours() -> None:
    assert len(hostile.TABLE) >= 110
    assert leaks(KEY)
    assert leaks(" ".join(KEY))


def test_a_reply_that_drips_fails_in_time(server: Hostile) -> None:
    began = time.monotonic()
    rows = completions([*hostile.DRIPPING])
    assert time.monotonic() - began < 9  # three tries of 1 s; what drips would go on for 10 s in each
    assert {row.finish for row in rows.values()} == {"failed"}
    assert [name for name in rows if "1 s (LOWTAX_TIMEOUT)" not in str(rows[name].error)] == []


def test_each_bad_reply_fails_alone_and_without_the_key(server: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTAX_TIMEOUT", "60")
    rows = completions([*hostile.BROKEN, *hostile.GOOD, *hostile.LEAKS, "honest"])
    for name, row in rows.items():
        error = row.error or ""
        assert not leaks(row.text + error), name
        assert len(error) < 500, name
        assert VISIBLE.fullmatch(error), name
        assert 0 <= row.tokens < 100_000, name
    assert [name for name in (*hostile.GOOD, "honest") if rows[name].finish != "stop"] == []
    assert [name for name in hostile.GOOD if "fine" not in rows[name].text] == []
    assert [name for name in hostile.BROKEN if rows[name].finish != "failed"] == []


def test_a_reply_without_end_fails_at_its_limit_and_at_once(server: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = "100 Continue as fast as it goes"
    monkeypatch.setenv("LOWTAX_TIMEOUT", "0.3")
    assert "0.3 s (LOWTAX_TIMEOUT)" in str(completions([flood])[flood].error)
    monkeypatch.setenv("LOWTAX_TIMEOUT", "30")
    rows = completions([*(name for name in hostile.ENDLESS if name != flood), "honest"], batch=4)
    assert rows["honest"].text == "fine"
    large = [name for name, row in rows.items() if "16 MiB" in str(row.error)]
    assert {"endless body", "endless chunks", "endless error", "gzip bomb", "deflate bomb"} <= {*large}
    assert "several times" in str(rows["gzip in gzip"].error)
    assert {row.finish for name, row in rows.items() if name != "honest"} == {"failed"}


LONG = b"x" * 9999
LISTINGS = {
    "drips": (drips(b"HTTP/1.1 200 OK\r\nX: ", b"a"), "LOWTAX_TIMEOUT"),
    "brackets": (http(b"[" * 200_000), "not JSON"),
    "endless": (hostile.ENDLESS["endless body"], "16 MiB"),
    "key": (http(KEY.encode(), "403 x"), r"forbidden \(403: \*\*\*\)"),
    "escapes": (http(b'{"data": [{"id": "\\u001b[2J\\u202e%s"}]}' % KEY.encode()), r"but \\x1b\[2J\\u202e\*\*\*;"),
    "redirect": (http(b"", "302 x", f"Location: https://x/?{KEY}\x1b[2J\r\n"), "302|broke off|cannot be read"),
    "nonsense": (http(b'{"data": [{"id": [[1]]}, {"id": {}}, 5, null]}'), ""),
    "paths": (http(b'{"data": [{"id": "m"}, {"id": "a", "root": "\\u0000"}, {"id": "b", "root": "/%s"}]}' % LONG), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTINGS)
def test_a_list_of_models_is_bounded_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, message = LISTINGS[case]
    monkeypatch.setenv("LOWTAX_TIMEOUT", "0.3" if case == "drips" else "5")
    server = Hostile(behaviour)
    monkeypatch.setenv("LOWTAX_BASE_URL", server.url)
    if not message:
        assert completions(["honest"])["honest"].text == "fine"
    else:
        with pytest.raises(UserError, match=message) as caught:
            completions(["honest"])
        assert not leaks(str(caught.value))
        assert VISIBLE.fullmatch(str(caught.value))
    server.close()


def test_the_prompts_that_a_server_shows_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown in (drips(b"HTTP/1.1 200 OK\r\n", b""), http(b'{"token_strs": [[[]], 5, null, "<think>"]}')):
        server = Hostile(table={"/tokenize": shown, "honest": reply()})
        monkeypatch.setenv("LOWTAX_BASE_URL", server.url)
        monkeypatch.setenv("LOWTAX_TIMEOUT", "0.5")
        assert completions(["honest"])["honest"].text == "fine"
        server.close()


def test_a_command_with_bad_replies_finishes_and_its_files_have_no_key(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWTAX_TIMEOUT", "30")
    names = [*hostile.GOOD, *hostile.LEAKS, "choices is a number", "finish is escapes", "honest"]
    names = [name for name in names if "500" not in name]
    sheet = sampling.Sheet(
        tmp_path / "replies.jsonl", [Prompt(id=n, source="s", text=n) for n in names], Sampling(max_new_tokens=20)
    )
    subject = Subject("base", None, None, 0, "m", None, "m")
    for _ in range(2):
        sampling.collect([sheet], [subject], EngineSettings("openai", "float32", 64), tmp_path)
    rows = read_rows(sheet.path, Reply)
    assert len(rows) == len(names)
    assert sum(row.finish == "stop" for row in rows.values()) > len(hostile.GOOD)
    assert not any(leaks(path.read_text()) for path in tmp_path.rglob("*") if path.is_file())


def test_a_placeholder_for_a_key_is_a_word_of_replies() -> None:
    for word in ("EMPTY", "ollama", "lm-studio"):
        assert Redaction([word]).text(f"it is {word}") == f"it is {word}"
        assert Redaction([word]).message(f"it is {word}") == "it is ***"


def test_other_secrets_are_no_text_either(server: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Title: lowtax\nApi-Key: {KEY}")
    assert not leaks(completions(["key in the content"])["key in the content"].text)
    monkeypatch.delenv("OPENAI_CUSTOM_HEADERS")
    monkeypatch.setenv("https_proxy", f"http://user:{hostile.quote(KEY, safe='')}@127.0.0.1:1")
    assert not leaks(completions(["key in the finish"])["key in the finish"].error or "")
