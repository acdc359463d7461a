"""The runner's side: a user's launcher, and the jobs that it holds."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from .command import UNAVAILABLE, Command, Exit, SandboxError
from .network import Network
from .order import order
from .protocol import (
    ENDED,
    ENDED_BODY,
    ENTERED,
    FOLDERS,
    FORK,
    GO,
    HELD,
    HELD_BODY,
    JOB,
    KILL_ALL,
    MAPPED,
    MAX_MESSAGE,
    MAX_NAMED,
    NAMED,
    PACKED,
    PACKED_BODY,
    PID,
    READY,
    REFUSED,
    REPORT,
    REPORT_BODY,
    RESTRICT,
    START,
    STARTED,
    TERMINATE,
    Setup,
)
from .remains import Remains

#: Seconds within which a launcher, and a job up to its gate, must be made.
PATIENCE = 10.0
#: Seconds that the init gets to kill the rest before it is killed itself; and where it has files to remove, too.
KILL_PATIENCE, CLEAN_UP_PATIENCE = 1.0, 60.0
#: The same when it has reported the script's end: it writes what is kept, and others have to take it.
PACK_PATIENCE = 60.0
#: Bytes that a job may be ahead of its reader; an ordinary user's pipes together may hold only so much.
PIPE_SIZE = 1 << 20 if os.geteuid() == 0 else 1 << 18

R = TypeVar("R")

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from shell_service.sandbox.spawner import main; main(int(sys.argv[2]))"
)
SOURCE = Path(__file__).resolve().parent.parent.parent


class Process:
    """One attempt in its sandbox, held before its first instruction until `go`."""

    def __init__(
        self,
        launcher: Launcher,
        number: int,
        sock: socket.socket,
        held: bytes,
        descriptors: Sequence[int],
        streams: tuple[int, int, int],
    ) -> None:
        #: Host pid of the namespace's init, and field 22 of its ``/proc/<pid>/stat``.
        self.pid: int
        self.start_time: int
        self.pid, self.start_time = HELD_BODY.unpack(held)
        #: Non-blocking read ends of the job's pipes, which the caller closes. Its artifacts come as `artifacts` has it.
        self.stdout, self.stderr, self.artifacts = streams
        self._pidfd, *others = descriptors
        #: For fstatvfs: all file systems that it can write to, which are in memory. Closed when it has ended.
        self.file_systems = tuple(others[: len(FOLDERS)])
        self._mounts = tuple(others[len(FOLDERS) :])
        self._launcher, self._number, self._sock = launcher, number, sock
        self._started = self._packing = False
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def go(self) -> None:
        """Lets the script begin. At most once."""
        self._started = True
        with contextlib.suppress(OSError):  # already gone: `wait` tells
            self._sock.send(GO)

    def terminate(self) -> None:
        """SIGTERM to the job's process group. One that has not got the word to `go` takes no notice: `kill` it."""
        if not self._exit.done():
            self._launcher.terminate(self._number)

    def kill(self) -> None:
        """SIGKILL to everything in the job's pid namespace."""
        if self._started:
            # The init does it and can tell what the job had used, which the kernel forgets when an init is killed.
            self._signal(KILL_ALL)
            asyncio.get_running_loop().call_later(self._launcher.kill_patience, self._end)
        else:
            self._signal(signal.SIGKILL)

    def _end(self) -> None:
        """SIGKILL to the init, at once or, where it has only to pack any more, after a while."""
        if self._pidfd < 0:
            return
        try:
            reported = bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            reported = False
        if not reported:
            self._signal(signal.SIGKILL)
        elif not self._packing:
            self._packing = True
            asyncio.get_running_loop().call_later(PACK_PATIENCE, self._signal, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> Exit:
        """Returns when nothing of the job is left running."""
        return await asyncio.shield(self._exit)

    def watch(self) -> None:
        """For the launcher's death, after which only the pidfd tells when the job's processes are gone."""
        asyncio.get_running_loop().add_reader(self._pidfd, self.finish, 0.0, 0, True)

    def finish(self, cpu_seconds: float, peak_memory_bytes: int, lost: bool = False) -> None:
        """Everything is gone. What the init reported of the script counts; without a report, the init was killed."""
        status: int = signal.SIGKILL
        written_bytes, ended_at = None, None
        artifacts, left_out, refused, named = 0, None, None, None
        with contextlib.suppress(OSError):
            while message := self._sock.recv(len(NAMED) + MAX_NAMED + 1):  # the longest
                if message[:1] == REPORT:
                    status, ended_at, cpu_seconds, peak_memory_bytes, written_bytes = REPORT_BODY.unpack(message[1:])
                    lost = False
                elif message[:1] == PACKED:
                    artifacts, left_out = PACKED_BODY.unpack(message[1:])
                elif message[:1] == REFUSED:
                    refused = message[1:].decode(errors="replace")
                elif message[:1] == NAMED:
                    named = message[1:]
        code = os.waitstatus_to_exitcode(status)
        return_code, number = (code, None) if code >= 0 else (None, -code)
        self._sock.close()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        used = cpu_seconds, peak_memory_bytes, written_bytes
        full = dict(filter(None, map(_full, FOLDERS, self.file_systems)))
        self._remove(Exit(return_code, number, *used, ended_at, full, lost, artifacts, left_out, refused, named))

    def _remove(self, ended: Exit) -> None:
        file_systems, self.file_systems = self.file_systems, ()
        going = self._launcher.remains.remove(file_systems, self._mounts)
        if going:
            going.add_done_callback(lambda _: self._exit.set_result(ended))
        else:
            self._exit.set_result(ended)


class Gone(SandboxError):
    """A process that was to make the sandbox has died, before anything of the job began: it can be tried again."""


class Spawner:
    """The process of which launchers are forked; started when first needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._retired: list[tuple[subprocess.Popen[bytes], socket.socket]] = []

    def fork(self, control: socket.socket) -> None:
        """Has a launcher begin on this socket, or, where there can be none, closed. Raises OSError.

        To be called in the thread with which all launchers shall die: the loop's.
        """
        try:
            self._ask(self._requests or self._start(), control)
        except ConnectionError:  # it has died
            self._end()
            self._ask(self._start(), control)

    def _ask(self, requests: socket.socket, control: socket.socket) -> None:
        socket.send_fds(requests, [FORK], [control.fileno()])

    def _start(self) -> socket.socket:
        requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        requests.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOT, str(SOURCE), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={},
                cwd="/",
            )
        self._requests = requests
        return requests

    def retire(self) -> None:
        """Have another one from now on, as this one does not answer. It stays, as its launchers would go with it."""
        if self._process is not None and self._requests is not None:
            self._retired.append((self._process, self._requests))
            self._process = self._requests = None

    def _end(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def close(self) -> None:
        """Ends the process, and with it all launchers."""
        self.retire()
        for process, requests in self._retired:
            requests.close()
            try:
                await asyncio.to_thread(process.wait, PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._retired.clear()


class Launcher:
    """A user's launcher process; started when first needed, and again when it has died."""

    def __init__(
        self,
        spawner: Spawner,
        setup: Setup,
        filters: Sequence[int],
        network: Network | None,
        map_user: Callable[[int], Awaitable[None]],
        on_use: Callable[[Launcher], None],
        idle_seconds: float,
        remains: Remains,
    ) -> None:
        """`map_user` is given the pid of a launcher that has entered its user namespace, if `setup` says so.

        With `network` the jobs' network has a way out.
        """
        self._spawner, self._setup, self._filters = spawner, setup, filters
        self._network, self._map_user = network, map_user
        self._on_use, self._idle_seconds = on_use, idle_seconds
        self.remains = remains
        self.kill_patience = CLEAN_UP_PATIENCE if setup.way == Setup.BARE else KILL_PATIENCE
        self._numbers = itertools.count(1)
        self._starting = 0
        self._jobs: dict[int, Process | None] = {}
        self._connection: asyncio.Task[None] | None = None
        self._control: socket.socket | None = None
        self._pidfd = -1
        self._idle: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is held, runs, or is being started."""
        return bool(self._jobs or self._starting)

    async def connect(self) -> None:
        """Sees to it that the launcher process is there. Raises SandboxError."""
        self._on_use(self)
        if self._control is None:
            if self._connection is None or self._connection.done():
                self._connection = asyncio.create_task(_twice(self._spawn))
            connection = self._connection
            try:
                await asyncio.shield(connection)
            except asyncio.CancelledError:
                if connection.cancelled():
                    raise SandboxError(UNAVAILABLE, "the sandbox was closed meanwhile") from None
                raise
        self._rest()

    async def start(self, command: Command) -> Process:
        """Makes a sandbox and returns while the job's interpreter has not begun. Raises SandboxError."""
        self._starting += 1
        try:
            return await _twice(partial(self._start, command))
        except OSError as error:
            raise SandboxError(UNAVAILABLE, f"starting a job: {error}") from error
        finally:
            self._starting -= 1
            self._rest()

    async def _start(self, command: Command) -> Process:
        await self.connect()
        assert self._control is not None
        number = next(self._numbers)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
            kept.callback(ours.close)
            given.callback(theirs.close)
            stdout, stderr, artifacts = (self._pipe(kept, given) for _ in range(3))
            stdin = memory_file(command.stdin) if command.stdin else os.open(os.devnull, os.O_RDONLY)
            given.callback(os.close, stdin)
            told = memory_file(order(command).pack())
            given.callback(os.close, told)
            fds = [theirs.fileno(), stdin, stdout[1], stderr[1], told, artifacts[1]]
            if command.files:
                fds.append(os.open(command.files.path, os.O_RDONLY))
                given.callback(os.close, fds[-1])
            self._send_start(number, fds)
            given.close()
            self._jobs[number] = None
            try:
                async with asyncio.timeout(PATIENCE):
                    message, descriptors = await _receive(ours)
            except TimeoutError:
                if not any(self._jobs.values()):
                    self.close()  # it hangs, and nobody else needs it
                raise SandboxError(UNAVAILABLE, f"the sandbox was not made within {PATIENCE:g} s") from None
            for descriptor in descriptors:
                kept.callback(os.close, descriptor)
            if not message:
                self._see_whether_it_lives()
                raise Gone(UNAVAILABLE, "the launcher, or the job's init, has died")
            if message[:1] != HELD or not descriptors:
                raise SandboxError(UNAVAILABLE, message[1:].decode(errors="replace"))
            streams = stdout[0], stderr[0], artifacts[0]
            process = Process(self, number, ours, message[1:], descriptors, streams)
            kept.pop_all()
        if number in self._jobs:
            self._jobs[number] = process
        else:
            process.watch()  # it ended, or its launcher did, at this very moment
        return process

    def _send_start(self, number: int, descriptors: Sequence[int]) -> None:
        assert self._control is not None
        try:
            socket.send_fds(self._control, [START + JOB.pack(number)], descriptors)
        except ConnectionError as error:
            self._see_whether_it_lives()
            raise Gone(UNAVAILABLE, "the launcher has died") from error

    def _see_whether_it_lives(self) -> None:
        if self._control is not None:
            poll = select.poll()
            poll.register(self._pidfd)
            if poll.poll(0):
                self._lost(self._control)

    def _pipe(self, kept: contextlib.ExitStack, given: contextlib.ExitStack) -> tuple[int, int]:
        read, write = os.pipe2(os.O_CLOEXEC)
        kept.callback(os.close, read)
        given.callback(os.close, write)
        os.set_blocking(read, False)
        os.fchmod(write, 0o622)  # whoever the job is, it can open /dev/stdout; nobody else can reach it
        with contextlib.suppress(OSError):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return read, write

    def terminate(self, number: int) -> None:
        """SIGTERM to a job's process group, by the launcher, which alone knows that the pid is still the job's."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(TERMINATE + JOB.pack(number))

    def restrict(self, frames: bytes) -> None:
        """Changes what its network lets out. A launcher that cannot be told so is ended."""
        if self._control is not None:
            file = memory_file(frames)
            try:
                socket.send_fds(self._control, [RESTRICT], [file])
            except OSError:
                self.close()
            finally:
                os.close(file)

    def close(self) -> None:
        """Ends the launcher process, and with it whatever it runs."""
        if self._idle is not None:
            self._idle.cancel()
        if self._connection is not None:
            self._connection.cancel()
        if self._control is not None:
            self._lost(self._control)

    async def _spawn(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        pidfd = -1
        try:
            with theirs:
                self._spawner.fork(theirs)
            async with asyncio.timeout(PATIENCE):
                message, descriptors = await _receive(ours)
                if message[:1] != STARTED or not descriptors:
                    raise Gone(UNAVAILABLE, "no launcher could be forked")
                pidfd = descriptors[0]
                frames = self._introduce(ours)
                answer = await loop.sock_recv(ours, MAX_MESSAGE)
                if answer == ENTERED:
                    await self._map_user(*PID.unpack(message[1:]))
                    ours.send(MAPPED)
                    answer = await loop.sock_recv(ours, MAX_MESSAGE)
            if not answer:
                raise Gone(UNAVAILABLE, "the launcher died at its start")
            if answer[:1] != READY:
                raise SandboxError(UNAVAILABLE, answer[1:].decode(errors="replace"))
        except BaseException as error:
            ours.close()
            _kill(pidfd)
            if isinstance(error, TimeoutError) and pidfd < 0:
                self._spawner.retire()
            if isinstance(error, (OSError, TimeoutError)):
                kind = Gone if isinstance(error, ConnectionError) else SandboxError
                raise kind(UNAVAILABLE, f"starting a launcher: {error!r}") from error
            raise
        self._pidfd, self._control = pidfd, ours
        loop.add_reader(ours.fileno(), self._on_message, ours)
        if self._network and self._network.frames != frames:  # they changed meanwhile
            self.restrict(self._network.frames)

    def _introduce(self, control: socket.socket) -> bytes | None:
        """Tells the launcher what it is to be; returns the filter of frames that it was given, if any."""
        frames = self._network.frames if self._network else None
        with contextlib.ExitStack() as sent:
            descriptors = [*self._filters]
            if frames is not None:
                descriptors.append(memory_file(frames))
                sent.callback(os.close, descriptors[-1])
            socket.send_fds(control, [self._setup.pack()], descriptors)
        return frames

    def _on_message(self, control: socket.socket) -> None:
        try:
            message = control.recv(MAX_MESSAGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            message = b""
        if message[:1] == ENDED:
            number, *how = ENDED_BODY.unpack(message[1:])
            process = self._jobs.pop(number, None)
            if process is not None:
                process.finish(*how)
            self._rest()
        elif not message:
            self._lost(control)

    def _lost(self, control: socket.socket) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        _kill(pidfd)  # with it go all its jobs; unless it is dead already
        asyncio.get_running_loop().remove_reader(control.fileno())
        control.close()
        self._control = None
        jobs, self._jobs = self._jobs, {}
        for process in jobs.values():
            if process is not None:
                process.watch()

    def _rest(self) -> None:
        """(Re)starts the time after which a launcher without jobs ends."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self.busy and self._control is not None:
            self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self.close)


def kill_leftover(pid: int, start_time: int) -> bool:
    """For a restarted runner: SIGKILL to the init of a job, if it is still that very process. True if so.

    Returns when it is gone, and all of its namespace with it; at the latest after `PATIENCE`.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # no such process, or only a thread
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[19]) != start_time:
                return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], PATIENCE)
        return True
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(pidfd)


def _full(path: str, file_system: int) -> tuple[str, int] | None:
    """The path and size of a file system in which there is no room for another page, or file."""
    status = os.fstatvfs(file_system)
    return None if status.f_bavail and status.f_favail else (path, status.f_blocks * status.f_frsize)


def memory_file(data: bytes) -> int:
    """A sealed file in memory, to be read from its start."""
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and its descriptors; an empty one is the end."""
    loop = asyncio.get_running_loop()
    come: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), _wake, come)
    try:
        await come
    finally:
        loop.remove_reader(sock.fileno())
    message, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 8)
    return message, descriptors


async def _twice(act: Callable[[], Awaitable[R]]) -> R:
    """Does it once more if a process that it needs has died: another one's end may have taken it along."""
    try:
        return await act()
    except Gone:
        return await act()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _kill(pidfd: int) -> None:
    """Ends a process, if there is one, and lets go of it."""
    if pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
