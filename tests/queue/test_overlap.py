"""Which jobs of a script may start while others have not ended: exact, whoever submits, claims and cancels at once."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.errors import Conflict
from shell_service import liveness, queue
from shell_service.queue import Claim, Fenced, Result
from shell_service.submissions import Overlaps, Stored
from tests.database import Transactions
from tests.factories import Enlisted, add_runner, add_script, add_user, run

SUBMITTERS, RUNS = 8, 12

# The database itself refuses that more than so many jobs of a script run, or wait.
WATCH = """
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT count(*) FROM {table} WHERE {condition} AND script_id = NEW.script_id) > {most} THEN
    RAISE EXCEPTION 'too many of {table}';
  END IF;
  RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION watch();
"""


def watch(transact: Transactions, table: str, most: int, condition: str = "true") -> None:
    with transact.engine.begin() as connection:
        connection.exec_driver_sql(WATCH.format(table=table, most=most, condition=condition))


def submit(transact: Transactions, user: int, script: int, **fields: Any) -> uuid.UUID:
    stored = transact(run, user, script, **fields)
    assert isinstance(stored, Stored), stored
    return stored.ids[0]


def finish(session: Session, claim: Claim, status: str = "COMPLETED", **fields: Any) -> None:
    queue.finish([Result(claim.job_id, claim.fence, status, "", "runner_00", **fields)]).on(session)


def places(transact: Transactions) -> dict[uuid.UUID, str]:
    """Where each job stands."""
    rows = transact.sql(
        "SELECT job_id, 'ready' AS place FROM ready_job UNION ALL SELECT job_id, 'running' FROM running_job"
        " UNION ALL SELECT job_id, CASE WHEN run_at = 'infinity' THEN 'waiting' ELSE 'later' END FROM deferred_job"
        " UNION ALL SELECT id, status FROM job WHERE status IS NOT NULL"
    )
    return {row.job_id: row.place for row in rows}


def drive(transact: Transactions, script: int, runs: int = RUNS) -> list[Stored | Exception]:
    """Eight users submit and two runners work, all at once, until all has ended; returns what the submissions made."""
    made: list[Stored | Exception] = []
    submitted = threading.Event()

    def submitter(_: int) -> None:
        user = transact(add_user)
        for _ in range(runs):
            made.append(transact(run, user, script))

    def runner(number: int) -> None:
        enlisted = transact(add_runner, f"runner_{number}")
        chance = random.Random(number)
        while True:
            over = submitted.is_set()
            claims = transact(enlisted.claim, 4)
            transact(queue.mark_started([Fenced(claim.job_id, claim.fence) for claim in claims]).on)
            for claim in claims:
                if chance.random() < 0.1:
                    transact(queue.release, [Fenced(claim.job_id, claim.fence)], True)
                else:
                    asked = transact.sql("SELECT cancel_requested_at FROM running_job WHERE fence = :f", f=claim.fence)
                    transact(finish, claim, "CANCELLED" if asked and asked[0][0] else "COMPLETED")
            if over and not claims and not transact.sql("SELECT FROM job WHERE status IS NULL LIMIT 1"):
                return

    with ThreadPoolExecutor(SUBMITTERS + 2) as threads:
        runners = [threads.submit(runner, number) for number in range(2)]
        submitting = [threads.submit(submitter, number) for number in range(SUBMITTERS)]
        try:
            for task in submitting:
                task.result()
        finally:
            submitted.set()
        for task in runners:
            task.result()
    return made


def ends(transact: Transactions) -> Counter[str]:
    return Counter(places(transact).values())


@pytest.mark.parametrize(("overlap", "most"), [("queue", 1), ("parallel", 3)])
def test_no_more_run_than_the_script_allows_and_all_do(transact: Transactions, overlap: str, most: int) -> None:
    script = transact(add_script, transact(add_user), overlap, most if overlap == "parallel" else None)
    watch(transact, "running_job", most)
    made = drive(transact, script)
    assert all(isinstance(item, Stored) for item in made)
    assert ends(transact) == {"COMPLETED": SUBMITTERS * RUNS}


def test_what_would_overlap_is_skipped(transact: Transactions) -> None:
    script = transact(add_script, transact(add_user), "skip")
    for table in ("running_job", "deferred_job", "ready_job"):
        with transact.engine.begin() as connection:
            connection.exec_driver_sql(
                f"""
                CREATE FUNCTION watch_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                  IF (SELECT count(*) FROM job WHERE script_id = NEW.script_id AND status IS NULL) > 1 THEN
                    RAISE EXCEPTION 'not skipped';
                  END IF;
                  RETURN NULL; END $$;
                CREATE CONSTRAINT TRIGGER watch AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
                  FOR EACH ROW EXECUTE FUNCTION watch_{table}();
                """
            )
    made = drive(transact, script)
    stored = [item for item in made if isinstance(item, Stored)]
    assert all(isinstance(item, Stored | Overlaps) for item in made)
    assert 1 <= len(stored) < len(made)
    assert ends(transact) == {"COMPLETED": len(stored)}


def test_those_before_are_cancelled(transact: Transactions) -> None:
    script = transact(add_script, transact(add_user), "cancel_previous")
    watch(transact, "running_job", 1)
    watch_name = "DROP TRIGGER watch ON running_job; ALTER FUNCTION watch() RENAME TO watch_running"
    with transact.engine.begin() as connection:
        connection.exec_driver_sql(watch_name)
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER watch AFTER INSERT ON running_job DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION watch_running()"
        )
    watch(transact, "deferred_job", 1)
    made = drive(transact, script)
    assert all(isinstance(item, Stored) for item in made)
    ended = ends(transact)
    assert ended.keys() <= {"COMPLETED", "CANCELLED"} and ended["COMPLETED"] >= 1 and ended["CANCELLED"] >= 1
    assert sum(ended.values()) == SUBMITTERS * RUNS


def test_of_those_that_wait_the_latest_stays(transact: Transactions) -> None:
    script = transact(add_script, transact(add_user), "queue_latest")
    watch(transact, "deferred_job", 1)
    made = drive(transact, script)
    assert all(isinstance(item, Stored) for item in made)
    ended = ends(transact)
    assert ended.keys() <= {"COMPLETED", "CANCELLED"} and ended["COMPLETED"] >= 1 and ended["CANCELLED"] >= 1


def test_a_job_waits_for_its_turn_in_the_order_of_submission(
    transact: Transactions, user: int, runner: Enlisted
) -> None:
    script = transact(add_script, user)
    first, second, third = (submit(transact, user, script) for _ in range(3))
    other = submit(transact, user, transact(add_script, user))
    assert places(transact) == {first: "ready", second: "waiting", third: "waiting", other: "ready"}
    claims = transact(runner.claim, 10)
    assert {claim.job_id for claim in claims} == {first, other}
    assert transact(runner.claim, 10) == []
    transact(finish, next(claim for claim in claims if claim.job_id == first))
    assert places(transact)[second] == "ready" and places(transact)[third] == "waiting"


def test_users_take_turns(transact: Transactions, runner: Enlisted) -> None:
    """However many one of them has asked for, and whatever priority he gives them."""
    one, other, third = (transact(add_user) for _ in range(3))
    script = transact(add_script, one)
    first = [submit(transact, one, script, priority=10) for _ in range(6)]
    second = [submit(transact, other, script) for _ in range(2)]
    last = submit(transact, third, script, priority=-10)
    order = []
    while claims := transact(runner.claim, 9):
        (claim,) = claims
        order.append(claim.job_id)
        transact(finish, claim)
    assert order == [first[0], second[0], last, first[1], second[1], *first[2:]]


def test_a_crowd_is_not_cancelled_for_one(transact: Transactions, user: int) -> None:
    script = transact(add_script, user)
    for _ in range(502):
        submit(transact, user, script)
    transact.sql("UPDATE script SET overlap = 'queue_latest'")
    refused = transact(run, user, script)
    assert isinstance(refused, Conflict) and "More than 500" in str(refused)
    assert ends(transact) == {"ready": 1, "waiting": 501}


def test_whatever_ends_a_job_lets_the_next_one_in(transact: Transactions, user: int, runner: Enlisted) -> None:
    script = transact(add_script, user)
    jobs = [submit(transact, user, script) for _ in range(6)]
    transact(queue.cancel, [jobs[0]], "somebody")  # while it is ready
    assert places(transact)[jobs[1]] == "ready"
    (claim,) = transact(runner.claim)
    transact(queue.cancel, [jobs[1]], "somebody")  # claimed: it ends when its claim is given back
    assert places(transact)[jobs[2]] == "waiting"
    transact(queue.release, [Fenced(claim.job_id, claim.fence)])
    assert places(transact)[jobs[2]] == "ready"
    (claim,) = transact(runner.claim)
    transact(queue.release, [Fenced(claim.job_id, claim.fence)])  # given back: it is still its turn
    assert places(transact)[jobs[2]] == "ready" and places(transact)[jobs[3]] == "waiting"
    (claim,) = transact(runner.claim)
    transact(finish, claim, "FAILED", retry_in=3600.0)  # others go on before its next try
    assert places(transact)[jobs[2]] == "later" and places(transact)[jobs[3]] == "ready"
    (claim,) = transact(runner.claim)
    transact(queue.mark_started([Fenced(claim.job_id, claim.fence)]).on)
    transact(liveness.lose, runner.id, [Fenced(claim.job_id, claim.fence)], "runner_00", "lost")
    assert places(transact)[jobs[3]] == "NODE_FAIL" and places(transact)[jobs[4]] == "ready"
    transact(queue.cancel, [jobs[4], jobs[5]], "somebody")
    assert set(places(transact).values()) == {"CANCELLED", "NODE_FAIL", "later"}


def test_what_was_to_start_later_comes_to_its_turn(transact: Transactions, user: int, runner: Enlisted) -> None:
    script = transact(add_script, user, "skip")
    later = [submit(transact, user, script, run_at="2030-01-01T00:00:00Z", deferred=True) for _ in range(2)]
    now = submit(transact, user, script)  # none of them is a job that has not ended
    assert list(map(places(transact).get, later)) == ["later", "later"]
    transact.sql("UPDATE deferred_job SET run_at = now() WHERE run_at < 'infinity'")
    assert transact(queue.promote) == 2
    assert list(map(places(transact).get, [now, *later])) == ["ready", "waiting", "waiting"]
    assert transact(queue.promote) == 0
    (claim,) = transact(runner.claim, 5)
    transact(finish, claim)
    assert list(map(places(transact).get, later)) == ["ready", "waiting"]


def test_skipping_tells_for_which_job(transact: Transactions, user: int, runner: Enlisted) -> None:
    script = transact(add_script, user, "skip")
    job = submit(transact, user, script)
    for _ in range(2):
        refused = transact(run, user, script)
        assert isinstance(refused, Overlaps) and refused.job_id == job
        claims = transact(runner.claim)
        if claims:
            (claim,) = claims
    transact(finish, claim, "FAILED", retry_in=3600.0)
    assert isinstance(transact(run, user, script), Overlaps)  # it is to be tried again
    assert ends(transact) == {"later": 1}


def test_what_is_cancelled_for_another_is_in_the_log(transact: Transactions, user: int) -> None:
    script = transact(add_script, user, "cancel_previous")
    first, second = submit(transact, user, script), submit(transact, user, script)
    assert places(transact) == {first: "CANCELLED", second: "ready"}
    rows = transact.sql("SELECT action, detail FROM audit WHERE action = 'job.cancel'")
    assert [row.detail for row in rows] == [{"jobs": 1, "by": "cancel_previous"}]
    assert transact.scalar("SELECT cancelled_by FROM job WHERE id = :id", id=first) == f"user{user}"


def test_nothing_of_an_archived_script_is_run(transact: Transactions, user: int) -> None:
    script = transact(add_script, user)
    first, second = submit(transact, user, script), submit(transact, user, script)
    transact.sql("UPDATE script SET archived_at = now()")
    refused = transact(run, user, script)
    assert isinstance(refused, Exception) and "archived" in str(refused)
    transact(queue.cancel, [first], "somebody")
    assert places(transact) == {first: "CANCELLED", second: "ready"}  # what was asked for before goes on


def test_a_script_without_a_limit_keeps_nobody_waiting(transact: Transactions, user: int) -> None:
    script = transact(add_script, user, "parallel")
    jobs = [submit(transact, user, script) for _ in range(5)]
    assert places(transact) == dict.fromkeys(jobs, "ready")
    transact.sql("UPDATE script SET overlap = 'queue'")
    more = submit(transact, user, script)
    assert places(transact)[more] == "waiting"
    transact.sql("UPDATE script SET overlap = 'parallel', max_running = 6")
    transact(lambda session: session.execute(text("SELECT admit_jobs(ARRAY[:id])"), {"id": script}))
    assert places(transact)[more] == "ready"
