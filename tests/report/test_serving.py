"""The server of `lowtax view`: this machine alone, one folder alone."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.report import serving


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "page" / "data").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<p>page</p>")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "page" / "link").symlink_to(tmp_path / "secret")
    with serving.server(tmp_path / "page") as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running.server_port
        running.shutdown()
        thread.join()


def get(port: int, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    result = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return result


def test_it_serves_the_page_with_headers_that_keep_it_apart(port: int):
    status, text, headers = get(port, "/")
    assert (status, text) == (200, "<p>page</p>")
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "/link", "/data/", "/none", "//etc/passwd"])
def test_it_serves_nothing_else(port: int, path: str):
    status, text, _ = get(port, path)
    assert status == 404
    assert "secret" not in text


def test_it_answers_no_other_host_and_writes_nothing(port: int):
    assert get(port, "/", host="evil.example")[0] == 403
    assert get(port, "/", host=f"localhost:{port}")[0] == 200
    assert get(port, "/", method="POST")[0] == 501


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="choose another --port"):
            serving.server(tmp_path, other.getsockname()[1])
