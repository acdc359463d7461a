"""Limits that the kernel holds for a job as a whole: control groups (cgroup v2), where they are delegated to us.

::

    the delegated group          a unit with Delegate=yes, a container, or what `systemd-run` makes
    ├── service                  the service's own processes: a group with groups below must not have any itself
    └── runner_00-1f2e3d4c       one runner
        ├── 4711                 one attempt, named by its fence
        └── …

Version 1 and mixtures of the two count as none, as do groups that somebody else manages. What the files in such a
folder mean is told in the kernel's documentation, ``Documentation/admin-guide/cgroup-v2.rst``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shell_service.limits import JobLimits

from .gauge import Usage

#: The group of the service's own processes; a unit's DelegateSubgroup= may say so, too.
LEAF = "service"
#: The limits that groups hold; of processor time they keep exact accounts.
HARD: Mapping[str, Literal["hard"]] = {"memory": "hard", "processes": "hard", "cpu": "hard"}
_CONTROLLERS = ("cpu", "memory", "pids")
_PERIOD = 100_000  # microseconds for which the processor time of `cpu` holds
_TRIES = 10  # rounds of moving processes, of which new ones may have been started meanwhile
_PATIENCE = 5.0  # seconds for killed processes to be gone


class NotDelegated(Exception):
    """There are no control groups that we could use; says why."""


@dataclass(frozen=True)
class End:
    """What is known of a job that has ended: the most that it used; processes that it was refused count as wanted."""

    used: Usage
    #: Whether the kernel ended it because of its own limit of memory, or because there was none left beyond it.
    over_memory: bool
    machine_out_of_memory: bool


class Groups:
    """The groups of one runner's jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left: list[Path] = []

    def make(self, fence: int, limits: JobLimits) -> Group:
        """A group with these limits, and nothing in it yet. Raises OSError."""
        self._left[:] = [folder for folder in self._left if not _remove(folder)]
        folder = self._folder / str(fence)
        folder.mkdir()
        group = Group(folder, limits.processes, self._left)
        try:
            group.limit(limits)
        except BaseException:
            group.close()
            raise
        return group

    def reap(self) -> list[int]:
        """End what a predecessor left; the fences of it."""
        groups = [folder for folder in self._folder.iterdir() if folder.is_dir()]
        for folder in groups:
            _write(folder / "cgroup.kill", "1")
        deadline = time.monotonic() + _PATIENCE
        for folder in groups:
            while not _remove(folder) and time.monotonic() < deadline:
                time.sleep(0.01)
        return [int(folder.name) for folder in groups if folder.name.isdigit()]

    def close(self) -> None:
        """Remove them all; no job is left in them."""
        self.reap()
        _remove(self._folder)


class Group:
    """The group of one attempt."""

    def __init__(self, folder: Path, processes: int, left: list[Path]) -> None:
        self._folder, self._processes, self._left = folder, processes, left

    def limit(self, limits: JobLimits) -> None:
        """Set what its processes may use together."""
        _write(self._folder / "memory.max", str(limits.memory))
        with contextlib.suppress(FileNotFoundError):  # a kernel that does not count swap, or has none
            _write(self._folder / "memory.swap.max", "0")
        _write(self._folder / "memory.oom.group", "1")
        _write(self._folder / "pids.max", str(limits.processes + 1))  # and the init
        if limits.cpu < (os.cpu_count() or 1):
            _write(self._folder / "cpu.max", f"{max(1000, int(limits.cpu * _PERIOD))} {_PERIOD}")

    def enter(self, pid: int) -> None:
        """Move a process here, and with it all that it will start. Raises OSError."""
        _write(self._folder / "cgroup.procs", str(pid))

    def read(self, enough: int = 0, most: int = 0) -> Usage:
        """What they use now; processes that the kernel refused count as wanted."""
        try:
            memory = self._fields("memory.stat")
            held = memory["anon"] + memory["shmem"]  # what is cached of files counts for the limit, too, but can go
            return Usage(self._wanted(self._number("pids.current") - 1), self._cpu_seconds(), held)
        except OSError:  # it has been removed
            return Usage()

    def forget(self) -> None:
        """A look leaves nothing open."""

    def end(self) -> End:
        """To be asked when everything in it has ended."""
        try:
            peak = self._number("memory.peak")
        except FileNotFoundError:  # a kernel before Linux 5.19
            peak = 0
        events = self._fields("memory.events")
        killed, at_limit = events.get("oom_kill", 0) > 0, events.get("oom", 0) > 0
        return End(Usage(self._wanted(0), self._cpu_seconds(), peak), killed and at_limit, killed and not at_limit)

    def _wanted(self, processes: int) -> int:
        refused = self._fields("pids.events").get("max", 0)
        return max(processes, self._processes + refused) if refused else processes

    def close(self) -> None:
        """Remove it: at once, or when the last process has left it."""
        if not _remove(self._folder):
            with contextlib.suppress(OSError):
                _write(self._folder / "cgroup.kill", "1")
            self._left.append(self._folder)

    def _cpu_seconds(self) -> float:
        return self._fields("cpu.stat")["usage_usec"] / 1e6

    def _number(self, name: str) -> int:
        return int((self._folder / name).read_bytes())

    def _fields(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in (self._folder / name).read_text().splitlines())
        return {key: int(value) for key, value in pairs}


def claim(name: str, mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Groups:
    """Our part of the hierarchy, for a runner of this name. Moves the service's processes. Raises `NotDelegated`."""
    try:
        base = _base(mount, own)
        folder = base / name
        _settle(base)
        for parent in (base, folder):
            parent.mkdir(exist_ok=True)
            _write(parent / "cgroup.subtree_control", " ".join(f"+{controller}" for controller in _CONTROLLERS))
        if not (folder / "cgroup.kill").exists():
            raise NotDelegated("control groups need Linux 5.14 or newer")
        return Groups(folder)
    except OSError as error:
        raise NotDelegated(f"the control group cannot be used: {error}") from error


def _base(mount: Path, own: Path) -> Path:
    """The delegated group in which we are."""
    lines = own.read_text().splitlines()
    if len(lines) != 1 or not lines[0].startswith("0::/"):
        raise NotDelegated("this machine has control groups of version 1")
    folder = mount / lines[0].removeprefix("0::/")
    if not (folder / "cgroup.controllers").exists():
        raise NotDelegated(f"control groups are not mounted at {mount}")
    base = folder.parent if folder.name == LEAF else folder
    if not _is_ours(base):
        raise NotDelegated("the control group of the service is not delegated to it")
    missing = set(_CONTROLLERS).difference((base / "cgroup.controllers").read_text().split())
    if missing:
        raise NotDelegated(f"the control group of the service has no controller for {', '.join(sorted(missing))}")
    return base


def _is_ours(base: Path) -> bool:
    """Whether whoever manages the groups of this machine leaves this one to us."""
    if not (base / "cgroup.type").exists():  # the root of all
        return False
    if not os.access(base, os.W_OK) or not os.access(base / "cgroup.procs", os.W_OK):
        return False
    if os.geteuid() != 0 or not Path("/run/systemd/system").exists():
        return True  # given to us by whoever made it so
    for attribute in ("trusted.delegate", "user.delegate"):  # as systemd marks the groups of units with Delegate=yes
        with contextlib.suppress(OSError):
            if os.getxattr(base, attribute) == b"1":
                return True
    return False


def _settle(base: Path) -> None:
    """Move all processes of this group to the one of the service."""
    leaf = base / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_TRIES):
        pids = (base / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
    raise NotDelegated("new processes of the service come faster than they can be moved")


def _remove(folder: Path) -> bool:
    """Whether the group is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # somebody is in it
        return False
    return True


def _write(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
