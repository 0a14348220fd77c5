"""Several servers of one model: requests go to them in turn, and one that fails is left out.

The server of a request depends on the ids of all requests, so that repeating a command asks the same ones. A server is
left out when it cannot be reached, refuses the key, or does not serve the model; its requests go to the others.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.engines.base import Completion, Request


class Served(Protocol):
    """The engine of one server."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish.

        Raises:
            UserError: The server fails.
        """
        ...


Item = tuple[int, Completion | BaseException | None]  # number of the server; None at its end


def dealt(requests: Sequence[Request], servers: Sequence[int], tried: Mapping[str, int]) -> dict[int, list[Request]]:
    """Return the requests of each server, in turn in the order of their ids; each keeps the order of its requests.

    tried: the server that failed to answer a request, by id; it is not asked again.
    """
    turn = {}
    for number, id_ in enumerate(sorted({request.id for request in requests})):
        others = [server for server in servers if server != tried.get(id_)] or servers
        turn[id_] = others[number % len(others)]
    return {server: [r for r in requests if turn[r.id] == server] for server in servers}


def generate(engines: Sequence[Served], requests: Sequence[Request]) -> Iterator[Completion]:
    """Yield one completion for every request.

    A reply that one server failed to give is asked of another one, once.

    Raises:
        UserError: All servers fail; the error is that of the last one.
    """
    up, left = list(range(len(engines))), list(requests)
    tried: dict[str, int] = {}
    while left:
        shares = {server: share for server, share in dealt(left, up, tried).items() if share}
        missing = {request.id: request for request in left}
        last: UserError | None = None
        for server, item in _merged(engines, shares):
            if isinstance(item, UserError):
                say(f"  server {server + 1} of {len(engines)} is left out: {item}")
                up, last = [each for each in up if each != server], item
            elif isinstance(item, BaseException):
                raise item
            elif item is not None and item.finish == "failed" and item.id not in tried and len(up) > 1:
                tried[item.id] = server
            elif item is not None:
                missing.pop(item.id, None)
                yield item
        if last is not None and not up:
            raise last
        left = list(missing.values())


def _merged(engines: Sequence[Served], shares: dict[int, list[Request]]) -> Iterator[Item]:
    """Yield what the servers give, each read in a separate thread."""
    queue, stop = SimpleQueue[Item](), threading.Event()

    def read(server: int, share: Sequence[Request]) -> None:
        try:
            completions = engines[server].generate(share)
            for completion in completions:
                if stop.is_set():
                    return
                queue.put((server, completion))
        except UserError as error:
            queue.put((server, error))
        except BaseException as error:
            queue.put((server, error))  # raised by the reader of the queue, too
            raise
        finally:
            queue.put((server, None))

    threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in shares.items()]
    for thread in threads:
        thread.start()
    ended = 0
    try:
        while ended < len(threads):
            item = queue.get()
            ended += item[1] is None
            yield item
    finally:
        stop.set()
