"""What a job's processes use, by ``/proc``, from the job's init downwards.

Whoever is in the init's pid namespace is below it: children whose parent has died become its own. What is read may be
read by everybody, but for how much of its memory a process shares, and files in memory that are only held open: for
these it takes CAP_SYS_PTRACE where jobs have uids of their own. Without it shared memory counts for each who shares it.

Not seen from outside is what the kernel holds for a job: pipes, sockets, and what is in them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Generator, Iterator, Sequence

from . import shares
from .gauge import Usage
from .processor import ProcessorTime

_MOST = 10_000  # processes and threads that are counted
_SLICE = 0.02  # seconds of processor time for which a look goes on, if counting the processes did not take longer
_WAIT = 0.1  # seconds for which it goes on at most: who maps and forks all the time keeps the kernel from answering


class Tree:
    """The processes of one job."""

    def __init__(self, init: int, file_systems: Collection[int]) -> None:
        """`init` is the init's pid: it does not count itself. `file_systems` are descriptors of those of the job that
        are in memory, and count with all that is in them.
        """
        self._init = init
        self._file_systems = file_systems
        self._processor_time = ProcessorTime(init)
        self._living = frozenset[int]()
        self._look: Generator[int, None, int] | None = None  # what is to be gone on with
        self._at_least = 0  # bytes, as far as that look got
        self._unseen = 0.0  # seconds that it has taken so far

    def read(self, enough: int, most: int = _MOST) -> Usage:
        """What they use now. More memory than `enough` is looked at closely: by a part at a time if that takes long.

        The kernel's counters tell the rest soon. As long as a look is not at its end there is at least what it has
        found, and what one process has for itself. With more processes and threads than `most`, no more than that is
        told of memory.
        """
        began = time.thread_time()
        processes, tasks = self._processes()
        if tasks > most:
            return Usage(tasks, memory=self._least(processes))
        self._living = frozenset(processes)
        cpu = self._processor_time.read(processes)
        memory = self._go_on(processes, enough, max(_SLICE, time.thread_time() - began))
        if memory is None:
            memory = max(self._at_least, self._least(processes))
        return Usage(tasks, cpu, memory, self._unseen)

    def forget(self) -> None:
        """Lets go of what an unfinished look has open."""
        if self._look:
            self._look.close()

    def _least(self, processes: Sequence[int]) -> int:
        """Bytes that there are at least: of files, and of one process by itself."""
        return self._stored() + max((shares.held(pid).private for pid in processes), default=0)

    def _go_on(self, processes: Sequence[int], enough: int, seconds: float) -> int | None:
        """Goes on with a look, or begins one; what it has found when it is at its end."""
        until, at_last = time.thread_time() + seconds, time.monotonic() + _WAIT
        if self._look is None:
            self._look, self._at_least = self._memory(processes, enough), 0
        look, self._look = self._look, None
        try:
            while time.thread_time() < until and time.monotonic() < at_last:
                self._at_least = next(look)
        except StopIteration as end:
            self._unseen = 0.0
            return int(end.value)
        self._look = look
        self._unseen += seconds
        return None

    def _memory(self, processes: Sequence[int], enough: int) -> Generator[int, None, int]:
        """Bytes of it, in steps that tell how much there is at least."""
        files = dict[shares.File, int]()
        yield from shares.open_memory_files(self._still(processes), files)
        stored = self._stored() + sum(files.values())
        memory = stored
        for pid in self._still(processes):
            memory += shares.held(pid).total
            yield stored
        if memory <= enough or not (stored or len(processes) > 1):
            return memory
        for _ in range(2):  # they are seen one after the other, and may have come to share less meanwhile
            closely = yield from shares.memory(self._still(processes), files, self._devices(), stored, enough)
            memory = min(memory, closely)
            if memory <= enough:
                break
        return memory

    def _still(self, processes: Sequence[int]) -> Iterator[int]:
        """Those that have not ended by the time it is their turn: their numbers may be somebody else's by then."""
        return (pid for pid in processes if pid in self._living)

    def _processes(self) -> tuple[list[int], int]:
        """The pids, parents before their children, and how many processes and threads there are."""
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

    def _devices(self) -> set[int]:
        found = set()
        for descriptor in self._file_systems:
            with contextlib.suppress(OSError):
                found.add(os.fstat(descriptor).st_dev)
        return found


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
