"""Following log files: every service's lines in its own colour, new files and rotated ones picked up at once."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from baselayer.log import escape

POLL_SECONDS = 0.1
_CHUNK = 256 * 1024
# A line that has not ended is shown after this time, or from this length.
_PATIENCE_SECONDS, _LONGEST_LINE = 1.0, 64 * 1024

_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_LEVELS = {"WARNING": 33, "ERROR": 31, "CRITICAL": 31, "FATAL": 31, "PANIC": 31}
_LEVEL = re.compile(rf"\b({'|'.join(_LEVELS)})\b")


@dataclass
class _Followed:
    """One log: the file that is being read, and what of a line has come so far."""

    path: Path
    file: BinaryIO | None = None
    rest: bytes = b""
    since: float = field(default_factory=time.monotonic)

    def inode(self) -> int | None:
        return os.fstat(self.file.fileno()).st_ino if self.file else None

    def open(self, path: Path) -> bool:
        if self.file:
            self.file.close()
        try:
            self.file = path.open("rb")
        except OSError:
            self.file = None
        return self.file is not None


class Follower:
    """Reads all ``*.log`` of a folder as they grow. supervisor rotates by renaming: ``app.log`` to ``app.log.1``."""

    def __init__(self, folder: Path, last_lines: int = 10) -> None:
        """Begins `last_lines` before the end of each file that is there; new files are read from their beginning."""
        self.folder = folder
        self._logs: dict[str, _Followed] = {}
        for path in self._paths():
            log = self._logs[path.stem] = _Followed(path)
            if log.open(path):
                _rewind(log.file, last_lines)

    def read(self) -> Iterator[tuple[str, bytes]]:
        """All lines that have come since the last call, as (log's name, line without its end)."""
        for path in self._paths():
            if path.stem not in self._logs:
                self._logs[path.stem] = _Followed(path)
        for name, log in self._logs.items():
            for line in self._lines(log):
                yield name, line

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def _lines(self, log: _Followed) -> Iterator[bytes]:
        for chunk in self._chunks(log):
            *lines, rest = (log.rest + chunk).split(b"\n")
            yield from lines
            log.rest, log.since = rest, time.monotonic()
        if log.rest and (len(log.rest) > _LONGEST_LINE or time.monotonic() - log.since > _PATIENCE_SECONDS):
            yield log.rest
            log.rest = b""

    def _chunks(self, log: _Followed) -> Iterator[bytes]:
        """What was appended, through as many rotations as there were meanwhile."""
        while True:
            if log.file:
                # A file that another one has replaced gets nothing more: so look first, then read to the end.
                replaced = _inode(log.path) != log.inode()
                if os.fstat(log.file.fileno()).st_size < log.file.tell():
                    log.file.seek(0)  # emptied in place
                yield from iter(lambda: log.file.read(_CHUNK) if log.file else b"", b"")
                if not replaced:
                    return
            if not self._open_next(log):
                return

    def _open_next(self, log: _Followed) -> bool:
        """Go on with the file that followed the one just read; false when there is none yet."""
        kept = itertools.takewhile(Path.exists, (Path(f"{log.path}.{number}") for number in itertools.count(1)))
        generations = [*reversed(list(kept)), log.path]
        inode = log.inode()
        if inode is None:
            return log.open(log.path)
        read = next((index for index, path in enumerate(generations) if _inode(path) == inode), -1)
        # Should everything have been rotated away (-1), go on with the oldest that is left.
        return (
            read + 1 < len(generations)
            and _inode(generations[read + 1]) is not None
            and log.open(generations[read + 1])
        )


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _rewind(file: BinaryIO | None, lines: int) -> None:
    """Go to where the last `lines` lines begin, looking at no more than a chunk."""
    if file is None:
        return
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - _CHUNK))
    tail = file.read(size - start)
    end = len(tail) - 1 if tail.endswith(b"\n") else len(tail)
    for _ in range(lines):
        end = tail.rfind(b"\n", 0, max(0, end))
    file.seek(size if lines == 0 else start + max(0, end + 1))


def paint(name: str, line: bytes, width: int, colour: int | None) -> str:
    """The line as a terminal shows it: the log's name in front, control characters made visible, no colour if None."""
    text = escape(line.decode("utf-8", "backslashreplace").rstrip("\r"))
    if colour is None:
        return f"{name:<{width}} | {text}"
    level = _LEVEL.search(text[:120])
    if level:
        text = f"\x1b[{_LEVELS[level[1]]}m{text}\x1b[0m"
    return f"\x1b[{colour}m{name:<{width}} |\x1b[0m {text}"


def follow(folder: Path, write: Callable[[str], object], colour: bool, stopped: Callable[[], bool]) -> None:
    """Write every line of all logs in `folder` until `stopped`."""
    follower = Follower(folder)
    colours: dict[str, int] = {}
    while not stopped():
        for name, line in follower.read():
            number = colours.setdefault(name, _COLOURS[len(colours) % len(_COLOURS)])
            write(paint(name, line, 12, number if colour else None) + "\n")
        time.sleep(POLL_SECONDS)
