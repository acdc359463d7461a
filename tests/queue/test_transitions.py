"""Every move of a job between its states, one at a time."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.errors import IdempotencyMismatch, InvalidRequest, LimitReached, NotAllowed
from shell_service import liveness, queue, submissions, users
from shell_service.queue import Claim, Fenced, Result
from shell_service.submissions import Limits, NewJob, Stored, Submission
from tests.database import Transactions
from tests.factories import BOUNDS, LIMITS, Enlisted, add_jobs, add_runner, add_user, new_job, new_jobs


def fenced(claim: Claim) -> Fenced:
    return Fenced(claim.job_id, claim.fence)


def ended(claim: Claim, status: str = "COMPLETED", **fields: Any) -> Result:
    return Result(claim.job_id, claim.fence, status, "exit code 0", "runner_00", **fields)


def job(transact: Transactions, job_id: uuid.UUID) -> Any:
    return transact.sql("SELECT * FROM job WHERE id = :id", id=job_id)[0]


def place(transact: Transactions, job_id: uuid.UUID) -> str:
    """The table in which a job stands, or its final status."""
    for table in ("ready_job", "deferred_job", "running_job"):
        if transact.sql(f"SELECT FROM {table} WHERE job_id = :id", id=job_id):
            return table.removesuffix("_job")
    return str(job(transact, job_id).status)


def start(transact: Transactions, runner: Enlisted, user: int, **fields: Any) -> Claim:
    """A job that runs."""
    transact(add_jobs, user, **fields)
    (claim,) = transact(runner.claim)
    assert transact(queue.mark_started([fenced(claim)]).on) == [True]
    return claim


def test_a_job_from_submission_to_its_end(transact: Transactions, user: int, runner: Enlisted) -> None:
    (job_id,) = transact(add_jobs, user, code="exit 3", args=["a"], env={"A": "b"}, stdin="in", timeout=5.0, retries=2)
    assert place(transact, job_id) == "ready"
    (claim,) = transact(runner.claim)
    assert place(transact, job_id) == "running"
    assert (claim.job_id, claim.user_id, claim.attempt) == (job_id, user, 1)
    assert (claim.code, claim.args, claim.env, claim.stdin) == ("exit 3", ["a"], {"A": "b"}, "in")
    assert (claim.timeout, claim.retries, claim.shell) == (5.0, 2, "sh")
    assert transact(queue.mark_started([fenced(claim)]).on) == [True]
    figures = {
        "return_code": 3,
        "wall_seconds": 0.5,
        "cpu_seconds": 0.1,
        "peak_memory_bytes": 1 << 33,
        "stdout_bytes": 7,
    }
    assert transact(queue.finish([ended(claim, "FAILED", stderr_bytes=0, output_truncated=False, **figures)]).on) == [
        True
    ]
    row = job(transact, job_id)
    assert (row.status, row.attempt, row.runner, row.reason) == ("FAILED", 1, "runner_00", "exit code 0")
    assert {name: getattr(row, name) for name in figures} == figures
    assert row.created_at <= row.started_at <= row.finished_at


def test_a_claim_takes_no_more_than_asked_for(transact: Transactions, user: int, runner: Enlisted) -> None:
    ids = transact(add_jobs, user, 5)
    assert [claim.job_id for claim in transact(runner.claim, 2)] == ids[:2]
    assert [claim.job_id for claim in transact(runner.claim, 9)] == ids[2:]
    assert transact(runner.claim, 9) == []


def test_fences_are_never_used_twice(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    fences = []
    for _ in range(3):
        (claim,) = transact(runner.claim)
        transact(queue.release, [fenced(claim)])
        fences.append(claim.fence)
    assert len(set(fences)) == 3


def test_priority_acts_within_a_user_only(transact: Transactions, user: int, runner: Enlisted) -> None:
    other = transact(add_user)
    low, normal = transact(add_jobs, user, priority=-1)[0], transact(add_jobs, user)[0]
    high = transact(add_jobs, user, priority=10)[0]
    transact(add_jobs, other, priority=-10)
    assert {claim.user_id for claim in transact(runner.claim, 2)} == {user, other}
    assert [claim.job_id for claim in transact(runner.claim, 2)] == [normal, low]
    assert place(transact, high) == "running"


@pytest.mark.parametrize(("points", "first"), [(4, "old"), (6, "new")])
def test_a_minute_of_waiting_outweighs_a_point_of_priority(
    transact: Transactions, user: int, runner: Enlisted, points: int, first: str
) -> None:
    now = datetime.now(UTC)
    (old,) = transact(add_jobs, user, created_at=now - timedelta(minutes=5))
    (new,) = transact(add_jobs, user, created_at=now, priority=points)
    assert transact(runner.claim)[0].job_id == {"old": old, "new": new}[first]


def test_a_user_at_his_limit_gets_no_more(transact: Transactions, runner: Enlisted) -> None:
    limited = transact(add_user, {"max_running": 2})
    transact(add_jobs, limited, 5)
    first = transact(runner.claim, 5)
    assert len(first) == 2
    assert transact(runner.claim, 5) == []
    transact(queue.finish([ended(first[0])]).on)
    assert len(transact(runner.claim, 5)) == 1


def test_nothing_starts_of_a_user_who_is_not_active(transact: Transactions) -> None:
    gone, other = transact(add_user, active=False), transact(add_user)
    transact.sql('UPDATE "user" SET active = true WHERE id = :id', id=gone)
    transact(add_jobs, gone, 3)
    (theirs,) = transact(add_jobs, other)
    transact.sql('UPDATE "user" SET active = false WHERE id = :id', id=gone)
    assert [claim.job_id for claim in transact(transact(add_runner).claim, 8)] == [theirs]


def test_the_default_limit_holds_for_users_without_one(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user, 5)
    assert len(transact(runner.claim, 5, max_running=3)) == 3


@pytest.mark.parametrize("state", ["draining", "gone"])
def test_a_runner_that_is_not_live_claims_nothing(
    transact: Transactions, user: int, runner: Enlisted, state: str
) -> None:
    transact(add_jobs, user)
    transact.sql("UPDATE runner SET state = :state", state=state)
    with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        transact(runner.claim)
    assert caught.value.orig.pgcode == "SH001"


def test_a_predecessor_claims_nothing(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    transact(add_runner)
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        transact(runner.claim)


def test_marking_twice_gives_the_same_answer(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user)
    before = transact.scalar("SELECT started_at FROM running_job")
    assert transact(queue.mark_started([fenced(claim)]).on) == [True]
    assert transact.scalar("SELECT started_at FROM running_job") == before


def test_a_script_may_not_start_without_its_claim(transact: Transactions, user: int, runner: Enlisted) -> None:
    (job_id,) = transact(add_jobs, user)
    (claim,) = transact(runner.claim)
    assert transact(queue.mark_started([Fenced(job_id, claim.fence + 1)]).on) == [False]
    transact(queue.release, [fenced(claim)])
    assert transact(queue.mark_started([fenced(claim)]).on) == [False]


def test_finishing_twice_counts_once(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user)
    assert transact(queue.finish([ended(claim)]).on) == [True]
    assert transact(queue.finish([ended(claim, "FAILED")]).on) == [False]
    assert job(transact, claim.job_id).status == "COMPLETED"


def test_an_old_fence_changes_nothing(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    (old,) = transact(runner.claim)
    transact(queue.release, [fenced(old)])
    (new,) = transact(runner.claim)
    assert transact(queue.finish([ended(old, "FAILED")]).on) == [False]
    assert transact(queue.mark_started([fenced(old)]).on) == [False]
    assert transact(queue.release, [fenced(old)]) == [False]
    assert transact(queue.finish([ended(new)]).on) == [True]


def test_an_old_result_beside_the_true_one_changes_nothing(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    (old,) = transact(runner.claim)
    transact(queue.release, [fenced(old)])
    (new,) = transact(runner.claim)
    results = [ended(old, "FAILED", return_code=1), ended(new, return_code=0), ended(old, "TIMEOUT", return_code=2)]
    assert transact(queue.finish(results).on) == [False, True, False]
    row = job(transact, new.job_id)
    assert (row.status, row.return_code) == ("COMPLETED", 0)


def test_a_retry_waits_and_keeps_the_record_clean(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user, retries=1)
    assert transact(queue.finish([ended(claim, "FAILED", return_code=1, retry_in=30.0)]).on) == [True]
    row = job(transact, claim.job_id)
    assert place(transact, claim.job_id) == "deferred"
    assert (row.status, row.reason, row.return_code, row.finished_at, row.started_at) == (None,) * 5
    wait = transact.scalar("SELECT extract(epoch FROM run_at - clock_timestamp()) FROM deferred_job")
    assert 25 < wait <= 30
    assert transact(queue.promote) == 0
    transact.sql("UPDATE deferred_job SET run_at = clock_timestamp()")
    assert transact(queue.promote) == 1
    assert transact(runner.claim)[0].attempt == 2


def test_a_cancelled_job_is_not_tried_again(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user, retries=1)
    transact(queue.cancel, [claim.job_id], "alice")
    transact(queue.finish([ended(claim, "FAILED", return_code=1, retry_in=0.0)]).on)
    assert (place(transact, claim.job_id), job(transact, claim.job_id).return_code) == ("FAILED", 1)


def test_releasing_gives_back_what_never_began(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    (claim,) = transact(runner.claim)
    before = transact.scalar("SELECT ord FROM running_job")
    assert transact(queue.release, [fenced(claim)]) == [True]
    assert transact.scalar("SELECT ord FROM ready_job") == before
    assert transact(runner.claim)[0].attempt == 1


def test_releasing_leaves_alone_what_began(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user)
    assert transact(queue.release, [fenced(claim)]) == [False]
    assert place(transact, claim.job_id) == "running"


def test_releasing_an_old_claim_beside_the_true_one(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    (old,) = transact(runner.claim)
    transact(queue.release, [fenced(old)])
    (new,) = transact(runner.claim)
    assert transact(queue.release, [fenced(old), fenced(new)]) == [False, True]


def test_releasing_a_cancelled_job_ends_it(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    (claim,) = transact(runner.claim)
    transact(queue.cancel, [claim.job_id], "alice")
    assert transact(queue.mark_started([fenced(claim)]).on) == [False]
    assert transact(queue.release, [fenced(claim)]) == [True]
    row = job(transact, claim.job_id)
    assert (row.status, row.cancelled_by, row.reason) == ("CANCELLED", "alice", "cancelled by alice")


@pytest.mark.parametrize("deferred", [False, True])
def test_cancelling_what_waits_ends_it(transact: Transactions, user: int, deferred: bool) -> None:
    run_at = datetime.now(UTC) + timedelta(hours=1) if deferred else None
    (job_id,) = transact(add_jobs, user, deferred=deferred, run_at=run_at)
    assert place(transact, job_id) == ("deferred" if deferred else "ready")
    transact(queue.cancel, [job_id], "alice")
    row = job(transact, job_id)
    assert (row.status, row.cancelled_by, row.reason) == ("CANCELLED", "alice", "cancelled by alice")
    transact(queue.cancel, [job_id], "bob")
    assert job(transact, job_id) == row


def test_cancelling_what_runs_asks_for_its_end(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user)
    transact(queue.cancel, [claim.job_id], "alice")
    transact(queue.cancel, [claim.job_id], "bob")
    assert [row.cancel_requested for row in transact(liveness.running_of, runner.id)] == [True]
    transact(queue.finish([ended(claim, "CANCELLED")]).on)
    row = job(transact, claim.job_id)
    assert (row.status, row.cancelled_by, row.reason) == ("CANCELLED", "alice", "cancelled by alice")


def test_cancelling_what_has_ended_changes_nothing(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user)
    transact(queue.finish([ended(claim)]).on)
    before = job(transact, claim.job_id)
    transact(queue.cancel, [claim.job_id, uuid.uuid4()], "alice")
    assert job(transact, claim.job_id) == before


def test_promoting_moves_what_is_due_only(transact: Transactions, user: int) -> None:
    now = datetime.now(UTC)
    (due,) = transact(add_jobs, user, deferred=True, run_at=now - timedelta(seconds=1))
    (later,) = transact(add_jobs, user, deferred=True, run_at=now + timedelta(hours=1))
    assert transact(queue.promote) == 1
    assert (place(transact, due), place(transact, later)) == ("ready", "deferred")


def test_beating_keeps_a_runner_known(transact: Transactions, runner: Enlisted) -> None:
    before = transact(liveness.heartbeats)[runner.id]
    assert transact(liveness.beat, runner.id, runner.incarnation, "no sandbox", "draining", {"uids": "own"})
    assert transact(liveness.heartbeats)[runner.id] == (runner.incarnation, before[1] + 1)
    row = transact.sql("SELECT state, obstacle, facts FROM runner")[0]
    assert tuple(row) == ("draining", "no sandbox", {"uids": "own"})
    assert not transact(liveness.beat, runner.id, uuid.uuid4(), None, "live", {})


def lost_jobs(transact: Transactions, runner: Enlisted, user: int) -> dict[str, Claim]:
    """A runner's jobs of each kind."""
    claims = {"fail": start(transact, runner, user), "requeue": start(transact, runner, user, on_lost="requeue")}
    transact(add_jobs, user)
    (claims["never"],) = transact(runner.claim)
    return claims


def test_a_runner_that_is_gone_leaves_nothing_behind(transact: Transactions, user: int, runner: Enlisted) -> None:
    claims = lost_jobs(transact, runner, user)
    incarnation, beat = transact(liveness.heartbeats)[runner.id]
    assert transact(liveness.expire, runner.id, incarnation, beat)
    assert {kind: place(transact, claim.job_id) for kind, claim in claims.items()} == {
        "fail": "NODE_FAIL", "requeue": "deferred", "never": "ready"
    }  # fmt: skip
    assert "how the script ended is not known" in job(transact, claims["fail"].job_id).reason
    assert not transact(liveness.expire, runner.id, incarnation, beat)
    assert not transact(liveness.beat, runner.id, incarnation, None, "live", {})
    assert runner.id not in transact(liveness.heartbeats)
    for claim in claims.values():
        assert transact(queue.finish([ended(claim)]).on) == [False]


def test_a_runner_that_beats_is_not_declared_gone(transact: Transactions, user: int, runner: Enlisted) -> None:
    claims = lost_jobs(transact, runner, user)
    incarnation, beat = transact(liveness.heartbeats)[runner.id]
    transact(liveness.beat, runner.id, runner.incarnation, None, "live", {})
    assert not transact(liveness.expire, runner.id, incarnation, beat)
    assert not transact(liveness.expire, runner.id, uuid.uuid4(), beat + 1)
    assert {place(transact, claim.job_id) for claim in claims.values()} == {"running"}


def test_a_job_that_loses_its_runners_ends_at_last(transact: Transactions, user: int) -> None:
    transact(add_jobs, user, on_lost="requeue")
    attempts = 0
    while claims := transact(runner_claims):
        attempts += 1
        assert attempts < 20
        (claim,) = claims
        transact(queue.mark_started([fenced(claim)]).on)
        transact(liveness.lose, transact.scalar("SELECT id FROM runner"), [fenced(claim)], "runner_00", "lost")
        transact.sql("UPDATE deferred_job SET run_at = clock_timestamp()")
        transact(queue.promote)
    assert attempts == 6
    assert transact.scalar("SELECT status FROM job") == "NODE_FAIL"


def runner_claims(session: Session) -> list[Claim]:
    return add_runner(session).claim(session)


def test_losing_leaves_alone_the_jobs_of_another_runner(transact: Transactions, user: int, runner: Enlisted) -> None:
    claim = start(transact, runner, user)
    other = transact(add_runner, "runner_01")
    transact(liveness.lose, other.id, [fenced(claim)], "runner_01", "lost")
    assert place(transact, claim.job_id) == "running"


def test_a_runner_that_leaves_gives_back_what_never_began(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user)
    (claim,) = transact(runner.claim)  # the answer to this claim came after the runner had stopped to look
    transact(liveness.leave, runner.id, runner.incarnation)
    assert place(transact, claim.job_id) == "ready"
    assert transact(liveness.heartbeats) == {}


def test_a_runner_that_leaves_what_began_is_still_waited_for(
    transact: Transactions, user: int, runner: Enlisted
) -> None:
    claim = start(transact, runner, user)  # its journal may know how this ended
    transact(liveness.leave, runner.id, runner.incarnation)
    assert place(transact, claim.job_id) == "running"
    incarnation, beat = transact(liveness.heartbeats)[runner.id]
    assert transact(liveness.expire, runner.id, incarnation, beat)
    assert place(transact, claim.job_id) == "NODE_FAIL"


def submission(
    user: int, *, key: str | None = None, digest: bytes = b"", jobs: list[NewJob] | None = None
) -> Submission:
    return Submission(user, new_jobs(1, user_id=user) if jobs is None else jobs, key, digest)


def test_the_same_key_gives_the_same_job(transact: Transactions, user: int) -> None:
    other = transact(add_user)
    (first,) = transact(submissions.submit([submission(user, key="k", digest=b"a")], LIMITS).on)
    assert transact(submissions.submit([submission(user, key="k", digest=b"a")], LIMITS).on) == [first]
    (different,) = transact(submissions.submit([submission(user, key="k", digest=b"b")], LIMITS).on)
    assert isinstance(different, IdempotencyMismatch)
    (theirs,) = transact(submissions.submit([submission(other, key="k", digest=b"a")], LIMITS).on)
    assert theirs != first
    assert transact.scalar("SELECT count(*) FROM job") == 2


def test_the_same_key_twice_in_one_group(transact: Transactions, user: int) -> None:
    items = [submission(user, key="k", digest=digest) for digest in (b"a", b"a", b"b")]
    first, second, third = transact(submissions.submit(items, LIMITS).on)
    assert first == second
    assert isinstance(third, IdempotencyMismatch)
    assert transact.scalar("SELECT count(*) FROM job") == 1


def test_a_refused_submission_stores_nothing_and_leaves_its_key_free(transact: Transactions) -> None:
    user = transact(add_user, {"max_queued": 2})
    many = submission(user, key="k", jobs=new_jobs(2, user_id=user))
    one = submission(user)
    first, refused = transact(submissions.submit([one, many], LIMITS).on)
    assert isinstance(first, Stored)
    assert isinstance(refused, LimitReached)
    (second,) = transact(submissions.submit([submission(user)], LIMITS).on)
    assert isinstance(second, Stored)
    assert transact.scalar("SELECT count(*) FROM job") == 2
    assert transact.scalar("SELECT count(*) FROM idempotency_key") == 0


def test_limits_count_what_waits_and_what_came_this_minute(transact: Transactions) -> None:
    defaults = Limits(max_running=1, max_queued=3, jobs_per_minute=5, job=BOUNDS)
    user = transact(add_user)
    runner = transact(add_runner)
    now = datetime.now(UTC)
    jobs = [new_job(user_id=user, deferred=True, run_at=now), *new_jobs(2, user_id=user)]
    (stored,) = transact(submissions.submit([submission(user, jobs=jobs)], defaults).on)
    assert isinstance(stored, Stored)
    (refused,) = transact(submissions.submit([submission(user)], defaults).on)
    assert isinstance(refused, LimitReached)
    assert "3 jobs queued" in refused.message
    claims = transact(runner.claim, 2)
    assert len(claims) == 2
    assert all(isinstance(item, Stored) for item in transact(submissions.submit([submission(user)] * 1, defaults).on))
    (fifth,) = transact(submissions.submit([submission(user)], defaults).on)
    assert isinstance(fifth, Stored)
    transact(queue.cancel, fifth.ids, "alice")
    (refused,) = transact(submissions.submit([submission(user)], defaults).on)
    assert isinstance(refused, LimitReached)
    assert "a minute" in refused.message


@pytest.mark.parametrize("limit", ["max_queued", "jobs_per_minute"])
def test_more_at_once_than_a_limit_is_no_matter_of_time(transact: Transactions, limit: str) -> None:
    user = transact(add_user, {limit: 2})
    many = submission(user, jobs=new_jobs(3, user_id=user))
    (refused,) = transact(submissions.submit([many], LIMITS).on)
    assert isinstance(refused, InvalidRequest)
    assert "2 jobs" in refused.message


@pytest.mark.parametrize(("before", "submitted"), [(0, 10), (100, 3), (5, 10), (20, 9)])
def test_a_refusal_says_when_the_minutes_limit_has_room(transact: Transactions, before: int, submitted: int) -> None:
    user = transact(add_user, {"jobs_per_minute": 10})

    def refused(session: Session) -> tuple[Any, float]:
        session.execute(
            text(
                "INSERT INTO submission_count (user_id, minute, submitted, before, queued)"
                " VALUES (:user, floor(extract(epoch FROM now()) / 60), :submitted, :before, 0)"
            ),
            {"user": user, "submitted": submitted, "before": before},
        )
        second = session.scalar(text("SELECT extract(second FROM now())::float8"))
        return submissions.submit([submission(user)], LIMITS).on(session)[0], second

    refusal, second = transact(refused)

    def counted(after: float) -> float:
        """What counts so long after now, if nothing more comes."""
        minutes, second_then = divmod(second + after, 60)
        earlier, this = {0: (before, submitted), 1: (submitted, 0)}.get(int(minutes), (0, 0))
        return this + earlier * (1 - second_then / 60)

    if counted(0) <= 9:  # the minute is so far on that there is room
        assert isinstance(refusal, Stored)
        return
    assert isinstance(refusal, LimitReached)
    assert refusal.retry_after
    assert counted(refusal.retry_after + 0.001) <= 9 < counted(refusal.retry_after - 1.001)


def test_one_users_limit_does_not_touch_another(transact: Transactions, user: int) -> None:
    full = transact(add_user, {"max_queued": 0})
    refused, stored = transact(submissions.submit([submission(full), submission(user)], LIMITS).on)
    assert isinstance(refused, LimitReached)
    assert isinstance(stored, Stored)


def test_inactive_users_submit_nothing(transact: Transactions) -> None:
    user = transact(add_user, active=False)
    (refused,) = transact(submissions.submit([submission(user)], LIMITS).on)
    assert isinstance(refused, NotAllowed)


def test_usage_counts_each_place(transact: Transactions, user: int, runner: Enlisted) -> None:
    transact(add_jobs, user, 3)
    transact(runner.claim)
    assert transact(users.usage, user) == {"running": 1, "queued": 2}
