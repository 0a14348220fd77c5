"""Pushing to a hub: what is sent, to whom it is visible, and one sentence if it fails. The hub is a small local one."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from progress import progress_to

from lowtax.common.errors import UserError
from lowtax.models.hub import push


class Hub(ThreadingHTTPServer):
    """As much of the hub's interface as an upload of small files uses; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.visible: dict[str, str] = {}
        self.branch, self.message, self.refuses = "", "", False


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        repo = "/".join(self.path.split("?")[0].split("/")[3:5])
        if repo not in self.server.visible:
            return self.answer(404, {"error": "Repository not found"})
        sha = "0" * 40
        return self.answer(
            200, {"id": repo, "sha": sha, "private": self.server.visible[repo] == "private", "siblings": []}
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.refuses:
            return self.answer(403, {"error": "You have read but not write access"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.visible.setdefault(repo, asked.get("visibility", "public"))
            return self.answer(200, {"url": f"http://127.0.0.1/{repo}", "id": repo})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer(200, {"files": modes})
        if "/commit/" in self.path:
            self.server.branch = self.path.split("/commit/")[1].split("?")[0]
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.message = lines[0]["value"]["summary"]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            return self.answer(200, {"commitUrl": "http://127.0.0.1/you/safe/commit/1", "commitOid": "1" * 40})
        return self.answer(200, {})  # the card's YAML is right, the branch is made

    def answer(self, code: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = ["adapter_model.safetensors", "README.md", ".state.pt", "optimizer.pt", "merge.json", ".cache/x", "sub/.x"]
    for name in files:
        path = tmp_path / "checkpoint-5" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    config = {"base_model_name_or_path": "owner/base"}
    (tmp_path / "checkpoint-5" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "checkpoint-5"


CALL = """
import json, sys
from pathlib import Path
from lowtax.common.errors import UserError
from lowtax.models.hub import push
folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
try:
    print(push(folder, "you/safe", **options))
except UserError as error:
    print("refused:", error)
"""


def run(folder: Path, endpoint: str, **options: Any) -> str:
    """The last line that pushing prints, in a process of its own: the hub's library reads its settings once."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": "none", "NO_PROXY": "127.0.0.1", "HF_HOME": str(folder.parent)}
    command = [sys.executable, "-c", CALL, str(folder), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_push_sends_the_checkpoint_and_nothing_else(folder: Path, hub: Hub):
    where = run(folder, f"http://127.0.0.1:{hub.server_port}", message="first")
    assert where == f"http://127.0.0.1:{hub.server_port}/you/safe"
    assert sorted(hub.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert hub.files["README.md"] == b"README.md"
    assert hub.visible == {"you/safe": "private"}
    assert (hub.branch, hub.message) == ("main", "first")


def test_a_public_repository_is_not_taken_for_a_private_one(folder: Path, hub: Hub):
    hub.visible["you/safe"] = "public"
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    assert "you/safe is public already" in run(folder, endpoint)
    assert hub.files == {}
    assert run(folder, endpoint, private=False, revision="v1") == f"{endpoint}/you/safe/tree/v1"
    assert hub.branch == "v1"
    assert hub.message == "checkpoint-5, by lowtax"
    assert len(hub.files) == 3


def test_a_refusal_of_the_hub_is_one_sentence(folder: Path, hub: Hub):
    hub.refuses = True
    said = run(folder, f"http://127.0.0.1:{hub.server_port}")
    assert said.startswith("refused:")
    assert "403" in said
    assert "may write" in said


def test_no_network_is_one_sentence(folder: Path, hub: Hub):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    hub.shutdown()
    hub.server_close()
    said = run(folder, endpoint)
    assert said.startswith("refused:")
    assert "check the network" in said


def test_offline_mode_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "none")  # the tests run with HF_HUB_OFFLINE=1
    with pytest.raises(UserError, match="offline mode"):
        push(folder, "you/safe")


def test_who_is_not_logged_in_is_told_how(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf auth login"):
        push(folder, "you/safe")


def test_only_a_checkpoint_is_pushed(tmp_path: Path):
    with pytest.raises(UserError, match="has no checkpoint"):
        push(tmp_path, "you/safe")


def test_a_base_that_nobody_else_has_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/mine"}))
    said: list[str] = []
    with pytest.raises(UserError), progress_to(said.append):
        push(folder, "you/safe")
    assert "'/models/mine', which is not on the hub" in said[0]
