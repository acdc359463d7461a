"""Processor time of a job, by ``/proc``: of those that live, and of those that have ended.

The kernel adds the time of a process that has ended to whoever waits for it. Who ignores SIGCHLD waits for nobody:
of his children counts what was seen of them. It is never more than was used: each time that is added to a parent may
be what was seen of somebody who has gone meanwhile, so only what is beyond all of that is new.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

_TICK = 1 / os.sysconf("SC_CLK_TCK")

Who = tuple[int, int]  # pid, and when it was started: together they are never somebody else's


@dataclass(frozen=True)
class _Times:
    """Ticks of a process itself, and of those that it, and they, waited for."""

    own: int = 0
    waited_for: int = 0


class ProcessorTime:
    """What the processes below an init have used so far."""

    def __init__(self, init: int) -> None:
        self._init = init
        self._seen: dict[Who, _Times] = {}
        self._ticks = 0
        self._owed = 0  # ticks that count, of those who have gone: they may be added to a parent yet

    def read(self, processes: Iterable[int]) -> float:
        """Seconds, when these are the processes: parents before their children, as time only ever goes to the former.

        One that has gone when it is its turn can have been waited for since its parent's turn. Its time is added then,
        when it counts already; the other way about it would count twice.
        """
        now = dict(filter(None, map(_times, (self._init, *processes))))
        missed = (_times(pid) for pid, start in self._seen if (pid, start) not in now)  # its parent ended meanwhile
        now |= {who: times for who, times in filter(None, missed) if who in self._seen}
        for who, times in self._seen.items():
            if who not in now:
                self._owed += times.own + times.waited_for
        own = added = total = 0
        for who, times in now.items():
            before = self._seen.get(who, _Times())
            if who[0] != self._init:
                own += times.own - before.own
                total += times.own
            added += times.waited_for - before.waited_for
            total += times.waited_for
        known = min(self._owed, added)
        self._owed -= known
        self._ticks = max(self._ticks + own + added - known, total)
        self._seen = now
        return self._ticks * _TICK


def _times(pid: int) -> tuple[Who, _Times] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.readall().rpartition(b")")[2].split()
    except OSError:  # it has ended
        return None
    own, waited_for, start = fields[11:13], fields[13:15], fields[19]  # utime, stime, cutime, cstime, … of proc(5)
    return (pid, int(start)), _Times(sum(map(int, own)), sum(map(int, waited_for)))
