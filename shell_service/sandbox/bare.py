"""No walls: a job as a process of the service's own user, for a machine of one's own on which no sandbox can be made.

What holds: limits of each process, and that nothing stays, neither processes nor files. A job that wants to harm the
service can.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # see `launcher`
import itertools
import os
import resource

from . import kernel, root
from .protocol import KILL_ALL
from .walls import NICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .protocol import Order

#: A job's folder begins so, then come the pid of its init and something that nobody can know.
FOLDER = "/tmp/shell-service-job-"
LAYER, _LAYERED = b"/run/packages", (b"PATH=", b"PYTHONPATH=")
_MANY = 1000  # files of a folder that are looked at at once
_NOT_EMPTY = 39  # ENOTEMPTY; the errno module would be one more to load


class Bare:
    """In place of `walls.Walls`."""

    namespaces = 0
    #: The init does it itself, as its own death would let the job go on.
    death_signal = KILL_ALL

    def __init__(self, layers: bytes = b"") -> None:
        """`layers` is the folder of those, if there is one."""
        self._layers = layers
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        remove_left()

    def enclose(self, order: Order) -> Sequence[int]:
        """There is nothing to leave."""
        return ()

    def lock(self, order: Order) -> None:
        """Sets the limits, but not that of processes: the kernel would count all of the service's user."""
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        for number in kernel.SIGNALS:  # those to the process group are not meant for it: of a kill, of a dying launcher
            if number not in (kernel.SIGKILL, kernel.SIGSTOP, kernel.SIGCHLD, KILL_ALL):
                _signal.signal(number, _signal.SIG_IGN)
        if order.processors:
            os.sched_setaffinity(0, order.processors)
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        for number, pair in order.limits.items():
            if number != resource.RLIMIT_NPROC:
                resource.setrlimit(number, pair)

    def begin(self, order: Order) -> None:
        """Makes the job's folder, and in it its home."""
        self._folder = f"{FOLDER}{os.getpid()}-{os.urandom(8).hex()}".encode()
        os.mkdir(self._folder, 0o700)
        root.write(self._folder + b"/script", order.script, 0o444)
        for name in (b"/home", b"/secrets"):
            os.mkdir(self._folder + name, 0o700)
        for name, value in order.secrets.items():
            root.write(self._folder + b"/secrets/" + name, value, 0o400)
        home = self._folder + b"/home"
        os.chdir(home)
        if order.layer:
            layer = self._layers + b"/" + order.layer
            order.env[:] = [pair.replace(LAYER, layer) if pair.startswith(_LAYERED) else pair for pair in order.env]
        if order.files:
            order.argv[1] = home + order.argv[1].removeprefix(b"/job")
        else:
            order.argv[1] = self._folder + b"/script"
        order.env[:] = [b"HOME=" + home if pair == b"HOME=/job" else pair for pair in order.env]

    def kill_all(self) -> None:
        """Kills all that descends from this process."""
        _kill(descendants(os.getpid()))

    def leave(self) -> None:
        """Removes the job's folder."""
        remove_left(os.getpid())

    def clean_up(self, init: int, others: Collection[int]) -> None:
        """For the launcher, when this init has ended: the end of what it should have ended, had it not been killed.

        `others` are the launcher's children that go on.
        """
        while strays := set(_children(os.getpid())) - set(others):
            _kill([pid for stray in strays for pid in (stray, *descendants(stray))])
            for pid in strays:
                os.waitpid(pid, 0)
        remove_left(init)


def remove_left(init: int | None = None) -> None:
    """Removes folders of this user's jobs: of that with this init, else of all that have none."""
    for folder in _left(init):
        try:
            remove(folder)
        except OSError:
            pass  # there is a mount in it, or a file that nobody may remove


def _left(init: int | None) -> list[bytes]:
    above, prefix = os.path.split(FOLDER)
    found = []
    for name in os.listdir(above):
        pid = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and pid.isdigit():
            wanted = int(pid) == init if init is not None else not _lives(pid)
            path = os.path.join(above, name)
            if wanted and os.lstat(path).st_uid == os.geteuid():
                found.append(path.encode())
    return found


def _lives(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = _children(pid)
    for child in found:  # grows meanwhile
        found += _children(child)
    return found


def _children(pid: int) -> list[int]:
    found = list[int]()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it has ended
    return found


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, kernel.SIGKILL)
        except ProcessLookupError:
            pass  # it was faster


def remove(folder: bytes) -> None:
    """Removes a folder with all that is in it, however deep, and whatever its modes; follows no link, enters no mount.

    What lies deep is first moved up, so that two open folders are enough. Raises OSError.
    """
    moved, mark = itertools.count(), os.urandom(8).hex()
    top = _open(folder)
    while entries := _entries(top):
        for name, is_folder in entries:
            if not _remove(name, is_folder, top):
                inner = _open(name, top)
                while inner_entries := _entries(inner):
                    for inner_name, inner_is_folder in inner_entries:
                        if not _remove(inner_name, inner_is_folder, inner):
                            os.close(_open(inner_name, inner))  # what is moved has to be writable, for its ".."
                            os.rename(inner_name, f"{mark}-{next(moved)}", src_dir_fd=inner, dst_dir_fd=top)
                os.close(inner)
                os.rmdir(name, dir_fd=top)
    os.close(top)
    os.rmdir(folder)


def _entries(folder: int) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in itertools.islice(entries, _MANY)]


def _remove(name: str, is_folder: bool, above: int) -> bool:
    """Removes a file or an empty folder; False where it is not empty. A mount point is busy, which is an error."""
    if not is_folder:
        os.unlink(name, dir_fd=above)
        return True
    try:
        os.rmdir(name, dir_fd=above)
    except OSError as error:
        if error.errno == _NOT_EMPTY:
            return False
        raise
    return True


def _open(name: str | bytes, above: int | None = None) -> int:
    """A folder, made writable."""
    path = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    try:
        os.chmod(f"/proc/self/fd/{path}", 0o700)
        return os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(path)
