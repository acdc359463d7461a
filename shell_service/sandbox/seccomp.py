"""The system call filter of a job, as the kernel's own program, built with libseccomp.

Refused are calls that reach into other processes, the kernel or namespaces. Known to break inside a job for it:
strace, gdb, rootless containers, io_uring, 32-bit programs, and, where it may begin no sessions, setsid.
"""

from __future__ import annotations

import errno
import struct
import sys
import tempfile

# The newest call known to be harmless or listed below: set_mempolicy_home_node (Linux 5.17); numbers are alike on all
# 64-bit machines from 424 on. Programs fall back when a newer one "is not implemented".
NEWEST = 450

EPERM = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "kcmp",
    "process_madvise",
    "add_key",
    "request_key",
    "keyctl",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "swapon",
    "swapoff",
    "name_to_handle_at",
    "open_by_handle_at",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "quotactl",
    "quotactl_fd",
    "acct",
    "syslog",
    "lookup_dcookie",
    "nfsservctl",
    "vhangup",
    "reboot",
    "mbind",
    "set_mempolicy",
    "get_mempolicy",
    "migrate_pages",
    "move_pages",
    "set_mempolicy_home_node",
    "clock_settime",
    "clock_adjtime",
    "settimeofday",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "iopl",
    "ioperm",
    "modify_ldt",
    "fanotify_init",
    "memfd_secret",
    # What a job may use of processors and disks is not its own to say.
    "sched_setaffinity",
    "ioprio_set",
]
ENOSYS = [
    "clone3",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "io_setup",  # of these the whole machine has a fixed number
]
SYSTEM_V = ["shmget", "msgget", "semget"]
SESSIONS = ["setsid"]

# clone() with any of CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NAMESPACES = (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_TYPE_MASK = 1, 2, 3, 0xF
IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP = 1, 6, 17
#: Types and protocols of internet sockets that there may be; raw ones any, as the kernel gives jobs none of these.
INTERNET = (
    (SOCK_STREAM, 0), (SOCK_STREAM, IPPROTO_TCP),
    (SOCK_DGRAM, 0), (SOCK_DGRAM, IPPROTO_UDP), (SOCK_DGRAM, IPPROTO_ICMP),
)  # fmt: skip
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# The largest harmless one: UNAME26 of PER_LINUX32.
PERSONALITY = 0x20008

INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
#: linux/filter.h: A := data[k]; jumps relative to the next instruction; A := A op k, or X; X := A; return k.
LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER, JUMP_IF_GE, RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
AND, SHIFT_LEFT, OR_X, TO_X = 0x54, 0x64, 0x4C, 0x07
#: Of struct seccomp_data: the call's number, and the 32 bits of the first argument at which the kernel looks.
NUMBER, ARGUMENT = 0, 16 if sys.byteorder == "little" else 20
ERRNO = 0x00050000  # SECCOMP_RET_ERRNO


def program(system_v: bool = True, sessions: bool = True) -> bytes:
    """An array of ``struct sock_filter``; whether System V IPC is allowed, and to begin a session.

    Raises ImportError, OSError or RuntimeError where libseccomp is not there or cannot do what is needed.
    """
    import pyseccomp as libseccomp

    rules = libseccomp.SyscallFilter(libseccomp.ALLOW)
    rules.set_attr(libseccomp.Attr.ACT_BADARCH, libseccomp.KILL_PROCESS)
    rules.set_attr(libseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree: half the cost of attaching it

    def refuse(name: str, code: int, *conditions: tuple[int, ...]) -> None:
        # A call that this machine has not (iopl on arm64, say) needs no rule.
        if libseccomp.resolve_syscall(libseccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule_exactly(libseccomp.ERRNO(code), name, *(libseccomp.Arg(*c) for c in conditions))

    for name in (*EPERM, *(() if sessions else SESSIONS)):
        refuse(name, errno.EPERM)
    for name in (*ENOSYS, *(() if system_v else SYSTEM_V)):
        refuse(name, errno.ENOSYS)
    for flag in NAMESPACES:
        refuse("clone", errno.EPERM, (0, libseccomp.MASKED_EQ, flag, flag))
    # The kernel reads 32 bits of a request, so high ones must not hide it.
    for request in (TIOCSTI, TIOCLINUX):
        refuse("ioctl", errno.EPERM, (1, libseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    # All 64 bits are compared here: with high ones set, no family is allowed.
    for family in set(range(AF_NETLINK)) - {AF_UNIX, AF_INET, AF_INET6}:
        refuse("socket", errno.EAFNOSUPPORT, (0, libseccomp.EQ, family))
    refuse("socket", errno.EAFNOSUPPORT, (0, libseccomp.GT, AF_NETLINK))
    refuse("socket", errno.EPROTONOSUPPORT, (0, libseccomp.EQ, AF_NETLINK), (2, libseccomp.NE, NETLINK_ROUTE))
    refuse("socketpair", errno.EAFNOSUPPORT, (0, libseccomp.NE, AF_UNIX))
    refuse("personality", errno.EPERM, (0, libseccomp.GT, PERSONALITY))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return (
            _unknown_calls()
            + _internet_sockets(libseccomp.resolve_syscall(libseccomp.Arch.NATIVE, "socket"))
            + file.read()
        )


def _unknown_calls() -> bytes:
    """Stands before libseccomp's program, which cannot say "from number N on". It answers x32 calls, too."""
    return _packed(
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_GE, 0, 1, NEWEST + 1),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    )


def _internet_sockets(call: int) -> bytes:
    """Stands there, too: libseccomp would take many more instructions for it, and each job has them loaded.

    For any other type and protocol the kernel starts a program of the host to look for a module: more of the kernel
    than jobs need, and work that is nobody's.
    """
    pairs = [kind << 8 | protocol for kind, protocol in INTERNET]
    raw = [(JUMP_IF_GE, 0, 1, SOCK_RAW << 8), (JUMP_IF_GE, 0, len(pairs) + 1, (SOCK_RAW + 1) << 8)]
    check = [
        (LOAD, 0, 0, ARGUMENT),
        (JUMP_IF_EQUAL, 1, 0, AF_INET),
        (JUMP_IF_EQUAL, 0, len(pairs) + len(raw) + 8, AF_INET6),
        (LOAD, 0, 0, ARGUMENT + 8),
        (AND, 0, 0, SOCK_TYPE_MASK),
        (SHIFT_LEFT, 0, 0, 8),
        (TO_X, 0, 0, 0),
        (LOAD, 0, 0, ARGUMENT + 16),
        (JUMP_IF_GREATER, len(pairs) + len(raw) + 1, 0, 0xFF),
        (OR_X, 0, 0, 0),
        *raw,
        *((JUMP_IF_EQUAL, len(pairs) - n, 0, pair) for n, pair in enumerate(pairs)),
        (RETURN, 0, 0, ERRNO | errno.EPROTONOSUPPORT),
    ]
    return _packed((JUMP_IF_EQUAL, 0, len(check), call), *check)


def _packed(*lines: tuple[int, int, int, int]) -> bytes:
    return b"".join(INSTRUCTION.pack(*line) for line in lines)
