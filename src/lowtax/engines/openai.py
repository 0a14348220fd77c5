"""Engine for a server that speaks OpenAI's HTTP interface: vLLM, SGLang, llama.cpp, or a hosted one.

    export LOWTAX_BASE_URL=http://localhost:8000/v1

Nothing is loaded in this process: `precision` is ignored, since the server chooses it, and `batch_size` is the number
of requests in flight. A PEFT adapter is requested by its served name: the one in LOWTAX_ADAPTERS (name=path,...), else
that of the served model whose path is the adapter's folder, else the folder's name. The `openai` package makes the
connections; its retries are off, because they end after 20 s and take an error with status 200 for a reply.
docs/reference/engines.md lists the environment variables, and what a server cannot give: seeds that mean the same
elsewhere, prompts encoded as plain text, what a prompt opens.
"""

import asyncio
import json
import os
import random
import shlex
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from lowtax.common.borders import expanded
from lowtax.common.errors import UserError
from lowtax.data.chat import Switch
from lowtax.engines import openai_requests, openai_several
from lowtax.engines.base import Completion, Request
from lowtax.engines.openai_requests import NO_REPLY, TOO_LARGE, UNREACHABLE, Failure
from lowtax.engines.openai_settings import Settings, settings_from_environment

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import AsyncOpenAI

Item = TypeVar("Item")
Body = dict[str, Any]
Names = dict[str | None, str]  # served names, by adapter folder; None is the model itself

RETRIES = 6  # pauses of 1, 2, 4 ... 32 s, together longer than the minute over which servers count requests
TIMEOUT_RETRIES = 2  # a reply that was too slow is likely to be too slow again
MAX_PAUSE = 60.0  # seconds
MAX_NAMES = 20  # in an error message; hosted servers have hundreds
THREAD_PATIENCE = 2.0  # seconds for the thread to end; one that still resolves a host name is left behind


class OpenAI:
    """A served model and its served adapters, on one server or several.

    settings: of one server; those in the environment by default. batch_size: requests in flight on each server.
    """

    def __init__(self, model: str, precision: str, batch_size: int, settings: Settings | None = None) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise UserError("The engine openai needs the openai package: pip install 'lowtax[openai]'.") from error
        self.model, self.batch_size = model, batch_size
        self.one_of_several = settings is not None
        self.settings, *more = [settings] if settings else settings_from_environment()
        self.server = Server(self.settings)
        every = [self.settings, *more] if more else []
        self.several = [OpenAI(model, precision, batch_size, one) for one in every]

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish, after a check that the model and all adapters are served.

        Raises:
            UserError: The server cannot be reached, refuses the key, or does not serve the model or an adapter.
        """
        if not requests:
            return iter(())
        if self.several:
            return openai_several.generate(self.several, requests)
        [served] = in_thread(self._served_models())
        names = {adapter: self._served_name(adapter, served) for adapter in dict.fromkeys(r.adapter for r in requests)}
        self._check_names(names, served)
        return in_thread(self._completions(requests, names))

    async def _completions(self, requests: Sequence[Request], names: Names) -> AsyncIterator[Completion]:
        slots = asyncio.Semaphore(self.batch_size)
        async with self.server.client() as client:
            template_opens = await self._template_opens(client, requests, names)

            async def complete(request: Request) -> Completion:
                async with slots:
                    path, body = openai_requests.request_body(request, names[request.adapter])
                    try:
                        reply = await self.server.send(client, path, body)
                    except Failure as failure:
                        self.server.raise_if_fatal(failure, path)
                        if self.one_of_several and failure.status == UNREACHABLE:
                            raise UserError(f"{self.settings.address} cannot be reached any more.") from failure
                        return openai_requests.failed(request, failure.reason())
                opened = openai_requests.prompt_opens_thought(request, template_opens.get(request.thinking))
                return self._completion(request, reply, opened)

            tasks = [asyncio.create_task(complete(request)) for request in requests]
            try:
                for task in asyncio.as_completed(tasks):
                    yield await task
            finally:
                for pending in tasks:
                    pending.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _completion(self, request: Request, reply: Any, opened: bool | None) -> Completion:
        """Return the completion in a server's JSON, which no reply can prevent, without the key."""
        try:
            completion = openai_requests.read_completion(request, reply, opened)
        except Exception as error:  # noqa: BLE001  # row recorded as failed
            completion = openai_requests.failed(request, f"the server's reply cannot be read ({type(error).__name__})")
        reason = completion.error and self.settings.clean(completion.error)
        return replace(completion, text=self.settings.redaction.text(completion.text), error=reason)

    async def _served_models(self) -> AsyncIterator[dict[str, str] | None]:
        """Yield the path of each served name ("" if unknown), once; None if the server does not list its models."""
        async with self.server.client() as client:
            try:
                reply = await self.server.send(client, "/models", retries=3)
            except Failure as failure:
                if failure.status not in (400, 404, 405) and not 500 <= failure.status < 600:
                    self.server.raise_if_fatal(failure, "/models")
                    where = f"{self.settings.address}/models"
                    raise UserError(f"{where} fails ({failure.reason()}); correct it, then try again.") from failure
                reply = None
        yield openai_requests.read_models(reply)

    def _served_name(self, adapter: str | None, served: dict[str, str] | None) -> str:
        """Return the served name of the model (None) or of an adapter folder."""
        if adapter is None:
            return self.model
        folder = expanded(adapter).resolve()
        if folder in self.settings.adapters:
            return self.settings.adapters[folder]
        roots = {name: Path(root).resolve() for name, root in (served or {}).items() if root and name != self.model}
        if folder in roots.values():
            return next(name for name, root in roots.items() if root == folder)
        root = roots.get(folder.name)
        if root is not None and os.path.isdir(root):  # False for a path that no file can have
            raise UserError(
                f"The server's {folder.name!r} is the adapter in {root}, not that in {folder}: serve this one under "
                "another name, or give its name in LOWTAX_ADAPTERS."
            )
        return folder.name

    def _check_names(self, names: Names, served: dict[str, str] | None) -> None:
        """Refuse two adapters with one name, and names that are not served, with the command that serves them."""
        for name in dict.fromkeys(names.values()):
            folders = {str(Path(a).resolve()) if a else "the model itself" for a in names if names[a] == name}
            if len(folders) > 1:
                raise UserError(
                    f"{' and '.join(sorted(folders))} have the same served name {name!r}: serve them under two names, "
                    "and set LOWTAX_ADAPTERS=name=path,name=path."
                )
        missing = [name for name in names.values() if served is not None and name not in served]
        if missing:
            listed = sorted(served or {})
            more = f" and {len(listed) - MAX_NAMES} more" if len(listed) > MAX_NAMES else ""
            modules = [shlex.quote(f"{name}={adapter}") for adapter, name in names.items() if adapter is not None]
            lora = f" --enable-lora --lora-modules {' '.join(modules)}" if modules else ""
            raise UserError(
                f"{self.settings.address} does not serve {', '.join(map(repr, missing))}, but "
                f"{', '.join(map(self.settings.clean, listed[:MAX_NAMES]))}{more}; serve it with "
                f"`vllm serve {shlex.quote(self.model)} --generation-config vllm{lora}`."
            )

    async def _template_opens(
        self, client: "AsyncOpenAI", requests: Sequence[Request], names: Names
    ) -> dict[Switch, bool | None]:
        """Return, for each thinking mode, True if the chat template opens a think block.

        vLLM shows its prompts (/tokenize). Without that, an unfinished thought looks like an answer.
        """
        opens: dict[Switch, bool | None] = {}
        url = f"{self.settings.url.rpartition('/')[0]}/tokenize"
        for request in {r.thinking: r for r in requests if not (r.raw or r.prefix)}.values():
            body = {"model": names[request.adapter], "add_generation_prompt": True, "return_token_strs": True}
            with suppress(Failure):
                reply = await self.server.send(client, url, body | openai_requests.chat_prompt(request), retries=0)
                opens[request.thinking] = openai_requests.shown_prompt_opens_thought(reply)
        return opens


class Server:
    """The server at an address, with its key, rate and time limit. Temporary failures are retried."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.first_wait, self.longest_wait = 1.0, max(settings.timeout, MAX_PAUSE)
        self._interval = 60 / settings.per_minute if settings.per_minute else 0.0
        self._next_start, self._reached, self._random = 0.0, False, random.Random()

    def client(self) -> "AsyncOpenAI":
        """Return a new client for one event loop.

        Raises:
            UserError: The proxy in the environment cannot be used.
        """
        import httpx2
        import openai

        from lowtax.engines.openai_client import Client

        host, seconds = str(urlsplit(self.settings.url).hostname), self.settings.timeout
        local = host in ("localhost", "::1") or host.startswith("127.")  # never through a proxy
        tls = ssl.create_default_context()  # reads SSL_CERT_FILE also without trust_env
        try:
            http_client = Client(verify=tls, trust_env=not local, limits=httpx2.Limits())
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            raise UserError(
                f"The proxy in the environment cannot be used ({self.settings.clean(str(error))}): correct http_proxy, "
                "https_proxy or all_proxy, or name the server's host in no_proxy."
            ) from error
        return openai.AsyncOpenAI(
            base_url=self.settings.url,
            api_key=self.settings.key or "none",  # required; `_try` decides what is sent
            max_retries=0,
            timeout=httpx2.Timeout(seconds, connect=min(0.9 * seconds, 20.0)),  # "unreachable" comes before "too slow"
            http_client=http_client,
        )

    async def send(self, client: "AsyncOpenAI", path: str, body: Body | None = None, retries: int = RETRIES) -> Any:
        """Return the JSON of a reply to a GET (no body) or POST, after as many tries as necessary.

        Raises:
            Failure: The last try failed.
            UserError: The server was never reached, and cannot be.
        """
        for tries in count(1):
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + self._interval
            await asyncio.sleep(start - time.monotonic())
            try:
                return await self._try(client, path, body)
            except Failure as failure:
                failure.tries = tries
                last = tries > (min(retries, TIMEOUT_RETRIES) if failure.slow else retries)
                if last or not failure.temporary() or failure.wait > self.longest_wait:
                    raise
                backoff = min(self.first_wait * 2 ** (tries - 1), MAX_PAUSE) * self._random.uniform(0.5, 1)
                pause = failure.wait + backoff
            await asyncio.sleep(pause)

    async def _try(self, client: "AsyncOpenAI", path: str, body: Body | None) -> Any:
        import httpx2
        import openai

        from lowtax.engines.openai_client import BODY, TooLarge

        # Explicit, or the package sends whatever key and account the environment holds for OpenAI's own server.
        key = f"Bearer {self.settings.key}" if self.settings.key else openai.Omit()
        unset = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        options = openai.RequestOptions(headers={"User-Agent": "lowtax", "Authorization": key} | unset)
        try:
            async with asyncio.timeout(self.settings.timeout):  # the client's own limit is on silence alone
                if body is None:
                    reply = await client.get(path, cast_to=httpx2.Response, options=options)
                else:
                    data = json.dumps(body).encode()  # in ASCII: half of a surrogate pair has no bytes
                    reply = await client.post(path, cast_to=httpx2.Response, content=data, options=options)
        except openai.APIStatusError as error:
            self._reached = True
            raise self._refusal(error.response, error.response.extensions[BODY]) from error
        except TooLarge as error:
            self._reached = True
            raise Failure(TOO_LARGE, str(error)) from error
        except (TimeoutError, openai.APIConnectionError) as error:
            raise self._no_reply(error) from error
        except Exception as error:  # what a reply may provoke in the packages that read it
            raise Failure(NO_REPLY, f"the reply cannot be read ({type(error).__name__})") from error
        self._reached = True
        text = _decoded(reply.extensions[BODY])
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Failure(NO_REPLY, self.settings.clean(f"the reply is not JSON: {text}")) from error
        if isinstance(value, dict) and value.get("error"):  # a gateway may answer 200 before its server fails
            raise Failure(NO_REPLY, self.settings.clean(openai_requests.error_message(value["error"])))
        return value

    def _refusal(self, response: "Response", body: bytes) -> Failure:
        text = _decoded(body)
        try:
            message = openai_requests.error_message(json.loads(text))
        except (ValueError, RecursionError):
            message = text
        wait = openai_requests.retry_after(response.headers.get("Retry-After", ""))
        detail = self.settings.clean(response.headers.get("Location") or message)
        return openai_requests.refusal(response.status_code, detail, wait, text)

    def _no_reply(self, error: Exception) -> Failure:
        import httpx2
        import openai

        cause, settings = error.__cause__, self.settings
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
            detail = f"{settings.address} cannot be reached ({settings.clean(str(cause)) or type(cause).__name__})"
            if not self._reached:
                raise UserError(f"{detail}; start the server, or correct LOWTAX_BASE_URL (or OPENAI_BASE_URL).")
            return Failure(UNREACHABLE, detail)
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return Failure(NO_REPLY, f"no whole reply within {settings.timeout:g} s (LOWTAX_TIMEOUT)", slow=True)
        return Failure(NO_REPLY, f"the connection broke off ({type(cause).__name__})")

    def raise_if_fatal(self, failure: Failure, path: str) -> None:
        """Raise a UserError if every other request would fail like this one."""
        if message := failure.fatal_message(f"{self.settings.address}{path}", self.longest_wait):
            raise UserError(message) from failure


def _decoded(body: bytes) -> str:
    return body.decode("utf-8-sig", "replace")


def in_thread(items: AsyncIterator[Item]) -> Iterator[Item]:
    """Yield the items of an asynchronous iterator, which runs on an event loop in a thread.

    The caller may have an event loop too, as notebooks do. A caller that stops early (Ctrl-C) cancels the iterator.
    The thread is a daemon: an interpreter that exits does not wait for the slowest reply.
    """
    loop, queue, end = asyncio.new_event_loop(), SimpleQueue[Any](), object()

    async def drain() -> None:
        async for item in items:
            queue.put(item)

    def run() -> None:
        with closing(loop):
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())

    task = loop.create_task(drain())
    task.add_done_callback(lambda _: queue.put(end))
    thread = Thread(target=run, name="lowtax-requests", daemon=True)
    thread.start()
    try:
        yield from iter(queue.get, end)
        task.result()  # raises what ended the iterator
    finally:
        with suppress(RuntimeError):  # the loop is closed: the iterator has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join(THREAD_PATIENCE)
