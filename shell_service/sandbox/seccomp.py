"""The system call filter of a job, as the kernel's own program, built with libseccomp.

Refused are calls that reach into other processes, the kernel or namespaces. Known to break inside a job for it:
strace, gdb, rootless containers, io_uring, and 32-bit programs.
"""

from __future__ import annotations

import errno
import struct
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

# clone() with any of CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NAMESPACES = (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
IPPROTO_UDP, NETLINK_ROUTE = 17, 0
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_TYPE_MASK = 1, 2, 3, 0xF
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# The largest harmless one: UNAME26 of PER_LINUX32.
PERSONALITY = 0x20008

INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
LOAD_NUMBER, JUMP_IF_GE, RETURN = 0x20, 0x35, 0x06


def program(system_v: bool = True) -> bytes:
    """An array of ``struct sock_filter``; `system_v`: whether System V IPC is allowed.

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

    for name in EPERM:
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
    # Others, such as SCTP, have the kernel load modules, of which the host may know nothing else.
    for family in (AF_INET, AF_INET6):
        refuse("socket", errno.EPROTONOSUPPORT, (0, libseccomp.EQ, family), (2, libseccomp.GT, IPPROTO_UDP))
        for kind in set(range(SOCK_TYPE_MASK + 1)) - {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW}:  # DCCP; AF_PACKET's old name
            kind_is = (1, libseccomp.MASKED_EQ, SOCK_TYPE_MASK, kind)
            refuse("socket", errno.EPROTONOSUPPORT, (0, libseccomp.EQ, family), kind_is)
    refuse("socket", errno.EPROTONOSUPPORT, (0, libseccomp.EQ, AF_NETLINK), (2, libseccomp.NE, NETLINK_ROUTE))
    refuse("socketpair", errno.EAFNOSUPPORT, (0, libseccomp.NE, AF_UNIX))
    refuse("personality", errno.EPERM, (0, libseccomp.GT, PERSONALITY))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return UNKNOWN + file.read()


# libseccomp cannot say "from number N on", so this stands before its program. It answers x32 calls, too.
UNKNOWN = b"".join(
    (
        INSTRUCTION.pack(LOAD_NUMBER, 0, 0, 0),
        INSTRUCTION.pack(JUMP_IF_GE, 0, 1, NEWEST + 1),
        INSTRUCTION.pack(RETURN, 0, 0, 0x00050000 | errno.ENOSYS),  # SECCOMP_RET_ERRNO
    )
)
