"""A server on this machine that behaves as badly as it is told, one table of behaviours for the tests of the engine.

Each behaviour is the bytes of a reply, or a function that writes to the socket until the client leaves. The last
message of a chat names it.
"""

import base64
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

KEY = "sk-Canary7/q+of_no-use_Zx93"
Behaviour = bytes | Callable[[socket.socket], None]
STEP = 0.05  # seconds between the drops of what drips
LONG = 10.0  # seconds after which a behaviour ends by itself


def http(content: bytes, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + content


def body(content: Any = "fine", finish: Any = "stop", usage: Any = None, **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **({} if usage is None else {"usage": usage})}).encode()


def reply(content: Any = "fine", finish: Any = "stop", usage: Any = None, **more: Any) -> bytes:
    return http(body(content, finish, usage, **more))


def raw(text: str) -> bytes:
    """A reply whose content is this JSON."""
    return http(f'{{"choices":[{{"message":{{"content":{text}}},"finish_reason":"stop"}}]}}'.encode())


def usage(tokens: str) -> bytes:
    text = '{"choices":[{"message":{"content":"fine"},"finish_reason":"stop"}],"usage":{"completion_tokens":%s}}'
    return http((text % tokens).encode())


def drips(first: bytes, drop: bytes, seconds: float = STEP) -> Behaviour:
    def act(connection: socket.socket) -> None:
        connection.sendall(first)
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            connection.sendall(drop)
            time.sleep(seconds)

    return act


def explodes(compress: Callable[[bytes], bytes], encoding: str) -> Behaviour:
    """Write 128 MB that are 130 kB on the way. They are made for the tests that read them: it takes a second."""

    def act(connection: socket.socket) -> None:
        connection.sendall(http(compress(b"x" * 2**27), headers=f"Content-Encoding: {encoding}\r\n"))

    return act


def floods(first: bytes, piece: bytes) -> Behaviour:
    """Write as fast as the client reads; bounded here too, so that a client without a limit fails the test."""

    def act(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(200 * 2**20 // len(piece)):
            connection.sendall(piece)

    return act


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = b"x" * 2**20
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\u200b\u2028|<img src=x onerror=alert(1)>`[a](http://b)\r\nfine"
BEARER = f"Bearer {KEY}".encode()
DRIPPING: dict[str, Behaviour] = {
    "silence": drips(b"", b""),
    "status line, then nothing": drips(OK, b""),
    "half a status line": drips(b"HTTP/1.", b""),
    "status line drips": drips(b"HTTP/1.1 200 O", b"K"),
    "headers drip": drips(OK, b"X-A: b\r\n"),
    "one header drips": drips(OK + b"X-A: ", b"b"),
    "100 Continue for ever": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 for ever": drips(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
    "body drips": drips(OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "body without length drips": drips(OK + b"\r\n", b" "),
    "chunk size never ends": drips(CHUNKED, b"0"),
    "chunk extension never ends": drips(CHUNKED + b"5;", b"a"),
    "chunks of a byte": drips(CHUNKED, b"1\r\n \r\n"),
    "trailers never end": drips(CHUNKED + b"0\r\n", b"X-A: b\r\n"),
    "one trailer never ends": drips(CHUNKED + b"0\r\nX-A: ", b"b"),
    "no empty chunk": drips(CHUNKED + b"2\r\n{}\r\n", b""),
    "error body drips": drips(b"HTTP/1.1 400 Bad\r\nContent-Length: 100000\r\n\r\n", b"a"),
    "redirect drips": drips(b"HTTP/1.1 301 Moved\r\nLocation: ", b"a"),
    "gzip without output drips": drips(
        OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10], b"\0\0\0\xff\xff"
    ),
}  # fmt: skip
ENDLESS: dict[str, Behaviour] = {
    "endless body": floods(OK + b"\r\n", MEGABYTE),
    "endless chunks": floods(CHUNKED, b"100000\r\n" + MEGABYTE + b"\r\n"),
    "endless brackets": floods(OK + b"\r\n", b"[" * 2**20),
    "endless error": floods(b"HTTP/1.1 503 Busy\r\n\r\n", MEGABYTE),
    "a length of a terabyte": floods(OK + b"Content-Length: 1099511627776\r\n\r\n", MEGABYTE),
    "gzip bomb": explodes(gzip.compress, "gzip"),
    "deflate bomb": explodes(zlib.compress, "deflate"),
    "gzip in gzip": http(gzip.compress(gzip.compress(b"{}")), headers="Content-Encoding: gzip, gzip\r\n"),
    "endless headers": floods(OK, b"X-A: " + b"b" * 10_000 + b"\r\n"),
    "100 Continue as fast as it goes": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    "endless status line": floods(b"HTTP/1.1 200 ", b"a" * 10_000),
}
BROKEN: dict[str, Behaviour] = {
    "hangs up": b"",
    "garbage": b"\x00\xff" * 100,
    "no HTTP": b"220 smtp ready\r\n",
    "HTTP/9.9": b"HTTP/9.9 200 OK\r\n\r\n{}",
    "status 999": http(b"{}", "999 x"),
    "status 199": b"HTTP/1.1 199 x\r\n\r\n",
    "status 101": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n{}",
    "status 204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "negative length": OK + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
    "short body": http(b"{}", length=100),
    "header without a name": OK + b": x\r\n\r\n",
    "header with a null": OK + b"X: a\0b\r\n\r\n",
    "headers that are not ASCII": http(b"{}", "400 Bad", "X: \u0394\r\nRetry-After: \u0394\r\nLocation: \u0394\r\n"),
    "bad chunk size": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "unknown encoding": http(b"{}", headers="Content-Encoding: nonsense\r\n"),
    "false gzip": http(b"{}", headers="Content-Encoding: gzip\r\n"),
    "charset hex": http(b'{"error": 1}', "500 x", "Content-Type: text/plain; charset=hex\r\n"),
    "charset base64": http(b"xx", "400 x", "Content-Type: application/json; charset=base64\r\n"),
    "charset idna": http(b"\xff" * 100, "400 x", "Content-Type: text/html; charset=idna\r\n"),
    "cookies": http(b"{}", "400 x", "".join(f"Set-Cookie: a{i}={'b' * 500}\r\n" for i in range(50))),
    "retry after nonsense": http(b"{}", "429 x", "Retry-After: -1e999\r\n"),
    "empty body": http(b""),
    "not JSON": http(b"<html>hello</html>"),
    "cut JSON": http(b'{"choices": [{"mess'),
    "UTF-16": http(json.dumps({"choices": []}).encode("utf-16")),
    "bad UTF-8": http(b'{"choices": "\xff\xfe"}'),
    "brackets": http(b"[" * 200_000),
    "braces": http(b'{"a":' * 200_000),
    "brackets just below the limit": http(b'{"choices":' + b"[" * 900 + b"]" * 900 + b"}"),
    "deep content": http(b'{"choices":[{"message":{"content":' + b"[" * 800 + b"]" * 800 + b"}}]}"),
    "deep error": http(b'{"error":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"),
    "deep refusal": http(b"[" * 900 + b"]" * 900, "400 x"),
    "deep message of a refusal": http(b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b"}}", "422 x"),
    "integer of 5,000 digits": http(b"9" * 5000),
    "null": http(b"null"),
    "NaN": http(b"NaN"),
    "a list": http(b"[1, 2]"),
    "no choices": http(b'{"choices": []}'),
    "choices is a number": http(b'{"choices": 1}'),
    "a choice is null": http(b'{"choices": [null]}'),
    "a message is a list": http(b'{"choices": [{"message": [1]}]}'),
    "content is a number": raw("1"),
    "content is a list of numbers": raw("[1, 2]"),
    "finish is a list": reply(finish=[1]),
    "finish is escapes": reply(finish=ESCAPES),
    "finish is huge": reply(finish="y" * 10**6),
    "text far longer than its tokens": reply("word " * 200_000),
    "error with status 200": http(b'{"error": {"message": "no"}}'),
    "error of a strange type": http(b'{"error": [[1, {"a": 2}]]}'),
}
GOOD: dict[str, Behaviour] = {  # replies that are odd and right; all say fine
    "byte-order mark": http(b"\xef\xbb\xbf" + body()),
    "gzip": http(gzip.compress(body()), headers="Content-Encoding: gzip\r\n"),
    "half a pair": raw('"fine \\ud83d"'),
    "half a pair in a thought": http(body(reasoning="x").replace(b'"x"', b'"\\ude00\\ud83d"')),
    "a null character": raw('"fine \\u0000"'),
    "tokens below zero": usage("-5"),
    "tokens of 1e25": usage("1e25"),
    "tokens of 25 digits": usage("9" * 25),
    "tokens NaN": usage("NaN"),
    "tokens Infinity": usage("Infinity"),
    "tokens true": usage("true"),
    "tokens in words": usage('"many"'),
    "tokens a list": usage("[[1]]"),
    "usage a list": reply(usage=[1]),
    "a hundred thousand choices": http(
        b'{"choices":[{"message":{"content":"fine"},"finish_reason":"stop"}' + b",{}" * 100_000 + b"]}"
    ),
    "many parts": reply([{"type": "thinking", "thinking": "x"}] * 2_000 + [{"type": "text", "text": "fine"}]),
    "repeated keys": http(
        b'{"choices":1,"choices":[{"message":{"content":"a"},"message":{"content":"fine"},"finish_reason":"stop"}]}'
    ),
    "logprobs of nonsense": http(body().replace(b'"finish_reason"', b'"logprobs": {"content": []}, "finish_reason"')),
    "100 Continue once": b"HTTP/1.1 100 Continue\r\n\r\n" + reply(),
    "set-cookie": reply().replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b; Domain=.com\r\n\r\n", 1),
}
LEAKS: dict[str, Behaviour] = {
    "key in the content": reply(f"fine {KEY}"),
    "key in the thought": reply("fine", reasoning=KEY),
    "key in parts": reply([{"type": "text", "text": f"fine {KEY[:9]}"}, {"type": "text", "text": KEY[9:]}]),
    "key in the finish": reply(finish=f"x {KEY}"),
    "key in an error": http(json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), "400 x"),
    "key in an error 500": http(f"{KEY}".encode(), "500 x"),
    "key after 290 characters": http(("a" * 290 + KEY).encode(), "400 x"),
    "key after spaces": http((" " * 50_000 + "a" * 280 + KEY).encode(), "400 x"),
    "key on two lines": http(f"{KEY[:5]}\n  {KEY[5:]}".encode(), "400 x"),
    "key with unseen spaces": reply("fine " + "\u200b".join(KEY)),
    "key in a URL": http(quote(KEY, safe="").encode(), "400 x"),
    "key in a URL, every character": reply("fine " + "".join(f"%{ord(c):02x}" for c in KEY)),
    "key in JSON escapes": reply("fine " + "".join(f"\\u{ord(c):04x}" for c in KEY)),
    "key with escaped slashes": http(json.dumps(KEY).replace("/", "\\/").encode(), "422 x"),
    "key in HTML": reply("fine " + "".join(f"&#{ord(c)};" for c in KEY)),
    "key in base64": reply(f"fine {base64.b64encode(BEARER).decode()}"),
    "key in base64 for URLs": reply(f"fine {base64.urlsafe_b64encode(b'u:' + BEARER).decode()}"),
    "key in base64 of a basic login": reply(f"fine {base64.b64encode(f'u:{KEY}'.encode()).decode()}"),
    "key in hexadecimal": reply(f"fine {KEY.encode().hex()}"),
    "key in capitals": reply(f"fine {KEY.upper()}"),
    "key in a type": http(json.dumps({"choices": [{"message": {KEY: 1}, "finish_reason": KEY}]}).encode()),
    "key as a field's name": http(json.dumps({"choices": [{"logprobs": {"top_logprobs": [{KEY: "x"}]}}]}).encode()),
}
TABLE: dict[str, Behaviour] = DRIPPING | ENDLESS | BROKEN | GOOD | LEAKS


def spellings() -> list[str]:
    """Ways of writing the key that no file may have, in lower case."""
    texts = [KEY, quote(KEY, safe=""), KEY.encode().hex(), "".join(f"\\u{ord(c):04x}" for c in KEY)]
    texts += ["".join(f"%{ord(c):02x}" for c in KEY), json.dumps(KEY).replace("/", "\\/").strip('"')]
    texts += [base64.b64encode(b"x" * n + BEARER).decode()[8:-4] for n in range(3)]
    return [text.lower() for text in texts]


class Hostile:
    """The server. `listing` is its behaviour for GET; chats that name no behaviour are answered with `fine`."""

    def __init__(self, listing: Behaviour | None = None, table: dict[str, Behaviour] = TABLE) -> None:
        self.listing = http(b'{"data": [{"id": "m"}]}') if listing is None else listing
        self.table, self.connections = table, 0
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                head, body = _request(connection)
                behaviour = self.listing if head.startswith(b"GET") else self._chosen(head, body)
                if callable(behaviour):
                    behaviour(connection)
                else:
                    connection.sendall(behaviour)
            except OSError:
                pass  # the client has left, as it should

    def _chosen(self, head: bytes, body: bytes) -> Behaviour:
        if b"/tokenize" in head.partition(b"\r\n")[0]:
            return self.table.get("/tokenize", http(b"{}", "404 x"))
        request = json.loads(body)
        name = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
        return self.table.get(name, self.table.get("*", reply()))


def _request(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += _received(connection)
    return head, body


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the client has left")
    return data
