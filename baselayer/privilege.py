"""What a process started by root does to be root no longer, or less of it than it could be.

It becomes an account of its own (`drop`), or stays root with a few of root's rights (`limit`). The checkout may lie
under a home folder that only root can enter: `expose` gives this process a private view of the file system in which
exactly the folders that are needed can be reached, and nobody else's view changes.
"""

from __future__ import annotations

import ctypes
import enum
import grp
import os
import pwd
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 4, 8, 38
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 23, 24, 47, 2


class Capability(enum.IntEnum):
    """Single rights of root's: those of capabilities(7) that something of ours needs, by the kernel's numbers."""

    CHOWN = 0
    DAC_READ_SEARCH = 2
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    MKNOD = 27


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


def name_of(account: Account) -> str | None:
    """The name by which this host knows the uid or gid of `account`; None where nobody has them."""
    try:
        return pwd.getpwuid(account.uid).pw_name
    except KeyError:
        pass
    try:
        return grp.getgrgid(account.gid).gr_name
    except KeyError:
        return None


def drop(account: Account, keep: Collection[Capability] = ()) -> None:
    """Become `account` for good: no supplementary groups, no capabilities but `keep`, and none to be gained.

    Until it runs another program, no process of the same account can look into this one. For a process of one thread.
    """
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    _bound(keep)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(account.uid, account.uid, account.uid)
    _set_capabilities(keep)
    for capability in keep:  # so that a program that is run has them as well
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def become(account: Account) -> None:
    """Become `account` for good, from a process that `limit` was called in: so no program gives rights back.

    For a process of one thread.
    """
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)  # with this all capabilities go
    _prctl(_PR_SET_DUMPABLE, 0)


def limit(keep: Collection[Capability], groups: Collection[int] = ()) -> None:
    """Stay root, but with no capabilities except `keep`, nor any program that is run from here; with these `groups`.

    What of `keep` root has not got here, as in many containers, is left out. For a process of one thread.
    """
    os.setgroups([*groups])
    _bound(keep)
    _set_capabilities([capability for capability in keep if _libc().prctl(_PR_CAPBSET_READ, capability) == 1])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


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


def _bound(keep: Collection[int]) -> None:
    """Take all capabilities but `keep` out of the bounding set, beyond which no program of this process can get."""
    libc, number = _libc(), 0
    while (there := libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(number))) >= 0:  # fails at the first unknown one
        if there and number not in keep:
            _prctl(_PR_CAPBSET_DROP, number)
        number += 1


def _set_capabilities(keep: Collection[int]) -> None:
    """Have exactly these: effective, permitted and inheritable."""
    low, high = (sum(1 << number - base for number in keep if base <= number < base + 32) for base in (0, 32))
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of this process
    if _libc().capset(header, (ctypes.c_uint32 * 6)(low, low, low, high, high, high)) != 0:
        _fail()


def _prctl(option: int, *values: int) -> None:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if _libc().prctl(option, *arguments) != 0:
        _fail()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _fail(what: str | None = None) -> None:
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error), what)


def _unshare_mounts() -> None:
    if _libc().unshare(_CLONE_NEWNS) != 0:
        _fail()
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _libc().mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        _fail(str(target))
