"""Differences between two texts, by the program `diff`: how long it takes is bounded, whatever the texts are."""

from __future__ import annotations

import asyncio
import os

from baselayer.errors import ApiError, Unavailable

_AT_ONCE = 2  # in one process
_SECONDS = 10.0


class TooDifferent(ApiError):
    """The two versions differ so much that comparing them takes too long; read both instead."""

    status = 413
    code = "too_different"


class Differ:
    """Compares texts, a few at once."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def unified(self, old: str, new: str, old_label: str, new_label: str) -> bytes:
        """The unified diff, with three lines of context; empty where they are the same.

        Raises `TooDifferent` where it would take too long, `Unavailable` where too many wait.
        """
        try:
            async with asyncio.timeout(_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("Too many differences are being looked for; try again in a moment.") from None
        try:
            return await _diff(old, new, old_label, new_label)
        finally:
            self._turns.release()


async def _diff(old: str, new: str, old_label: str, new_label: str) -> bytes:
    files = [_file(text) for text in (old, new)]
    try:
        process = await asyncio.create_subprocess_exec(
            *("diff", "--unified", "--text", f"--label={old_label}", f"--label={new_label}"),
            *(f"/proc/self/fd/{number}" for number in files),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=files,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )
    finally:
        for number in files:
            os.close(number)
    try:
        async with asyncio.timeout(_SECONDS):
            found, problem = await process.communicate()
    except TimeoutError:
        raise TooDifferent from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (0, 1):
        raise RuntimeError(f"diff: {problem.decode(errors='replace').strip()}")
    return found


def _file(text: str) -> int:
    number = os.memfd_create("version")
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(text.encode())
    return number
