"""What each process of the running service may do: no more than it needs, above all where root has started it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg2
import pytest

from baselayer import keyhole, privilege, supervision
from baselayer.config import ConfigError
from baselayer.privilege import Account, Capability
from services import layout
from services.runner.__main__ import RIGHTS
from shell_service.output import OutputStore
from shell_service.sandbox import kill_leftover
from shell_service.settings import ROOT, Settings
from tests.operations.test_postgres import in_child
from tests.sandbox import support
from tests.stack import Stack, write_config
from tests.waiting import eventually

AS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not AS_ROOT, reason="without root there is nothing to give up")


@dataclass(frozen=True)
class Process:
    """What `/proc` says of a process's rights; capabilities as bits, in the order of capabilities(7)' text."""

    pid: int

    @property
    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def ids(self) -> set[str]:
        return {*self.status["Uid"].split(), *self.status["Gid"].split()}

    def groups(self) -> list[int]:
        return [int(number) for number in self.status["Groups"].split()]

    def capabilities(self) -> set[int]:
        """All that it has in any set, or could get."""
        bits = 0
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            bits |= int(self.status[name], 16)
        return {number for number in range(64) if bits >> number & 1}

    def gains_nothing(self) -> bool:
        return self.status["NoNewPrivs"] == "1"

    def is_dumpable(self) -> bool:
        """Whether others of its account may look into it: if not, its files in /proc are root's."""
        return Path(f"/proc/{self.pid}/environ").stat().st_uid != 0

    def read(self, name: str) -> bytes:
        """A file of its in /proc: empty when it has ended, or is in a sandbox, into which only root can look."""
        try:
            return Path(f"/proc/{self.pid}/{name}").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return b""
        except PermissionError:
            assert not AS_ROOT
            return b""

    def descriptors(self) -> list[str]:
        """What it has open; nothing where `read` would be empty."""
        found = []
        try:
            for link in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    found.append(os.readlink(link))
        except (FileNotFoundError, ProcessLookupError):
            return []
        except PermissionError:
            assert not AS_ROOT
        return found

    def below(self) -> list[Process]:
        """Itself and all its descendants."""
        found = [self]
        for process in found:
            with suppress(FileNotFoundError, ProcessLookupError):
                for thread in Path(f"/proc/{process.pid}/task").iterdir():
                    found += [Process(int(pid)) for pid in (thread / "children").read_text().split()]
        return found


def programs(stack: Stack) -> dict[str, list[Process]]:
    """Each supervised program, by its name without a number, with all that it has started."""
    found: dict[str, list[Process]] = {}
    for name, pid in stack.pids().items():
        found.setdefault(name.rstrip("_0123456789"), []).extend(Process(pid).below())
    return found


def accounts(settings: Settings) -> dict[str, Account | None]:
    service = settings.account
    return {
        "app": service, "scheduler": service, "status": service,
        "postgres": settings.cluster.account, "nginx": settings.router_account,
    }  # fmt: skip


@as_root
def test_whose_processes_they_are_and_what_they_may(stack: Stack) -> None:
    with stack.client() as client:  # so that the runner has a launcher
        assert client.post("/api/jobs?wait=20", json={"code": "true"}).json()["data"]["status"] == "COMPLETED"
    found = programs(stack)
    uids = {account.uid for account in accounts(stack.settings).values() if account}
    assert len(uids) == 3
    assert all(stack.settings.sandbox.uid_base - 3 <= uid < stack.settings.sandbox.uid_base for uid in uids)
    for name, account in accounts(stack.settings).items():
        assert account is not None
        processes = found.pop(name)
        if name == "status":
            server, behind = processes
            assert (behind.ids(), behind.groups(), behind.capabilities()) == ({"0"}, [], set())
            assert behind.gains_nothing()
            processes = [server]
        for process in processes:
            assert process.ids() == {str(account.uid)}, name
            assert (process.groups(), process.capabilities()) == ([], set()), name
            assert process.gains_nothing(), name
            if account == stack.settings.account:
                assert not process.is_dumpable(), name
    runner, spawner, *launchers = found.pop("runner")
    assert stack.settings.account
    for process in (runner, spawner):
        assert (process.ids(), process.groups()) == ({"0"}, [stack.settings.account.gid])
        assert process.capabilities() == set(RIGHTS)
        assert process.gains_nothing()
    assert launchers
    for process in launchers:
        assert (process.gains_nothing(), process.groups()) == (True, [])
        assert min(map(int, process.ids())) >= stack.settings.sandbox.uid_base
    assert found == {}


@as_root
@pytest.mark.parametrize("missing", [None, *RIGHTS])
def test_the_runner_needs_each_of_its_rights_and_no_other(missing: Capability | None) -> None:
    async def all_of_root_s() -> str | None:
        async with support.sandbox() as made:
            await made.test_network()
            return made.facts()["network"]

    network = support.run(all_of_root_s())
    if missing is None:
        in_child(lambda: run_jobs_with(RIGHTS, network))
    else:
        with pytest.raises(AssertionError):
            in_child(lambda: run_jobs_with([right for right in RIGHTS if right != missing], network))


def run_jobs_with(rights: Sequence[Capability], network: str | None) -> None:
    """All that a runner does with jobs: fails where it cannot; `network` is why jobs have none, whatever the rights."""

    async def main() -> None:
        async with support.sandbox() as made:
            assert await made.self_test(support.LIMITS) is None
            await made.test_network()
            assert made.facts()["network"] in (None, network)
            launcher = await made.prepare(1)
            ran = await support.execute(launcher, "echo hello > /dev/stdout")
            assert ran.stdout == b"hello\n", ran.stderr
            job = await launcher.start(support.command("/bin/sh", b"echo begun; sleep 60"))
            job.go()
            assert await support.read_line(job.stdout) == b"begun\n"
            look_into(job.pid)
            assert kill_leftover(job.pid, job.start_time)
            assert (await support.finish(job)).exit.signal == signal.SIGKILL

    privilege.limit(rights)
    support.run(main())


def look_into(init: int) -> None:
    (script,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    assert "Pss_Anon" in Path(f"/proc/{script}/smaps_rollup").read_text()
    assert [os.stat(f"/proc/{script}/fd/{name}") for name in os.listdir(f"/proc/{script}/fd")]


@as_root
def test_the_service_s_account_gets_at_what_it_needs_and_at_nothing_else(stack: Stack) -> None:
    settings = stack.settings
    with stack.client() as client:
        job = client.post("/api/jobs?wait=20", json={"code": "echo hello"}).json()["data"]
    assert job["stdout"] == "hello\n"
    job_id = uuid.UUID(job["id"].rpartition("_")[2])
    output = Path(OutputStore(settings.output_dir).path(job_id, job["attempt"], "stdout"))
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    url, account = settings.database_url, settings.account
    assert account is not None

    def work() -> None:
        privilege.drop(account)
        assert output.read_text() == "hello\n"
        for path in (output, output.parent / "new", settings.run_dir / "new", settings.log_dir / "app_00.log"):
            refused(lambda path=path: path.open("a"))  # type: ignore[misc]
        for path in (
            *(settings.cluster.password_file, settings.cluster.client_password_file, settings.tokens_file),
            settings.postgres_dir / "PG_VERSION",
            *(settings.run_dir / "supervisord.conf", settings.run_dir / "nginx.conf", settings.log_dir / "nginx.log"),
            *(settings.data_dir / "runner" / "runner_00" / "journal", Path("/proc/1/environ")),
        ):
            refused(path.read_bytes)
        for name in ("supervisor.sock", "app_0.sock", "status.sock"):
            refused(lambda name=name: connect(settings.socket_dir / name))  # type: ignore[misc]
        psycopg2.connect(url.replace("+psycopg2", "")).close()

    in_child(work)


def test_no_service_is_the_owner_of_the_database(stack: Stack) -> None:
    """All that are connected are of the role that can only add to the audit log."""
    with closing(psycopg2.connect(stack.settings.owner_url.replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT usename, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() GROUP BY 1"
        )
        ((role, count),) = cursor.fetchall()
    assert role == stack.settings.cluster.client and count >= 5
    shown = subprocess.run(
        [sys.executable, "-m", "services.manage", "--config", str(stack.config), "audit_verify"],
        cwd=ROOT, text=True, capture_output=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "the log is as it was" in shown and "only triggers" not in shown


@as_root
def test_others_do_not_reach_the_database(stack: Stack) -> None:
    """A tenant's account, should his job ever leave its sandbox, or anybody else's of this host."""
    sockets = stack.settings.cluster.sockets
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o2710
    assert not (sockets / ".s.PGSQL.5432").stat().st_mode & stat.S_IRWXO

    def work() -> None:
        privilege.drop(Account(stack.settings.sandbox.uid_base + 1, stack.settings.sandbox.uid_base + 1))
        refused(lambda: connect(sockets / ".s.PGSQL.5432"))
        refused(lambda: os.listdir(sockets))
        for path in (stack.settings.socket_dir / "app_0.sock", stack.settings.socket_dir / "supervisor.sock"):
            refused(lambda path=path: connect(path))  # type: ignore[misc]

    in_child(work)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(PermissionError):
        act()


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))


def test_no_secret_is_in_an_environment_or_in_arguments(stack: Stack) -> None:
    files = {path.name: path.read_bytes().split() for path in stack.settings.secrets_dir.iterdir()}
    assert {"postgres_password", "postgres_password_client", "secrets.key"} <= files.keys()
    secrets = [*(word for words in files.values() for word in words), stack.admin_token.encode()]
    assert all(len(secret) > 20 for secret in secrets)
    ours = Process(stack.pid).below()
    assert len(ours) > 10
    assert any(b"SHELL_SERVICE_DATA_DIR" in process.read("environ") for process in ours)
    for process in ours:
        for name in ("environ", "cmdline"):
            text = process.read(name)
            assert not [secret for secret in secrets if secret in text], (process.pid, name)


def test_who_listens(stack: Stack) -> None:
    """nginx alone to the network; the runner and the scheduler to nobody at all."""
    listening = {**tcp_listeners(), **unix_listeners()}
    found: dict[str, set[str]] = {}
    tree = {"supervisord": [Process(stack.supervisor.call("supervisor.getPID"))], **programs(stack)}
    for name, processes in tree.items():
        for process in processes:
            for target in process.descriptors():
                if target in listening:
                    found.setdefault(name, set()).add(listening[target])
    sockets = stack.settings.socket_dir
    assert found == {
        "nginx": {f"0100007F:{stack.settings.server.port:04X}"},
        "app": {f"{sockets}/app_{number}.sock" for number in range(stack.settings.server.processes)},
        "status": {f"{sockets}/status.sock"},
        "postgres": {f"{sockets}/postgres/.s.PGSQL.5432"},
        "supervisord": {next(path for path in listening.values() if path.startswith(f"{sockets}/supervisor.sock"))},
    }
    assert stat.S_IMODE((sockets / "supervisor.sock").stat().st_mode) == 0o700
    assert (sockets / "supervisor.sock").stat().st_uid == os.geteuid()


def tcp_listeners() -> dict[str, str]:
    """Addresses in the kernel's form by descriptor's target."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in table(name)]
    return {f"socket:[{line[9]}]": line[1] for line in lines if line[3] == "0A"}


def unix_listeners() -> dict[str, str]:
    """Paths, or abstract names, by descriptor's target."""
    accepting = 0x10000
    lines = [line.split() for line in table("unix")]
    return {f"socket:[{line[6]}]": line[7] for line in lines if int(line[3], 16) & accepting and len(line) > 7}


def table(name: str) -> list[str]:
    return Path(f"/proc/net/{name}").read_text().splitlines()[1:]


@as_root
def test_the_status_server_comes_back_when_it_can_ask_nobody(stack: Stack) -> None:
    server, behind = programs(stack)["status"]
    os.kill(behind.pid, 9)
    stack.wait_for("status", server.pid)

    def shows_processes() -> bool:
        with stack.client() as client:
            report = client.get("/status", headers={"Accept": "application/json"}).json()["data"]
        return bool(report.get("processes"))

    eventually(shows_processes)


class Supervisord:
    """Says `answer` to whoever comes to its socket, unless that is empty, and remembers what it was asked."""

    def __init__(self, folder: Path, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self.path = folder / "supervisor.sock"
        self._listener.bind(str(self.path))
        self._listener.listen()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096))
                if self._answer:
                    connection.sendall(self._answer)
                else:
                    connection.recv(4096)


@contextmanager
def looking(path: Path) -> Iterator[keyhole.Keyhole]:
    hole = keyhole.separate(0.3)
    hole.point_at(path)
    yield hole
    hole._channel.close()
    os.wait()


@as_root
def test_through_the_keyhole_one_question_can_be_asked(folder: Path) -> None:
    """Whatever is said to the part that is still root, it is not passed on."""
    answer = b"HTTP/1.0 200 OK\r\n\r\nwhole"
    with Supervisord(folder, answer) as supervisord, looking(supervisord.path) as hole:
        assert hole.look() == answer
        ours, theirs = socket.socketpair()
        wanted = b"POST /RPC2 HTTP/1.0\r\n\r\n<methodCall><methodName>supervisor.shutdown</methodName></methodCall>"
        theirs.send(wanted)
        socket.send_fds(hole._channel, [wanted], [theirs.fileno()])
        theirs.close()
        ours.settimeout(5)
        assert b"".join(iter(lambda: ours.recv(1000), b"")) == wanted + answer
    first, second = supervisord.asked
    assert first == second
    assert b"supervisor.getAllProcessInfo" in first


@as_root
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 500 Oops\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n<methodResponse><par"])
def test_a_supervisor_that_makes_no_sense_is_none(folder: Path, answer: bytes) -> None:
    with Supervisord(folder, answer) as supervisord, looking(supervisord.path) as hole:
        for _ in range(2):
            with pytest.raises(supervision.SupervisorError):
                supervision.programs_through(hole)


@as_root
def test_accounts_that_are_somebody_else_s_are_refused(folder: Path) -> None:
    nobody = privilege.named_account("nobody")[1]
    settings = write_config(folder / "config.yaml", folder / "data", sandbox={"uid_base": nobody.uid + 2})
    with pytest.raises(ConfigError, match=f"but {nobody.uid} is nobody"):
        layout.prepare_folders(settings)


@as_root
def test_outputs_of_a_backup_are_made_readable(folder: Path) -> None:
    settings = write_config(folder / "config.yaml", folder / "data")
    layout.prepare_folders(settings)
    assert settings.account
    inner = settings.output_dir / "2026-01-01" / "ab"
    inner.mkdir(parents=True)
    (inner / "x.1.stdout").write_text("hello")
    for path in (settings.output_dir, inner, inner / "x.1.stdout"):
        os.chown(path, 0, 0)
    layout.prepare_folders(settings)
    assert {path.stat().st_gid for path in (settings.output_dir, inner, inner / "x.1.stdout")} == {settings.account.gid}
    assert stat.S_IMODE(settings.output_dir.stat().st_mode) == 0o2750
