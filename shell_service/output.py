"""What jobs printed: one file per job, attempt and stream, addressed by these three and never by a stored path.

A file holds the first `jobs.max_output` bytes of its stream. A stream that printed nothing has no file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
CHUNK = 256 * 1024  # bytes handed on at once


class OutputStore:
    """The folder of outputs: a folder a day, and in it up to 256 of the jobs submitted then.

    A day's outputs can be removed with the day; 45,000 jobs a day make about 350 files in each innermost folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, job_id: uuid.UUID, attempt: int, stream: Stream) -> Path:
        """Where the stream of this attempt is, or would be."""
        return Path(self._name(job_id, attempt, stream))

    def _name(self, job_id: uuid.UUID, attempt: int, stream: Stream) -> str:
        # As text, not a Path: this is done some times for every job.
        day = datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC).date().isoformat()
        return f"{self._folder}/{day}/{job_id.hex[-2:]}/{job_id.hex}.{attempt}.{stream}"

    def create(self, job_id: uuid.UUID, attempt: int, stream: Stream) -> int:
        """Make the file anew, for its runner alone to write; return its descriptor."""
        path = self._name(job_id, attempt, stream)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)

    def size(self, job_id: uuid.UUID, attempt: int, stream: Stream) -> int:
        """Bytes that are there by now."""
        try:
            return os.stat(self._name(job_id, attempt, stream)).st_size
        except FileNotFoundError:
            return 0

    def tail(self, job_id: uuid.UUID, attempt: int, stream: Stream, most: int, size: int | None = None) -> str:
        """The last `most` bytes as text, what is not UTF-8 replaced. `size` is their number where it is known."""
        if size == 0:
            return ""
        data = self.read(job_id, attempt, stream, -most, most)
        if len(data) == most:  # the cut may have split a character of up to four bytes: drop its rest
            start = next((i for i in range(min(4, most)) if data[i] & 0xC0 != 0x80), 0)
            data = data[start:]
        return data.decode(errors="replace")

    def read(self, job_id: uuid.UUID, attempt: int, stream: Stream, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start`; from that many before the end where `start` is negative."""
        try:
            with open(self._name(job_id, attempt, stream), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size + start) if start < 0 else start)
                return file.read(count) or b""
        except FileNotFoundError:
            return b""

    def chunks(self, job_id: uuid.UUID, attempt: int, stream: Stream, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, in pieces."""
        while start < end:
            data = self.read(job_id, attempt, stream, start, min(CHUNK, end - start))
            if not data:
                return
            start += len(data)
            yield data
