"""The settings: a frozen, typed object made once in an entry point and passed to whatever needs it.

What each value means, and its unit, stands beside its default in ``config.yaml.defaults``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from baselayer import config, postgres
from baselayer.config import Bytes, ConfigError
from baselayer.guard import Guard
from baselayer.privilege import Account
from shell_service.limits import LEAST, NAMES, WITH_TIMEOUT, Bounds, JobLimits
from shell_service.shells import AUTO

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Tls:
    certificate: str
    key: str


@dataclass(frozen=True)
class Server:
    host: str
    port: int
    public_url: str
    processes: int
    max_body: Bytes
    client_timeout: float
    max_waiting: int
    drain_seconds: float
    tls: Tls


@dataclass(frozen=True)
class Database:
    url: str
    owner_url: str
    pool_size: int
    pool_timeout: float
    statement_timeout: float
    shared_buffers: Bytes


@dataclass(frozen=True)
class Access:
    failures_per_minute: int
    token_cache_seconds: float
    token_max_age: int


@dataclass(frozen=True)
class Users:
    max_running: int
    max_queued: int
    jobs_per_minute: int
    max_streams: int
    max_secrets: int
    max_tokens: int


@dataclass(frozen=True)
class Jobs:
    max_code: Bytes
    max_input: Bytes
    kill_grace: float
    max_retries: int
    max_retry_delay: float
    max_delay: float
    idempotency_seconds: float


@dataclass(frozen=True)
class Scripts:
    max_scripts: int
    max_versions: int
    max_size: Bytes


@dataclass(frozen=True)
class Uploads:
    max_size: Bytes
    user_size: Bytes
    at_once: int


@dataclass(frozen=True)
class Packages:
    index: str
    max_size: Bytes
    total_size: Bytes
    timeout: float
    keep_days: float


@dataclass(frozen=True)
class Schedules:
    max_schedules: int
    min_interval: float
    grace_seconds: float


@dataclass(frozen=True)
class Retention:
    job_days: float
    user_size: Bytes
    max_pinned: int


@dataclass(frozen=True)
class Webhooks:
    allowed_networks: str
    timeout: float

    @property
    def networks(self) -> list[str]:
        """Those that deliveries may go to beside the public internet."""
        return self.allowed_networks.split()


@dataclass(frozen=True)
class Count:
    default: int
    max: int


@dataclass(frozen=True)
class Size:
    default: Bytes
    max: Bytes


@dataclass(frozen=True)
class Amount:
    default: float
    max: float


@dataclass(frozen=True)
class Limits:
    """What a job gets that asks for nothing, and the most that it may ask for."""

    timeout: Amount
    memory: Size
    processes: Count
    cpu: Amount
    cpu_seconds: Amount
    open_files: Count
    file_size: Size
    disk: Size
    output: Size
    artifacts: Size

    @property
    def defaults(self) -> JobLimits:
        """What a job gets that asks for nothing."""
        return JobLimits(**{name: getattr(self, name).default for name in NAMES})

    @property
    def bounds(self) -> Bounds:
        """What holds for users who have nothing of their own."""
        limits = {name: getattr(self, name) for name in WITH_TIMEOUT}
        defaults = {name: limit.default for name, limit in limits.items()}
        return Bounds(defaults, {name: limit.max for name, limit in limits.items()})


@dataclass(frozen=True)
class Runner:
    processes: int
    slots: int
    drain_seconds: float
    heartbeat_seconds: float
    lost_after: float
    poll_seconds: float
    min_free: Bytes
    min_free_memory: Bytes


@dataclass(frozen=True)
class Sandbox:
    mode: Literal["walls", "none"]
    uid_base: int
    tmp_size: Bytes
    shm_size: Bytes
    max_launchers: int
    launcher_idle_seconds: float


@dataclass(frozen=True)
class Scheduler:
    tick_seconds: float


@dataclass(frozen=True)
class Log:
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    requests: bool
    max_size: Bytes
    keep: int


@dataclass(frozen=True)
class Settings:
    data_dir: Path
    tokens_file: Path
    server: Server
    database: Database
    access: Access
    users: Users
    jobs: Jobs
    scripts: Scripts
    uploads: Uploads
    packages: Packages
    schedules: Schedules
    retention: Retention
    webhooks: Webhooks
    limits: Limits
    shells: dict[str, str]
    runner: Runner
    sandbox: Sandbox
    scheduler: Scheduler
    log: Log

    @property
    def base_url(self) -> str:
        """The address that people use, without a slash at the end."""
        scheme = "https" if self.server.tls.certificate else "http"
        return self.server.public_url.rstrip("/") or f"{scheme}://localhost:{self.server.port}"

    @property
    def run_dir(self) -> Path:
        """Rendered files and pids."""
        return self.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        """The services' logs."""
        return self.data_dir / "log"

    @property
    def output_dir(self) -> Path:
        """What jobs printed."""
        return self.data_dir / "output"

    @property
    def upload_dir(self) -> Path:
        """Files that jobs are given."""
        return self.data_dir / "uploads"

    @property
    def layer_dir(self) -> Path:
        """Packages that jobs see."""
        return self.data_dir / "layers"

    @property
    def postgres_dir(self) -> Path:
        """The embedded database."""
        return self.data_dir / "postgres"

    @property
    def secrets_dir(self) -> Path:
        """Generated passwords and keys, mode 0700."""
        return self.data_dir / "secrets"

    @property
    def secrets_key(self) -> Path:
        """The keys that secrets are sealed with, one a line; the first seals."""
        return self.secrets_dir / "secrets.key"

    @property
    def site_dir(self) -> Path:
        """The built docs site."""
        return self.data_dir / "site"

    @property
    def socket_dir(self) -> Path:
        """Unix sockets: under `run_dir`, or, as such a path holds at most 107 bytes, in a short place of their own."""
        wanted = self.run_dir / "sockets"
        if len(os.fsencode(wanted)) <= 80:
            return wanted
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"shell-service-{digest}"

    @property
    def account(self) -> Account | None:
        """Whom web workers, scheduler and status server become where root starts them; None where it does not."""
        return self._account_below(2)

    @property
    def router_account(self) -> Account | None:
        """Whom nginx becomes where root starts it; None where it does not."""
        return self._account_below(3)

    def _account_below(self, distance: int) -> Account | None:
        """An account that is ours alone: the next uids below those of the tenants."""
        uid = self.sandbox.uid_base - distance
        return Account(uid, uid) if os.geteuid() == 0 else None

    @property
    def cluster(self) -> postgres.Cluster:
        """The embedded database server."""
        return postgres.Cluster(
            name="shell_service",
            data=self.postgres_dir,
            sockets=self.socket_dir / "postgres",
            password_file=self.secrets_dir / "postgres_password",
            account=self._account_below(1),
            clients=self.account,
        )

    @property
    def database_url(self) -> str:
        """The address for SQLAlchemy that the services use; contains a password.

        Raises `baselayer.postgres.PostgresError`.
        """
        return postgres.database_url(self.database.url, self.cluster)

    @property
    def owner_url(self) -> str:
        """As `database_url`, of the role that owns the schema and migrates; that one's too where there is no other."""
        if self.database.url == "embedded":
            return self.cluster.url
        if not self.database.owner_url:
            return self.database_url
        return postgres.database_url(self.database.owner_url, self.cluster, "database.owner_url")

    @property
    def max_connections(self) -> int:
        """Connections that the embedded server allows: what the services may open, and 50 for people and tests."""
        workers = self.server.processes * (self.database.pool_size + 4)
        return workers + self.runner.processes * 8 + 50


def load(overlay: Path | None = None) -> Settings:
    """The defaults, overlaid by ``config.yaml`` of the checkout where it exists, then by `overlay`.

    Relative paths are taken from the checkout. Raises `ConfigError`.
    """
    local = ROOT / "config.yaml"
    overlays = [path for path in (local if local.exists() else None, overlay) if path is not None]
    settings = config.load(Settings, ROOT / "config.yaml.defaults", *dict.fromkeys(overlays))
    _check_ranges(settings)
    if settings.tokens_file == Path(".tokens.yaml") and settings.data_dir != Path("data"):
        # Another service of this checkout: it has users of its own, so also a file of its own for their tokens.
        settings = dataclasses.replace(settings, tokens_file=settings.data_dir / ".tokens.yaml")
    return dataclasses.replace(
        settings, data_dir=(ROOT / settings.data_dir).resolve(), tokens_file=ROOT / settings.tokens_file
    )


def _check_ranges(settings: Settings) -> None:
    at_least_one = {
        "server.processes": settings.server.processes,
        "runner.processes": settings.runner.processes,
        "runner.slots": settings.runner.slots,
        "database.pool_size": settings.database.pool_size,
        "access.failures_per_minute": settings.access.failures_per_minute,
        "uploads.at_once": settings.uploads.at_once,
    }
    for key, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{key} is {value}; expected 1 or more")
    access, runner, scheduler = settings.access, settings.runner, settings.scheduler
    within = {
        "server.port": (settings.server.port, 1, 65535),
        # A revoked token stops within a second: what is known of it must be younger, and be looked at now and then.
        "access.token_cache_seconds": (access.token_cache_seconds, 0.05, 0.9),
        "runner.heartbeat_seconds": (runner.heartbeat_seconds, 0.05, 3600),
        "runner.poll_seconds": (runner.poll_seconds, 0.05, 3600),
        "runner.drain_seconds": (runner.drain_seconds, 0, 86400),
        "server.client_timeout": (settings.server.client_timeout, 0.1, 3600),
        "server.drain_seconds": (settings.server.drain_seconds, 0, 3600),
        "packages.timeout": (settings.packages.timeout, 1, 86400),
        "packages.keep_days": (settings.packages.keep_days, 1, 36500),
        "webhooks.timeout": (settings.webhooks.timeout, 0.1, 50),
        "retention.job_days": (settings.retention.job_days, 0, 36500),
        "schedules.min_interval": (settings.schedules.min_interval, 1, 86400),
        "schedules.grace_seconds": (settings.schedules.grace_seconds, 1, 86400),
        "scheduler.tick_seconds": (scheduler.tick_seconds, 0.05, 3600),
        "jobs.kill_grace": (settings.jobs.kill_grace, 0, 3600),
        # 0 would stand for no limit there, and a statement may not hold up others for long.
        "database.statement_timeout": (settings.database.statement_timeout, 0.1, 600),
        "database.pool_timeout": (settings.database.pool_timeout, 0.01, 600),
        "sandbox.uid_base": (settings.sandbox.uid_base, 1000, 4_000_000_000),
        "sandbox.tmp_size": (settings.sandbox.tmp_size, 4096, 2**50),  # 0 would be no limit
        "sandbox.shm_size": (settings.sandbox.shm_size, 4096, 2**50),
        "sandbox.max_launchers": (settings.sandbox.max_launchers, 1, 100_000),
        "users.max_running": (settings.users.max_running, 0, 1_000_000),
        "users.jobs_per_minute": (settings.users.jobs_per_minute, 0, 10**9),
        "users.max_secrets": (settings.users.max_secrets, 0, 10_000),
        "users.max_tokens": (settings.users.max_tokens, 1, 1_000_000),
    }
    for name in WITH_TIMEOUT:
        limit = getattr(settings.limits, name)
        within[f"limits.{name}.default"] = (limit.default, LEAST[name], limit.max)
    for key, (found, low, high) in within.items():
        if not low <= found <= high:
            raise ConfigError(f"{key} is {found}; expected {low} to {high}")
    if settings.database.owner_url and "embedded" in (settings.database.url, settings.database.owner_url):
        raise ConfigError("database.owner_url is for a server of yours: the embedded one has an owner of its own")
    if bool(settings.server.tls.certificate) != bool(settings.server.tls.key):
        raise ConfigError("server.tls needs both certificate and key, or neither")
    try:
        Guard(settings.webhooks.networks)
    except ValueError as error:
        raise ConfigError(f"webhooks.allowed_networks: {error}; expected networks such as 10.1.0.0/16") from None
    if AUTO in settings.shells:
        raise ConfigError(f"shells.{AUTO} is the word for files that say themselves how they are run; take another one")
    if settings.runner.lost_after < 3 * settings.runner.heartbeat_seconds:
        raise ConfigError("runner.lost_after must be at least three times runner.heartbeat_seconds")
