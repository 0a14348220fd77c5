"""The engine of a server, against a real one on this machine that misbehaves as servers do."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lowtax.common.errors import UserError
from lowtax.common.files import read_rows
from lowtax.common.records import Prompt, Reply, Subject
from lowtax.data.rendering import split_reply
from lowtax.engines import base, sampling
from lowtax.engines.base import Completion, Request
from lowtax.engines.openai import in_thread
from lowtax.engines.openai_requests import disarm, read_completion, retry_after
from lowtax.engines.settings import EngineSettings, Sampling

KEY = "key-that-nobody-may-see"
VARIABLES = ("LOWTAX_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "LOWTAX_TIMEOUT", "LOWTAX_RPM", "LOWTAX_ADAPTERS")
Said = dict[str, Any] | bytes
Answer = tuple[int, dict[str, str], Said]


class Served(ThreadingHTTPServer):
    """Answers as `answer` says, which is given the path, the body and how often this prompt was asked before."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: list[dict[str, str]] | None = [{"id": "m"}]
        self.models_status = 404  # where `models` is None
        self.answer: Callable[[str, dict[str, Any], int], Answer] = lambda path, body, before: ok(echo(body))
        self.asked: list[tuple[str, dict[str, Any], Message]] = []  # a Message ignores the case of header names
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def count(self, path: str, body: dict[str, Any], headers: Message) -> int:
        with self.lock:
            before = sum(b == body for p, b, _ in self.asked if p == path)
            self.asked.append((path, body, headers))
            return before

    def chats(self) -> list[dict[str, Any]]:
        return [body for path, body, _ in self.asked if path == "/v1/chat/completions"]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        models = self.server.models
        self.server.count(self.path, {}, self.headers)
        if self.headers.get("Authorization") not in (None, f"Bearer {KEY}"):
            self.send(401, {}, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        elif models is None:
            self.send(self.server.models_status, {}, b"<html>not here</html>")
        else:
            self.send(200, {}, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        before = self.server.count(self.path, body, self.headers)
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            self.send(*self.server.answer(self.path, body, before))
        finally:
            with self.server.lock:
                self.server.now -= 1

    def send(self, status: int, headers: dict[str, str], said: Said) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        if status == 0:  # hang up without a word
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in (data,) if "X-Slow" not in headers else (data[i : i + 1] for i in range(len(data))):
            self.wfile.write(piece)
            if "X-Slow" in headers:
                time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def ok(text: str | None, finish: str | None = "stop", tokens: int | None = 5, **more: Any) -> Answer:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    message = {"role": "assistant", "content": text, **more}
    return 200, {}, {"choices": [{"message": message, "finish_reason": finish}], **usage}


def error(status: int, said: str = "so it is", **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": {"message": said}}


def echo(body: dict[str, Any]) -> str:
    return f"said {asked_in(body)}"


def asked_in(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with Served() as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("LOWTAX_BASE_URL", f"http://127.0.0.1:{served.server_port}/v1")
        yield served
        served.shutdown()
        thread.join()


def engine(batch_size: int = 8) -> Any:
    made = base.load("openai", "m", "auto", batch_size)
    made.server.first_wait = 0.01
    return made


def ask(text: str = "Hi", **changes: Any) -> Request:
    given: dict[str, Any] = {"id": text, "messages": ({"role": "user", "content": text},), "adapter": None}
    return Request(**{**given, "max_new_tokens": 20, **changes})


def replies(*requests: Request, batch_size: int = 8) -> dict[str, Completion]:
    found = list(engine(batch_size).generate(requests))
    assert len(found) == len(requests)
    return {completion.id: completion for completion in found}


def refused(*requests: Request) -> str:
    """The one sentence; what is wrong is said before the first reply."""
    with pytest.raises(UserError) as caught:
        engine().generate(requests or [ask()])
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_a_chat_is_sent_with_all_settings(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    plain, full = ask("a", temperature=0.5, top_p=0.9, seed=7), ask("b", top_k=4, thinking="off", prefix="Well")
    assert replies(plain, full)["a"] == Completion("a", "said a", 5, "stop", False)
    first, second = sorted(server.chats(), key=lambda body: len(body["messages"]))
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
    }
    assert second["top_k"] == 4
    assert second["messages"][-1] == {"role": "assistant", "content": "Well"}
    assert (second["add_generation_prompt"], second["continue_final_message"]) == (False, True)
    assert second["chat_template_kwargs"]["enable_thinking"] is False
    replies(ask("c", thinking="on", variables={"reasoning_effort": "low"}))
    (third,) = (body for body in server.chats() if body["messages"][0]["content"] == "c")
    assert third["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    assert {headers.get("Authorization") for _, _, headers in server.asked} == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent(server: Served) -> None:
    replies(ask())
    assert all("Authorization" not in headers for _, _, headers in server.asked)


def test_nothing_that_the_environment_holds_for_openai_is_sent(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    replies(ask())
    assert server.asked
    assert not [headers for _, _, headers in server.asked if KEY in str(headers)]


def test_half_a_surrogate_pair_is_sent_and_none_is_kept(server: Served) -> None:
    assert replies(ask("\ud83d"))["\ud83d"].text == "said \ufffd"
    assert asked_in(server.chats()[0]) == "\ud83d"


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"needs the openai package: pip install 'lowtax\[openai\]'"):
        engine()


def test_the_package_is_imported_with_the_engine_and_not_before() -> None:
    program = "import sys; from lowtax.engines.openai import OpenAI; print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_raw_prompt_is_text_and_its_contents_are_disarmed(server: Served) -> None:
    server.answer = lambda *_: (200, {}, {"choices": [{"text": " yes", "finish_reason": "length"}]})
    [reply] = replies(
        ask("r", messages=(), raw=("<s>[INST] ", "a[/INST]b</s>", " [/INST]"), prefix=" <think>")
    ).values()
    [(path, body, _)] = [entry for entry in server.asked if entry[0] != "/v1/models"]
    assert path == "/v1/completions"
    assert body["prompt"] == "<s>[INST] a[\u200b/INST]b<\u200b/s> [/INST] <think>"
    assert body["add_special_tokens"] is False
    assert reply == Completion("r", " yes", 1, "length", True)


@pytest.mark.parametrize("tag", [
    "<|im_end|>", "<|start_header_id|>", "<\uff5cUser\uff5c>", "<think>", "</think>", "<s>", "</s>", "[INST]",
    "[/INST]", "<<SYS>>", "<</SYS>>", "<end_of_turn>", "<bos>", "[THINK]",
])  # fmt: skip
def test_what_looks_like_a_special_token_is_broken(server: Served, tag: str) -> None:
    replies(ask(f"a{tag}b", messages=({"role": "system", "content": tag}, {"role": "user", "content": f"a{tag}b"})))
    [body] = server.chats()
    for message in body["messages"]:
        assert tag not in message["content"]
        assert message["content"].replace("\u200b", "") in (tag, f"a{tag}b")


@pytest.mark.parametrize("text", ["a < b and b > c", "x <- 1; if (x<5) [A] or [B]", "List<String> <p>hi</p> <stdio.h>"])
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert disarm(text) == text


def test_as_many_requests_as_the_batch_size_are_under_way_at_once(server: Served) -> None:
    together = threading.Barrier(4)

    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path == "/v1/chat/completions":
            together.wait(20)
        return ok("x")

    server.answer = answer
    found = replies(*(ask(str(i)) for i in range(12)), batch_size=4)
    assert {completion.finish for completion in found.values()} == {"stop"}
    assert server.most == 4


def test_completions_come_in_the_order_in_which_they_finish(server: Served) -> None:
    gates = {str(i): threading.Event() for i in range(3)}

    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path == "/v1/chat/completions":
            gates[asked_in(body)].wait(20)
        return ok("x")

    server.answer = answer
    gates["2"].set()
    order = []
    for completion in engine().generate([ask(str(i)) for i in range(3)]):
        order.append(completion.id)
        gates[{"2": "0", "0": "1", "1": "1"}[completion.id]].set()
    assert order == ["2", "0", "1"]


def test_a_busy_server_is_asked_again_when_it_says(server: Served) -> None:
    server.answer = lambda path, body, before: ok("x") if before else error(429, Retry_After="1")
    began = time.monotonic()
    assert replies(ask())["Hi"].text == "x"
    assert time.monotonic() - began >= 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("2.5") == 2.5
    assert 25 < retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert [retry_after(text) for text in ("", "soon", "-3", formatdate(0))] == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [
    error(500),
    error(503),
    error(429),
    (0, {}, b""),
    (200, {"Content-Length": "500"}, b'{"choices"'),
    (200, {}, b'{"choices": [{"mess'),
    (502, {}, b"<html>Bad Gateway</html>"),
    (200, {}, {"error": {"message": "the provider is down"}}),
])  # fmt: skip
def test_what_passes_is_tried_again_and_what_stays_fails_alone(server: Served, bad: Answer) -> None:
    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        return bad if "never" in asked_in(body) or before < 3 else ok("x")

    server.answer = answer
    found = replies(ask("never"), ask("later"), ask("later still"))
    assert (found["later"].text, found["later still"].text) == ("x", "x")
    assert found["never"].finish == "failed"
    assert "after 7 tries" in str(found["never"].error)
    assert "\n" not in str(found["never"].error)
    assert sum(asked_in(body) == "never" for body in server.chats()) == 7


@pytest.mark.parametrize("slow", ["silent", "dribbling"])
def test_a_reply_that_takes_too_long_fails_alone(server: Served, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    monkeypatch.setenv("LOWTAX_TIMEOUT", "0.3")

    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path != "/v1/chat/completions" or asked_in(body) != "slow":
            return ok("x")
        if slow == "silent":
            time.sleep(0.6)
        return 200, {"X-Slow": "1"}, b" " * 20 + b"{}"

    server.answer = answer
    found = replies(ask("slow"), ask("quick"))
    assert found["quick"].text == "x"
    assert (found["slow"].finish, found["slow"].text) == ("failed", "")
    assert "0.3 s (LOWTAX_TIMEOUT)" in str(found["slow"].error)
    assert sum(asked_in(body) == "slow" for body in server.chats()) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_refuses_fails_alone_and_at_once(server: Served, status: int) -> None:
    server.answer = lambda path, body, before: (
        error(status, "too many\ntokens") if asked_in(body) == "long" else ok("x")
    )
    found = replies(ask("long"), ask("short"))
    assert found["long"].error == f"the server refuses the request ({status}): too many tokens"
    assert found["short"].text == "x"
    assert len(server.chats()) == 2


def test_a_filtered_prompt_is_no_wrong_key(server: Served) -> None:
    flagged = {"error": {"message": "no", "metadata": {"flagged_input": "x"}}}
    server.answer = lambda path, body, before: (403, {}, flagged) if asked_in(body) == "bad" else ok("x")
    found = replies(ask("bad"), ask("good"))
    assert (found["bad"].finish, found["good"].finish) == ("failed", "stop")


def test_a_wrong_key_is_said_before_the_first_request(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-wrong-one")
    said = refused()
    assert "OPENAI_API_KEY" in said
    assert "a-wrong-one" not in said
    assert not server.chats()


@pytest.mark.parametrize(("bad", "says"), [
    (error(401, f"bad key {KEY}"), "does not accept the key"),
    (error(403, f"{KEY} is not for this country"), "\\*\\*\\* is not for this country"),
    (error(402), "account"),
    (error(404, "The model `m` does not exist."), "`m` does not exist.*LOWTAX_BASE_URL"),
    (error(301, Location="https://elsewhere/v1"), "redirects"),
    (error(429, Retry_After="7200"), "wait 7200 s.*LOWTAX_TIMEOUT"),
    ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), "account.*pay"),
])  # fmt: skip
def test_what_no_request_survives_ends_the_run_at_once(
    server: Served, monkeypatch: pytest.MonkeyPatch, bad: Answer, says: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.models = None
    first = threading.Event()

    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path != "/v1/chat/completions" or asked_in(body) == "0":
            return ok("x")
        first.wait(20)
        return bad

    server.answer = answer
    completions = engine(2).generate([ask(str(i)) for i in range(50)])
    assert next(completions).id == "0"
    first.set()
    with pytest.raises(UserError, match=says) as caught:
        next(completions)
    assert KEY not in str(caught.value)
    assert len(server.chats()) <= 5


def test_a_failed_row_does_not_repeat_the_key(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answer = lambda *_: error(400, f"your key {KEY} sent nonsense")
    made = engine()
    [found] = made.generate([ask()])
    assert found.error == "the server refuses the request (400): your key *** sent nonsense"
    assert KEY not in repr(made.settings) + repr(vars(made))


def test_a_server_that_is_not_there(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served() as gone:
        monkeypatch.setenv("LOWTAX_BASE_URL", f"http://127.0.0.1:{gone.server_port}")
    said = refused()
    assert f"http://127.0.0.1:{gone.server_port}/v1 cannot be reached" in said
    assert "LOWTAX_BASE_URL" in said


def test_a_server_that_goes_away_ends_the_run(server: Served) -> None:
    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path == "/v1/chat/completions":
            server.socket.close()
        return ok("x")

    server.answer = answer
    completions = engine(1).generate([ask("a"), ask("b")])
    assert next(completions).id == "a"
    with pytest.raises(UserError, match=r"cannot be reached.*keeps the replies"):
        next(completions)


def test_servers_without_a_list_are_asked_all_the_same(server: Served) -> None:
    server.models = None
    assert replies(ask())["Hi"].text == "said Hi"
    server.models_status = 500
    assert replies(ask())["Hi"].text == "said Hi"


def test_a_model_that_is_not_served_is_named_with_the_command(server: Served) -> None:
    server.models = [{"id": "other"}, {"id": "another"}]
    said = refused()
    assert "does not serve 'm', but another, other" in said
    assert "`vllm serve m " in said
    server.models = [{"id": f"n{i:03}"} for i in range(300)]
    assert "n019 and 280 more" in refused()


def test_an_adapter_is_asked_for_by_its_name(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other, third = (str(tmp_path / name) for name in ("a/last", "b/last", "c/first"))
    assert f"does not serve 'last', but m; serve it with `vllm serve m --generation-config vllm --enable-lora "\
        f"--lora-modules last={own}`" in refused(ask("x", adapter=own))  # fmt: skip
    assert "have the same served name 'last'" in refused(ask("x", adapter=own), ask("y", adapter=other))
    server.models = [{"id": name} for name in ("m", "last", "two", "first")]
    monkeypatch.setenv("LOWTAX_ADAPTERS", f"two={other}")
    requests = [ask(str(i), adapter=adapter) for i, adapter in enumerate((own, other, third, None))]
    replies(*requests)
    assert {asked_in(b): b["model"] for b in server.chats()} == {"0": "last", "1": "two", "2": "first", "3": "m"}
    monkeypatch.setenv("LOWTAX_ADAPTERS", f"m={own}")
    assert "the model itself have the same served name 'm'" in refused(*requests)


def test_an_adapter_is_found_by_the_path_that_the_server_tells(server: Served, tmp_path: Path) -> None:
    own, other = tmp_path / "a" / "last", tmp_path / "b" / "last"
    other.mkdir(parents=True)
    server.models = [{"id": "m", "root": "m"}, {"id": "one", "root": str(own), "parent": "m"}]
    replies(ask("x", adapter=str(own)))
    assert [body["model"] for body in server.chats()] == ["one"]
    server.models = [{"id": "m"}, {"id": "last", "root": str(other), "parent": "m"}]
    assert f"the adapter in {other}, not that in {own}" in refused(ask("x", adapter=str(own)))


@pytest.mark.parametrize(("answer", "text", "finish", "closed"), [
    (ok("A", reasoning="T"), "<think>\nT\n</think>\n\nA", "stop", True),
    (ok("A", reasoning_content="T"), "<think>\nT\n</think>\n\nA", "stop", True),
    (ok(None, "length", reasoning="T"), "<think>\nT", "length", False),
    (ok("", "length", reasoning_content="T"), "<think>\nT", "length", False),
    (ok("A", reasoning=None), "A", "stop", True),
    (ok("A", reasoning=""), "<think>\n\n</think>\n\nA", "stop", True),
    (ok("T</think>A"), "T</think>A", "stop", True),
    (ok(None, refusal="No."), "No.", "stop", True),
])  # fmt: skip
def test_thoughts(server: Served, answer: Answer, text: str, finish: str, closed: bool) -> None:
    server.answer = lambda *_: answer
    [found] = replies(ask()).values()
    assert (found.text, found.finish, found.opened) == (text, finish, text == "T</think>A")
    parts = split_reply(found.text, found.opened)
    assert parts.closed == closed
    assert parts.thought == ("T" if "T" in text else "")
    assert parts.answer == ("" if not closed else "No." if text == "No." else "A")


def test_a_closing_tag_is_part_of_the_answer_where_the_prompt_opened_no_thought() -> None:
    text = "First do this.\n</think> I cannot help with that."
    for opened, answer in ((False, text), (None, "I cannot help with that."), (True, "I cannot help with that.")):
        assert read_completion(ask(), ok(text)[2], opened).parts().answer == answer
    literal = "Models write </think> after a thought."
    assert read_completion(ask(), ok(literal)[2], None).parts().answer == literal


def test_a_thought_that_the_prefix_closed_is_an_answer(server: Served) -> None:
    server.answer = lambda *_: ok(None, reasoning="A")
    [found] = replies(ask(prefix="<think>\n\n</think>\n\n")).values()
    assert (found.text, found.opened) == ("A", False)


@pytest.mark.parametrize(("end", "opens"), [
    (["<think>", "\u010a"], True), (["<th", "ink>\u010a"], True),
    (["<think>", "\u010a\u010a", "</think>", "\u010a"], False), (["\u010a"], False),
])  # fmt: skip
def test_a_server_that_shows_its_prompts_tells_what_they_open(server: Served, end: list[str], opens: bool) -> None:
    tokens = ["<|user|>", "<think>", "Hi", "<|assistant|>", *end]
    server.answer = lambda path, body, before: (
        (200, {}, {"token_strs": tokens}) if path == "/tokenize" else ok("unfinished", "length")
    )
    found = replies(ask("a"), ask("b", prefix="Well"), ask("c", prefix="<think>", thinking="on"))
    assert {key: completion.opened for key, completion in found.items()} == {"a": opens, "b": False, "c": True}
    server.answer = lambda path, body, before: (
        (200, {}, {"token_strs": tokens}) if path == "/tokenize" else ok(None, "length", reasoning="T")
    )
    assert not replies(ask("d"))["d"].opened
    assert sum(path == "/tokenize" for path, _, _ in server.asked) == 2


@pytest.mark.parametrize(("answer", "finish", "tokens", "says"), [
    (ok("a b c", "stop", None), "stop", 3, ""),
    (ok("a", "eos_token", 9), "stop", 9, ""),
    (ok("a", None, 20), "length", 20, ""),
    (ok("a", None, 19), "stop", 19, ""),
    (ok("a", "content_filter"), "failed", 0, "content_filter"),
    (ok("a", "abort"), "failed", 0, "abort"),
    ((200, {}, {"choices": []}), "failed", 0, "choices"),
    ((200, {}, {"choices": [{"finish_reason": "stop"}]}), "failed", 0, "neither"),
    ((200, {}, {"choices": [{"message": {"content": [1]}}]}), "failed", 0, "choices.0.message.content"),
    ((200, {}, b"[1, 2]"), "failed", 0, "format"),
])  # fmt: skip
def test_how_a_reply_ended(server: Served, answer: Answer, finish: str, tokens: int, says: str) -> None:
    server.answer = lambda *_: answer
    [found] = replies(ask()).values()
    assert (found.finish, found.tokens) == (finish, tokens)
    assert says in (found.error or "")


CHAT = {"content": [{"token": "safe", "logprob": 0, "top_logprobs": [
    {"token": "safe", "logprob": -0.6931472}, {"token": " safe", "logprob": -2.3025851},
    {"token": "uns", "logprob": -2.9957323}, {"token": " ", "logprob": -3.0}]}]}  # fmt: skip
TEXT = {"top_logprobs": [{"safe": -0.6931472, " safe": -2.3025851, "uns": -2.9957323, " ": -3.0}]}


@pytest.mark.parametrize(("raw", "logprobs"), [((), CHAT), (("judge: ",), TEXT), (("judge: ",), CHAT)])
def test_scores_are_probabilities_of_first_tokens(server: Served, raw: tuple[str, ...], logprobs: Any) -> None:
    choice = {"message": {"content": "safe"}, "text": "safe", "finish_reason": "stop", "logprobs": logprobs}
    server.answer = lambda *_: (200, {}, {"choices": [choice]})
    [found] = replies(ask(raw=raw, score=("safe", " unsafe", "maybe"))).values()
    assert found.scores == pytest.approx((0.6, 0.05, 0.0))
    sent = server.asked[-1][1]
    assert (sent["logprobs"], sent.get("top_logprobs")) == ((20, None) if raw else (True, 20))


def test_scores_that_the_server_does_not_send_are_a_failed_row(server: Served) -> None:
    [found] = replies(ask(score=("yes",))).values()
    assert (found.finish, found.scores) == ("failed", ())
    assert "logprobs" in str(found.error)


def test_requests_per_minute_are_kept(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTAX_RPM", "600")
    began = time.monotonic()
    replies(*(ask(str(i), prefix="x") for i in range(6)))  # and one for the list
    assert time.monotonic() - began >= 0.6


def test_leaving_early_ends_what_is_under_way(server: Served) -> None:
    leaving = threading.Event()

    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path == "/v1/chat/completions" and asked_in(body) != "0":
            leaving.wait(20)
        return ok("x")

    server.answer = answer
    completions = engine(4).generate([ask(str(i)) for i in range(40)])
    assert next(completions).id == "0"
    began = time.monotonic()
    completions.close()
    assert time.monotonic() - began < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lowtax-request")]
    leaving.set()
    assert len(server.chats()) <= 5


def test_an_interrupt_ends_what_is_under_way(server: Served) -> None:
    leaving, main = threading.Event(), threading.get_ident()

    def answer(path: str, body: dict[str, Any], before: int) -> Answer:
        if path == "/v1/chat/completions":
            time.sleep(0.2)
            signal.pthread_kill(main, signal.SIGINT)
            leaving.wait(20)
        return ok("x")

    server.answer = answer
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(engine(1).generate([ask("a"), ask("b")]))
    assert time.monotonic() - began < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lowtax-request")]
    leaving.set()
    assert len(server.chats()) == 1


def test_a_caller_with_an_event_loop_is_served(server: Served) -> None:
    async def notebook_cell() -> dict[str, Completion]:
        return replies(ask())

    assert asyncio.run(notebook_cell())["Hi"].text == "said Hi"


@pytest.mark.parametrize("closes", [True, False])
def test_connections_that_the_server_keeps_or_closes(
    server: Served, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    opened = []
    setup, send = Handler.setup, Handler.send

    def count(handler: Handler) -> None:
        opened.append(handler)
        setup(handler)

    def send_and_close(handler: Handler, status: int, headers: dict[str, str], said: Said) -> None:
        send(handler, status, headers, said)
        handler.close_connection = closes  # without a header that tells the client

    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    monkeypatch.setattr(Handler, "setup", count)
    monkeypatch.setattr(Handler, "send", send_and_close)
    found = replies(*(ask(str(i)) for i in range(40)), batch_size=4)
    assert {completion.finish for completion in found.values()} == {"stop"}
    assert len(opened) >= 40 if closes else len(opened) <= 5  # one to list the models, and four


LEFT = """
import asyncio
from lowtax.engines.openai import in_thread

async def numbers():
    for number in (0, 30):
        await asyncio.sleep(number)
        yield number

for number in in_thread(numbers()):
    raise SystemExit("left")
"""


def test_a_program_that_ends_does_not_wait_for_the_slowest() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=20)
    assert done.stderr == "left\n"


def test_a_fault_of_ours_is_no_silence() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in (1, 0):
            yield 1 // number

    results = in_thread(numbers())
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:pass@127.0.0.1:{server.server_port}")
    monkeypatch.setenv("LOWTAX_BASE_URL", "http://model.invalid/v1")
    server.models = None
    server.answer = lambda path, body, before: ok(path)
    assert replies(ask())["Hi"].text == "http://model.invalid/v1/chat/completions"
    assert server.asked[-1][2]["Proxy-Authorization"] == "Basic dXNlcjpwYXNz"
    monkeypatch.setenv("http_proxy", "http://nobody.invalid:1")
    monkeypatch.setenv("LOWTAX_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    assert replies(ask())["Hi"].text == "/v1/chat/completions"


def test_a_proxy_that_cannot_be_used_is_one_sentence(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"ftp://user:{KEY}@127.0.0.1:1")
    assert replies(ask())["Hi"].text == "said Hi"
    monkeypatch.setenv("LOWTAX_BASE_URL", "http://model.invalid/v1")
    assert "proxy in the environment cannot be used" in refused()


@pytest.mark.parametrize(("name", "value", "says"), [
    ("LOWTAX_BASE_URL", "", "needs the address of a server: set LOWTAX_BASE_URL"),
    ("LOWTAX_BASE_URL", "localhost:8000", "http://HOST:PORT/v1"),
    ("LOWTAX_BASE_URL", f"http://user:{KEY}@host/v1", "OPENAI_API_KEY"),
    ("LOWTAX_BASE_URL", "http://host:port/v1", "http://HOST:PORT/v1"),
    ("LOWTAX_TIMEOUT", "soon", "LOWTAX_TIMEOUT is 'soon'"),
    ("LOWTAX_TIMEOUT", "0", "positive"),
    ("LOWTAX_RPM", "-1", "positive"),
    ("LOWTAX_RPM", "nan", "positive"),
    ("LOWTAX_ADAPTERS", "name", "name=path"),
    ("OPENAI_API_KEY", f"{KEY}\nX-Header: 1", "OPENAI_API_KEY"),
])  # fmt: skip
def test_settings_that_are_wrong(
    server: Served, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    assert says in refused()


def test_the_other_name_of_the_address(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWTAX_BASE_URL")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
    assert replies(ask())["Hi"].text == "said Hi"
    assert list(engine().generate([])) == []


TEXT_PART = {"type": "text", "text": "6"}
PARTS = {  # name: a message, and thought, answer and end as they are stored
    "text": ({"content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "6."}]}, "", "It is 6.", True),
    "strings": ({"content": ["It is ", "6."]}, "", "It is 6.", True),
    "thinking": (
        {"content": [{"type": "thinking", "thinking": [TEXT_PART | {"text": "2 x 3"}]}, TEXT_PART]}, "2 x 3", "6", True,
    ),
    "thinking cut": ({"content": [{"type": "thinking", "thinking": [TEXT_PART]}]}, "6", "", False),
    "reasoning": ({"content": [{"type": "reasoning", "text": "2 x 3"}, {"type": "output_text", "text": "6"}]},
                  "2 x 3", "6", True),
    "field": ({"content": "6", "reasoning_content": "2 x 3"}, "2 x 3", "6", True),
    "field of parts": ({"content": "6", "reasoning": [{"type": "text", "text": "2 x 3"}]}, "2 x 3", "6", True),
    "no content": ({"content": None, "reasoning": "long"}, "long", "", False),
    "no content, other name": ({"content": None, "reasoning_content": "long"}, "long", "", False),
    "empty content": ({"content": "", "reasoning": "all of it"}, "all of it", "", False),
    "refusal": ({"content": None, "refusal": "No."}, "", "No.", True),
    "half a character": ({"content": "bad \ud83d half"}, "", "bad \ufffd half", True),
    "half a character in the thought": ({"content": "6", "reasoning": "x \ude00"}, "x \ufffd", "6", True),
    "a whole pair": ({"content": "\ud83d\ude00"}, "", "\U0001f600", True),
}  # fmt: skip


def test_every_form_of_a_message_is_stored(server: Served, tmp_path: Path) -> None:
    server.answer = lambda path, body, before: (
        200, {}, {"choices": [{"message": PARTS[asked_in(body)][0], "finish_reason": "stop"}]}
    )  # fmt: skip
    prompts = [Prompt(id=name, source="s", text=name) for name in PARTS]
    sheet = sampling.Sheet(tmp_path / "replies.jsonl", prompts, Sampling(max_new_tokens=20))
    subject = Subject("base", None, None, 0, "m", None, "m")
    sampling.collect([sheet], [subject], EngineSettings("openai", "float32", 8), tmp_path)
    rows = {row.prompt_id: row for row in read_rows(sheet.path, Reply).values()}
    stored = {name: (row.thought, row.answer, row.closed) for name, row in rows.items()}
    assert stored == {name: tuple(expected) for name, (_, *expected) in PARTS.items()}


def test_a_reply_of_brackets_fails_alone(server: Served) -> None:
    server.answer = lambda path, body, before: (200, {}, b"[" * 200_000) if asked_in(body) == "a" else ok(echo(body))
    found = replies(ask("a"), ask("b"))
    assert (found["a"].finish, found["b"].text) == ("failed", "said b")


def test_a_run_that_broke_off_asks_only_for_what_is_missing(server: Served, tmp_path: Path) -> None:
    prompts = [Prompt(id=str(i), source="s", text=f"q{i}") for i in range(8)]
    sheet = sampling.Sheet(tmp_path / "replies.jsonl", prompts, Sampling(max_new_tokens=8))
    subject = Subject("base", None, None, 0, "m", None, "made")

    def collect() -> list[str]:
        before = len(server.chats())
        sampling.collect([sheet], [subject], EngineSettings("openai", "auto", 1), sheet.path.parent)
        return [asked_in(body) for body in server.chats()[before:]]

    server.answer = lambda path, body, before: (
        error(401) if asked_in(body) == "q5" else error(400) if asked_in(body) == "q2" else ok("x")
    )
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        collect()
    rows = read_rows(sheet.path, Reply)
    assert {(row.prompt_id, row.finish) for row in rows.values()} == {
        *((str(i), "stop") for i in (0, 1, 3, 4)),
        ("2", "failed"),
    }
    server.answer = lambda *_: ok("y")
    assert collect() == ["q2", "q5", "q6", "q7"]
    assert {(row.prompt_id, row.text) for row in read_rows(sheet.path, Reply).values()} == {
        (str(i), "x" if i in (0, 1, 3, 4) else "y") for i in range(8)
    }
    assert collect() == []
