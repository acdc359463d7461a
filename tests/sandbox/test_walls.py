"""The walls, each tried from inside. The system call filter is tried in `tests/attacks/test_j29_system_calls.py`."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
from pathlib import Path

import pytest

from shell_service.sandbox import SandboxError
from shell_service.sandbox.protocol import AUTOGROUP
from tests.sandbox.support import (
    OPTIONS,
    PYTHON,
    SCOPED,
    command,
    execute,
    fails,
    finish,
    job,
    lines,
    parent,
    read_line,
    run,
    sandbox,
)


def status_of(pid: int) -> dict[str, str]:
    pairs = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_who_one_is() -> None:
    status = dict(line.split(":\t", 1) for line in lines("cat /proc/self/status") if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{kind}"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert lines("id -un; hostname; pwd; cat /proc/self/oom_score_adj; umask") == ["job", "job", "/job", "1000", "0022"]


def expected_ids(kind: str, user: int) -> tuple[set[str], set[str]]:
    """The uid and gid that this machine is to see of a user's jobs."""
    if kind == "own":
        return ({str(OPTIONS.uid_base + user)},) * 2
    if kind == "shared":
        return {str(os.geteuid())}, {str(os.getegid())}
    name = pwd.getpwuid(os.geteuid()).pw_name
    texts = (Path("/etc", file).read_text() for file in ("subuid", "subgid"))
    first = [int(line.split(":")[1]) for text in texts for line in text.splitlines() if line.startswith(f"{name}:")]
    return {str(first[0] + user)}, {str(first[1] + user)}


def script_of(pid: int) -> int:
    """The only child of a job's init."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@pytest.mark.skipif(not Path(AUTOGROUP).exists(), reason="here sessions do not share the processors")
@pytest.mark.parametrize(("groups", "said"), [(False, b"1 Operation not permitted\n"), (True, b"0\n")])
def test_sessions_are_for_jobs_whose_processors_control_groups_share(groups: bool, said: bytes) -> None:
    async def main() -> None:
        async with sandbox(groups) as made:
            script = "why=$(setsid true 2>&1); echo $? ${why##*: }"
            assert (await execute(await made.prepare(1), script)).stdout == said

    run(main())


def test_each_user_has_a_uid_of_its_own_where_that_can_be() -> None:
    async def main() -> None:
        async with sandbox() as made:
            kind = made.facts()["uids"]
            for user in (1, 2):
                process = await (await made.prepare(user)).start(command("/bin/sh", b"echo; exec sleep 1000"))
                process.go()
                await read_line(process.stdout)
                seen = [status_of(pid) for pid in (script_of(process.pid), process.pid, parent(process.pid))]
                process.kill()
                await finish(process)
                uids, gids, groups = ({n for s in seen for n in s[key].split()} for key in ("Uid", "Gid", "Groups"))
                assert (uids, gids) == expected_ids(kind, user)
                assert groups == set() or kind == "shared"

    groups = os.getgroups()
    if os.geteuid() == 0:
        os.setgroups([OPTIONS.uid_base - 1])  # which no job is to have
    try:
        run(main())
    finally:
        if os.geteuid() == 0:
            os.setgroups(groups)


def test_no_uid_is_left_for_a_user_beyond_the_range() -> None:
    async def main() -> None:
        async with sandbox(uid_base=2**32 - 10) as made:
            assert made.facts()["uids"] == "shared" or await made.prepare(3)
            beyond = 100_000_000 if os.geteuid() else 9
            if made.facts()["uids"] != "shared":
                with pytest.raises(SandboxError, match="no uid left for this user"):
                    await made.prepare(beyond)

    run(main())


def test_what_there_is() -> None:
    linked = {name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32") if Path("/", name).exists()}
    assert set(lines("ls /")) == {"dev", "etc", "job", "proc", "run", "tmp", "usr", "var"} | linked
    assert set(lines("ls /etc /etc/ssl /run /var /dev /dev/shm /tmp /job")) <= {
        "/etc:", "alternatives", "group", "hosts", "ld.so.cache", "localtime", "nsswitch.conf", "passwd", "ssl",
        "/etc/ssl:", "certs", "/run:", "job", "packages", "/var:", "tmp", "/dev:", "fd", "full", "null", "random",
        "shm", "stderr",
        "stdin", "stdout", "tty", "urandom", "zero", "/dev/shm:", "/tmp:", "/job:", "",
    }  # fmt: skip
    assert lines("ls -A /job /tmp /dev/shm | grep -v : | tr -d '\\n'") == []


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/root", "/home", "/sys", "/run/systemd", "/var/log", "/var/lib", "/dev/mem", "/dev/kvm",
             "/dev/pts", "/dev/ptmx", __file__],
)  # fmt: skip
def test_what_there_is_not(path: str) -> None:
    assert "No such file" in fails(f"exec ls -d {path}")


@pytest.mark.parametrize(
    "path", ["/x", "/usr/x", "/usr/bin/env", "/etc/x", "/etc/passwd", "/dev/x", "/run/x", "/run/job/x",
             "/run/packages/x",
             "/var/x", "/bin/x", "/etc/ssl/certs/x"],
)  # fmt: skip
def test_what_cannot_be_written(path: str) -> None:
    complaint = fails(f"echo > {path}")
    # What exists belongs to another or has no write bit, which is looked at first.
    assert "Read-only file system" in complaint or (Path(path).exists() and "denied" in complaint)


@pytest.mark.parametrize(
    "path", ["kernel/core_pattern", "kernel/hostname", "user/max_user_namespaces", "vm/swappiness"]
)
def test_kernel_settings_cannot_be_written(path: str) -> None:
    assert "Read-only file system" in fails(f"echo 1 > /proc/sys/{path}")


def test_the_script_cannot_be_swapped() -> None:
    assert "Read-only file system" in fails("rm /run/job/script")
    assert "Read-only file system" in fails("chmod u+w /run/job/script")
    assert "Read-only file system" in fails("mv /run/job/script /run/job/old")


def test_no_mount_lets_one_rise_or_write() -> None:
    writable = {"/job", "/tmp", "/dev/shm"}
    for line in lines("cat /proc/self/mountinfo"):
        where, options = line.split()[4], set(line.split()[5].split(","))
        assert "nosuid" in options, line
        assert ("rw" in options) == (where in writable), line
        with_devices = where in ("/", "/proc/cmdline", "/proc/keys", "/proc/kallsyms") or where.startswith("/dev/")
        assert "nodev" in options or with_devices, line


def test_only_its_own_processes_are_there() -> None:
    assert set(lines("ls /proc | grep '^[0-9]' | sort -n")) <= {"2", "3", "4", "5"}
    assert fails("ls /proc/1/")
    assert "No such process" in fails(f"kill -0 {os.getpid()}")


def test_the_init_is_out_of_reach() -> None:
    code = """
import os
for name in ("mem", "environ", "maps", "cmdline", "fd", "root"):
    try:
        os.stat(f"/proc/1/{name}")
    except OSError as error:
        continue
    print("there:", name)
"""
    assert lines(code, PYTHON) == []


def test_another_jobs_processes_are_not_there() -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            first = await launcher.start(command("/bin/sh", b"echo; exec sleep 1000"))
            first.go()
            await read_line(first.stdout)
            other = await execute(launcher, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 -1; exit 0")
            assert b"sleep" not in other.stdout
            first.terminate()
            assert (await finish(first)).exit.signal == signal.SIGTERM

    run(main())


def test_standard_input_cannot_be_filled() -> None:
    ran = job("echo more >> /dev/stdin; cat", stdin=b"once\n")
    assert ran.stdout == b"once\n"
    assert b"echo" in ran.stderr  # an error


def test_only_the_standard_streams_are_open() -> None:
    code = "import os\nfor fd in range(300):\n try: os.fstat(fd); print(fd)\n except OSError: pass"
    assert lines(code, PYTHON) == ["0", "1", "2"]


def in_sight(secret: str, *pids: int) -> list[Path]:
    """Where a text is seen: in any process's arguments, or in the environment of these."""
    found = []
    for path in (*(Path(f"/proc/{pid}/environ") for pid in pids), *Path("/proc").glob("[0-9]*/cmdline")):
        # The init's is for root's eyes only; and other processes of this machine come and go.
        with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
            if secret.encode() in path.read_bytes():
                found.append(path)
    return found


def test_no_secret_is_in_sight_of_the_host_or_the_next_job() -> None:
    secret = os.urandom(16).hex()

    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            os.environ["SERVICE_SECRET"] = f"service{secret}"
            process = await launcher.start(
                command("/bin/sh", f"# script{secret}\necho; exec sleep 1000".encode(), env={"TOKEN": f"token{secret}"})
            )
            for moment in ("held", "running"):
                assert in_sight(secret, process.pid, parent(process.pid)) == [], moment
                if moment == "held":
                    process.go()
                    await read_line(process.stdout)
            process.kill()
            await finish(process)
            ran = await execute(launcher, "env; cat /proc/*/environ; ls -R /job /tmp /run")
            assert secret.encode() not in ran.stdout

    try:
        run(main())
    finally:
        del os.environ["SERVICE_SECRET"]


def test_secrets_are_files_of_the_job_alone() -> None:
    secret = os.urandom(16).hex()
    script = """
cd /run/job/secrets; ls; cat KEY; wc -c < BINARY; stat -c '%a %u %n' . *
for f in KEY new; do (echo x > $f) 2>/dev/null && echo written; done; chmod 600 KEY 2>/dev/null && echo changed
grep -lFf KEY /proc/*/environ /proc/*/cmdline
"""
    secrets = {"KEY": secret.encode() + b"\n", "BINARY": b"\0\xff" * 5000}
    expected = ["BINARY", "KEY", secret, "10000", "700 1000 .", "400 1000 BINARY", "400 1000 KEY"]
    assert job(script, secrets=secrets).stdout.decode().splitlines() == expected
    assert "No such file" in fails("ls /run/job/secrets")

    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            first = await launcher.start(command("/bin/sh", b"echo; exec sleep 1000", secrets={"KEY": secret.encode()}))
            first.go()
            await read_line(first.stdout)
            assert in_sight(secret, first.pid, parent(first.pid)) == []
            other = await execute(launcher, "ls -R /run; cat /run/job/secrets/* /proc/*/root/run/job/secrets/*")
            shown = [b"/run:", b"job", b"packages", b"/run/job:", b"script", b"/run/packages:"]
            assert other.stdout.split() == shown
            first.kill()
            await finish(first)

    run(main())


def test_nothing_carries_over_between_jobs() -> None:
    make = """
import ctypes, os
for name in ("/job/x", "/tmp/x", "/dev/shm/x"):
    open(name, "w").close()
assert ctypes.CDLL(None).shmget(0x1234, 4096, 0o1666) >= 0
"""
    look = """
import ctypes, os
print([os.listdir(d) for d in ("/job", "/tmp", "/dev/shm")], ctypes.CDLL(None).shmget(0x1234, 4096, 0))
"""

    async def main() -> bytes:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            assert (await execute(launcher, make, PYTHON)).exit.return_code == 0
            return (await execute(launcher, look, PYTHON)).stdout

    assert run(main()) == b"[[], [], []] -1\n"


def test_the_host_cannot_be_reached_by_network() -> None:
    name = f"shell-service-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(f"\0{name}")
        unix.listen()
        code = f"""
import socket
def attempt(family, address):
    try:
        socket.socket(family).connect(address)
        return "connected"
    except OSError as error:
        return error.strerror
print(attempt(socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]})))
print(attempt(socket.AF_UNIX, "\\0{name}"))
print(attempt(socket.AF_INET, ("169.254.169.254", 80)))
print(attempt(socket.AF_INET6, ("2001:db8::1", 80)))
print(*(name for _, name in socket.if_nameindex()))
"""
        refused, unreachable = "Connection refused", "Network is unreachable"
        assert lines(code, PYTHON)[:4] == [refused, refused, unreachable, unreachable]
        assert "lo" in lines(code, PYTHON)[4].split()


def test_users_do_not_share_a_network_and_ones_own_jobs_find_their_ports_free() -> None:
    serve = """
import socket
server = socket.socket()
server.bind(("127.0.0.1", 7777))
server.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0meet")
abstract.listen()
print("up", flush=True)
connection = server.accept()[0]
connection.sendall(b"x")
connection.close()  # first, so that TIME_WAIT is on this side
"""
    visit = """
import socket
for family, address in ((socket.AF_UNIX, "\\0meet"), (socket.AF_INET, ("127.0.0.1", 7777))):
    try:
        s = socket.socket(family)
        s.connect(address)
        print("reached")
        while family == socket.AF_INET and s.recv(10):
            pass
    except OSError as error:
        print(error.strerror)
"""

    async def main() -> None:
        async with sandbox() as made:
            mine, yours = await made.prepare(1), await made.prepare(2)
            server = await mine.start(command(PYTHON, serve.encode()))
            server.go()
            await read_line(server.stdout)
            refused = b"Connection refused\n" * 2
            assert (await execute(yours, visit, PYTHON)).stdout == refused
            # Abstract sockets could hand over files, and with them memory that outlives the job that pays for it.
            assert (await execute(mine, visit, PYTHON)).stdout == SCOPED + b"reached\n"
            assert (await finish(server)).exit.return_code == 0
            again = await mine.start(command(PYTHON, serve.encode()))
            again.go()
            await read_line(again.stdout)  # the port is free at once: no TIME_WAIT
            again.kill()
            await finish(again)

    run(main())


@pytest.mark.parametrize("kind", ["user", "pid", "mnt", "ipc", "uts", "cgroup", "net"])
def test_each_namespace_is_another(kind: str) -> None:
    async def main() -> tuple[str, str, str]:
        async with sandbox() as made:
            script = f"readlink /proc/self/ns/{kind}; exec sleep 1000".encode()
            jobs = [await (await made.prepare(user)).start(command("/bin/sh", script)) for user in (1, 2)]
            for process in jobs:
                process.go()
            first, second = [(await read_line(process.stdout)).decode().strip() for process in jobs]
            for process in jobs:
                process.kill()
                await finish(process)
            return os.readlink(f"/proc/self/ns/{kind}"), first, second

    assert len(set(run(main()))) == 3


def test_a_users_path_is_in_no_mount() -> None:
    text = "\n".join(lines("cat /proc/self/mountinfo /proc/mounts"))
    assert str(Path.cwd()) not in text
    assert str(OPTIONS.uid_base) not in lines("cat /proc/self/uid_map")[0].split()[:1]


def test_ordinary_programs_work() -> None:
    code = """
import subprocess, tempfile, threading
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.check_output(["sh", "-c", "echo child | cat"], text=True).strip())
tempfile.mkdtemp()
"""
    assert lines(code, PYTHON) == ["thread", "child"]
    assert lines("cat <(echo x)", "/bin/bash") == ["x"]
    assert lines("perl -e 'print 6*7'") == ["42"] if Path("/usr/bin/perl").exists() else True
