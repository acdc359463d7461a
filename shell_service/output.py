"""What jobs printed: one file per job, attempt and stream, addressed by these three and never by a stored path.

A file holds the first `limits.output` bytes of its stream. A stream that printed nothing has no file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from baselayer.batch import Batcher
from shell_service import artifacts
from shell_service.artifacts import Artifact

P = ParamSpec("P")
R = TypeVar("R")

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
#: All that is kept of an attempt, each as a file: what the script printed; what was said when its packages were
#: installed for it; and what it left, as `sandbox.artifacts` has it.
Kept = Literal["stdout", "stderr", "setup", "artifacts"]
KEPT: tuple[Kept, ...] = (*STREAMS, "setup", "artifacts")
CHUNK = 256 * 1024  # bytes handed on at once


class OutputStore:
    """The folder of outputs: a folder a day, and in it up to 256 of the jobs submitted then.

    A day's outputs can be removed with the day; 45,000 jobs a day make about 350 files in each innermost folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, job_id: uuid.UUID, attempt: int, stream: Kept) -> str:
        """Where the stream of this attempt is, or would be."""
        # As text, not a Path: this is done some times for every job.
        day = datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC).date().isoformat()
        return f"{self._folder}/{day}/{job_id.hex[-2:]}/{job_id.hex}.{attempt}.{stream}"

    def create(self, job_id: uuid.UUID, attempt: int, stream: Kept) -> int:
        """Make the file anew, for its runner alone to write, and its group to read; return its descriptor."""
        path = self.path(job_id, attempt, stream)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        for _ in range(3):  # a folder that is empty may be removed meanwhile
            try:
                return os.open(path, flags, 0o640)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
        return os.open(path, flags, 0o640)

    def size(self, job_id: uuid.UUID, attempt: int, stream: Kept) -> int:
        """Bytes that are there by now."""
        try:
            return os.stat(self.path(job_id, attempt, stream)).st_size
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

    def read(self, job_id: uuid.UUID, attempt: int, stream: Kept, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start`; from that many before the end where `start` is negative."""
        try:
            with open(self.path(job_id, attempt, stream), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size + start) if start < 0 else start)
                return file.read(count) or b""
        except FileNotFoundError:
            return b""

    def remove(self, job_id: uuid.UUID, attempts: int) -> None:
        """Remove what the attempts of a job left, up to this number; and folders that are empty then."""
        for attempt in range(1, attempts + 1):
            for stream in KEPT:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(job_id, attempt, stream))
        folder = os.path.dirname(self.path(job_id, 1, "stdout"))
        for empty in (folder, os.path.dirname(folder)):
            try:
                os.rmdir(empty)
            except OSError:  # others are in it, or have just removed it
                return

    def beyond(self, job_id: uuid.UUID, attempt: int, positions: Mapping[Stream, int]) -> dict[Stream, bytes]:
        """Of each stream, up to `CHUNK` bytes from its position; nothing of one that has not grown."""
        found = {}
        for stream, start in positions.items():
            if self.size(job_id, attempt, stream) > start:
                found[stream] = self.read(job_id, attempt, stream, start, CHUNK)
        return found


class OutputReader:
    """Reads outputs for those who wait on the event loop: in a thread, together with all that was asked meanwhile.

    So hundreds of followers who look at the same moment cost one way to the thread and back. It is one thread a
    process: a file system that does not answer holds up those who read outputs this way, and nobody else.
    """

    _TOGETHER = 32  # reads at once, before those who asked for them go on

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outputs")
        self._reads: Batcher[Callable[[], Any], Any] = Batcher(self._all_of, max_items=self._TOGETHER)

    async def artifacts(self, job_id: uuid.UUID, attempt: int) -> list[Artifact]:
        """As `artifacts.index`."""
        return await self._ask(artifacts.index, self._store.path(job_id, attempt, "artifacts"))

    async def size(self, job_id: uuid.UUID, attempt: int, stream: Kept) -> int:
        """As `OutputStore.size`."""
        return await self._ask(self._store.size, job_id, attempt, stream)

    async def beyond(self, job_id: uuid.UUID, attempt: int, positions: Mapping[Stream, int]) -> dict[Stream, bytes]:
        """As `OutputStore.beyond`."""
        return await self._ask(self._store.beyond, job_id, attempt, positions)

    async def chunks(self, job_id: uuid.UUID, attempt: int, stream: Kept, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in pieces, none of them ahead of whoever takes them."""
        while start < end:
            data = await self._ask(self._store.read, job_id, attempt, stream, start, min(CHUNK, end - start))
            if not data:
                return
            start += len(data)
            yield data

    async def _ask(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        found: R = await self._reads.put(partial(function, *args, **kwargs))
        return found

    async def _all_of(self, reads: list[Callable[[], Any]]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _results, reads)


def _results(reads: list[Callable[[], Any]]) -> list[Any]:
    found: list[Any] = []
    for read in reads:
        try:
            found.append(read())
        except Exception as error:  # it is the answer to this one alone
            found.append(error)
    return found
