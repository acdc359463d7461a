"""History: end to end with a million finished jobs and 100,000 that wait, beside a service without them.

Two services run side by side and are measured in turns; only one has load at a time. Of the jobs that wait, half are
for tomorrow and half are ready, but their users may run none: they are looked at by each claim and never take a slot.
"""

from __future__ import annotations

import asyncio
import json
import time

import psycopg2
import sqlalchemy

from benchmarks.bench import Bench, Shares
from benchmarks.results import Row
from shell_service.settings import Settings
from tests.stack import Stack

FINISHED = 1_000_000
PENDING = 100_000
USERS = 1000
DAYS = 22  # of 45,000 jobs each

# A UUID of version 7 from milliseconds since the epoch, with the rest from a number (RFC 9562, section 5.7).
_UUID7 = """CREATE FUNCTION pg_temp.uuid7(ms bigint, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(n::text), 1, 3)
  || '8' || substr(md5(n::text), 4, 15))::uuid $$"""
_USERS = """INSERT INTO "user" (username) SELECT 'past' || n FROM generate_series(1, %(users)s) AS n"""
_PAUSE = """INSERT INTO user_limits (user_id, max_running)
SELECT id, 0 FROM "user" WHERE username ~ '^past' ON CONFLICT (user_id) DO NOTHING"""
_PEOPLE = """CREATE TEMPORARY TABLE people AS
SELECT row_number() OVER (ORDER BY id) - 1 AS place, id FROM "user" WHERE username ~ '^past'"""
_COMMON = "id, user_id, name, priority, code, shell, args, env, stdin, timeout, limits, retries, retry_delay, on_lost"
_VALUES = """pg_temp.uuid7(ms, n), p.id, 'job' || n %% 50, 0, 'echo hello', 'sh', '[]'::jsonb, '{}'::jsonb, '', 3600,
%(limits)s, 0, 1, 'fail', to_timestamp(ms / 1000.0), to_timestamp(ms / 1000.0)"""
_FINISHED = f"""INSERT INTO job ({_COMMON}, created_at, modified, attempt, status, reason, return_code, started_at,
  finished_at, stdout_bytes, stderr_bytes, output_truncated, wall_seconds, cpu_seconds, peak_memory_bytes, runner)
SELECT {_VALUES}, 1, CASE WHEN failed THEN 'FAILED' ELSE 'COMPLETED' END,
  'exit code ' || failed::int, failed::int, to_timestamp(ms / 1000.0), to_timestamp(ms / 1000.0 + 1), 6, 0, false,
  1, 0.01, 1000000, 'runner_00'
FROM generate_series(1, %(finished)s::bigint) AS n
CROSS JOIN LATERAL (SELECT %(now)s - %(span)s + n * %(span)s / %(finished)s AS ms, n %% 10 = 0 AS failed) AS m
JOIN people p ON p.place = n %% %(users)s"""
_WAITING = f"""WITH new AS (
  INSERT INTO job ({_COMMON}, created_at, modified, run_at)
  SELECT {_VALUES}, CASE WHEN n %% 2 = 0 THEN now() + interval '1 day' END
  FROM generate_series(%(finished)s::bigint + 1, %(finished)s + %(pending)s) AS n
  CROSS JOIN LATERAL (SELECT %(now)s + n - %(finished)s - %(pending)s - 60000 AS ms) AS m
  JOIN people p ON p.place = n / 2 %% %(users)s
  RETURNING id, user_id, created_at, run_at),
later AS (
  INSERT INTO deferred_job (job_id, user_id, ord, run_at)
  SELECT id, user_id, extract(epoch FROM created_at) * 1000, run_at FROM new WHERE run_at IS NOT NULL)
INSERT INTO ready_job (job_id, user_id, ord)
SELECT id, user_id, extract(epoch FROM created_at) * 1000 FROM new WHERE run_at IS NULL"""


async def run(bench: Bench) -> list[Row]:
    jobs, with_history, without = bench.scaled(2500), [], []
    with Stack(**bench.overrides) as stack:
        other = await Bench.set_up(stack, bench.overrides, bench.quick)
        began = time.perf_counter()
        await asyncio.to_thread(fill, stack.settings, bench.scaled(FINISHED), bench.scaled(PENDING))
        filled = time.perf_counter() - began
        await other.end_to_end(300)
        await bench.end_to_end(300)
        for _ in range(bench.rounds):
            with Shares(bench.stack, jobs) as before:
                without.append(await bench.end_to_end(jobs))
            with Shares(stack, jobs) as after:
                with_history.append(await other.end_to_end(jobs))

    def postgres(shares: Shares) -> float:
        return shares.milliseconds["postgres"]

    return [
        Row(
            "history",
            f"end to end with {bench.scaled(FINISHED):,} finished and {bench.scaled(PENDING):,} pending jobs",
            "jobs/s",
            with_history,
            "without them",
            without,
            "ratio",
            0.85,
            note=f"CPU ms each of postgres: {postgres(after):.2f}, without {postgres(before):.2f}"
            f"; filled in {filled:.0f} s",
            details={"cpu_ms": after.milliseconds, "cpu_ms_without": before.milliseconds},
        )
    ]


def fill(settings: Settings, finished: int, pending: int) -> None:
    """Put jobs of the past and of the future straight into the database."""
    address = sqlalchemy.make_url(settings.owner_url).set(drivername="postgresql")
    now = time.time_ns() // 1_000_000
    figures = {
        "users": USERS, "finished": finished, "pending": pending, "now": now, "span": DAYS * 86_400_000,
        "limits": json.dumps(vars(settings.limits.defaults)),
    }  # fmt: skip
    connection = psycopg2.connect(address.render_as_string(hide_password=False))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(_UUID7)
            for statement in (_USERS, _PAUSE, _PEOPLE, _FINISHED, _WAITING):
                cursor.execute(statement, figures)
        connection.commit()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("VACUUM (ANALYZE)")
            cursor.execute("CHECKPOINT")
    finally:
        connection.close()
