"""A small Hugging Face hub on this machine for the real client, and a cache in the layout of that client."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def cached(home: Path, name: str, shards: list[list[dict[str, Any]]], commit: str = COMMIT) -> Path:
    """A data set in the hub's cache below HF_HOME, one parquet file for each shard; returns its snapshot."""
    root = home / "hub" / f"datasets--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    snapshot = root / "snapshots" / commit
    for number, rows in enumerate(shards):
        write_parquet(snapshot / "data" / f"train-{number:05d}-of-{len(shards):05d}.parquet", rows)
    return snapshot


@contextmanager
def hub(files: dict[str, bytes], refusals: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Serve the files of the data set `open/set` at COMMIT; other sets are refused with a status and an error code."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            name = next((name for name in refusals if f"/{name}/" in f"{path}/"), None)
            if name is not None:
                status, code = refusals[name]
                return self.send(status, b"{}", body, **{"X-Error-Code": code, "X-Error-Message": code})
            if "/revision/" in path:
                if not path.endswith(("/main", COMMIT)):
                    return self.send(404, b"{}", body, **{"X-Error-Code": "RevisionNotFound"})
                siblings = [{"rfilename": file} for file in files]
                return self.send(
                    200, json.dumps({"id": "open/set", "sha": COMMIT, "siblings": siblings}).encode(), body
                )
            if "/tree/" in path:
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": f"{len(content):040x}"}
                    for file, content in files.items()
                ]
                return self.send(200, json.dumps(tree).encode(), body)
            file = path.partition(f"/resolve/{COMMIT}/")[2]
            if file not in files:
                return self.send(404, b"", body, **{"X-Error-Code": "EntryNotFound"})
            content = files[file]
            return self.send(200, content, body, **{"ETag": f'"{len(content):040x}"', "X-Repo-Commit": COMMIT})

        def send(self, status: int, content: bytes, body: bool, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
