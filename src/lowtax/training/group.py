"""Training of one job in several processes of this machine, data parallel or sharded, as a launcher would start them.

A worker of a study that has several GPUs is no launcher, and its process stays one. So it starts the processes with the
variables of `torchrun`, repeats what the first of them says, and ends them if one fails or it is killed itself. On
several machines a worker of each starts its part of the processes (`Machines`), as `torchrun --nnodes` does.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtax.common import launch, log, unused
from lowtax.common.errors import Stopped, UserError
from lowtax.common.log import say
from lowtax.common.parents import die_with_parent
from lowtax.training import stopping

if TYPE_CHECKING:
    from lowtax.training.job import Job

LOOK = 0.2  # seconds
THREADS = "OMP_NUM_THREADS"
LOCAL = "127.0.0.1"
Message = tuple[str, Any]  # said, refused, broken or stopped; with the text, or the number of the signal


@dataclass(frozen=True)
class Machines:
    """The place of this machine among those that train a job together.

    rank, number: of this machine, and how many there are. address, port: where the first process listens.
    """

    rank: int = 0
    number: int = 1
    address: str = ""
    port: int = 0


ALONE = Machines()


def train(job: "Job", out: Path, processes: int, machines: Machines = ALONE) -> None:
    """Train a job in so many processes, or resume it; the r-th process of a machine has the r-th of its visible GPUs.

    Args:
        processes: their number on all machines; each starts as many of them as the others.

    Raises:
        UserError: The job cannot be trained, as in `loop.train`.
        RuntimeError: A process broke, or ended without a word.
        Stopped: Ctrl-C or SIGTERM came; the state is saved.
    """
    with tempfile.TemporaryDirectory(prefix="lowtax-group-") as folder, stopping.signals() as signals:
        task = Path(folder) / "job"
        task.write_bytes(pickle.dumps((job, out)))
        with _started(task, processes, machines) as ranks:
            forwarded = False
            while ranks:
                for connection in connections.wait([*ranks], LOOK):
                    assert isinstance(connection, Connection)
                    try:
                        _hear(connection.recv())
                    except (EOFError, OSError):
                        _require_success(ranks.pop(connection))
                if signals.number and not forwarded:
                    forwarded = True
                    for process in ranks.values():
                        process.send_signal(signal.SIGTERM)


def _hear(message: Message) -> None:
    """Repeat a line of a process, or raise what ended it."""
    what, value = message
    if what == "refused":
        raise UserError(value)
    if what == "broken":
        raise RuntimeError(value)
    if what == "stopped":
        raise Stopped(*value)
    say(value)


def _require_success(process: "subprocess.Popen[bytes]") -> None:
    if code := process.wait():
        raise RuntimeError(f"a process of the group that trains ended with code {code}")


@contextmanager
def _started(task: Path, processes: int, machines: Machines) -> Iterator[dict[Connection, "subprocess.Popen[bytes]"]]:
    """Start this machine's processes of a group; none of them is left after the block."""
    here = processes // machines.number
    address, port = machines.address or LOCAL, machines.port or free_port(LOCAL)
    sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": here, "MASTER_ADDR": address, "MASTER_PORT": port}
    threads = max(1, int(os.environ.get(THREADS) or len(os.sched_getaffinity(0))) // here)
    ranks: dict[Connection, subprocess.Popen[bytes]] = {}
    children = list[subprocess.Popen[bytes]]()
    try:
        for local in range(here):
            ours, theirs = connections.Pipe(duplex=False)
            rank = machines.rank * here + local
            variables = {"RANK": rank, "LOCAL_RANK": local, **sizes, THREADS: threads}
            command = [sys.executable, "-m", __name__, str(task), str(theirs.fileno()), str(os.getpid())]
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            children.append(subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]))
            theirs.close()
            ranks[ours] = children[-1]
        yield ranks
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                child.kill()
            child.wait()
        for connection in ranks:
            connection.close()


def free_port(address: str = "") -> int:
    """Return a port on which nothing listens at an address of this machine, or at all of them."""
    with socket.socket() as free:
        free.bind((address, 0))
        port: int = free.getsockname()[1]
    return port


def main(arguments: list[str]) -> None:
    """Train as one process of a group: `FILE CONNECTION PARENT`."""
    task, number, parent = arguments
    die_with_parent(int(parent))  # before torch is imported, which takes seconds
    to_parent = Connection(int(number), readable=False)

    def tell(what: str, value: Any) -> None:
        with suppress(BrokenPipeError):
            to_parent.send((what, value))

    log.OUTPUTS[:] = [lambda text: tell("said", text)]
    unused.leave_out()
    log.quiet_libraries()
    from lowtax.training import loop  # after the libraries were made quiet

    job, out = pickle.loads(Path(task).read_bytes())
    try:
        with launch.first_to_speak():
            loop.train(job, out)
    except UserError as error:
        tell("refused", str(error))
    except Stopped as error:
        tell("stopped", (error.number, str(error)))
    except Exception:  # noqa: BLE001  # row recorded as failed
        tell("broken", traceback.format_exc())


if __name__ == "__main__":
    main(sys.argv[1:])
