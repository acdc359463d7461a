"""What keeps a job in: namespaces, file systems, limits, and the filter of system calls. Raised by its init."""

from __future__ import annotations

import _socket
import os
import resource

from . import kernel, root
from .kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT
from .protocol import FOLDERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .protocol import Order, Setup

#: User and group inside, for every user alike.
UID = 1000
#: Files in each of a job's file systems: one takes a kilobyte of kernel memory or so, which their sizes do not count.
MAX_FILES = 65536
MASKED = (b"proc/cmdline", b"proc/keys", b"proc/kallsyms")
#: Above the nice values of the service itself, its runners' too, so that it answers whatever jobs do.
NICE = 10
#: What a job may have of things that the kernel counts by user, of which other jobs of this one need some, too.
COUNTS = (("max_user_namespaces", b"0"), ("max_inotify_instances", b"32"), ("max_inotify_watches", b"8192"))
#: Of System V IPC: queues of messages, each of which holds 16 KiB, and semaphores.
SYSTEM_V = (("msgmni", b"32"), ("sem", b"250 4096 32 64"))


class Walls:
    """The walls around each job of a launcher.

    The init calls `enclose`, then `lock`, when told to go `begin`, and at the end `leave`. Then the launcher calls
    `clean_up`.
    """

    #: The new namespaces that an init begins in. They belong to the launcher's user namespace, of which the job, in
    #: one of its own below it, holds no part.
    namespaces = (
        kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
    )

    #: What the kernel sends to an init whose launcher has died: with the init all of its pid namespace goes.
    death_signal = kernel.SIGKILL

    def __init__(self, setup: Setup, programs: Sequence[bytes]) -> None:
        """`programs`: the system call filter, and one that also refuses System V IPC."""
        self._filter, self._filter_system_v = map(kernel.Filter, programs)
        # A user's jobs share a network namespace, and in it abstract sockets. Through one, a job could hand over files,
        # and what they hold of memory would outlive it, in a job that does not pay for it.
        self._scope = kernel.socket_scope()
        self._mounts = (
            (b"tmp", f"mode=1777,nr_inodes={MAX_FILES},size={setup.tmp_size}".encode()),
            (b"dev/shm", f"mode=1777,nr_inodes={MAX_FILES},size={setup.shm_size}".encode()),
        )
        page, shared = os.sysconf("SC_PAGE_SIZE"), setup.shm_size  # as much as there: it is no process's memory either
        self._system_v = (("shmall", b"%d" % -(-shared // page)), *SYSTEM_V)

    def enclose(self, order: Order) -> Sequence[int]:
        """Leaves all but the job's own files; returns descriptors of `FOLDERS`, and one of all that is mounted."""
        _socket.sethostname("job")
        if not self._limit_system_v():
            self._filter = self._filter_system_v
        mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        self._host_proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        os.chdir(root.ROOT)
        # Read-only: else a job could make itself the last that the kernel ends where memory is short.
        kernel.mount(b"proc", b"proc", b"proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, b"hidepid=4")
        for path in MASKED:
            kernel.mount(b"dev/null", path, None, MS_BIND)
        job = f"mode=0700,nr_inodes={MAX_FILES},size={order.disk}".encode()
        for path, options in ((b"job", job), *self._mounts):
            kernel.mount(b"tmpfs", path, b"tmpfs", MS_NOSUID | MS_NODEV, options)
        kernel.mount(b"tmpfs", b"run/job", b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=0755")
        root.write("run/job/script", order.script, 0o444)
        if order.secrets:
            os.mkdir("run/job/secrets", 0o700)
            for name, value in order.secrets.items():
                root.write(b"run/job/secrets/" + name, value, 0o400)
        if order.layer:
            kernel.mount(root.LAYERS + b"/" + order.layer, b"run/packages", None, MS_BIND)  # as read-only as that
        kernel.mount(None, b"run/job", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        kernel.cover_root()
        os.chdir("/job")
        return [*(os.open(path, os.O_PATH) for path in FOLDERS), mounts]

    def lock(self, order: Order) -> None:
        """From here on this process can do no more than the script."""
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else its files in /proc are not its own
        root.map_user(UID, 0, 0, self._host_proc)
        root.write("self/oom_score_adj", b"1000", at=self._host_proc)
        for name, value in COUNTS:
            root.write(f"sys/user/{name}", value, at=self._host_proc)
        if order.processors:
            os.sched_setaffinity(0, order.processors)
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        for number, pair in order.limits.items():  # in the new user namespace, as processes are counted by these
            resource.setrlimit(number, pair)
        if self._scope is not None:
            kernel.restrict(self._scope)
        kernel.limit_capabilities()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        self._filter.attach()

    def begin(self, order: Order) -> None:
        """All is there."""

    def kill_all(self) -> None:
        """Kills all but this process, from within its pid namespace."""
        try:
            os.kill(-1, kernel.SIGKILL)
        except ProcessLookupError:
            pass  # they were faster

    def leave(self) -> None:
        """The kernel takes all away."""

    def clean_up(self, init: int, others: Collection[int]) -> None:
        """The kernel has taken all away."""

    def _limit_system_v(self) -> bool:
        """False where the kernel lets nobody do it but the host's root."""
        try:
            for name, value in self._system_v:
                root.write(f"/proc/sys/kernel/{name}", value)
        except PermissionError:
            return False
        return True
