"""A runner's journal: what a successor has to know if this process dies at any line.

One file, one line of JSON an entry: that a script is about to begin, in which process; how it ended; that the database
knows. Lines are written before the act that they announce. They need not reach the disk, only the kernel: after a crash
of the whole host no process is left to settle with, and the database counts.
"""

from __future__ import annotations

import errno
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from shell_service.queue import Result

logger = logging.getLogger(__name__)

_COMPACT_BYTES = 1 << 20
_PROBE = b"\n" * 4096  # empty lines say nothing; so many need another block of the disk


@dataclass(frozen=True)
class Leftover:
    """An attempt that a predecessor did not settle."""

    job_id: uuid.UUID
    fence: int
    pid: int
    start_time: int
    result: Result | None


class Journal:
    """The journal of one runner; only one process may have it open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: dict[int, list[dict[str, Any]]] = {}  # lines of attempts that are not settled, by fence
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                self._apply(orjson.loads(line))
            except (ValueError, TypeError, KeyError):
                continue  # the last line of a process that died while it wrote it
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._compact()

    def leftovers(self) -> list[Leftover]:
        """Attempts that began, or were about to, and were not settled."""
        found = []
        for fence, lines in self._open.items():
            begun = next((line for line in lines if "pid" in line), None)
            ended = next((line for line in lines if "result" in line), None)
            if begun:
                values = ended and {**ended["result"], "job_id": uuid.UUID(ended["result"]["job_id"])}
                result = Result(**values) if values else None
                found.append(Leftover(uuid.UUID(begun["job_id"]), fence, begun["pid"], begun["start_time"], result))
        return found

    def problem(self) -> str | None:
        """None if lines can be written, else a sentence for the operator."""
        try:
            self._append(_PROBE)
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(_PROBE))
        except OSError as error:
            return f"The runner's journal cannot be written: {error.strerror}."
        return None

    def begin(self, job_id: uuid.UUID, fence: int, pid: int, start_time: int) -> None:
        """A script is about to begin under this process, the init of its namespace. Raises OSError."""
        line = {"fence": fence, "job_id": job_id.hex, "pid": pid, "start_time": start_time}
        self._append(_bytes(line))
        self._apply(line)

    def end(self, result: Result) -> None:
        """An attempt has ended so. Where that cannot be written, the result is still as good as ever."""
        self._note({"fence": result.fence, "result": {**vars(result), "job_id": result.job_id.hex}})

    def settled(self, fence: int) -> None:
        """The database knows all of this attempt. Where that cannot be written, a successor tells it once more."""
        self._note({"fence": fence, "settled": True})

    def _note(self, line: dict[str, Any]) -> None:
        self._apply(line)
        try:
            self._append(_bytes(line))
        except OSError as error:
            logger.error("cannot write the journal: %s", error)

    def _apply(self, line: dict[str, Any]) -> None:
        if "settled" in line:
            self._open.pop(line["fence"], None)
        else:
            self._open.setdefault(line["fence"], []).append(line)

    def _append(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written < len(data):  # the disk is full: a line that is cut would spoil the next one
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written
        if self._size > _COMPACT_BYTES:
            self._compact()

    def _compact(self) -> None:
        """Keep only what is not settled. Where there is no room for that, all is kept until the next time."""
        # Beyond what must stay, so that a journal full of unsettled attempts is not written anew at every line.
        self._size = 0
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(b"".join(_bytes(line) for lines in self._open.values() for line in lines))
        except OSError as error:
            logger.error("cannot compact the journal: %s", error)
            fresh.unlink(missing_ok=True)
            return
        os.replace(fresh, self._path)
        os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._file)


def _bytes(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line) + b"\n"
