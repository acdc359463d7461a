"""The few system calls that Python 3.11 has no function for. Each raises OSError."""

from __future__ import annotations

import ctypes
import os
import platform

# PyDLL keeps the interpreter's lock, which the child of clone() then holds like its parent did.
_libc = ctypes.PyDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38

# pivot_root, mount_setattr, capset: by machine.
_PIVOT_ROOT, _CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}.get(platform.machine(), (-1, -1))
_MOUNT_SETATTR = 442


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text and text.encode() for text in (source, target, kind, options)]
    _check(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def lock_down(path: str, flags: int) -> None:
    """Adds mount flags (MS_RDONLY, MS_NOSUID, MS_NODEV: the same bits) to a mount and all below it."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    at_fdcwd, at_recursive = -100, 0x8000
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), at_fdcwd, path.encode(), at_recursive, attributes, ctypes.sizeof(attributes)
    )
    _check(result, f"mount_setattr {path}")


def become_root(path: str) -> None:
    """Makes the mount at `path` the root of this mount namespace, and lets go of all else."""
    os.chdir(path)
    _check(_libc.syscall(ctypes.c_long(_PIVOT_ROOT), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _check(_libc.syscall(ctypes.c_long(_CAPSET), header, (ctypes.c_uint32 * 6)()), "capset")
