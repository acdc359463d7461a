"""How attempts end: what is said of it, from what is known.

A job's own end counts whenever it came first. Memory and time are only named where they ended it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from shell_service.limits import JobLimits, said
from shell_service.sandbox import Exit
from shell_service.sandbox.gauge import Usage

Ending = tuple[str, str]  # a job's status, and the reason for it

STOPPED: Ending = ("NODE_FAIL", "the runner was stopped while the script ran")
UNSEEN: Ending = ("FAILED", "stopped: too many processes, open files and mappings to see how much memory they use")
NOT_OURS: Ending = ("NODE_FAIL", "the job was given to others")
CANCELLED: Ending = ("CANCELLED", "cancelled")

_WORDS = {
    "memory": ("OUT_OF_MEMORY", "of memory used"),
    "processes": ("FAILED", "processes wanted"),
    "cpu_seconds": ("TIMEOUT", "of processor time used"),
}


@dataclass(frozen=True)
class Known:
    """What there is to know of a job that ended by itself."""

    exit: Exit
    limits: JobLimits
    #: What was seen of it as a whole; a process's own peak is no part of that, as it counts the files that it maps.
    used: Usage
    #: Whether the kernel ended it for its limit of memory, or maybe as the machine had none left.
    over_memory: bool
    machine_out_of_memory: bool


def timed_out(timeout: float) -> Ending:
    """The end of a job that took more than `timeout` seconds."""
    return "TIMEOUT", f"stopped after its timeout of {said('timeout', timeout)}"


def passed(limit: str, used: Usage, limits: JobLimits) -> Ending:
    """The end of a job that was stopped because it passed this limit, or takes too many looks."""
    if limit == "looks":
        return UNSEEN
    return _WORDS[limit][0], f"stopped: {_excess(limit, used, limits)}"


def most_of_all(memory: int) -> Ending:
    """The end of a job that had to go as all together needed more memory than there is."""
    used = said("memory", memory)
    return "OUT_OF_MEMORY", f"stopped: the machine's memory was short, and this job used most of it, {used}"


def by_itself(known: Known) -> Ending:
    """The end of a job that nobody stopped, but maybe the kernel."""
    exit_, limits, used = known.exit, known.limits, known.used
    if exit_.lost:
        return "NODE_FAIL", "the process that held its sandbox died"
    if exit_.return_code == 0:
        return "COMPLETED", "exit code 0"
    if exit_.refused:
        return "FAILED", exit_.refused
    if known.over_memory:
        return passed("memory", used, limits)
    if exit_.signal == signal.SIGKILL and known.machine_out_of_memory:
        return "OUT_OF_MEMORY", "the machine ran out of memory"
    how = f"killed by {signal_name(exit_.signal)} from inside" if exit_.signal else f"exit code {exit_.return_code}"
    if limit := used.passed(limits):  # between two looks
        return _WORDS[limit][0] if _by_signal(exit_) else "FAILED", f"{how}; {_excess(limit, used, limits)}"
    if exit_.signal == signal.SIGXFSZ:
        return "FAILED", f"killed by SIGXFSZ: a file larger than {said('file_size', limits.file_size)} wanted"
    for path, size in exit_.full.items():
        how += f"; its {'disk' if path == '/job' else path} was full: {said('disk', size)}"
    return "FAILED", how


def signal_name(number: int) -> str:
    """``SIGTERM``; of those that have no name of their own ``SIGRTMIN+1``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+d}"


def _by_signal(exit_: Exit) -> bool:
    """Whether a signal ended the script, or a command of it, which shells tell by a code above 128."""
    return exit_.return_code is None or exit_.return_code > 128


def _excess(limit: str, used: Usage, limits: JobLimits) -> str:
    reached, allowed = said(limit, getattr(used, limit)), said(limit, getattr(limits, limit))
    if getattr(used, limit) <= getattr(limits, limit) or reached == allowed:
        reached = f"more than {allowed}"  # as far as digits, or looks, tell
    return f"{reached} {_WORDS[limit][1]}, {allowed} allowed"
