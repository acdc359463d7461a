"""The walls around one attempt of a job: namespaces, uid, limits, system call filter.

``Sandbox.prepare(user)`` gives the user's `Launcher`, whose ``start`` makes a held `Process`, whose ``go`` lets it run.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; the typing module itself is too large for the launcher
if TYPE_CHECKING:
    from .command import UNAVAILABLE, Command, Exit, Files, NoNetwork, SandboxError
    from .process import Launcher, Process, kill_leftover
    from .sandbox import Facts, Sandbox

__all__ = [
    "UNAVAILABLE",
    "Command",
    "Exit",
    "Facts",
    "Files",
    "Launcher",
    "NoNetwork",
    "Process",
    "Sandbox",
    "SandboxError",
    "kill_leftover",
]

_MODULES = {
    "UNAVAILABLE": "command",
    "Command": "command",
    "Exit": "command",
    "Files": "command",
    "NoNetwork": "command",
    "SandboxError": "command",
    "Launcher": "process",
    "Process": "process",
    "kill_leftover": "process",
    "Facts": "sandbox",
    "Sandbox": "sandbox",
}


def __getattr__(name: str) -> object:
    # On first use, as the launcher is imported through this package and has to stay small: no asyncio there.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
