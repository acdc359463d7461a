"""Services that nobody waits for give way to those that answer requests."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

from shell_service.sandbox.protocol import AUTOGROUP

logger = logging.getLogger(__name__)

#: Above 0, which all others have, and below what jobs have.
NICE = 5
#: And of their session, where the kernel shares the processors between sessions (autogroups; sched(7)): it gets a
#: tenth of what that of the others gets, and more than twice as much as that of one user's jobs. In the same session
#: they would be weighed against each process of the service by itself, and one that has just had more than its share
#: then waits for all others, however nice these are: for up to 30 ms. With 8, those who submit waited longer while jobs
#: run (p99 24 ms, not 20).
SESSION_NICE = 10
_TRIES, _PAUSE = 10, 0.1  # seconds: ordinary users, all together, may set that of a session ten times a second


def give_way() -> None:
    """To be called before there are threads."""
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    _begin_session()
    if os.getsid(0) == os.getpid():
        _share()


def _begin_session() -> None:
    """Be in a session of one's own, if that can be."""
    if os.isatty(0):  # started by hand, and Ctrl-C is to reach it
        return
    try:
        if os.getpgrp() == os.getpid():  # as the supervisor makes it: who leads a group may begin no session
            os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
    except OSError:  # it leads one already, or whoever started it is in another or has gone
        return


def _share() -> None:
    """Let the session have little of the processors; where these are shared otherwise, the nice value counts alone."""
    for _ in range(_TRIES):
        try:
            Path(AUTOGROUP).write_text(str(SESSION_NICE))
        except BlockingIOError:
            time.sleep(random.uniform(_PAUSE, 2 * _PAUSE))
        except OSError:  # no autogroups here
            return
        else:
            return
    logger.warning("others set the shares of their sessions all the time: this one's is as large as theirs")
