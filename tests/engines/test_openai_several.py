"""Several servers: requests in turn, a server that fails is left out, and no request is lost or answered twice."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lowtax.common.errors import UserError
from lowtax.engines.base import Completion, Request
from lowtax.engines.openai import OpenAI
from lowtax.engines.openai_several import dealt, generate


def request(number: int) -> Request:
    return Request(f"{number:04x}", ({"role": "user", "content": f"Say {number}."},), None, 8)


REQUESTS = [request(number) for number in range(20)]


class Scripted:
    """An engine that answers, fails the replies of `bad`, or ends with an error after so many replies."""

    def __init__(self, name: str, bad: Sequence[str] = (), until: int | None = None) -> None:
        self.name, self.bad, self.until, self.requests = name, bad, until, list[str]()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for number, each in enumerate(requests):
            if number == self.until:
                raise UserError(f"{self.name} cannot be reached any more.")
            self.requests.append(each.id)
            bad = each.id in self.bad
            yield Completion(each.id, self.name, 1, "failed" if bad else "stop", False, "no" if bad else None)


def replies(*engines: Scripted) -> dict[str, Completion]:
    completions = list(generate(engines, REQUESTS))
    assert sorted(c.id for c in completions) == [r.id for r in REQUESTS]
    return {c.id: c for c in completions}


def test_requests_go_in_turn_by_their_ids():
    one, two = Scripted("one"), Scripted("two")
    replies(one, two)
    assert sorted(one.requests) == [r.id for r in REQUESTS[::2]]
    assert dealt(REQUESTS[::-1], [0, 1], {})[0] == REQUESTS[::-1][1::2]


@pytest.mark.parametrize("until", [0, 4])
def test_a_server_that_fails_is_left_out_and_its_requests_go_elsewhere(until: int):
    gone, up = Scripted("gone", until=until), Scripted("up")
    made = replies(gone, up)
    assert all(completion.finish == "stop" for completion in made.values())
    assert sum(completion.text == "gone" for completion in made.values()) == until


def test_a_failed_reply_is_asked_of_another_server_once():
    everywhere, here = REQUESTS[0].id, [r.id for r in REQUESTS[:12:2]]
    one, two = Scripted("one", bad=here), Scripted("two", bad=[everywhere])
    made = replies(one, two)
    assert [id_ for id_, completion in made.items() if completion.finish == "failed"] == [everywhere]
    assert set(here) <= set(two.requests)


def test_when_all_fail_the_last_error_is_raised():
    with pytest.raises(UserError, match="cannot be reached"):
        list(generate([Scripted("a", until=2), Scripted("b", until=1)], REQUESTS))


def served(name: str, end: Callable[[], bool]) -> ThreadingHTTPServer:
    """A server of the model `m`; after `end` it closes connections without a word."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send({"object": "list", "data": [{"id": "m"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            message = {"role": "assistant", "content": name}
            self.send({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}})

        def send(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(401 if end() else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def test_two_addresses_in_the_environment(monkeypatch):
    pytest.importorskip("openai", reason="the package openai is not installed")
    count = iter(range(1000))
    with served("good", lambda: False) as good, served("bad", lambda: next(count) > 4) as bad:
        for server in (good, bad):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}" for server in (good, bad)]
        monkeypatch.setenv("LOWTAX_BASE_URL", ", ".join(urls))
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        texts = [completion.text for completion in OpenAI("m", "auto", 2).generate(REQUESTS)]
        for server in (good, bad):
            server.shutdown()
    assert len(texts) == 20
    assert texts.count("good") >= 10
    assert 0 < texts.count("bad") < 10


def test_an_address_that_is_named_twice_is_refused(monkeypatch):
    pytest.importorskip("openai", reason="the package openai is not installed")
    monkeypatch.setenv("LOWTAX_BASE_URL", "http://127.0.0.1:1/v1,http://127.0.0.1:1")
    with pytest.raises(UserError, match="twice"):
        OpenAI("m", "auto", 2)
