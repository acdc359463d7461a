"""What the hot paths cost: not more with history and backlog, whatever the planner believes of the tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service import liveness, queue, submissions
from shell_service.queue import Fenced, Result
from shell_service.submissions import Submission
from tests.database import Transactions
from tests.factories import (
    JOB_LIMITS,
    LIMITS,
    Enlisted,
    add_jobs,
    add_runner,
    add_script,
    add_user,
    new_jobs,
)

_QUEUE = "('ready_job', 'deferred_job', 'running_job', 'job', 'idempotency_key')"


class Rolled(Exception):
    """Takes a figure out of a transaction that is not to stand."""


def rows_read(transact: Transactions, act: Callable[[Session], Any]) -> Counter[str]:
    """Rows that `act` reads of each table."""

    def count(session: Session) -> Counter[str]:
        found = session.execute(
            text(
                "SELECT relname, seq_tup_read + coalesce(idx_tup_fetch, 0) AS rows FROM pg_stat_xact_user_tables"
                f" WHERE relname IN {_QUEUE}"
            )
        )
        return Counter({row.relname: row.rows for row in found})

    def measured(session: Session) -> None:
        before = count(session)  # what this connection has not yet handed in of its earlier transactions
        act(session)
        raise Rolled(count(session) - before)

    with pytest.raises(Rolled) as caught:
        transact(measured)
    figures: Counter[str] = caught.value.args[0]
    return figures


def claim_buffers(transact: Transactions, runner: Enlisted, count: int) -> int:
    """Pages that a claim touches, all of its inner statements counted."""

    def measured(session: Session) -> None:
        plan = session.scalar(
            text(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
                " SELECT * FROM claim_jobs(:runner, :incarnation, :count, 500, 50)"
            ),
            {"runner": runner.id, "incarnation": runner.incarnation, "count": count},
        )[0]["Plan"]
        raise Rolled(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    with pytest.raises(Rolled) as caught:
        transact(measured)
    pages: int = caught.value.args[0]
    return pages


def fill(transact: Transactions, ready: int, users: int, finished: int) -> None:
    """A backlog of many users, and history."""
    many = "SELECT 'many' || n FROM generate_series(1, :users) AS n"
    transact.sql(f'INSERT INTO "user" (username) {many}', users=users)
    for table, count in (("ready", ready), ("done", finished)):
        transact.sql(
            "INSERT INTO job (id, user_id, name, priority, code, shell, args, env, stdin, timeout, limits, retries,"
            " retry_delay, on_lost, created_at, modified, status, finished_at)"
            " SELECT gen_random_uuid(), 1 + n % :users, :name, 0, 'true', 'sh', '[]', '{}', '', 1, :limits, 0, 0,"
            " 'fail', now(), now(), CASE WHEN :done THEN 'COMPLETED' END, CASE WHEN :done THEN now() END"
            " FROM generate_series(1, :count) n",
            users=users, name=table, done=table == "done", count=count, limits=json.dumps(JOB_LIMITS),
        )  # fmt: skip
    transact.sql("INSERT INTO ready_job (job_id, user_id, ord) SELECT id, user_id, 1 FROM job WHERE name = 'ready'")


# What a table held when it was last looked at: nothing; what it holds now; all of it, with little left since.
@pytest.mark.parametrize("statistics", ["empty", "fresh", "stale"])
def test_a_claim_costs_the_same_with_a_backlog(transact: Transactions, statistics: str) -> None:
    user, runner = transact(add_user), transact(add_runner, slots=64)
    for table in ("ready_job", "running_job", "job"):
        transact.sql(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    transact(add_jobs, user, 40)
    with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    small = rows_read(transact, lambda session: runner.claim(session, 16)), claim_buffers(transact, runner, 16)
    transact.sql("DELETE FROM ready_job")
    transact.sql("DELETE FROM running_job")
    transact.sql("DELETE FROM job")
    with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if statistics == "empty":
            connection.execute(text("VACUUM ANALYZE"))
        fill(transact, 100_000, 1000, 50_000)
        if statistics != "empty":
            connection.execute(text("ANALYZE"))
        if statistics == "stale":
            transact.sql("DELETE FROM ready_job WHERE user_id > 500")
            transact.sql("DELETE FROM job WHERE status IS NULL AND user_id > 500")
            connection.execute(text("VACUUM ready_job"))
    transact.engine.dispose()  # no plan of before
    large = rows_read(transact, lambda session: runner.claim(session, 16)), claim_buffers(transact, runner, 16)
    assert large[0]["ready_job"] <= small[0]["ready_job"] + 16 * 17, (small, large)
    assert large[0]["job"] <= 16
    assert large[1] <= 2 * small[1] + 16 * 24, (small, large)


def test_users_at_their_limit_cost_a_probe_each(transact: Transactions, runner: Enlisted) -> None:
    for _ in range(32):
        full = transact(add_user, {"max_running": 1})
        transact(add_jobs, full, 100)
    assert len(transact(runner.claim, 40)) == 32
    free = transact(add_user)
    transact(add_jobs, free, 1)
    read = rows_read(transact, lambda session: runner.claim(session, 8))
    assert read["ready_job"] <= 3 * 33 + 10


@pytest.mark.parametrize("looked_at", ["before", "after"])
def test_other_moves_read_their_own_rows_only(transact: Transactions, runner: Enlisted, looked_at: str) -> None:
    for table in ("ready_job", "job"):
        transact.sql(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        fill(transact, 50_000, 1000, 50_000)
        if looked_at == "after":
            connection.execute(text("VACUUM ANALYZE"))
    user = transact(add_user)
    transact(add_jobs, user, 3)
    claims = transact(runner.claim, 4, 0)
    fenced = [Fenced(claim.job_id, claim.fence) for claim in claims]
    results = [Result(item.job_id, item.fence, "COMPLETED", "", "runner_00") for item in fenced]
    waiting = transact(add_jobs, user, 3)
    new = Submission(user, new_jobs(1, user_id=user), "key", b"")
    moves: dict[str, Callable[[Session], Any]] = {
        "submit": lambda session: submissions.submit([new], LIMITS).on(session),
        "start": lambda session: queue.mark_started(fenced).on(session),
        "finish": lambda session: queue.finish(results).on(session),
        "release": lambda session: queue.release(session, fenced),
        "cancel what waits": lambda session: queue.cancel(session, waiting, "alice"),
        "cancel": lambda session: queue.cancel(session, [claim.job_id for claim in claims], "alice"),
        "promote": queue.promote,
        "running_of": lambda session: liveness.running_of(session, runner.id),
    }
    for name, move in moves.items():
        read = rows_read(transact, move)
        assert sum(read.values()) <= 60, (name, read)


@pytest.mark.parametrize("looked_at", ["before", "after"])
def test_promoting_reads_what_is_due(transact: Transactions, looked_at: str) -> None:
    """And not what waits for tomorrow."""
    user = transact(add_user)
    scripts = [transact(add_script, user, "parallel"), transact(add_script, user)]
    transact.sql("ALTER TABLE deferred_job SET (autovacuum_enabled = off)")
    with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        for script, count, when in ((None, 50_000, 86_400), *((script, 10, 0) for script in (None, *scripts))):
            transact.sql(
                "INSERT INTO deferred_job (job_id, user_id, ord, run_at, script_id) SELECT gen_random_uuid(), :user, n,"
                " now() + make_interval(secs => :when), CAST(:script AS int) FROM generate_series(1, :count) AS n",
                user=user, when=when, script=script, count=count,
            )  # fmt: skip
        if looked_at == "after":
            connection.execute(text("VACUUM ANALYZE"))
    read = rows_read(transact, queue.promote)
    assert read["deferred_job"] <= 200
    assert transact(queue.promote) == 30
    assert transact.scalar("SELECT count(*) FROM ready_job") == 10 + 10 + 1  # of the last, one after the other
    transact.sql("TRUNCATE deferred_job, ready_job")  # of jobs that there are not


def test_a_cancel_reads_what_it_cancels(transact: Transactions, user: int) -> None:
    """When the tables were last looked at, all jobs had ended: the planner takes those that wait for few."""
    transact.sql("ALTER TABLE job SET (autovacuum_enabled = off)")
    fill(transact, 0, 10, 1000)
    with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    ids = [job_id for _ in range(5) for job_id in transact(add_jobs, user, 1000)]
    read = rows_read(transact, lambda session: queue.cancel(session, ids[:500], "alice"))
    assert read["job"] <= 3 * 500


def test_an_end_reads_its_own_job(transact: Transactions, user: int, runner: Enlisted) -> None:
    """The same of those that end: it took all that wait for few, and walked them for each."""
    transact.sql("ALTER TABLE job SET (autovacuum_enabled = off)")
    fill(transact, 0, 10, 1000)
    with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    for _ in range(5):
        transact(add_jobs, user, 1000)
    results = [
        Result(claim.job_id, claim.fence, "COMPLETED", "exit code 0", "runner_00")
        for claim in transact(runner.claim, 4)
    ]
    read = rows_read(transact, lambda session: queue.finish(results).on(session))
    assert read["job"] <= 3 * len(results)
