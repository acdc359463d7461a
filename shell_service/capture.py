"""Taking a job's output from its pipe to its file, up to a limit."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

logger = logging.getLogger(__name__)

_READ = 256 * 1024  # bytes taken at once: bounds the memory of a job that floods
_LAST_READS = 8  # more than a pipe holds


class Capture:
    """One stream of one attempt. The file is made with the first byte."""

    def __init__(self, pipe: int, create: Callable[[], int], most: int) -> None:
        """`pipe` is the non-blocking read end, ours from now on; `create` opens the file; `most` bytes are kept."""
        self.size = 0
        self.truncated = False
        self._failed = False  # whether the file could not be written
        self._pipe = pipe
        self._create = create
        self._most = most
        self._file: int | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pipe, self._on_readable)

    def _on_readable(self) -> bool:
        """Take what is there, up to `_READ` bytes; whether there may be more."""
        try:
            data = os.read(self._pipe, _READ)
        except (BlockingIOError, InterruptedError):
            return False
        if data:
            self._keep(data)
        else:
            self.close()
        return bool(data)

    def _keep(self, data: bytes) -> None:
        room = self._most - self.size
        if len(data) > room or self.truncated:
            self.truncated = True
            data = data[:room] if not self._failed else b""
        if not data:
            return
        try:
            if self._file is None:
                self._file = self._create()
            while data:
                written = os.write(self._file, data)
                self.size += written
                data = data[written:]
        except OSError as error:
            # The job goes on when our disk is full: what follows is dropped, and that is said.
            logger.error("cannot keep output: %s", error)
            self.truncated = self._failed = True

    async def finish(self, seconds: float) -> None:
        """Wait for the end of the stream, but at most so long; then take what is there and close."""
        if not self._closed.done():
            await asyncio.wait({self._closed}, timeout=seconds)
        if not self._closed.done():
            for _ in range(_LAST_READS):
                if not self._on_readable():
                    break
            self.truncated = self.truncated or not self._closed.done()
            self.close()

    def close(self) -> None:
        """Take nothing more."""
        if self._closed.done():
            return
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)
        if self._file is not None:
            os.close(self._file)
        self._closed.set_result(None)
