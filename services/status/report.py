"""What runs and how it is: gathered from supervisord and the database, each within a limit, each able to be missing.

The page is public, so it holds no tenant's data, no path, no host name and no message of another program. The driver
alone asks the database: SQLAlchemy would be most of the memory of a process that has little to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, TypeVar

import psycopg2
import psycopg2.extensions
import tornado

from baselayer import supervision
from baselayer.postgres import PostgresError
from baselayer.supervision import Program, SupervisorError
from shell_service import __version__
from shell_service.settings import Settings

T = TypeVar("T")

SECONDS = 2
COUNT_LIMIT = 100_000  # counting stops here: a long queue must not make a slow page

_RUNNERS = """
SELECT runner.name, runner.state, runner.slots, runner.obstacle IS NULL,
       extract(epoch FROM clock_timestamp() - runner.beat_at)::float8,
       (SELECT count(*) FROM running_job WHERE running_job.runner_id = runner.id), runner.facts
FROM runner WHERE runner.state <> 'gone' OR runner.beat_at > now() - interval '1 hour'
ORDER BY runner.name LIMIT 200
"""
_COUNT = f"SELECT count(*) FROM (SELECT 1 FROM {{table}} LIMIT {COUNT_LIMIT + 1}) AS bounded"


def database_url(settings: Settings) -> str:
    """The database's address, with its password; empty where the embedded one was never made."""
    try:
        return settings.database_url
    except PostgresError:
        return ""


def collect(programs: Callable[[], list[Program]], url: str, lost_after: float) -> dict[str, Any]:
    """The report, as it is shown and as JSON. Takes at most a few seconds, and never raises for what is down.

    `programs` asks supervisord, `url` is of `database_url`, and `lost_after` is how old a heartbeat may be, in seconds.
    """
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(_processes, programs)
        data = threads.submit(_database, url).result()
        processes = asked.result()
    return {
        "status": _verdict(processes, data, lost_after),
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "version": __version__,
        "versions": {"tornado": tornado.version, "sqlalchemy": metadata.version("sqlalchemy")},
        "processes": processes,
        **data,
    }


def _processes(ask: Callable[[], list[Program]]) -> list[dict[str, Any]] | None:
    try:
        programs = ask()
    except SupervisorError:
        return None
    return [
        {
            "name": program.name,
            "state": "DONE" if _is_done(program) else program.state_name,
            "ok": program.state == supervision.RUNNING or _is_done(program),
            "uptime_seconds": program.uptime,
        }
        for program in programs
    ]


def _is_done(program: Program) -> bool:
    return program.state == supervision.EXITED and program.exit_status == 0


def _database(url: str) -> dict[str, Any]:
    down = {"database": {"state": "down", "latency_ms": None, "version": None}, "runners": None, "queue": None}
    if not url:
        return down
    try:
        dsn = url.replace("postgresql+psycopg2://", "postgresql://", 1)
        started = time.perf_counter()
        connection = psycopg2.connect(
            dsn,
            connect_timeout=SECONDS,
            options=f"-c statement_timeout={SECONDS * 1000}",
            application_name="status",
        )
    except psycopg2.Error:
        return down
    try:
        connection.autocommit = True
        version = _attempt(lambda: _rows(connection, "SHOW server_version")[0][0])
        latency = (time.perf_counter() - started) * 1000
        if version is None:
            return down
        tables = {"ready": "ready_job", "deferred": "deferred_job", "running": "running_job"}
        queue = {
            name: _attempt(lambda table=table: _rows(connection, _COUNT.format(table=table))[0][0])
            for name, table in tables.items()
        }
        return {
            "database": {"state": "up", "latency_ms": round(latency, 1), "version": str(version).split()[0]},
            "runners": _attempt(lambda: [_runner(row) for row in _rows(connection, _RUNNERS)]),
            "queue": {**queue, "counted_to": COUNT_LIMIT},
        }
    finally:
        connection.close()


def _runner(row: tuple[Any, ...]) -> dict[str, Any]:
    name, state, slots, able, age, running, facts = row
    missing = facts.get("missing")
    return {
        "name": name,
        "state": state,
        "slots": slots,
        "running": running,
        "heartbeat_age_seconds": round(age, 1),
        "jobs": "taken" if able else "not taken: something is missing" if missing else "not taken: its log says why",
        "missing": missing,
        "sandbox": _sandbox(facts),
        "limits": facts.get("limits", {}),
        "network": f"none: {facts['network']}" if facts.get("network") else "on request",
    }


def _sandbox(facts: dict[str, Any]) -> str:
    """What is around jobs, for people."""
    if facts.get("sandbox") == "none":
        return "none: jobs can do all that the service can"
    return {
        "own": "walls, and a uid for each user",
        "subordinate": "walls, and a subordinate uid for each user",
        "shared": "walls, and one uid for all users",
    }.get(facts.get("uids", ""), "unknown")


def limits_line(limits: dict[str, str]) -> str:
    """Which limits the kernel holds, which are watched, and which nothing holds, in words."""
    words = {"hard": "held by the kernel", "watched": "watched by the runner", "none": "held by nobody"}
    parts = ((text, [name for name, held in limits.items() if held == word]) for word, text in words.items())
    return "; ".join(f"{text}: {', '.join(names)}" for text, names in parts if names) or "unknown"


def _rows(connection: psycopg2.extensions.connection, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def _attempt(ask: Callable[[], T]) -> T | None:
    """What `ask` returns, or None when the database has no such table, is too slow, or has just gone."""
    try:
        return ask()
    except psycopg2.Error:
        return None


def _verdict(processes: list[dict[str, Any]] | None, data: dict[str, Any], lost_after: float) -> str:
    """``ok``, ``degraded``, or ``down`` when nothing that matters answers."""
    database = data["database"]["state"] == "up"
    if processes is None and not database:
        return "down"
    able = [
        runner
        for runner in data["runners"] or []
        if runner["state"] == "live" and runner["jobs"] == "taken" and runner["heartbeat_age_seconds"] < lost_after
    ]
    well = database and bool(able) and processes is not None and all(process["ok"] for process in processes)
    return "ok" if well else "degraded"
