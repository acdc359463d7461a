"""Inside a job's namespaces: the init, which raises the walls, waits for the word, runs the script and reports.

It stays pid 1 and keeps out of sight (not dumpable, and /proc hides what one may not trace), so that the script, pid 2,
has the signals of an ordinary process: a pid 1 ignores those it has no handler for, even its own. That also is how we
know an ``exit 137`` from a SIGKILL: it sees the script's true wait status.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # see `launcher` for these two
import _socket
import os
import resource
import select

from . import kernel, root
from .kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT
from .protocol import FAILED, GO, HELD, HELD_BODY, INT, KILL_ALL, MAX_MESSAGE, REPORT, REPORT_BODY, Setup, unpack_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
#: User and group inside, for every user alike.
UID = 1000
#: Processes and threads of one job. Node, Java and the like start some tens.
MAX_PROCESSES = 1024
#: Files in each of a job's file systems: one takes a kilobyte of kernel memory or so, which their sizes do not count.
MAX_FILES = 65536
MASKED = (b"proc/cmdline", b"proc/keys")


class Walls:
    """What is the same for all jobs of a launcher."""

    def __init__(self, setup: Setup, program: bytes) -> None:
        self.filter = kernel.Filter(program)
        #: In the init, its end of the job's socket. Made here, and there put on that descriptor.
        self.channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.launcher_died = select.poll()
        self.launcher_died.register(os.pidfd_open(os.getpid()))
        self.user, self.group = f"{UID} {os.getuid()} 1".encode(), f"{UID} {os.getgid()} 1".encode()
        owner = f"uid={UID},gid={UID},nr_inodes={MAX_FILES}"
        self.mounts = (
            (b"job", f"mode=0700,size={setup.job_size},{owner}".encode()),
            (b"tmp", f"mode=1777,size={setup.tmp_size},{owner}".encode()),
            (b"dev/shm", f"mode=1777,size={setup.shm_size},{owner}".encode()),
        )


def run(walls: Walls, descriptors: list[int]) -> NoReturn:
    """The life of the init. `descriptors`: the job's socket, its standard streams, and its order."""
    try:
        channel = walls.channel
        os.dup2(descriptors[0], channel.fileno(), False)
        try:
            argv, env, script = unpack_order(os.pread(descriptors[4], os.fstat(descriptors[4]).st_size, 0))
            held = HELD + _enter(walls)
            _build(walls, script)
            if not os.access(argv[0], os.X_OK):
                raise FileNotFoundError(f"no interpreter {os.fsdecode(argv[0])} in the sandbox")
            for number in range(3):
                os.dup2(descriptors[1 + number], number)
            _lock(walls)
            channel.sendmsg([held], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, INT.pack(os.pidfd_open(1)))])
            kernel.close_all_but(channel.fileno())
        except Exception as error:
            channel.send(FAILED + str(error).encode()[: MAX_MESSAGE - 1])
            os._exit(1)
        if channel.recv(1) == GO:  # else the runner has let go of it
            status = _run(argv, env)
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            channel.send(REPORT + REPORT_BODY.pack(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))
    finally:
        os._exit(0)


def _enter(walls: Walls) -> bytes:
    """Settles in the new namespaces; returns the body of HELD."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, kernel.SIGKILL)
    if walls.launcher_died.poll(0):
        raise ProcessLookupError("the launcher has died")
    os.setsid()
    kernel.set_name(b"job-init")
    fd = os.open("/proc/self/stat", os.O_RDONLY)  # of the host's /proc, so it has the pid that the runner knows
    pid, _, rest = os.read(fd, 1024).partition(b" ")
    os.close(fd)
    root.map_user(walls.user, walls.group)
    _write("/proc/self/oom_score_adj", b"1000")
    _write("/proc/sys/user/max_user_namespaces", b"0")  # no capability to raise it again outlives this function
    _socket.sethostname("job")
    return HELD_BODY.pack(int(pid), int(rest.rpartition(b")")[2].split()[19]))


def _build(walls: Walls, script: bytes) -> None:
    """The job's file systems."""
    kernel.mount(root.ROOT, root.ROOT, None, MS_BIND | MS_REC)
    os.chdir(root.ROOT)
    kernel.mount(b"proc", b"proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"hidepid=2")
    for path in MASKED:
        kernel.mount(b"dev/null", path, None, MS_BIND)
    for path, options in walls.mounts:
        kernel.mount(b"tmpfs", path, b"tmpfs", MS_NOSUID | MS_NODEV, options)
    kernel.mount(b"tmpfs", b"run/job", b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=0755")
    _write("run/job/script", script, os.O_CREAT | os.O_EXCL)
    kernel.mount(None, b"run/job", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    kernel.change_root(root.ROOT)
    os.chdir("/job")


def _lock(walls: Walls) -> None:
    """From here on this process can do no more than the script."""
    resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    walls.filter.attach()


def _run(argv: list[bytes], env: list[bytes]) -> int:
    """Runs the script; its wait status, once everything else that it started is gone."""
    _signal.signal(KILL_ALL, _kill_all)
    variables = dict(pair.split(b"=", 1) for pair in env)
    try:
        script = os.posix_spawn(argv[0], argv, variables, setsigmask=(), setsigdef=kernel.SIGNALS)
    except OSError as error:
        os.write(2, f"{os.fsdecode(argv[0])}: {error.strerror}\n".encode())
        return 126 << 8  # as a shell says of a command that it cannot run
    os.closerange(0, 3)  # so that readers see the end of a stream when the script has closed it
    result = None
    while True:
        try:
            pid, status = os.waitpid(-1, 0 if result is None else os.WNOHANG)
        except ChildProcessError:
            return result or 0
        if pid == script:
            result = status
        elif not pid:
            _kill_all()
            os.waitpid(-1, 0)


def _kill_all(*_: object) -> None:
    try:
        os.kill(-1, kernel.SIGKILL)
    except ProcessLookupError:
        pass  # they were faster


def _write(path: str, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o444)
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)
