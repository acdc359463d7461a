"""The launcher: a small process, one per user, that starts this user's jobs.

Forked from the spawner, it has nothing but a control socket to the runner (see `protocol`). It holds the user's uid, a
network namespace that only this user's jobs share, and a mount namespace with little but the jobs' read-only root, so
that what remains for each job is cheap. It imports nothing that it can do without: every job is a fork of it.
"""

from __future__ import annotations

import _socket  # without the module around it, whose imports would cost every fork
import gc
import os
import resource
import select

from . import job, kernel, root, slirp
from .protocol import (
    AUTOGROUP,
    ENDED,
    ENDED_BODY,
    ENTERED,
    FAILED,
    INT,
    JOB,
    MAPPED,
    MAX_MESSAGE,
    PID,
    READY,
    RESTRICT,
    START,
    STARTED,
    TERMINATE,
    Setup,
)
from .walls import Walls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .bare import Bare


#: How nice a user's session is whose jobs are few, or a crowd; with jobs in between it stays as it is. The kernel gives
#: it a twentieth, or a seventieth, of what the service's own has, and less than a half of what its runners' have: there
#: may be as many of these sessions as there are slots.
FEW, CROWD = 2, 4
FEW_NICE, CROWD_NICE = 14, 19
RETRY = 130  # milliseconds


def main(fd: int) -> None:
    """Serves until the runner closes the control socket."""
    spawner = os.getppid()
    os.setsid()
    session = Session()
    os.umask(0o022)
    control = _socket.socket(fileno=fd)
    pidfd = os.pidfd_open(os.getpid())
    control.sendmsg([STARTED + PID.pack(os.getpid())], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, INT.pack(pidfd))])
    os.close(pidfd)
    data, descriptors = receive(control)
    try:
        setup = Setup.unpack(data)
        programs = [os.pread(descriptor, 1 << 20, 0) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        unpack: Callable[[int, int], None] | None = None
        if setup.unpacks:
            from .unpack import unpack  # with much that others can do without, and while it is in reach
        walls: Walls | Bare
        way_out: slirp.Slirp | None = None
        if setup.way == Setup.BARE:
            from .bare import Bare  # rarely needed

            walls = Bare(setup.layers)
        else:
            way_out = isolate(setup, control, *programs[2:])
            walls = Walls(setup, programs[:2])
        settle(spawner)
        start = job.Start(walls, unpack)
    except ProcessLookupError:
        return  # the spawner has died; that the control socket ends, too, says enough
    except Exception as error:
        # No traceback: with the root changed, its module can be out of reach.
        control.send(FAILED + f"{type(error).__name__}: {error}".encode()[: MAX_MESSAGE - 1])
        return
    control.send(READY)
    Launcher(control, start, way_out, session).serve()


def ask(control: _socket.socket) -> None:
    """Has the runner map the user of the namespace that this process has just entered."""
    control.send(ENTERED)
    if receive(control)[0] != MAPPED:
        raise ConnectionError("the runner has ended")


def receive(sock: _socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; an empty one is the end."""
    room = _socket.CMSG_SPACE(8 * INT.size)
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, room, _socket.MSG_CMSG_CLOEXEC)
    return data, [fd for _, _, content in ancillary for (fd,) in INT.iter_unpack(content)]


def isolate(setup: Setup, control: _socket.socket, frames: bytes | None = None) -> slirp.Slirp | None:
    """Leaves the host behind: namespaces, root, uid, capabilities. With `frames` its network has a way for them."""
    way_out = None if frames is None else slirp.Slirp()
    etc = slirp.ETC if way_out else {}
    if setup.way == Setup.MAPPED:
        root.enter_mapped(lambda: ask(control), etc, setup.layers)
    else:
        root.enter(setup.uid, setup.gid, etc, setup.layers)
    root.leave_network()
    if way_out and frames is not None:
        way_out.connect(frames)
    # In a user namespace of its own. The last is needed to hand its user on to those of jobs.
    kernel.limit_capabilities(kernel.CAP_SYS_CHROOT, kernel.CAP_SYS_ADMIN, kernel.CAP_SETFCAP)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    return way_out


def settle(spawner: int) -> None:
    """What holds for all jobs alike, and the end with the spawner's."""
    for limit in (resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(limit, (0, 0))
    # Of a limit of 0 the kernel takes no notice where it pipes core dumps into a program of the host; 1 forbids it.
    core = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    kernel.end_with_parent(spawner)
    kernel.set_name(b"job-launcher")
    gc.freeze()


class Session:
    """Lets all jobs of a user share what one gets of the processors, however many they are, and that be little.

    The kernel shares processors between sessions (autogroups; sched(7)). Jobs are all in the launcher's, and may not
    begin one. Where it does not, as where control groups do it, their nice value counts alone.
    """

    def __init__(self) -> None:
        self._nice = self._wanted = 0
        try:
            self._file = os.open(AUTOGROUP, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # no autogroups here
            self._file = -1
        self.share(0)

    def share(self, jobs: int) -> None:
        """Between as many, from when it is settled on."""
        self._wanted = CROWD_NICE if jobs > CROWD else FEW_NICE if jobs <= FEW else self._wanted

    def settle(self) -> int | None:
        """Set what is wanted; returns after how many milliseconds to do so again, if that is not now."""
        if self._wanted != self._nice and self._file >= 0:
            try:
                os.write(self._file, b"%d" % self._wanted)
            except BlockingIOError:  # ordinary users, all together, may do it ten times a second
                return RETRY
            except OSError:
                os.close(self._file)  # no more can be done
                self._file = -1
            self._nice = self._wanted
        return None


class Launcher:
    """Starts jobs, passes SIGTERM on, and tells of their ends."""

    def __init__(
        self, control: _socket.socket, start: job.Start, way_out: slirp.Slirp | None, session: Session
    ) -> None:
        self._control, self._begin, self._way_out, self._session = control, start, way_out, session
        self._poll = select.poll()
        self._jobs: dict[int, tuple[int, int]] = {}  # by pidfd: the runner's number of it, and its pid

    def serve(self) -> None:
        """Until the runner closes the control socket, or there should be a way out and is none any more."""
        control = self._control.fileno()
        self._poll.register(control, select.POLLIN)
        lost = -1
        if self._way_out:
            lost = self._way_out.pidfd
            self._poll.register(lost, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll(self._session.settle()):
                if fd == lost:
                    return
                if fd != control:
                    self._end(fd)
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        message, descriptors = receive(self._control)
        if not message:
            return False
        if message == RESTRICT and self._way_out:
            self._way_out.restrict(os.pread(descriptors[0], 1 << 20, 0))
            os.close(descriptors[0])
            return True
        number = JOB.unpack(message[1:])[0]
        if message[:1] == START:
            self._start(number, descriptors)
        elif message[:1] == TERMINATE:
            for other, pid in self._jobs.values():
                if other == number:
                    try:
                        os.killpg(pid, kernel.SIGTERM)
                    except OSError:
                        pass  # it ends just now
        return True

    def _start(self, number: int, descriptors: list[int]) -> None:
        try:
            if len(descriptors) not in (6, 7):
                raise OSError("too many files are open in the launcher")
            pid, pidfd = kernel.clone(self._begin.walls.namespaces)
        except OSError as error:
            if descriptors:
                os.write(descriptors[0], FAILED + str(error).encode())
            self._control.send(ENDED + ENDED_BODY.pack(number, 0.0, 0))
        else:
            if not pid:
                job.run(self._begin, descriptors)
            self._jobs[pidfd] = number, pid
            self._session.share(len(self._jobs))
            self._poll.register(pidfd, select.POLLIN)
        for fd in descriptors:
            os.close(fd)

    def _end(self, pidfd: int) -> None:
        number, pid = self._jobs.pop(pidfd)
        self._session.share(len(self._jobs))
        _, _, usage = os.wait4(pid, 0)  # with the init, all of its pid namespace is gone
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._begin.walls.clean_up(pid, [pid for _, pid in self._jobs.values()])
        used = ENDED_BODY.pack(number, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        self._control.send(ENDED + used)
