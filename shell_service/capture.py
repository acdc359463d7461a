"""Taking a job's output from its pipe to its file, up to a limit."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable

from shell_service.mask import Mask

logger = logging.getLogger(__name__)

_MOVE = 1 << 20  # bytes moved at once, by the kernel alone
_READ = 32 * 1024  # bytes read at once, where they have to be looked at
_LAST_TAKES = 64  # with so many, all that a pipe holds is taken
_DROP_PAUSE = 0.01  # seconds between two looks at what is only dropped: who writes it mostly waits
_MASK_SHARE = 0.2  # of the loop's time that looking for secrets in one stream may take
_MASK_QUICK = 0.001  # seconds of it at once that are not counted


class Capture:
    """One stream of one attempt. The file is made with the first byte."""

    def __init__(self, pipe: int, create: Callable[[], int], most: int, mask: Mask | None = None) -> None:
        """`pipe` is the non-blocking read end, ours from now on; `create` opens the file; `most` bytes are kept."""
        self.size = 0
        self.truncated = False
        self._pipe, self._create, self._most, self._mask = pipe, create, most, mask
        self._file: int | None = None
        self._movable = mask is None  # whether the kernel can do it: from the pipe to the file, past us
        self._nowhere: int | None = None
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(pipe, self._on_readable)

    def _on_readable(self) -> None:
        began = time.perf_counter()
        if not self._take():
            return
        if self.truncated:
            self._rest(_DROP_PAUSE)
        elif self._mask and (cost := time.perf_counter() - began) > _MASK_QUICK:
            self._rest(cost / _MASK_SHARE)

    def _rest(self, seconds: float) -> None:
        """Take nothing for a while. The pipe fills up meanwhile, and whoever writes has to wait."""
        self._loop.remove_reader(self._pipe)
        self._pause = self._loop.call_later(seconds, self._loop.add_reader, self._pipe, self._on_readable)

    def _take(self) -> bool:
        """Take some of what is there; whether there may be more."""
        try:
            if self.truncated or self.size == self._most:
                count = self._drop()
            elif self._file is None or not self._movable:
                data = os.read(self._pipe, _READ)
                count = len(data)
                self._keep(self._mask.feed(data) if self._mask else data)
            else:
                count = self._move(self._file, self._most - self.size)
                self.size += count
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(error)
            return True
        if not count:
            self.close()
        return bool(count)

    def _move(self, file: int, most: int) -> int:
        try:
            return os.splice(self._pipe, file, min(most, _MOVE), flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._movable = False  # a file system that cannot do this
            raise BlockingIOError from error

    def _drop(self) -> int:
        if self._nowhere is None:
            self._nowhere = os.open(os.devnull, os.O_WRONLY)
        count = self._move(self._nowhere, _MOVE)
        self.truncated = self.truncated or count > 0
        return count

    def _keep(self, data: bytes) -> None:
        room = self._most - self.size
        if data and self._file is None:
            self._file = self._create()
        while data and room and self._file is not None:
            written = os.write(self._file, data[:room])
            self.size += written
            room -= written
            data = data[written:]
        self.truncated = self.truncated or bool(data)

    def _fail(self, error: OSError) -> None:
        # The job goes on when our disk is full: what follows is dropped, and that is said.
        logger.error("cannot keep output: %s", error)
        self.truncated = True

    async def finish(self, seconds: float) -> None:
        """Wait for the end of the stream, but at most so long; then take what is there and close."""
        if not self._closed.done():
            await asyncio.wait({self._closed}, timeout=seconds)
        if not self._closed.done():
            for _ in range(_LAST_TAKES):
                if not self._take():
                    break
            self.truncated = self.truncated or not self._closed.done()
            self.close()

    def close(self) -> None:
        """Take nothing more."""
        if self._closed.done():
            return
        if self._mask and not self.truncated:
            try:
                self._keep(self._mask.flush())
            except OSError as error:
                self._fail(error)
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._pipe)
        for file in (self._pipe, self._file, self._nowhere):
            if file is not None:
                os.close(file)
        self._closed.set_result(None)
