"""Processes by what can be proven about them (Linux): never by name alone, never a number that was used again."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process as it was when looked at. Number and start time together are never used twice between two boots."""

    pid: int
    parent: int
    start: int
    name: str

    @property
    def environment(self) -> list[str]:
        """Its environment at the start, as ``NAME=value``; empty when it is gone or not ours to read."""
        try:
            return Path(f"/proc/{self.pid}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []

    @property
    def folder(self) -> Path | None:
        """Its current folder; None when it is gone or not ours to read."""
        try:
            return Path(os.readlink(f"/proc/{self.pid}/cwd"))
        except OSError:
            return None


def look(pid: int) -> Process | None:
    """The process with this number, unless there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    before, _, after = text.rpartition(")")
    fields = after.split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[1]), int(fields[19]), before.partition("(")[2])


def everything() -> list[Process]:
    """All processes that can be seen from here; none where there is no ``/proc``."""
    try:
        numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []
    return [process for pid in numbers if (process := look(pid)) is not None]


def in_folders(folders: Mapping[str, Path]) -> list[Process]:
    """Processes of the given names that work in exactly the given folder, but not this process.

    For programs that overwrite their environment, as nginx and PostgreSQL do. Of a parent and its children of the
    same name, as PostgreSQL's server processes are, only the parent.
    """
    found = {
        process.pid: process
        for process in everything()
        if process.name in folders and process.folder == folders[process.name] and process.pid != os.getpid()
    }
    return [process for process in found.values() if process.parent not in found]


def marked(mark: str) -> list[Process]:
    """Processes whose environment holds `mark` (``NAME=value``), but not this process and those it descends from."""
    every = {process.pid: process for process in everything()}
    own: set[int] = set()
    pid = os.getpid()
    while pid in every and pid not in own:
        own.add(pid)
        pid = every[pid].parent
    return [process for process in every.values() if process.pid not in own and mark in process.environment]


def end(found: Iterable[Process], grace: float, signals: Mapping[str, signal.Signals] | None = None) -> None:
    """Ask each to stop, and after `grace` seconds make it; wait until it is gone, 5 s longer at most.

    `signals` names, by the process's name, what asks it if not SIGTERM. Uses handles: a number that has changed hands
    meanwhile is left alone.
    """
    handles = {handle: process for process in found if (handle := _hold(process)) is not None}
    try:
        for handle, process in handles.items():
            _send(handle, (signals or {}).get(process.name, signal.SIGTERM))
        for handle in _remaining(list(handles), grace):
            _send(handle, signal.SIGKILL)
        _remaining(list(handles), 5)
    finally:
        for handle in handles:
            os.close(handle)


def _hold(process: Process) -> int | None:
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return None
    now = look(process.pid)
    if now is not None and now.start == process.start:
        return handle
    os.close(handle)
    return None


def _send(handle: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass


def _remaining(handles: list[int], seconds: float) -> list[int]:
    """Those of `handles` whose process still lives after at most `seconds`."""
    waiting = set(handles)
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            waiting.discard(handle)
    return list(waiting)
