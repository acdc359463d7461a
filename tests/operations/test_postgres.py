"""The embedded database: made once, never as root, reached only with its password, back after any kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import text

from baselayer import privilege, processes
from baselayer.postgres import Cluster, PostgresError, database_url
from baselayer.privilege import Account
from services.database import DatabaseError, initialise, migrate_now
from services.database import served as served_for
from services.migrate.__main__ import unpooled, wait_until_up
from shell_service import migrations
from shell_service.migrations import ownership
from shell_service.settings import ROOT
from tests.stack import write_config

AS_ROOT = os.geteuid() == 0
ACCOUNT = Account(199_999, 199_999) if AS_ROOT else None


def cluster_in(folder: Path, account: Account | None = ACCOUNT) -> Cluster:
    return Cluster("service", folder / "postgres", folder / "sockets", folder / "secrets" / "password", account)


@contextmanager
def served(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    with (cluster.data.parent / "log").open("ab") as log:
        server = cluster.start(20, 16 * 2**20, log)
    try:
        wait_until_up(cluster.url, 30)
        yield server
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def ask(url: str, statement: str) -> object:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    made = cluster_in(tmp_path_factory.mktemp("cluster"))
    assert made.create()
    return made


def test_is_made_once_and_keeps_its_data(cluster: Cluster) -> None:
    with served(cluster):
        ask(cluster.url, "CREATE TABLE kept AS SELECT 1 AS one")
    assert not cluster.create()
    with served(cluster):
        assert ask(cluster.url, "SELECT one FROM kept") == 1


def test_speaks_utf8_everywhere_alike(cluster: Cluster) -> None:
    with served(cluster):
        assert ask(cluster.url, "SHOW server_encoding") == "UTF8"
        assert ask(
            cluster.url, "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'service'"
        ) == ("bC.UTF-8")
        assert ask(cluster.url, "SHOW synchronous_commit") == "on"
        assert ask(cluster.url, "SHOW TimeZone") == "UTC"


def test_is_never_root_and_listens_only_on_its_socket(cluster: Cluster) -> None:
    with served(cluster) as server:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Uid"].split() == [str(ACCOUNT.uid if ACCOUNT else os.getuid())] * 4
        if ACCOUNT:
            assert status["Groups"].strip() == ""
            assert int(status["CapEff"], 16) == 0
        assert ask(cluster.url, "SHOW listen_addresses") == ""


def test_secrets_and_data_are_private(cluster: Cluster) -> None:
    files = cluster.password_file, cluster.client_password_file
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert stat.S_IMODE(cluster.data.stat().st_mode) == 0o700
    assert stat.S_IMODE(cluster.sockets.stat().st_mode) == 0o700
    with served(cluster) as server:
        words = Path(f"/proc/{server.pid}/cmdline").read_bytes() + Path(f"/proc/{server.pid}/environ").read_bytes()
        assert not [file for file in files if file.read_bytes().strip() in words]


def test_its_log_tells_what_went_wrong_but_not_with_what(cluster: Cluster) -> None:
    with served(cluster):
        ask(cluster.url, "CREATE TABLE checked (code text CONSTRAINT never CHECK (code = 'x'))")
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            ask(cluster.url, "INSERT INTO checked VALUES ('echo hunter2')")
    text = (cluster.data.parent / "log").read_text()
    assert 'violates check constraint "never"' in text
    assert "hunter2" not in text


def test_the_socket_alone_lets_nobody_in(cluster: Cluster) -> None:
    with served(cluster):
        wrong = cluster.url.replace(cluster.password_file.read_text().strip(), "guess")
        with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
            ask(wrong, "SELECT 1")
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            psycopg2.connect(host=str(cluster.sockets), user="service", dbname="service")


def test_comes_back_after_sigkill(cluster: Cluster) -> None:
    with served(cluster) as server:
        ask(cluster.url, "CREATE TABLE survived AS SELECT 2 AS two")
        server.kill()
        server.wait()
    assert (cluster.data / "postmaster.pid").exists()
    with served(cluster):
        assert ask(cluster.url, "SELECT two FROM survived") == 2


def test_a_half_made_data_folder_is_made_again(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path)
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    assert cluster.create()
    assert not (tmp_path / "postgres.new").exists()
    with served(cluster):
        assert ask(cluster.url, "SELECT 1") == 1


def test_asking_for_the_address_too_early_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match="make db_init"):
        _ = cluster_in(tmp_path).url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_addresses_of_other_servers(tmp_path: Path, scheme: str) -> None:
    assert database_url(f"{scheme}://u:p@h/d", cluster_in(tmp_path)) == "postgresql+psycopg2://u:p@h/d"


@pytest.mark.parametrize("url", ["mysql://h/d", "embeded", "/var/lib", ""])
def test_addresses_of_no_server(tmp_path: Path, url: str) -> None:
    with pytest.raises(PostgresError, match=r"database\.url"):
        database_url(url, cluster_in(tmp_path))


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process; fails when it does."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user already is one: every other test here shows it")
def test_an_ordinary_user_needs_nothing_of_root(tmp_path: Path) -> None:
    nobody = privilege.named_account("nobody")[1]
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, nobody.uid, nobody.gid)

    def work() -> None:
        privilege.expose([Path(sys.base_prefix), Path(sys.prefix), ROOT, folder], nobody)
        privilege.drop(nobody)
        cluster = cluster_in(folder, None)
        cluster.create()
        with served(cluster) as server:
            assert ask(cluster.url, "SELECT current_user") == "service"
            assert Path(f"/proc/{server.pid}").stat().st_uid == nobody.uid

    in_child(work)


@pytest.mark.skipif(not AS_ROOT, reason="only root can have a view of its own")
def test_a_private_view_shows_only_what_is_needed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    for name in ("needed/deep", "other"):
        (closed / name).mkdir(parents=True)
        (closed / name / "file").write_text(name)
    closed.chmod(0o700)
    account = Account(199_998, 199_998)
    assert privilege.barrier(closed / "needed" / "deep", account) is not None

    def work() -> None:
        os.umask(0o077)
        privilege.expose([closed / "needed" / "deep"], account)
        privilege.drop(account)
        assert (closed / "needed" / "deep" / "file").read_text() == "needed/deep"
        assert not (closed / "other").exists()

    in_child(work)
    assert (closed / "other" / "file").read_text() == "other"  # nobody else's view has changed


def test_leftovers_are_known_by_where_they_work(cluster: Cluster) -> None:
    with served(cluster) as server:
        found = processes.in_folders({"postgres": cluster.data})
        assert [process.pid for process in found] == [server.pid]
        assert processes.in_folders({"postgres": cluster.data.parent, "nginx": cluster.data}) == []
        processes.end(found, 10, {"postgres": signal.SIGINT})
        assert server.wait(1) == 0


def test_a_number_that_changed_hands_is_left_alone() -> None:
    me = processes.look(os.getpid())
    assert me is not None
    other = processes.Process(me.pid, me.parent, me.start - 1, me.name)
    processes.end([other], 0)


def test_a_cluster_without_the_clients_role_gets_it(tmp_path: Path) -> None:
    """As one that was made when there was only the owner; and where the password was lost."""
    settings = write_config(tmp_path / "config.yaml", tmp_path / "data")
    migrate_now(settings, print)
    cluster = settings.cluster
    with served_for(settings):
        for statement in ("REASSIGN OWNED BY {} TO CURRENT_USER", "DROP OWNED BY {}", "DROP ROLE {}"):
            ask(cluster.url, statement.format(cluster.client))
        assert ask(cluster.url, "SELECT count(DISTINCT relowner) FROM pg_class") == 1
        entries = ask(cluster.url, "SELECT count(*) FROM audit")
    for _ in range(2):
        cluster.client_password_file.unlink()
        migrate_now(settings, print)
        with served_for(settings), unpooled(settings.database_url).connect() as connection:
            assert connection.scalar(text("SELECT current_user")) == cluster.client
            assert connection.scalar(text("SELECT count(*) FROM audit")) == entries
            assert migrations.is_current(connection) and ownership.gap(connection) is None
            with pytest.raises(sqlalchemy.exc.ProgrammingError, match="must be owner of table audit"):
                connection.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))


def test_clients_make_nothing(cluster: Cluster) -> None:
    with served(cluster):
        for statement in (
            "CREATE TABLE x (y int)", "CREATE TEMPORARY TABLE x (y int)", "CREATE SCHEMA x", "CREATE ROLE x",
            "CREATE FUNCTION pg_temp.x() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SET log_error_verbosity = verbose",
            "COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('PG_VERSION')",
        ):  # fmt: skip
            with pytest.raises(sqlalchemy.exc.ProgrammingError, match="permission denied"):
                ask(cluster.client_url, statement)
        assert ask(cluster.client_url, "SHOW log_error_verbosity") == "terse"


def test_db_init_makes_role_and_database_on_a_server_of_yours(cluster: Cluster, tmp_path: Path) -> None:
    said: list[str] = []
    host = f"?host={cluster.sockets}"
    with served(cluster):
        theirs = write_config(
            tmp_path / "config.yaml", tmp_path / "data", database={"url": f"postgresql://ours:it's%25@/theirs{host}"}
        )
        with pytest.raises(DatabaseError, match="CREATE ROLE ours LOGIN"):
            initialise(theirs, said.append)
        initialise(theirs, said.append, cluster.url_of("postgres"))
        assert said == ["[check] database theirs: made"]
        assert ask(theirs.database_url, "SELECT current_user") == "ours"
        initialise(theirs, said.append)
        assert "is there" in said[-1]
