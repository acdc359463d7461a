"""The few system calls that Python 3.11 has no function for. Each raises OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os

# PyDLL keeps the interpreter's lock, which the child of clone() then holds like its parent did.
_libc = ctypes.PyDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_CLONE_PIDFD = 0x1000

# Not from the signal module, which would double what the launcher imports.
SIGKILL, SIGTERM, SIGCHLD, SIGSTOP = 9, 15, 17, 19
SIGNALS = tuple(number for number in range(1, 65) if number not in (32, 33))  # those two are the C library's

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, _MS_MOVE, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x2000, 0x4000, 0x40000
_MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_PR_SET_NAME, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_CAPBSET_DROP = 15, 22, 2, 24

_X86_64 = os.uname().machine == "x86_64"
_CLONE, _PIVOT_ROOT, _CAPSET = (56, 155, 126) if _X86_64 else (220, 41, 91)  # else the numbers of all newer machines
_CLOSE_RANGE, _PIDFD_GETFD, _MOUNT_SETATTR = 436, 438, 442
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_TUNATTACHFILTER = 0x401054D5

CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_SETFCAP = 18, 21, 31
_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of this process

_long = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Moves this process into a namespace."""
    _check(_libc.setns(fd, kind), "setns")


def clone(flags: int) -> tuple[int, int]:
    """A fork into new namespaces. The parent gets the child's pid and a pidfd; the child gets 0 and -1.

    For a process of one thread: the C library and Python do not notice that they were forked.
    """
    pidfd = ctypes.c_int(-1)
    arguments = (_long(flags | _CLONE_PIDFD | SIGCHLD), _long(0), ctypes.byref(pidfd), _long(0), _long(0))
    pid = _check(_libc.syscall(_long(_CLONE), *arguments), "clone")
    return pid, pidfd.value if pid else -1


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), options) < 0:
        _check(-1, f"mount {os.fsdecode(target)}")


def lock_down(path: bytes, flags: int) -> None:
    """Adds mount flags (MS_RDONLY, MS_NOSUID, MS_NODEV: the same bits) to a mount and all below it. Linux 5.12."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    at_fdcwd, at_recursive = -100, 0x8000
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(_long(_MOUNT_SETATTR), at_fdcwd, path, at_recursive, attributes, size)
    _check(result, f"mount_setattr {os.fsdecode(path)}")


def change_root(path: bytes) -> None:
    """Makes the mount at `path` the root of this mount namespace, and lets go of all else."""
    os.chdir(path)
    _check(_libc.syscall(_long(_PIVOT_ROOT), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def cover_root() -> None:
    """Makes the mount that is the working directory this process's root, on top of the old one.

    Only who may mount, or change the root, could reach what is below. Unlike `change_root` it takes nothing away, for
    which the kernel would wait: see `remains`.
    """
    mount(b".", b"/", None, _MS_MOVE)
    os.chroot(".")


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), _long(0), _long(0), _long(0)), f"prctl {option}")


def end_with_parent(parent: int) -> None:
    """Has this process killed when its parent, or the thread there that started it, ends. Raises OSError if it has."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended")


def close_all_but(*kept: int) -> None:
    """Closes every descriptor above the standard streams, but not these."""
    # os.closerange() would do it one by one where Python was built for an old C library.
    first = 3
    for fd in (*sorted(kept), 0x7FFFFFFF):
        if first < fd:
            _check(_libc.syscall(_long(_CLOSE_RANGE), first, fd - 1, 0), "close_range")
        first = fd + 1


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy of another process's descriptor, for who could trace it."""
    return _check(_libc.syscall(_long(_PIDFD_GETFD), pidfd, number, 0), "pidfd_getfd")


def ignore_interrupts() -> None:
    """In place of Python's own handler of SIGINT, which would raise an exception anywhere."""
    sigint, sig_ign = 2, 1
    _libc.signal(sigint, _long(sig_ign))


def set_name(name: bytes) -> None:
    """What ps shows of this process."""
    _check(_libc.prctl(_PR_SET_NAME, name), "prctl")


def limit_capabilities(*kept: int) -> None:
    """Gives up all but these, of the first 32: no program that is run later can have any other."""
    drop = _libc.prctl
    for capability in range(64):
        if capability not in kept and drop(_PR_CAPBSET_DROP, capability):
            break  # the first that the kernel does not know
    mask = sum(1 << number for number in kept)
    _check(_libc.syscall(_long(_CAPSET), _CAPABILITIES, (ctypes.c_uint32 * 6)(mask, mask)), "capset")


def socket_scope() -> int | None:
    """A descriptor for `restrict`: no abstract socket is reached that another has made. Linux 6.12; None before."""
    version, scoped, abstract_unix_socket = 1, 6, 1
    if _libc.syscall(_long(_LANDLOCK_CREATE_RULESET), None, _long(0), _long(version)) < scoped:
        return None
    ruleset = (ctypes.c_uint64 * 3)(0, 0, abstract_unix_socket)  # of files, and of the network, nothing is restricted
    size = _long(ctypes.sizeof(ruleset))
    return _check(_libc.syscall(_long(_LANDLOCK_CREATE_RULESET), ruleset, size, _long(0)), "landlock")


def restrict(scope: int) -> None:
    """Puts this process and what it starts into a scope of their own, for ever. Needs "no new privileges"."""
    _check(_libc.syscall(_long(_LANDLOCK_RESTRICT_SELF), _long(scope), _long(0)), "landlock")


class Filter:
    """An array of ``struct sock_filter``, ready to be attached."""

    class _Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    def __init__(self, instructions: bytes) -> None:
        self._program = self._Program(len(instructions) // 8, instructions)
        self._address = ctypes.addressof(self._program)

    def attach_to_tap(self, fd: int) -> None:
        """In place of another one: what a tap hands out are only the frames for which the program returns not 0."""
        fcntl.ioctl(fd, _TUNATTACHFILTER, bytes(self._program))

    def attach(self) -> None:
        """As system call filter of this process, for ever. Needs "no new privileges"."""
        result = _libc.prctl(_PR_SET_SECCOMP, _long(_SECCOMP_MODE_FILTER), _long(self._address), _long(0), _long(0))
        _check(result, "seccomp")
