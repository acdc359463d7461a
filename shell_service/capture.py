"""Taking a job's output from its pipe to its file, up to a limit."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterator

from shell_service.mask import Masking

logger = logging.getLogger(__name__)

_MOVE = 1 << 20  # bytes moved at once, by the kernel alone
_READ = 32 * 1024  # bytes read at once, where they have to be looked at
_LAST_TAKES = 64  # with so many, all that a pipe holds is taken
_DROP_PAUSE = 0.01  # seconds between two looks at what is only dropped: who writes it mostly waits
_TURN = 0.002  # seconds that looking for secrets takes at once: others have to be heard
_LAST_SECONDS = 10.0  # for looking through what was left in a pipe: others look through theirs, too


class Capture:
    """One stream of one attempt. The file is made with the first byte."""

    def __init__(self, pipe: int, create: Callable[[], int], most: int) -> None:
        """`pipe` is the non-blocking read end, ours from now on; `create` opens the file; `most` bytes are kept."""
        self.size = 0
        self.truncated = False
        self._pipe, self._create, self._most = pipe, create, most
        self._file: int | None = None
        self._movable = True  # whether the kernel can do it: from the pipe to the file, past us
        self._nowhere: int | None = None
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(pipe, self._on_readable)

    def _on_readable(self) -> None:
        if self._take() and self.truncated:
            self._loop.remove_reader(self._pipe)  # it fills up meanwhile, and whoever writes has to wait
            self._pause = self._loop.call_later(_DROP_PAUSE, self._loop.add_reader, self._pipe, self._on_readable)

    def _take(self) -> bool:
        """Take some of what is there; whether there may be more."""
        try:
            if self.truncated or self.size == self._most:
                count = self._drop()
            elif self._file is None or not self._movable:
                data = os.read(self._pipe, _READ)
                count = len(data)
                self._keep(data)
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
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._pipe)
        for file in (self._pipe, self._file, self._nowhere):
            if file is not None:
                os.close(file)
        self._closed.set_result(None)


class MaskedCapture(Capture):
    """One stream of one attempt, with its secrets masked: bit by bit, in what time there is for that on the loop."""

    def __init__(
        self,
        pipe: int,
        create: Callable[[], int],
        most: int,
        masking: Masking,
        ask: Callable[[Callable[[], None]], None],
    ) -> None:
        """As `Capture`. `ask` has a function called when it may take some milliseconds of the loop's time."""
        super().__init__(pipe, create, most)
        self._masking, self._ask = masking, ask
        self._asked = False
        self._left = math.inf  # reads that may still be made
        self._parts: Iterator[bytes | None] = self._masked()

    def _on_readable(self) -> None:
        if self.truncated:
            super()._on_readable()
        else:
            self._loop.remove_reader(self._pipe)
            self._go_on()

    def _go_on(self) -> None:
        if not self._asked:
            self._asked = True
            self._ask(self._turn)

    def _listen(self) -> None:
        self._loop.add_reader(self._pipe, self._on_readable)

    def _turn(self) -> None:
        self._asked = False
        if self.truncated or self._closed.done():
            return
        try:
            follow = self._keep_some(time.perf_counter() + _TURN)
        except OSError as error:
            self._fail(error)
        if not self.truncated:
            follow()
        elif self._left == math.inf:
            self._listen()  # what follows is dropped
        else:
            self.close()

    def _keep_some(self, until: float) -> Callable[[], None]:
        """Mask and keep what there is time for; returns what is to be done next."""
        parts: list[bytes] = []
        follow = self.close
        for part in self._parts:
            if part is None:
                follow = self._listen
                break
            parts.append(part)
            if time.perf_counter() > until:
                follow = self._go_on
                break
        self._keep(b"".join(parts))
        return follow

    def _masked(self) -> Iterator[bytes | None]:
        """What is to be kept, bit by bit; None when there is nothing at the moment."""
        data: bytes | None = None
        while self._left and data != b"":
            self._left -= 1
            try:
                data = os.read(self._pipe, _READ)
            except (BlockingIOError, InterruptedError):
                if self._left < math.inf:
                    break
                yield None
            else:
                yield from self._masking.feed(data)
        yield from self._masking.end()
        self.truncated = self.truncated or data != b""

    async def finish(self, seconds: float) -> None:
        """As `Capture.finish`. What is there has to be looked through before: that may take some seconds more."""
        if not self.truncated:
            await asyncio.wait({self._closed}, timeout=seconds)
            seconds = 0
        if not (self.truncated or self._closed.done()):
            self._left = _LAST_TAKES
            self._loop.remove_reader(self._pipe)
            self._go_on()
            await asyncio.wait({self._closed}, timeout=_LAST_SECONDS)
            self.truncated = self.truncated or not self._closed.done()
        await super().finish(seconds)

    def close(self) -> None:
        """Take nothing more. What was not looked through yet is not kept."""
        super().close()
        self._parts = iter(())  # it holds the secrets, and us
