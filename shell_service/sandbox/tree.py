"""What a job's processes use, by ``/proc``, from the job's init downwards.

Whoever is in the init's pid namespace is below it: children whose parent has died become its own. What is read may be
read by everybody, but for how much of its memory a process shares, and files in memory that are only held open: for
these it takes CAP_SYS_PTRACE where jobs have uids of their own. Without it shared memory counts for each who shares it.

Not seen from outside is what the kernel holds for a job: pipes, sockets, and what is in them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Collection, Iterator

from .gauge import Usage

_MOST = 10_000  # processes and threads that are counted
_GROWTH = 17 / 16  # of the quick sum, after which it is looked at closely again
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_HELD = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap|VmPTE):\s+(\d+)", re.MULTILINE)
# A page of it for each 2 MiB that was touched, even if only read: then there is nothing else to be seen of these.
_TABLES = re.compile(rb"^VmPTE:\s+(\d+)", re.MULTILINE)
_SHARE = re.compile(rb"^(?:Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+)", re.MULTILINE)

File = tuple[int, int]  # device and inode


class Tree:
    """The processes of one job."""

    def __init__(self, init: int, file_systems: Collection[int]) -> None:
        """`init` is the init's pid: it does not count itself. `file_systems` are descriptors of those of the job that
        are in memory, and count with all that is in them.
        """
        self._init = init
        self._file_systems = file_systems
        self._looked_at = 0.0  # the quick sum that was last looked at closely

    def read(self, enough: int) -> Usage:
        """What they use now. More memory than `enough` is looked at closely."""
        processes, tasks = self._processes()
        cpu = _cpu_seconds(self._init, own=False) + sum(map(_cpu_seconds, processes))
        files = self._open_memory_files(processes)
        stored = self._stored() + sum(files.values())
        memory = stored + sum(_kilobytes(pid, "status", _HELD) or 0 for pid in processes)
        may_share = stored or len(processes) > 1
        if may_share and memory > min(enough, self._looked_at * _GROWTH):
            self._looked_at = memory
            memory = self._closely(processes, files, stored)
            if memory > enough:  # they are seen one after the other, and may have come to share less meanwhile
                memory = min(memory, self._closely(processes, files, stored))
        return Usage(tasks, cpu, memory)

    def _processes(self) -> tuple[list[int], int]:
        """The pids, and how many processes and threads there are."""
        found, tasks, parents = list[int](), 0, [self._init]
        while parents and tasks < _MOST:
            parent = parents.pop()
            with contextlib.suppress(OSError):  # it has ended
                threads = os.listdir(f"/proc/{parent}/task")
                for thread in threads:
                    parents += map(int, _read(f"/proc/{parent}/task/{thread}/children").split())
                if parent != self._init:
                    found.append(parent)
                    tasks += len(threads)
        return found, tasks

    def _stored(self) -> int:
        """Bytes in the job's file systems."""
        total = 0
        for descriptor in self._file_systems:
            with contextlib.suppress(OSError):  # closed: the job has ended
                room = os.fstatvfs(descriptor)
                total += (room.f_blocks - room.f_bfree) * room.f_frsize
        return total

    def _open_memory_files(self, processes: Collection[int]) -> dict[File, int]:
        """Bytes of each file of memfd_create(2), and the like, that some process holds open."""
        files = {}
        for pid in processes:
            with contextlib.suppress(OSError):  # it has ended, or may not be asked
                folder = f"/proc/{pid}/fd/"
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        status = os.stat(folder + name)
                        if status.st_dev == _device_of_memory_files():
                            files[status.st_dev, status.st_ino] = status.st_blocks * 512
        return files

    def _closely(self, processes: Collection[int], files: Collection[File], stored: int) -> int:
        devices = self._devices()
        return stored + sum(_own(pid, files, devices) for pid in processes)

    def _devices(self) -> set[int]:
        found = set()
        for descriptor in self._file_systems:
            with contextlib.suppress(OSError):
                found.add(os.fstat(descriptor).st_dev)
        return found


def _own(pid: int, files: Collection[File], devices: Collection[int]) -> int:
    """Bytes of a process' memory: its share of what it shares, and nothing of these files, which count as such."""
    share = _kilobytes(pid, "smaps_rollup", _SHARE)
    if share is None:
        return _kilobytes(pid, "status", _HELD) or 0
    tables = _kilobytes(pid, "status", _TABLES) or 0
    return tables + max(0, share - sum(size for file, size in _mapped(pid) if file in files or file[0] in devices))


@functools.cache
def _device_of_memory_files() -> int:
    """The file system in which the kernel has files without a name, and memory that is shared without a file."""
    descriptor = os.memfd_create("device", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _cpu_seconds(pid: int, own: bool = True) -> float:
    """Of this process, if `own`, and of its children that have ended and were waited for."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 if own else 13 : 15])) * _TICK  # utime, stime, cutime, cstime of proc(5)


def _kilobytes(pid: int, name: str, lines: re.Pattern[bytes]) -> int | None:
    """The sum of these lines, in bytes; None where they may not be read."""
    try:
        return sum(map(int, lines.findall(_read(f"/proc/{pid}/{name}")))) * 1024
    except PermissionError:
        return None
    except OSError:
        return 0


def _mapped(pid: int) -> Iterator[tuple[File, int]]:
    """The files that a process has mapped, and of each mapping its share of the file's own contents, in bytes."""
    file, share = (0, 0), 0
    with contextlib.suppress(OSError):
        for line in _read(f"/proc/{pid}/smaps").splitlines():
            fields = line.split(None, 5)
            if not fields[0].endswith(b":"):  # addresses, permissions, offset, device, inode, path
                major, minor = (int(part, 16) for part in fields[3].split(b":"))
                file = os.makedev(major, minor), int(fields[4])
            elif fields[0] == b"Pss:":
                share = int(fields[1])
            elif fields[0] == b"Anonymous:" and file[1]:  # pages that a private mapping has changed: not the file's
                yield file, max(0, share - int(fields[1])) * 1024


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
