"""Serve a page to the browsers of this machine alone.

The server listens on the loopback address, answers GET and HEAD for files below the page's folder, and refuses requests
that name another host, as those of a page elsewhere do whose name was made to lead here (DNS rebinding).
"""

import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.log import say, tell

HOST = "127.0.0.1"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Files(SimpleHTTPRequestHandler):
    """Answers requests for the files of a folder, and for no link that leads out of it."""

    def end_headers(self) -> None:
        """Send the headers that keep a page apart from others."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def send_head(self) -> Any:
        """Send the head of an answer; refuse another host's name, and files elsewhere."""
        assert isinstance(self.server, ThreadingHTTPServer)
        names = {f"{host}:{self.server.server_port}" for host in (HOST, "localhost")}
        folder = Path(self.directory).resolve()
        if self.headers.get("Host", "") not in names:
            self.send_error(403, "another host")
        elif not Path(self.translate_path(self.path)).resolve().is_relative_to(folder):
            self.send_error(404)
        else:
            return super().send_head()
        return None

    def list_directory(self, path: Any) -> None:
        """Refuse to list a folder."""
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a folder that listens, and answers once `serve_forever` is called.

    Raises:
        UserError: the port is taken.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(Files, directory=str(folder)))
    except OSError as error:
        raise UserError(f"Port {port} of {HOST} cannot be used ({error.strerror}): choose another --port.") from error


def serve(folder: Path, port: int = 0, browser: bool = True) -> None:
    """Serve a page until Ctrl-C, and open it in a browser."""
    with server(folder, port) as running:
        address = f"http://{HOST}:{running.server_address[1]}/"
        tell(f"{address} shows the page; Ctrl-C stops it")
        if browser and not webbrowser.open(address):
            say("no browser was opened: copy the address into one")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
