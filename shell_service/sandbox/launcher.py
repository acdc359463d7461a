"""The launcher: a small process, one per user, that starts this user's jobs.

Run by the runner as a program of its own with nothing but a control socket (see `protocol`). It holds
the user's uid, a network namespace that only this user's jobs share, and a mount namespace with little but the jobs'
read-only root, so that what remains for each job is cheap. It imports nothing that it can do without.
"""

from __future__ import annotations

import array
import gc
import os
import resource
import select
import shlex
import signal
import socket
import traceback

from . import kernel, root
from .protocol import (
    ENDED, ENDED_BODY, FAILED, HELD, HELD_BODY, JOB, MAX_MESSAGE, READY, REPORT, REPORT_BODY, START, TERMINATE, Order,
    Setup,
)


GATE = 'echo R; IFS= read -r g <&3 || exit 125; [ "$g" = go ] || exit 125; exec 3<&- 4>&-; . /run/job/start; exit $?'


def main(fd: int) -> None:
    """Serves until the runner closes the control socket."""
    control = socket.socket(fileno=fd)
    data, descriptors = receive(control)
    try:
        setup = Setup.unpack(data)
        isolate(setup)
    except Exception:
        control.send(FAILED + traceback.format_exc().encode()[-4000:])
        return
    control.send(READY)
    Launcher(control, setup, descriptors[0]).serve()


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; an empty one is the end."""
    descriptors = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(8 * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC)
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    return data, list(descriptors)


def isolate(setup: Setup) -> None:
    """Leaves the host behind: namespaces, root, limits, uid."""
    runner = os.getppid()
    privileged = os.geteuid() == 0
    root.enter(privileged)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_FSIZE: setup.max_file,
        resource.RLIMIT_NOFILE: setup.max_open_files,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    if privileged:
        os.setgroups([])
        os.setresgid(setup.uid, setup.uid, setup.uid)
        os.setresuid(setup.uid, setup.uid, setup.uid)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != runner:
        raise ProcessLookupError("the runner has ended")
    gc.collect()
    gc.freeze()
    gc.disable()


class Job:
    def __init__(self, number: int, pid: int, sock: socket.socket, gate: int, status: int) -> None:
        self.number, self.pid, self.sock, self.gate, self.status = number, pid, sock, gate, status
        self.child = 0


class Launcher:
    def __init__(self, control: socket.socket, setup: Setup, seccomp: int) -> None:
        self.control, self.setup = control, setup
        # A copy of its own: the original's offset is shared with other launchers.
        self.seccomp = os.memfd_create("seccomp")
        os.write(self.seccomp, os.pread(seccomp, 1 << 20, 0))
        self.jobs: dict[int, Job] = {}
        self.poll = select.poll()

    def serve(self) -> None:
        wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(wake, select.POLLIN)
        self.poll.register(self.control, select.POLLIN)
        sockets: dict[int, Job] = {}
        while True:
            for fd, _ in self.poll.poll():
                if fd == wake:
                    os.read(wake, 4096)
                    self.reap()
                elif fd == self.control.fileno():
                    data, descriptors = receive(self.control)
                    if not data:
                        return
                    number = JOB.unpack(data[1:])[0]
                    if data[:1] == START:
                        self.start(number, descriptors)
                    elif data[:1] == TERMINATE:
                        for job in self.jobs.values():
                            if job.number == number:
                                os.killpg(job.child, signal.SIGTERM)
                else:
                    for job in self.jobs.values():
                        if job.sock.fileno() == fd:
                            self.poll.unregister(fd)
                            if job.sock.recv(16):
                                os.write(job.gate, b"go\n")
                            os.close(job.gate)
                            break

    def start(self, number: int, descriptors: list[int]) -> None:
        job_fd, stdin, stdout, stderr, order_fd = descriptors
        sock = socket.socket(fileno=job_fd)
        order = Order.unpack(os.pread(order_fd, os.fstat(order_fd).st_size, 0))
        start = b"exec " + b" ".join(shlex.quote(os.fsdecode(a)).encode("utf-8", "surrogateescape") for a in order.argv)
        start = start[5:] + b"\n"
        script_fd, start_fd = os.memfd_create("script"), os.memfd_create("start")
        os.write(script_fd, order.script)
        os.write(start_fd, start)
        os.lseek(script_fd, 0, 0)
        os.lseek(start_fd, 0, 0)
        os.lseek(self.seccomp, 0, 0)
        gate_r, gate_w = os.pipe()
        ready_r, ready_w = os.pipe()
        status_r, status_w = os.pipe()
        args = f"""--unshare-user --unshare-ipc --unshare-pid --unshare-uts --unshare-cgroup-try --disable-userns
            --uid 1000 --gid 1000 --hostname job --die-with-parent --new-session --as-pid-1 --cap-drop ALL
            --dev-bind {root.ROOT} / --proc /proc --ro-bind {root.ROOT}/dev/null /proc/cmdline --ro-bind {root.ROOT}/dev/null /proc/keys
            --size {self.setup.shm_size} --perms 1777 --tmpfs /dev/shm
            --size {self.setup.tmp_size} --perms 1777 --tmpfs /tmp --size {self.setup.job_size} --perms 0700 --tmpfs /job
            --tmpfs /run/job --perms 0444 --ro-bind-data 10 /run/job/script --perms 0444 --ro-bind-data 11 /run/job/start
            --remount-ro /run/job --chdir /job --seccomp 12 --json-status-fd 13 --clearenv""".encode().split()
        for pair in order.env:
            name, _, value = pair.partition(b"=")
            args += [b"--setenv", name, value]
        args_fd = os.memfd_create("args")
        os.write(args_fd, b"\0".join(args) + b"\0")
        os.lseek(args_fd, 0, 0)
        actions = [
            (os.POSIX_SPAWN_DUP2, old, 20 + new)
            for old, new in ((stdin, 0), (stdout, 1), (stderr, 2), (gate_r, 3), (ready_w, 4), (script_fd, 10),
                             (start_fd, 11), (self.seccomp, 12), (status_w, 13), (args_fd, 14))
        ] if False else []
        pairs = [(stdin, 0), (stdout, 1), (stderr, 2), (gate_r, 3), (ready_w, 4), (script_fd, 10), (start_fd, 11),
                 (self.seccomp, 12), (status_w, 13), (args_fd, 14)]
        import fcntl
        high = [(fcntl.fcntl(old, fcntl.F_DUPFD_CLOEXEC, 100), new) for old, new in pairs]
        actions = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in high]
        gate = GATE.replace("echo R;", "echo R >&4;")
        pid = os.posix_spawn("/usr/bin/bwrap", ["bwrap", "--args", "14", "--", "/bin/sh", "-c", gate, "sh"], {},
                             file_actions=actions)
        for fd in (stdin, stdout, stderr, order_fd, script_fd, start_fd, gate_r, ready_w, status_w, args_fd, *(old for old, _ in high)):
            os.close(fd)
        job = self.jobs[pid] = Job(number, pid, sock, gate_w, status_r)
        line = os.read(status_r, 4096)
        if b"child-pid" in line and os.read(ready_r, 2) == b"R\n":
            job.child = int(line.split(b'"child-pid":')[1].split(b",")[0])
            pidfd = os.pidfd_open(job.child)
            with open(f"/proc/{job.child}/stat", "rb") as file:
                start_time = int(file.read().rpartition(b")")[2].split()[19])
            socket.send_fds(sock, [HELD + HELD_BODY.pack(job.child, start_time)], [pidfd])
            os.close(pidfd)
            self.poll.register(sock, select.POLLIN)
        else:
            sock.send(FAILED + b"bwrap failed")
            os.close(gate_w)
        os.close(ready_r)

    def reap(self) -> None:
        while self.jobs:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            job = self.jobs.pop(pid, None)
            if job is None:
                continue
            rest = os.read(job.status, 4096)
            os.close(job.status)
            result = (usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
            if b"exit-code" in rest:
                code = int(rest.split(b'"exit-code":')[1].split(b"}")[0])
                try:
                    job.sock.send(REPORT + REPORT_BODY.pack(code - 128 if code > 128 else code << 8, *result))
                except OSError:
                    pass
            try:
                self.poll.unregister(job.sock)
            except KeyError:
                pass
            job.sock.close()
            self.control.send(ENDED + ENDED_BODY.pack(job.number, status, *result))
