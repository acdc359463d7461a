"""Where the processor's time goes: seconds by part of the stack, read from /proc."""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def children() -> dict[int, list[int]]:
    """The children of each process."""
    found: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            found[int(fields[1])].append(int(entry))
    return found


def tree(root: int, of: dict[int, list[int]] | None = None) -> list[int]:
    """A process and all its descendants."""
    of = children() if of is None else of
    found = [root]
    for pid in found:
        found.extend(of.get(pid, ()))
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (proc(5) counts it as the third); empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def seconds(pid: int) -> tuple[float, float]:
    """Seconds of a process itself, and of its descendants that it has waited for."""
    fields = _stat(pid)
    if not fields:
        return 0.0, 0.0
    user, system, child_user, child_system = (int(field) / _TICK for field in fields[11:15])
    return user + system, child_user + child_system


def by_part(programs: dict[str, int]) -> dict[str, float]:
    """Seconds so far by part of the stack; the runner's descendants, launchers and jobs, are ``sandbox``.

    `programs` are the supervised processes by name. Parts with a number at the end (``app_00``) are taken together.
    """
    of, found = children(), defaultdict(float)
    for name, pid in programs.items():
        part = name.rstrip("0123456789").rstrip("_:")
        own, waited = seconds(pid)
        below = sum(map(sum, map(seconds, tree(pid, of)[1:]))) + waited
        found[part] += own
        found["sandbox" if part == "runner" else part] += below
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found["client"] = usage.ru_utime + usage.ru_stime
    found["machine"] = _busy()
    return dict(found)


def _busy() -> float:
    """Seconds that all processors together were not idle."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was used in between."""
    return {part: after[part] - before.get(part, 0.0) for part in after}
