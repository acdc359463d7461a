"""Starting, stopping, and being killed: the service as a whole, started by the verb that people use."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import sqlalchemy

from baselayer import processes
from baselayer.privilege import Capability
from baselayer.supervision import SupervisorError
from services import layout
from shell_service.settings import ROOT
from tests.operations.test_rights import Process
from tests.stack import Stack, free_port, write_config
from tests.waiting import eventually

QUICK = {"runner": {"drain_seconds": 1}, "jobs": {"kill_grace": 1}, "server": {"processes": 1, "drain_seconds": 1}}


def manage(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.manage", "--config", str(config), *words],
        cwd=ROOT, text=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def left_of(stack: Stack) -> list[processes.Process]:
    """Every process of the service that is still there."""
    folders = {"nginx": stack.settings.run_dir, "postgres": stack.settings.postgres_dir}
    return processes.marked(f"{layout.MARK}={stack.settings.data_dir}") + processes.in_folders(folders)


@pytest.fixture
def own() -> Iterator[Stack]:
    """A running service that a test may stop and kill as it likes, in a folder that nobody else can enter."""
    with Stack(**QUICK, closed=True) as running:
        yield running


def test_says_five_lines_and_no_secret(stack: Stack) -> None:
    lines = stack.printed.read_text().splitlines()
    assert len(lines) == 5
    assert lines[0] == f"Shell Service answers at http://localhost:{stack.settings.server.port}"
    assert str(stack.settings.tokens_file) in lines[1]
    assert lines[2].split() == ["docs", f"http://localhost:{stack.settings.server.port}/"]
    assert f"make log CONFIG={stack.config}" in lines[3]
    assert "Ctrl-C" in lines[4]
    printed = stack.printed.read_text() + "".join(path.read_text() for path in stack.settings.log_dir.iterdir())
    assert stack.admin_token not in printed
    cluster = stack.settings.cluster
    for file in (cluster.password_file, cluster.client_password_file):
        assert file.read_text().strip() not in printed


def test_everything_private_is(stack: Stack) -> None:
    assert stat.S_IMODE(stack.settings.tokens_file.stat().st_mode) == 0o600
    for folder in (stack.settings.log_dir, stack.settings.secrets_dir, stack.settings.postgres_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    for path in (stack.settings.run_dir / "nginx.conf", stack.settings.run_dir / "supervisord.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in stack.settings.socket_dir.glob("*.sock"):
        assert not path.stat().st_mode & stat.S_IRWXO, path
    for path in stack.settings.log_dir.iterdir():
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_services_see_nothing_of_the_operators_environment(stack: Stack) -> None:
    for name in ("app_00", "runner_00", "scheduler", "status"):
        words = Path(f"/proc/{stack.pids()[name]}/environ").read_bytes().decode().split("\0")
        names = {word.partition("=")[0] for word in words if word}
        assert names <= {
            *layout.clean_environment(stack.settings),
            *("SUPERVISOR_ENABLED", "SUPERVISOR_SERVER_URL", "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_GROUP_NAME"),
            "PROMETHEUS_MULTIPROC_DIR",
        }, name


def test_whoever_waits_for_an_answer_comes_first(stack: Stack) -> None:
    pids = stack.pids()
    names = ("app_00", "scheduler", "runner_00")
    assert [os.getpriority(os.PRIO_PROCESS, pids[name]) for name in names] == [0, 5, 5]
    assert [os.getsid(pids[name]) == pids[name] for name in names] == [False, True, True]


def test_only_nginx_listens_and_only_where_it_is_told(stack: Stack) -> None:
    ours = {process.pid for process in left_of(stack)}
    descriptors: set[str] = set()
    for pid in ours:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                descriptors.add(os.readlink(link))
            except OSError:
                continue  # closed meanwhile
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in descriptors
    ]
    assert listening == [f"0100007F:{stack.settings.server.port:04X}"]


def test_a_second_start_on_the_same_data_is_refused(stack: Stack) -> None:
    second = manage(stack.config, "run")
    assert second.returncode == 1
    assert "a service already runs on" in second.stderr
    assert "make stop" in second.stderr
    assert stack.client().get("/api/user").status_code == 200


def test_two_services_run_side_by_side(stack: Stack, own: Stack) -> None:
    assert stack.client().get("/api/user").status_code == 200
    assert own.client().get("/api/user").status_code == 200
    assert own.client(stack.admin_token).get("/api/user").status_code == 401


def test_its_folder_can_be_closed_to_everybody_else(own: Stack) -> None:
    """As when it is in root's home: the services' own accounts get to what is theirs all the same."""
    with own.client() as client:
        job = client.post("/api/jobs?wait=20", json={"code": "echo hello"}).json()["data"]
        assert (job["status"], job["stdout"]) == ("COMPLETED", "hello\n")
        assert "http_requests_total" in client.get("/metrics").text
        report = client.get("/status", headers={"Accept": "application/json"}).json()["data"]
        assert (report["database"]["state"], bool(report["processes"])) == ("up", True)
        assert client.get("/").status_code == 200


def test_the_verbs_that_look(stack: Stack) -> None:
    shown = manage(stack.config, "status").stdout
    for word in ("postgres", "app_00", "runner_00", "database: up", "queue:"):
        assert word in shown
    done = subprocess.run(
        [sys.executable, "-m", "services.manage", "--config", str(stack.config), "monitor"],
        cwd=ROOT, text=True, capture_output=True, input="status\nexit\n", timeout=60, check=False,
    )  # fmt: skip
    assert re.search(r"app:app_00 +RUNNING", done.stdout)
    cluster = stack.settings.cluster
    roles = {cluster.client: ([], cluster.client_password_file), cluster.name: (["--owner"], cluster.password_file)}
    for role, (options, password_file) in roles.items():
        done = subprocess.run(
            [sys.executable, "-m", "services.manage", "--config", str(stack.config), "db_shell", *options],
            cwd=ROOT, text=True, capture_output=True, timeout=60, check=False,
            input='SELECT current_user FROM "user";\n\\! cat /proc/$PPID/environ /proc/$PPID/cmdline\n',
        )  # fmt: skip
        assert f" {role}\n(1 row)" in done.stdout, done.stderr
        assert "PGPASSFILE" in done.stdout
        assert password_file.read_text().strip() not in done.stdout
    assert [path.name for path in stack.settings.secrets_dir.iterdir() if path.name.startswith(".pgpass")] == []


def test_ctrl_c_is_for_the_program_that_has_the_terminal(stack: Stack) -> None:
    """In psql it ends a statement, not psql, nor what started it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        environment = {**os.environ, "PAGER": "cat", "TERM": "dumb"}
        words = ["-m", "services.manage", "--config", str(stack.config), "db_shell"]
        os.execve(sys.executable, [sys.executable, *words], environment)
    shown = b""

    def shows(text: bytes) -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            shown += os.read(terminal, 65536)
        return text in shown

    try:
        eventually(lambda: shows(b"=> "))
        os.write(terminal, b"SELECT pg_sleep(60);\n")
        backend = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        engine = sqlalchemy.create_engine(stack.settings.database_url, poolclass=sqlalchemy.NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            eventually(lambda: connection.execute(sqlalchemy.text(backend)).all())
        os.write(terminal, b"\x03")
        eventually(lambda: shows(b"canceling statement due to user request"))
        os.write(terminal, b"SELECT 6 * 7;\n")
        eventually(lambda: shows(b"42"))
        os.write(terminal, b"\\q\n")
        status = eventually(lambda: (ended := os.waitpid(pid, os.WNOHANG))[0] and ended)[1]
        assert os.waitstatus_to_exitcode(status) == 0, shown
    finally:
        os.close(terminal)


def test_ctrl_c_stops_everything_and_data_stays(own: Stack) -> None:
    token = own.admin_token
    (counts,) = (own.settings.run_dir / "metrics").glob("counter_*.db")
    assert own.stop(signal.SIGINT) == 0
    assert left_of(own) == []
    assert own.printed.read_text().splitlines()[5:] == ["stopping ..."]
    own.start()
    assert own.client(token).get("/api/user").json()["data"]["username"] == "admin"
    assert not counts.exists()  # metrics are those of this start


def test_everybody_is_answered_while_everything_stops() -> None:
    """Who waits for a job, with what it is then; who comes now, with 503, as long as there is anything left to stop."""
    with Stack(**{**QUICK, "runner": {"drain_seconds": 3}}, closed=True) as own, ThreadPoolExecutor(2) as threads:
        client = own.client()
        waiting = threads.submit(own.client().post, "/api/jobs?wait=60", json={"code": "sleep 60"}, timeout=70)
        eventually(lambda: client.get("/api/jobs?status=RUNNING").json()["data"])
        stopping = threads.submit(own.stop)
        refused = eventually(lambda: (seen := client.get("/api/user")).status_code == 503 and seen)
        assert "Retry-After" in refused.headers
        answer = waiting.result(20)
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "RUNNING")
        assert stopping.result(60) == 0
        assert left_of(own) == []


def test_the_verb_stop_waits_until_all_is_gone(own: Stack) -> None:
    stopped = manage(own.config, "stop")
    assert (stopped.returncode, stopped.stdout.split()[-1]) == (0, "stopped")
    assert left_of(own) == []
    assert own.stop() == 0
    assert "nothing runs here" in manage(own.config, "stop").stdout
    assert manage(own.config, "status").returncode == 1
    assert "nothing runs here" in manage(own.config, "monitor").stderr


def test_work_on_the_database_while_nothing_runs(own: Stack) -> None:
    own.client().put("/api/secrets/KEY", json={"value": "a value"}).raise_for_status()
    own.stop()
    assert manage(own.config, "db_migrate").returncode == 0
    made = manage(own.config, "load_demo_data")
    assert (made.returncode, str(own.settings.tokens_file) in made.stdout) == (0, True), made.stderr
    assert "DEMO_ALICE" in own.settings.tokens_file.read_text()
    before = own.settings.secrets_key.read_bytes()
    rotated = manage(own.config, "rotate_secrets_key")
    assert (rotated.returncode, "1 secrets are sealed" in rotated.stdout) == (0, True), rotated.stderr
    assert own.settings.secrets_key.read_bytes() != before
    asked = manage(own.config, "db_clear")
    assert own.settings.postgres_dir.exists(), "without a yes nothing is deleted"
    assert asked.returncode != 0
    assert manage(own.config, "db_clear", "--yes").returncode == 0
    assert not own.settings.postgres_dir.exists()
    assert not own.settings.tokens_file.exists()
    assert manage(own.config, "db_init").returncode == 0
    own.start()
    assert own.client().get("/api/user").status_code == 200


@pytest.mark.parametrize("verb", [["db_clear", "--yes"], ["db_clear"], ["rotate_secrets_key"]], ids=" ".join)
def test_what_a_running_service_does_not_stand_is_refused(stack: Stack, verb: list[str]) -> None:
    refused = manage(stack.config, *verb)
    assert (refused.returncode, refused.stdout) == (1, ""), "there is no use in asking"
    assert "a service already runs" in refused.stderr
    assert stack.client().get("/api/user").status_code == 200


@pytest.mark.parametrize("program", ["app_00", "status", "scheduler", "runner_00", "postgres", "nginx"])
def test_a_killed_program_comes_back(stack: Stack, program: str) -> None:
    pid = stack.kill(program)
    stack.wait_for(program, other_than=pid)
    eventually(lambda: _answers(stack), 30)


def _answers(stack: Stack) -> bool:
    try:
        with stack.client() as client:
            return client.get("/api/user").status_code == 200
    except httpx.TransportError:
        return False


def test_a_killed_supervisor_is_noticed_and_its_programs_are_ended(own: Stack) -> None:
    process = own._process
    assert process is not None
    os.kill(own.supervisor.call("supervisor.getPID"), signal.SIGKILL)
    assert process.wait(60) == 1
    assert "supervisord ended by itself" in own.printed.read_text()
    assert left_of(own) == []
    own.start()
    assert _answers(own)


def test_when_the_process_in_front_is_killed_the_rest_stops(own: Stack) -> None:
    os.kill(own.pid, signal.SIGKILL)
    eventually(lambda: left_of(own) == [], 60)
    own.start()
    assert _answers(own)


def test_what_a_killed_supervisor_left_is_ended_by_the_next_start(own: Stack) -> None:
    before = own.pids()
    os.kill(own.pid, signal.SIGSTOP)  # so that it cannot clean up
    os.kill(own.supervisor.call("supervisor.getPID"), signal.SIGKILL)
    os.kill(own.pid, signal.SIGKILL)
    own.stop()
    assert {process.pid for process in left_of(own)} & set(before.values())
    with pytest.raises(SupervisorError):
        own.supervisor.programs()
    own.start()
    assert "processes that an earlier start had left" in own.printed.read_text()
    assert not {process.pid for process in left_of(own)} & set(before.values())
    assert _answers(own)


def test_a_port_in_use_is_said_at_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        write_config(folder / "config.yaml", folder / "data", server={"port": port})
        refused = manage(folder / "config.yaml", "run")
    assert (refused.returncode, f"cannot listen on 127.0.0.1:{port}" in refused.stderr) == (1, True)


def test_a_mistake_in_the_configuration_is_one_sentence(folder: Path) -> None:
    (folder / "config.yaml").write_text("server: {prot: 1}\n")
    refused = manage(folder / "config.yaml", "run")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "did you mean server.port?" in refused.stderr


def test_what_does_not_start_shows_the_end_of_its_log() -> None:
    stack = Stack(**QUICK)
    try:
        layout.prepare_folders(stack.settings)
        stack.settings.cluster.create()
        (stack.settings.postgres_dir / "PG_VERSION").write_text("9\n")
        stack.start(wait=False)
        assert stack._process is not None
        assert stack._process.wait(60) == 1
        assert "postgres did not start" in stack.printed.read_text()
        assert "PostgreSQL version 9" in stack.printed.read_text()
        assert left_of(stack) == []
    finally:
        stack.remove()


def test_with_tls(folder: Path) -> None:
    settings = write_config(folder / "config.yaml", folder / "data")
    made = manage(folder / "config.yaml", "tls_self_signed")
    assert made.returncode == 0, made.stderr
    certificate, key = settings.data_dir / "tls" / "certificate.pem", settings.data_dir / "tls" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    tls = {"certificate": str(certificate), "key": str(key)}
    server = {**QUICK["server"], "tls": tls, "public_url": "https://jobs.example.org"}
    if os.geteuid() == 0:  # whom this port, like that key, is for
        server["port"] = next(port for port in range(600, 1024) if port_is_free(port))
    with Stack(**{**QUICK, "server": server}) as stack:
        if os.geteuid() == 0:
            router = Process(stack.pids()["nginx"])
            assert router.ids() == {str(stack.settings.sandbox.uid_base - 3)}
            assert router.capabilities() == {Capability.NET_BIND_SERVICE}
        assert "Shell Service answers at https://jobs.example.org\n" in stack.printed.read_text()
        with stack.client() as client:
            assert client.get("/api/user").status_code == 200
            for method, path in (("GET", "/api/user"), ("GET", "/"), ("GET", "/status"), ("TRACE", "/api/user")):
                headers = client.request(method, path).headers
                assert headers.get_list("Strict-Transport-Security") == ["max-age=31536000"], path
        with stack.client(base_url=stack.base_url.replace("https", "http")) as client:
            plain = client.get("/api/user")
        assert (plain.status_code, plain.json()["data"]["code"]) == (400, "plain_http")


def port_is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def test_a_certificate_that_cannot_be_used_is_said_in_a_sentence(folder: Path) -> None:
    tls = {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}
    settings = write_config(folder / "config.yaml", folder / "data", server={"tls": tls})
    layout.prepare_folders(settings)
    (folder / "certificate.pem").write_text("nonsense")
    words = [sys.executable, "-m", "services.nginx", "--config", str(folder / "config.yaml")]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"server.tls.certificate {folder}/certificate.pem and key {folder}/key.pem cannot be used" in done.stderr


def test_free_ports_are_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
