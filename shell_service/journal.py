"""A runner's journal: what a successor has to know if this process dies at any line.

One file, one line of JSON an entry: that a script is about to begin, in which process; how it ended; that the database
knows. Lines are written before the act that they announce. They need not reach the disk, only the kernel: after a crash
of the whole host no process is left to settle with, and the database counts.
"""

from __future__ import annotations

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

    def begin(self, job_id: uuid.UUID, fence: int, pid: int, start_time: int) -> None:
        """A script is about to begin under this process, the init of its namespace."""
        self._write({"fence": fence, "job_id": job_id.hex, "pid": pid, "start_time": start_time})

    def end(self, result: Result) -> None:
        """An attempt has ended so. Where that cannot be written, the result is still as good as ever."""
        try:
            self._note_end(result)
        except OSError as error:
            logger.error("cannot note the end of job %s: %s", result.job_id.hex, error)

    def _note_end(self, result: Result) -> None:
        self._write({"fence": result.fence, "result": {**vars(result), "job_id": result.job_id.hex}})

    def settled(self, fence: int) -> None:
        """The database knows all there is to know of this attempt."""
        self._write({"fence": fence, "settled": True})

    def _apply(self, line: dict[str, Any]) -> None:
        if "settled" in line:
            self._open.pop(line["fence"], None)
        else:
            self._open.setdefault(line["fence"], []).append(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._apply(line)
        self._size += os.write(self._file, orjson.dumps(line) + b"\n")
        if self._size > _COMPACT_BYTES:
            self._compact()

    def _compact(self) -> None:
        """Keep only what is not settled."""
        fresh = self._path.with_suffix(".new")
        lines = [orjson.dumps(line) + b"\n" for entry in self._open.values() for line in entry]
        fresh.write_bytes(b"".join(lines))
        os.replace(fresh, self._path)
        os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        # Beyond what must stay, so that a journal full of unsettled attempts is not written anew at every line.
        self._size = 0

    def close(self) -> None:
        os.close(self._file)
