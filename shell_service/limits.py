"""What one job may use. The words are those of the API: ``limits: {memory, processes, …}`` of a job."""

from __future__ import annotations

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


#: The limits by their names, in the order in which they are shown.
NAMES = tuple(field.name for field in fields(JobLimits))
