"""A runner's journal: what a successor has to know if this process dies at any line.

One file, one line of JSON an entry: which incarnation of the runner writes; that a script is about to begin, in which
process; how it ended; that the database knows. Lines are written before the act that they announce. They need not reach
the disk, only the kernel: after a crash of the whole host no process is left to settle with, and the database counts.
So what is *not* in the journal says something only as long as the host has not been started anew: then a script without
a line never began.
"""

from __future__ import annotations

import contextlib
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
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): another one each time that the host is started


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
        self._boot = _BOOT_ID.read_text().strip()
        self._entry: dict[str, Any] | None = None  # the line of the incarnation of which all is known here
        self._open: dict[int, list[dict[str, Any]]] = {}  # lines of attempts that are not settled, by fence
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)  # of a process that died while it wrote; the next line shall be one of its own
        for line in filter(None, data[:whole].splitlines()):
            try:
                self._apply(orjson.loads(line))
            except (ValueError, TypeError, KeyError):
                logger.error("the journal has a line that cannot be read: %r", line[:100])
                self._entry = None  # so something is not known
        self._compact()

    def leftovers(self) -> list[Leftover]:
        """Attempts that began, or were about to, and were not settled."""
        found = []
        for fence, lines in self._open.items():
            begun = next((line for line in reversed(lines) if "pid" in line), None)
            ended = next((line for line in lines if "result" in line), None)
            if begun:
                values = ended and {**ended["result"], "job_id": uuid.UUID(ended["result"]["job_id"])}
                result = Result(**values) if values else None
                found.append(Leftover(uuid.UUID(begun["job_id"]), fence, begun["pid"], begun["start_time"], result))
        return found

    def problem(self) -> str | None:
        """None if lines can be written, else a sentence for the operator."""
        try:
            _write(self._file, _PROBE)
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(_PROBE))
        except OSError as error:
            return f"The runner's journal cannot be written: {error.strerror}."
        return None

    def enter(self, incarnation: uuid.UUID) -> None:
        """From here on this incarnation writes; of those before it the database knows all."""
        self._note(self._entry_of(incarnation))

    def leave(self) -> None:
        """Nothing is to be settled. A claim that a successor finds all the same is none that this journal knows of:
        such as one of a database that was restored, whose script may have run since the backup."""
        self._note({"incarnation": None, "boot": self._boot})

    def never_begun(self, incarnation: uuid.UUID, fence: int) -> bool:
        """Whether it is certain that the script of this claim, by this incarnation, was not let go.

        It is not where the script was noted, and where lines can be missing: another incarnation wrote, or none, it
        left in good order, the host was started anew since then, or something cannot be read.
        """
        return self._entry == self._entry_of(incarnation) and fence not in self._open

    def _entry_of(self, incarnation: uuid.UUID) -> dict[str, Any]:
        return {"incarnation": incarnation.hex, "boot": self._boot}

    def begin(self, job_id: uuid.UUID, fence: int, pid: int, start_time: int) -> None:
        """A script is about to begin under this process, the init of its namespace. Raises OSError."""
        line = {"fence": fence, "job_id": job_id.hex, "pid": pid, "start_time": start_time}
        self._append(_bytes(line))
        self._apply(line)

    def end(self, result: Result) -> None:
        """An attempt has ended so. Where that cannot be written, the result is still as good as ever."""
        self._note({"fence": result.fence, "result": {**vars(result), "job_id": result.job_id.hex}})

    def take_back(self, fence: int) -> None:
        """The process that was noted has ended, and let no script go. Where that cannot be written, it may have."""
        self._note({"fence": fence, "settled": True})

    def settled(self, fence: int) -> None:
        """The database knows all of this attempt. Where that cannot be written, a successor tells it once more."""
        self._note({"fence": fence, "settled": True})

    def _note(self, line: dict[str, Any]) -> None:
        try:
            self._append(_bytes(line))
        except OSError as error:
            logger.error("cannot write the journal: %s", error)
        self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        if "incarnation" in line:
            self._entry = line
        elif "settled" in line:
            self._open.pop(line["fence"], None)
        else:
            self._open.setdefault(line["fence"], []).append(line)

    def _append(self, data: bytes) -> None:
        if self._size > _COMPACT_BYTES:  # before the line, when all that is written is applied too
            self._compact()
        _write(self._file, data)
        self._size += len(data)

    def _compact(self) -> None:
        """Keep only what is not settled. Where that cannot be written, all is kept until the next time."""
        # Beyond what must stay, so that a journal full of unsettled attempts is not written anew at every line.
        self._size = 0
        lines = [*([self._entry] if self._entry else []), *(line for lines in self._open.values() for line in lines)]
        fresh = self._path.with_suffix(".new")
        try:
            file = _replace(self._path, fresh, b"".join(map(_bytes, lines)))
        except OSError as error:
            logger.error("cannot compact the journal: %s", error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            return
        old, self._file = self._file, file
        with contextlib.suppress(OSError):  # nobody needs it any more
            os.close(old)

    def close(self) -> None:
        os.close(self._file)


def _bytes(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line) + b"\n"


def _write(file: int, data: bytes) -> None:
    """Write all of it or nothing: a line that is cut would spoil the next one."""
    written = os.write(file, data)
    if written < len(data):  # the disk is full
        os.ftruncate(file, os.fstat(file).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _replace(path: Path, fresh: Path, data: bytes) -> int:
    """Let a file with this content, made as `fresh`, take the place of `path`; returns its descriptor."""
    fresh.unlink(missing_ok=True)
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _write(file, data)
        os.replace(fresh, path)
    except OSError:
        os.close(file)
        raise
    return file
