"""What one job may use. The words are those of the API: ``limits: {memory, processes, …}`` of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class JobLimits:
    """The limits that hold for one job, fixed when it is submitted; they are over all of its processes."""

    #: Bytes of memory: what its processes hold, and what lies in its own file systems, which are in memory too.
    memory: int
    #: Processes and threads at once.
    processes: int
    #: Processors' worth of computing time; more than the machine has is no limit.
    cpu: float
    #: Seconds of processor time.
    cpu_seconds: float
    #: Open files, of each process.
    open_files: int
    #: Bytes of the largest file.
    file_size: int
    #: Bytes of its home, ``/job``.
    disk: int
    #: Bytes kept of each of its two streams.
    output: int
    #: Bytes kept of its artifacts, their names included.
    artifacts: int


#: The limits by their names, in the order in which they are shown.
NAMES = tuple(field.name for field in fields(JobLimits))
#: The same, and how many seconds it may run.
WITH_TIMEOUT = ("timeout", *NAMES)
SIZES = frozenset({"memory", "file_size", "disk", "output", "artifacts"})  # in bytes

#: Less, and not even a shell that does nothing would come to its end.
LEAST: Mapping[str, float] = dict.fromkeys(WITH_TIMEOUT, 0) | {
    "timeout": 0.001,
    "memory": 2**24,
    "processes": 2,
    "cpu": 0.01,
    "cpu_seconds": 0.1,
    "open_files": 16,
    "disk": 4096,  # a page; and 0 would mean none at all to the kernel
}


@dataclass(frozen=True)
class Bounds:
    """What a user's jobs get that ask for nothing, and the most that they may ask for; by `WITH_TIMEOUT`."""

    defaults: Mapping[str, float]
    maxima: Mapping[str, float]

    def with_own(self, defaults: Mapping[str, float], maxima: Mapping[str, float]) -> Bounds:
        """These, with what an administrator has set for a user above them; no default is above its maximum.

        The same is done where jobs are stored, in submit_jobs.
        """
        most = {**self.maxima, **maxima}
        return Bounds({name: min(value, most[name]) for name, value in {**self.defaults, **defaults}.items()}, most)


def shown(name: str, value: float) -> str:
    """The value of a limit for people: sizes in the largest unit in which they are whole numbers."""
    if name not in SIZES:
        return f"{value:.10g}"
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    size, unit = int(value), 0
    while size and size % 1024 == 0 and unit < len(units) - 1:
        size, unit = size // 1024, unit + 1
    return f"{size} {units[unit]}"


def said(name: str, value: float) -> str:
    """The value of a limit, or of what was used, for people, rounded: ``1.2 GiB``, ``0.3 s``, ``64``."""
    if name in ("timeout", "cpu_seconds"):
        return f"{_plain(value, 3 if value < 10 else 1)} s"
    if name not in SIZES:
        return _plain(value, 0)
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{_plain(value, 1)} {unit}"


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
