"""Settings of the engine `openai`: the server, its key and limits, as the environment has them."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lowtax.common.borders import expanded
from lowtax.common.display import as_line
from lowtax.common.errors import UserError
from lowtax.engines.redaction import Redaction

LONGEST = 300  # characters of a server's text in a message
SECRET = re.compile("auth|key|token|secret|cookie|pass", re.IGNORECASE)  # in the name of a header


@dataclass(frozen=True)
class Settings:
    """The server's settings in the environment.

    url: without a slash at the end. key: "" for none; never printed. timeout: seconds for one try of one request.
    per_minute: maximum number of requests; 0 for no limit. adapters: the served name of each adapter folder.
    others: passwords of proxies and keys in further headers, which are never printed either.
    """

    url: str
    key: str = field(repr=False)
    timeout: float
    per_minute: float
    adapters: dict[Path, str]
    others: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def redaction(self) -> Redaction:
        """The way in which the key is removed from what a server sends."""
        return Redaction((self.key, *self.others))

    @property
    def address(self) -> str:
        """The URL as messages show it."""
        return self.redaction.message(self.url)

    def clean(self, text: str) -> str:
        """Return a server's text for people: one short line of visible characters, without the key."""
        return as_line(self.redaction.message(" ".join(text.split())))[:LONGEST]


def settings_from_environment() -> list[Settings]:
    """Return the settings of every server whose address is in the environment, separated by commas.

    Raises:
        UserError: A variable is missing or wrong.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("OPENAI_API_KEY has characters that no key has (a line break?): set it again.")
    timeout, per_minute = _number("LOWTAX_TIMEOUT", 600.0), _number("LOWTAX_RPM", 0.0)
    others = tuple(_other_secrets())
    return [Settings(url, key, timeout, per_minute, _adapter_names(), others) for url in _urls()]


def _other_secrets() -> Iterator[str]:
    """Yield the passwords of proxies, and what the headers hold that the `openai` package adds for the user."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        with suppress(ValueError):
            yield unquote(urlsplit(os.environ.get(name) or os.environ.get(name.upper()) or "").password or "")
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines():
        name, _, value = line.partition(":")
        if SECRET.search(name):
            yield from value.split()


def _urls() -> list[str]:
    text = os.environ.get("LOWTAX_BASE_URL") or os.environ.get("OPENAI_BASE_URL") or ""
    if not text.strip():
        raise UserError(
            "The engine openai needs the address of a server: set LOWTAX_BASE_URL (or OPENAI_BASE_URL), for example to "
            "http://localhost:8000/v1 for `vllm serve MODEL`."
        )
    urls = [_url(part.strip()) for part in text.split(",")]
    if len(set(urls)) < len(urls):
        raise UserError("LOWTAX_BASE_URL (or OPENAI_BASE_URL) has an address twice: name every server once.")
    return urls


def _url(text: str) -> str:
    """Return a base URL; one without a path gets /v1."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    # The address is not repeated, because it may contain a password.
    if not valid or not re.fullmatch(r"[!-~]+", text) or set(text) & set("@?#"):
        raise UserError(
            "LOWTAX_BASE_URL (or OPENAI_BASE_URL) is not a plain address: write it as http://HOST:PORT/v1 or with "
            "https, without a user, password or query; a key goes into OPENAI_API_KEY."
        )
    url = text.rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = -1.0
    if (text and not value > 0) or value == float("inf"):
        raise UserError(f"{name} is {text!r}, which is not a positive number: set it to one, or unset it.")
    return value


def _adapter_names() -> dict[Path, str]:
    """Return the served names in `LOWTAX_ADAPTERS` (name=path,name=path), by folder."""
    names = {}
    for pair in filter(None, os.environ.get("LOWTAX_ADAPTERS", "").split(",")):
        name, _, path = pair.strip().partition("=")
        if not name or not path:
            raise UserError(f"LOWTAX_ADAPTERS has {pair.strip()!r}: write it as name=path,name=path.")
        names[expanded(path).resolve()] = name
    return names
