"""The audit log in the database: only ever added to, at one with what was done, and read at the same cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service import audit, provision, queue, submissions
from shell_service.audit import Entry, Filter, Place
from shell_service.submissions import Submission
from tests.database import Transactions
from tests.factories import LIMITS, add_user, new_jobs


def entries(transact: Transactions) -> list[Any]:
    return transact.sql("SELECT * FROM audit ORDER BY id")


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET username = 'bob'", "UPDATE audit SET at = at WHERE false", "DELETE FROM audit",
     "DELETE FROM audit WHERE id < 0", "TRUNCATE audit", "TRUNCATE audit, job CASCADE",
     "INSERT INTO audit (id, action, outcome, detail) OVERRIDING SYSTEM VALUE VALUES (1, 'x', 'ok', '{}')"
     " ON CONFLICT (id) DO UPDATE SET username = 'bob'"],
)  # fmt: skip
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_entries_are_only_added(transact: Transactions, statement: str, role: str) -> None:
    transact(lambda session: audit.write([Entry("job.submit", username="alice")]).on(session))
    before = entries(transact)

    def change(session: Session) -> None:
        session.execute(text(f"SET LOCAL session_replication_role = {role}"))
        session.execute(text(statement))

    with pytest.raises(sqlalchemy.exc.DBAPIError, match="append-only") as caught:
        transact(change)
    assert isinstance(caught.value.orig, psycopg2.Error) and caught.value.orig.pgcode == "SH002"
    assert entries(transact) == before


@pytest.mark.parametrize("entry", [Entry("a.b", "x" * 201), Entry("a.b", detail={"x": "y" * 5000})])
def test_entries_are_small(transact: Transactions, entry: Entry) -> None:
    if entry.detail:  # what is compressed well is small
        entry = Entry("a.b", detail={str(number): str(number * 7919) for number in range(1000)})
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        transact(lambda session: audit.write([entry]).on(session))


def test_what_is_stored_and_what_is_told_of_it_are_one(transact: Transactions) -> None:
    """Of several submissions in a transaction each has its entry if it is stored, and none if not."""
    one, full = transact(add_user), transact(add_user, {"max_queued": 0})

    def ask(user: int, key: str | None = None) -> Submission:
        (job,) = new_jobs(1, user_id=user)
        return Submission(user, [job], key, b"", Entry("job.submit", job.public_id, user))

    asked = [
        ask(one),
        ask(full),
        ask(one, "key"),
        ask(one, "key"),
        Submission(one, new_jobs(1, user_id=one)),
    ]
    results = transact(lambda session: submissions.submit(asked, LIMITS).on(session))
    assert isinstance(results[1], Exception)
    told = {entry.object for entry in entries(transact)}
    assert told == {asked[0].audit.object, asked[2].audit.object}  # type: ignore[union-attr]

    def undone(session: Session) -> None:
        submissions.submit([ask(one)], LIMITS).on(session)
        queue.cancel(session, [asked[0].jobs[0].id], "alice", Entry("job.cancel"))
        raise KeyError

    with pytest.raises(KeyError):
        transact(undone)
    assert {entry.object for entry in entries(transact)} == told


def test_what_operators_do_is_told(transact: Transactions, tmp_path: Path) -> None:
    assert provision.first_admin(transact.engine, tmp_path / "tokens")
    provision.demo_data(transact.engine, tmp_path / "tokens")
    told = [(entry.username, entry.user_id, entry.action) for entry in entries(transact)]
    assert told == [("the operator", None, "user.create"), ("the operator", None, "token.create")] * 4
    assert [entry.object for entry in entries(transact)][::2] == ["admin", "alice", "bob", "carol"]
    assert entries(transact)[1].detail == {"username": "admin", "scopes": ["*"]}
    provision.first_admin(transact.engine, tmp_path / "tokens")
    provision.demo_data(transact.engine, tmp_path / "tokens")
    assert len(entries(transact)) == 8


# -- what it costs -----------------------------------------------------------------------------------------------------

_MANY = 100_000
# A year of jobs by one user, then one of another's: whoever looks for the first by the time alone reads all of the
# second. Every thousandth is something else.
_FILL = f"""
INSERT INTO audit (at, username, action, object, outcome, detail)
SELECT now() - make_interval(secs => {_MANY} - n), CASE WHEN n < {_MANY // 2} THEN 'early' ELSE 'late' END,
  CASE n % 1000 WHEN 7 THEN 'token.create' ELSE 'job.submit' END, 'job_' || n,
  CASE WHEN n % 1000 = 8 AND n < {_MANY // 2} THEN 'not_found' ELSE 'ok' END, '{{}}'
FROM generate_series(1, {_MANY}) AS n
"""


@pytest.fixture(scope="module")
def full_url(server: Any) -> Any:
    """A database with a long log, in two states: what the planner knows is that of an empty table, and of this one."""
    with server.database() as url:
        transact = Transactions(sqlalchemy.create_engine(url))
        transact.sql("ALTER TABLE audit SET (autovacuum_enabled = off)")
        with transact.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE audit"))
        transact.sql(_FILL)
        transact.engine.dispose()
        yield url


def pages_read(transact: Transactions, wanted: Filter, before: Place | None = None) -> tuple[int, int]:
    """How many entries a page holds, and how many pages of the database it costs."""
    seen: list[tuple[str, Any]] = []

    def look(session: Session) -> int:
        connection = session.connection()
        sqlalchemy.event.listen(connection, "before_cursor_execute", lambda *args: seen.append((args[2], args[3])))
        return len(audit.page(session, wanted, 50, before))

    count = transact(look)
    (setting, _), (statement, parameters) = seen
    with transact.engine.begin() as connection:
        connection.exec_driver_sql(setting)
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters).scalar()
    return count, plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]


def test_a_page_costs_the_same_however_long_the_log_is(full_url: str) -> None:
    transact = Transactions(sqlalchemy.create_engine(full_url))
    middle = transact.scalar("SELECT at FROM audit WHERE object = :name", name=f"job_{_MANY // 4}")
    cases = [
        (Filter(), 50), (Filter(user="early"), 50), (Filter(user="late"), 50), (Filter(user="nobody"), 0),
        (Filter(action="token.create"), 50), (Filter(action="none"), 0), (Filter(action=audit.SUBMIT), 50),
        (Filter(outcome="not_found"), 50), (Filter(outcome=audit.DONE), 50), (Filter(outcome="none"), 0),
        (Filter(object="job_77"), 1), (Filter(object="none"), 0), (Filter(before=middle), 50),
        (Filter(after=middle), 50), (Filter(user="early", before=middle), 50), (Filter(user="late", before=middle), 0),
        (Filter(action="token.create", before=middle), 25), (Filter(user="early", action="job.submit"), 50),
        (Filter(user="late", outcome="not_found"), 0),
    ]  # fmt: skip
    for known in ("empty", "full"):
        if known == "full":
            transact.sql("ANALYZE audit")
        for wanted, count in cases:
            found, cost = pages_read(transact, wanted)
            assert found == count, wanted
            assert cost <= 60, (known, wanted, cost)
        place = Place(middle, transact.scalar("SELECT id FROM audit WHERE at = :at", at=middle))
        for wanted in (Filter(), Filter(user="early")):
            assert pages_read(transact, wanted, place)[1] <= 60
    transact.engine.dispose()
