"""What a process started by root needs before it can do without root: an account, and a way to its files.

The checkout may lie under a home folder that only root can enter. `expose` then gives this process a private view of
the file system in which exactly the folders that are needed can be reached, and nobody else's view changes.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


@dataclass(frozen=True)
class Account:
    """A user and a group by number; they need no name on this host."""

    uid: int
    gid: int

    def can_enter(self, folder: Path) -> bool:
        """Whether the mode of `folder` itself lets this account pass through."""
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def named_account(*names: str) -> tuple[str, Account]:
    """The first of `names` that this host knows, and its numbers. Raises `LookupError` when it knows none."""
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return name, Account(entry.pw_uid, entry.pw_gid)
    raise LookupError(f"this host has none of the accounts {', '.join(names)}")


def drop(account: Account) -> None:
    """Become `account` for good, without supplementary groups."""
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)


def barrier(path: Path, account: Account) -> Path | None:
    """The outermost folder above `path` that `account` cannot enter, if there is one."""
    return next((folder for folder in reversed(path.parents) if not account.can_enter(folder)), None)


def expose(paths: Iterable[Path], account: Account) -> None:
    """Make sure that `account` can reach `paths` (resolved, existing) from this process and its children.

    Where a folder bars the way, an empty one is mounted over it in a mount namespace of this process's own, and each
    of `paths` is bound back at its own place: what else the folder holds stays out of reach, and out of sight.
    Their own modes still count. Does nothing when nothing bars the way. Raises `PermissionError` when the kernel
    refuses namespaces, as in most containers.
    """
    barred: dict[Path, list[Path]] = {}
    for path in paths:
        if (at := barrier(path, account)) is not None:
            barred.setdefault(at, []).append(path)
    if not barred:
        return
    try:
        _unshare_mounts()
        for folder, inside in barred.items():
            _cover(folder, sorted(inside))
    except OSError as error:
        named = ", ".join(map(str, barred))
        raise PermissionError(
            f"uid {account.uid} cannot pass through {named}, and a private view of it is not possible here "
            f"({error.strerror}): move the checkout and data_dir to where others may pass, or run as an ordinary user"
        ) from error


def _cover(folder: Path, inside: list[Path]) -> None:
    handles = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in inside]
    _mount("tmpfs", folder, "tmpfs", 0, "mode=0711,size=1m")
    for path, handle in handles:
        if path.is_relative_to(folder) and not path.exists():
            for above in reversed(path.parents):
                if not above.exists():
                    above.mkdir()
                    above.chmod(0o711)  # whatever the umask is
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                path.mkdir(mode=0o711)
            else:
                path.touch(mode=0o600)
            _mount(f"/proc/self/fd/{handle}", path, None, _MS_BIND | _MS_REC)
        os.close(handle)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare_mounts() -> None:
    if _libc().unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _libc().mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(target))
