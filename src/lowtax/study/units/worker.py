"""The process of a worker: it takes tasks from a connection, does one after the other, and tells how they end.

On a machine without GPUs, one process imports the libraries, and every worker is a copy of it that starts at once. CUDA
does not survive such a copy, so with GPUs every worker is a separate process. A worker ends with its driver.
"""

import array
import importlib
import json
import os
import pickle
import signal
import socket
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from lowtax.common import log, unused
from lowtax.common.errors import UserError
from lowtax.common.parents import die_with_parent
from lowtax.study.units.messages import Desk, Message


def serve(connection: Connection) -> None:
    """Do the tasks that come, until the connection is closed."""

    def tell(message: Message) -> None:
        connection.send(message)

    log.OUTPUTS[:] = [lambda text: tell(Message("said", text))]
    prepared = False
    desk = Desk(tell)
    tell(Message("ready", (socket.gethostname(), os.getpid())))
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        desk.progress(0)  # a task may have imported much
        try:
            if not prepared:
                log.quiet_libraries()
                prepared = True
            answer = pickle.dumps(Message("done", task.run(desk)))  # what cannot be sent fails here, with a traceback
        except UserError as error:
            tell(Message("refused", str(error)))
        except BrokenPipeError:
            return
        except Exception:  # noqa: BLE001  # row recorded as failed
            tell(Message("broken", traceback.format_exc()))
        else:
            connection.send_bytes(answer)


def begin(number: int, environment: dict[str, str]) -> None:
    """Serve the connection with this file descriptor, in a process that has just begun."""
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (torch := sys.modules.get("torch")) is not None and (threads := environment.get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))
    with suppress(KeyboardInterrupt):
        serve(Connection(number))


def copies(control: socket.socket) -> None:
    """Import the libraries, then make a worker for every message: its environment, with its connection."""
    importlib.import_module("lowtax.study.units.tasks")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    own = os.getpid()
    while True:
        numbers = array.array("i")
        text, ancillary, _, _ = control.recvmsg(65536, socket.CMSG_LEN(2 * numbers.itemsize))
        if not text:
            return
        for _, _, data in ancillary:
            numbers.frombytes(data)
        connection, errors = numbers
        if os.fork():
            os.close(connection)
            os.close(errors)
            continue
        die_with_parent(own)
        control.close()
        os.setsid()
        os.dup2(errors, 2)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        begin(connection, json.loads(text))
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(0)


def main(arguments: list[str]) -> Any:
    """Begin as a worker (`serve FD PARENT`) or as the process that workers are copies of (`copies FD PARENT`)."""
    what, number, parent = arguments
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the driver ends its workers
    unused.leave_out()
    if what == "serve":
        importlib.import_module("lowtax.study.units.tasks")  # before the worker is ready, since it takes seconds
        return begin(int(number), {})
    return copies(socket.socket(fileno=int(number)))


if __name__ == "__main__":
    main(sys.argv[1:])
