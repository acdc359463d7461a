"""Inside a job's namespaces: the init, which raises the walls, waits for the word, runs the script and reports.

It stays pid 1 and keeps out of sight (not dumpable, and /proc hides what one may not trace), so that the script, which
is another process, has the signals of an ordinary one: a pid 1 ignores those it has no handler for, even its own. That
also is how we know an ``exit 137`` from a SIGKILL: it sees the script's true wait status.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # see `launcher` for these two
import _socket
import os
import resource
import select
import time

from . import artifacts, kernel
from .protocol import (
    FAILED,
    GO,
    HELD,
    HELD_BODY,
    INT,
    KILL_ALL,
    MAX_MESSAGE,
    MAX_NAMED,
    NAMED,
    PACKED,
    PACKED_BODY,
    REFUSED,
    REPORT,
    REPORT_BODY,
    REQUIREMENTS,
    Order,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .bare import Bare
    from .walls import Walls


class Start:
    """What all inits of a launcher begin with."""

    def __init__(self, walls: Walls | Bare, unpack: Callable[[int, int], None] | None) -> None:
        """`unpack` as in the module of that name, where there may be jobs that are given files."""
        self.walls, self.unpack = walls, unpack
        #: In the init, its end of the job's socket. Made here, and there put on that descriptor.
        self.channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.launcher_died = select.poll()
        self.launcher_died.register(os.pidfd_open(os.getpid()))


def run(start: Start, descriptors: list[int]) -> NoReturn:
    """The life of the init.

    `descriptors`: the job's socket, its standard streams, its order, a pipe for artifacts, and the files it is given.
    """
    try:
        channel, walls = start.channel, start.walls
        os.dup2(descriptors[0], channel.fileno(), False)
        try:
            held = HELD + _settle()
            io = os.open("/proc/self/io", os.O_RDONLY)  # while this process may open it
            order = Order.unpack(os.pread(descriptors[4], os.fstat(descriptors[4]).st_size, 0))
            shown = (os.pidfd_open(os.getpid()), *walls.enclose(order))  # before there may be no more descriptors
            if order.argv[0] and not os.access(order.argv[0], os.X_OK):
                raise FileNotFoundError(f"no interpreter {os.fsdecode(order.argv[0])} in the sandbox")
            for number in range(3):
                os.dup2(descriptors[1 + number], number)
            walls.lock(order)
            kernel.prctl(kernel.PR_SET_PDEATHSIG, walls.death_signal)
            if start.launcher_died.poll(0):
                raise ProcessLookupError("the launcher has died")
            channel.sendmsg([held], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(map(INT.pack, shown)))])
            kernel.close_all_but(channel.fileno(), io, *descriptors[5:])
        except ProcessLookupError:
            os._exit(1)  # with the launcher; that the channel ends, too, says enough
        except Exception as error:
            channel.send(FAILED + str(error).encode()[: MAX_MESSAGE - 1])
            os._exit(1)
        if channel.recv(1) == GO:  # else the runner has let go of it
            before = _written(io)
            *ended, began = _run(start, order, descriptors[6:])
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, _written(io) - before
            try:
                channel.send(REPORT + REPORT_BODY.pack(*ended, *used))
                packed = artifacts.pack(descriptors[5], order.most_files, order.most_bytes) if began else (0, 0)
                channel.send(PACKED + PACKED_BODY.pack(*packed))
            finally:  # also when there is nobody to tell
                walls.leave()
    finally:
        os._exit(0)


def _settle() -> bytes:
    """Becomes a process of its own; returns the body of HELD."""
    os.setpgid(0, 0)  # not a session: a user's jobs are all in his launcher's
    kernel.set_name(b"job-init")
    fd = os.open("/proc/self/stat", os.O_RDONLY)  # of the host's /proc, so it has the pid that the runner knows
    pid, _, rest = os.read(fd, 1024).partition(b" ")
    os.close(fd)
    return HELD_BODY.pack(int(pid), int(rest.rpartition(b")")[2].split()[19]))


def _written(io: int) -> int:
    """Bytes that this process and those that it has waited for have written."""
    return int(os.pread(io, 512, 0).split()[3])  # after "rchar:", a number, and "wchar:"


def _run(start: Start, order: Order, files: list[int]) -> tuple[int, float, bool]:
    """Runs the script; its wait status, when it ended, and whether it began, once all else that it started is gone."""
    walls, killed = start.walls, list[bool]()

    def kill(*_: object) -> None:
        killed.append(True)
        walls.kill_all()

    _signal.signal(KILL_ALL, kill)
    argv = order.argv
    try:
        walls.begin(order)
        if files and (status := _unpack(start, order, files[0], killed)):
            return status, time.monotonic(), False
        variables = dict(pair.split(b"=", 1) for pair in order.env)
        script = os.posix_spawn(argv[0], argv, variables, setsigmask=(), setsigdef=kernel.SIGNALS)
    except OSError as error:
        os.write(2, f"{os.fsdecode(argv[0])}: {error.strerror}\n".encode())
        return 126 << 8, time.monotonic(), False  # as a shell says of a command that it cannot run
    if killed:
        walls.kill_all()  # it came before there was anything
    os.closerange(0, 3)  # so that readers see the end of a stream when the script has closed it
    result = None
    while True:
        try:
            pid, status = os.waitpid(-1, 0 if result is None else os.WNOHANG)
        except ChildProcessError:
            return *(result or (0, time.monotonic())), True
        if pid == script:
            result = status, time.monotonic()
        elif not pid:
            walls.kill_all()
            os.waitpid(-1, 0)


def _unpack(start: Start, order: Order, files: int, killed: list[bool]) -> int:
    """Has a child unpack the files that the job is given; 0, or a wait status in place of the script's."""
    child = os.fork()
    if not child:
        try:
            _signal.signal(KILL_ALL, _signal.SIG_DFL)
            if start.unpack is None:
                raise RuntimeError("This launcher cannot unpack files.")
            start.unpack(files, order.files - 1)
            os._exit(0)
        except Exception as error:
            _refuse(start, error)
        finally:
            os._exit(1)
    if killed:
        start.walls.kill_all()  # it came before there was anything
    os.close(files)
    _, status = os.waitpid(child, 0)
    try:
        if status:
            return status
        _choose(order)
        named = _named() if order.asks else None
        if named is None:
            return 0
        start.channel.send(NAMED + named)
        return 1 << 8
    except ValueError as error:
        _refuse(start, error)
        return 1 << 8


def _refuse(start: Start, error: Exception) -> None:
    start.channel.send(REFUSED + str(error).encode(errors="replace")[: MAX_MESSAGE - 1])


def _named() -> bytes | None:
    """What the job's files say that it needs. Raises ValueError."""
    try:
        file = os.open(REQUIREMENTS, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return os.read(file, MAX_NAMED + 1)
        finally:
            os.close(file)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{REQUIREMENTS} could not be read: {error.strerror}.") from None


def _choose(order: Order) -> None:
    """Lets the entrypoint be run by itself where its first line says how. Raises ValueError where it cannot be run."""
    entrypoint = order.argv[1]
    name = os.fsdecode(entrypoint).removeprefix(f"{os.getcwd()}/")
    try:
        file = os.open(entrypoint, os.O_RDONLY | os.O_NOFOLLOW)
        own_line = order.own_line and os.read(file, 2) == b"#!"
        os.fchmod(file, 0o755)
        os.close(file)
    except OSError:
        raise ValueError(f"There is no file {name} to begin with; entrypoint must name one of the files.") from None
    if own_line:
        del order.argv[0]
    elif not order.argv[0]:
        raise ValueError(
            f"The entrypoint {name} cannot be run: it does not begin with #!, and nothing here runs such an ending; "
            "name its interpreter as shell."
        )
