"""The spawner: a process of the runner's from which launchers are forked, ready to begin.

Run by the runner as a program of its own with nothing but a socket, by which it is given the control sockets of
launchers-to-be. Starting Python anew for each would take longer than all else that it does before its first job.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # see `launcher`
import _socket
import gc
import os

from . import kernel, launcher


def main(fd: int) -> None:
    """Serves until the runner closes its end of the socket."""
    runner = os.getppid()
    kernel.ignore_interrupts()
    kernel.end_with_parent(runner)
    kernel.set_name(b"job-spawner")
    os.setpgid(0, 0)  # what is sent to the runner's group is not for jobs, which may have time to end
    _signal.signal(_signal.SIGCHLD, _reap)
    requests = _socket.socket(fileno=fd)
    gc.collect()
    gc.freeze()
    gc.disable()
    while (request := launcher.receive(requests))[0]:
        for control in request[1]:
            _fork(requests, control)


def _reap(*_: object) -> None:
    """Lets launchers that have ended go. Whoever cares when they do has a pidfd."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _fork(requests: _socket.socket, control: int) -> None:
    try:
        child = not os.fork()
    except OSError:
        child = False  # the runner sees that the control socket is closed
    if child:
        try:
            requests.close()
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
            launcher.main(control)
        finally:
            os._exit(0)
    os.close(control)
