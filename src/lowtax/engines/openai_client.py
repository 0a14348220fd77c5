"""The HTTP client of the engine `openai`: a reply is read up to a number of bytes, and little of it is used.

A server decides what it sends. So the body is limited after its decompression, and of the headers only those that the
engine needs reach the `openai` package; a charset, a content type or a cookie of the server has no effect. The time is
limited by the engine, which cancels a try as a whole.
"""

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
import openai

MOST_BYTES = 16 * 2**20  # ten times what the longest replies and lists have
BODY = "lowtax.body"  # the extension of a response that holds its bytes
HEADERS = (b"location", b"retry-after")


class TooLarge(openai.OpenAIError):
    """A reply with more bytes than any has, or packed several times. The `openai` package lets its own errors pass."""


class Client(httpx2.AsyncClient):
    """A client whose responses have their body as an extension, and nothing else that a server decides.

    Args:
        options: of `httpx2.AsyncClient`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])))  # keeps none

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read the whole reply.

        Raises:
            TooLarge: It does not end in time.
        """
        response = await super().send(request, **options | {"stream": True})
        try:
            body = await _body(response)
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.raw if name.lower() in HEADERS]
        return httpx2.Response(response.status_code, headers=headers, extensions={BODY: body}, request=request)


async def _body(response: httpx2.Response) -> bytes:
    if "," in response.headers.get("Content-Encoding", ""):  # a layer without output would be decoded for ever
        raise TooLarge("the reply is compressed several times")
    body = bytearray()
    async for piece in response.aiter_bytes():  # of at most 1 MiB
        body += piece
        if len(body) > MOST_BYTES:
            raise TooLarge(f"the reply has more than {MOST_BYTES // 2**20} MiB")
    return bytes(body)
