"""Named places at which a test can let a process die, stop or fail.

``SHELL_SERVICE_FAIL="runner.claimed=kill"`` in the environment acts when that place is reached; a number after the
action (``kill@3``) means the third time. Unset, as always outside tests, a place costs one comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "SHELL_SERVICE_FAIL"


class FailPoints:
    """The places of one process, as its environment wants them."""

    def __init__(self, wanted: str | None = None) -> None:
        """`wanted` is of the environment's form; by default the environment's own."""
        text = os.environ.get(VARIABLE, "") if wanted is None else wanted
        self._name, _, action = text.partition("=")
        self._action, _, count = action.partition("@")
        self._left = int(count or 1)

    def reach(self, name: str) -> None:
        """Act if this is the place: ``kill`` and ``stop`` signal this process, ``raise`` raises `OSError`."""
        if name != self._name:
            return
        self._left -= 1
        if self._left:
            return
        if self._action == "raise":
            raise OSError(f"fail point {name}")
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self._action])
