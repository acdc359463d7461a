"""Whether this machine has room for more: where outputs and journals are kept, and in its memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_STATE = "/proc/meminfo"
_EVENTS = "/proc/vmstat"


def disk_shortage(folders: Iterable[Path], least: int) -> str | None:
    """None if `least` bytes, and a file more, fit into each of these folders, else a sentence for the operator."""
    for folder in folders:
        try:
            room = os.statvfs(folder)
        except OSError as error:
            return f"{folder} cannot be used: {error.strerror}."
        if room.f_bavail * room.f_frsize < least:
            return f"The disk of {folder} is nearly full: fewer than {least} bytes are free (runner.min_free)."
        if room.f_files and not room.f_favail:  # some file systems do not count files
            return f"The disk of {folder} has no room for more files."
    return None


class Memory:
    """The machine's memory, by files that are kept open: so it can be asked even where no more can be opened."""

    def __init__(self) -> None:
        self._state, self._events = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (_STATE, _EVENTS))

    def lacking(self, least: int) -> int:
        """How many bytes fewer than `least` programs could still take."""
        return max(0, least - _number(self._state, b"\nMemAvailable:") * 1024)

    def shortage(self, least: int) -> str | None:
        """None if programs could still take `least` bytes, else a sentence for the operator."""
        if self.lacking(least):
            return f"The machine's memory is nearly full: fewer than {least} bytes are left (runner.min_free_memory)."
        return None

    def kills(self) -> int:
        """How many processes the kernel has ended since the machine was started as there was none left."""
        return _number(self._events, b"\noom_kill ")

    def close(self) -> None:
        os.close(self._state)
        os.close(self._events)


def _number(file: int, name: bytes) -> int:
    return int(os.pread(file, 65536, 0).split(name, 1)[1].split(None, 1)[0])
