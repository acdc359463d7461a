"""Whom on this machine the jobs of a user run as.

Inside its sandbox every job is uid 1000; what the machine itself sees is decided by what the runner may do.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from .command import UNAVAILABLE, SandboxError

_PATIENCE = 10.0  # seconds for a program that writes one line
_LARGEST = 2**32 - 2  # the largest uid; the next one stands for none


class Uids(Protocol):
    """A way to choose uids and gids."""

    @property
    def kind(self) -> Literal["own", "subordinate", "shared"]:
        """As `Facts` has it."""

    def of(self, user_id: int) -> tuple[int, int]:
        """The uid and gid of a user's jobs. Raises SandboxError when there is none for him."""

    async def map(self, pid: int, user_id: int) -> None:
        """Makes them known in the user namespace that this process has entered, as 0. Raises SandboxError."""

    def problem(self) -> str | None:
        """A sentence for the operator where these uids belong to others."""


@dataclass(frozen=True)
class Own:
    """Where root is the runner: uids from a base upwards, which nobody else may have."""

    base: int
    kind: Literal["own"] = "own"

    def of(self, user_id: int) -> tuple[int, int]:
        uid = self.base + user_id
        if uid > _LARGEST:
            raise _exhausted(f"uid_base {self.base} + user {user_id} is no uid")
        return uid, uid

    async def map(self, pid: int, user_id: int) -> None:
        """Nothing: root's launcher becomes that user without help."""

    def problem(self, files: Path = Path("/etc")) -> str | None:
        """Where `files` holds this machine's subuid and subgid."""
        for user in pwd.getpwall():
            if user.pw_uid >= self.base:
                return f"sandbox.uid_base must be above the uids of this machine's users: {user.pw_name} is one."
        for name in ("subuid", "subgid"):
            for owner, first, count in _entries(files / name):
                if first + count > self.base:
                    return f"sandbox.uid_base must be above the subordinate ids of this machine: {owner} has some."
        return None


@dataclass(frozen=True)
class Subordinate:
    """Where the runner is an ordinary user who has uids and gids to give away: subuid(5), newuidmap(1)."""

    first_uid: int
    first_gid: int
    count: int
    programs: tuple[str, str]
    kind: Literal["subordinate"] = "subordinate"

    def of(self, user_id: int) -> tuple[int, int]:
        if user_id >= self.count:
            raise _exhausted(f"{self.count} subordinate uids, and user {user_id}")
        return self.first_uid + user_id, self.first_gid + user_id

    async def map(self, pid: int, user_id: int) -> None:
        for program, number in zip(self.programs, self.of(user_id), strict=True):
            await asyncio.to_thread(_run, program, str(pid), "0", str(number), "1")

    def problem(self) -> str | None:
        return None


class NotMapped(SandboxError):
    """This machine refuses to map a subordinate id."""


@dataclass(frozen=True)
class Shared:
    """Where the runner is an ordinary user with nothing to give away: its own."""

    kind: Literal["shared"] = "shared"

    def of(self, user_id: int) -> tuple[int, int]:
        return os.geteuid(), os.getegid()

    async def map(self, pid: int, user_id: int) -> None:
        """Nothing: a process may do that for its own uid."""

    def problem(self) -> str | None:
        return None


def choose(base: int) -> Own | Subordinate | Shared:
    """The way that keeps users apart best, of those that this machine seems to offer."""
    if os.geteuid() == 0:
        return Own(base)
    programs = shutil.which("newuidmap"), shutil.which("newgidmap")
    uids, gids = (largest_range(Path("/etc", name)) for name in ("subuid", "subgid"))
    if programs[0] and programs[1] and uids and gids:
        return Subordinate(uids[0], gids[0], min(uids[1], gids[1]), (programs[0], programs[1]))
    return Shared()


def largest_range(path: Path) -> tuple[int, int] | None:
    """First and number of the ids that this process's user may give away."""
    uid = os.geteuid()
    names = {str(uid), *(user.pw_name for user in pwd.getpwall() if user.pw_uid == uid)}
    ranges = [(first, count) for owner, first, count in _entries(path) if owner in names and count > 0]
    return max(ranges, key=lambda found: found[1], default=None)


def _entries(path: Path) -> list[tuple[str, int, int]]:
    """The lines of /etc/subuid or its like: owner, first id, number of ids."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    parts = (line.strip().split(":") for line in lines)
    return [(p[0], int(p[1]), int(p[2])) for p in parts if len(p) == 3 and p[1].isdigit() and p[2].isdigit()]


def _run(*argv: str) -> None:
    try:
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=True, env={})
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise NotMapped(UNAVAILABLE, f"{argv[0]}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(UNAVAILABLE, f"{argv[0]}: {error}") from error


def _exhausted(detail: str) -> SandboxError:
    return SandboxError(
        "This runner's machine has no uid left for this user; an administrator of the machine can give it more.", detail
    )
