"""What is left of jobs whose processes have all gone: their mounts, and files in memory. It goes when nobody holds it.

The runner holds it, and lets go in threads. The kernel would do it as well when a job's init ends, but whoever takes
mounts away has to wait for all processors, and keeps all others waiting who want the same: an init that gets little of
a processor, as its user has many jobs, would hold up everybody's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_THREADS = 2
#: Bytes that are freed by the way, within a millisecond; so much of so many jobs may still be there when they are over.
_LITTLE, _MOST = 4 << 20, 16


class Remains:
    """What is left of one runner's jobs."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "remains")
        self._going: list[Future[None]] = []

    def remove(self, file_systems: Sequence[int], mounts: Sequence[int]) -> asyncio.Future[None] | None:
        """Closes these descriptors of a job. To be waited for, if it is not None: else it is little, and goes soon."""
        if not (file_systems or mounts):
            return None
        little = sum(map(_effort, file_systems)) < _LITTLE
        going = self._threads.submit(_close, (*file_systems, *mounts))
        self._going = [*(other for other in self._going if not other.done()), going]
        return None if little and len(self._going) <= _MOST else asyncio.wrap_future(going)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _effort(file_system: int) -> int:
    """About how many bytes there are to be freed with a file system; a file by itself costs as much as a page."""
    status = os.fstatvfs(file_system)
    return (status.f_blocks - status.f_bfree) * status.f_frsize + (status.f_files - status.f_ffree) * 4096
