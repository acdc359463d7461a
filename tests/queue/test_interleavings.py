"""Moves that meet: whatever the order of their statements, there is one truth."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import Session

from baselayer.errors import IdempotencyMismatch
from shell_service import liveness, queue, submissions
from shell_service.queue import Claim, Fenced, Result
from shell_service.submissions import Submission
from tests.database import Transactions, assert_consistent
from tests.factories import LIMITS, Enlisted, add_jobs, add_runner, new_jobs
from tests.queue.interleaving import Act, every_order

Place = dict[str, Any]


def place(transact: Transactions, job_id: uuid.UUID) -> Any:
    """Where the job stands: status, and the running row if there is one."""
    return transact.sql(
        "SELECT j.status, j.cancelled_by, r.fence, r.started_at, r.cancel_requested_at, q.job_id IS NOT NULL AS ready,"
        " d.job_id IS NOT NULL AS deferred FROM job j LEFT JOIN running_job r ON r.job_id = j.id"
        " LEFT JOIN ready_job q ON q.job_id = j.id LEFT JOIN deferred_job d ON d.job_id = j.id WHERE j.id = :id",
        id=job_id,
    )[0]


def finish(claim: Claim, status: str = "COMPLETED", retry_in: float | None = None) -> Act:
    return queue.finish([Result(claim.job_id, claim.fence, status, "exit code 0", "runner_00", retry_in=retry_in)]).on


def expire(runner: Enlisted, beat: int) -> Act:
    return partial(liveness.expire, runner_id=runner.id, incarnation=runner.incarnation, last_beat=beat)


class Meeting:
    """Prepares a job in some state, and runs two moves of it in every order."""

    def __init__(self, transact: Transactions, user: int) -> None:
        self.transact, self.user = transact, user
        self.job = uuid.UUID(int=0)
        self.claim: Claim | None = None
        self.runner = transact(add_runner)
        self.orders = 0

    def ready(self) -> None:
        """The only job is ready, and there is a new incarnation of the runner."""
        for table in ("ready_job", "deferred_job", "running_job", "idempotency_key", "job"):
            self.transact.sql(f"DELETE FROM {table}")
        self.runner = self.transact(add_runner)
        (self.job,) = self.transact(add_jobs, self.user)

    def deferred(self) -> None:
        """The only job is due, and deferred."""
        self.ready()
        self.transact.sql("DELETE FROM ready_job")
        self.transact.sql(
            "INSERT INTO deferred_job (job_id, user_id, ord, run_at) SELECT id, user_id, 0, now() FROM job"
        )

    def claimed(self, on_lost: str = "fail") -> Claim:
        """The only job is claimed."""
        self.ready()
        self.transact.sql("UPDATE job SET on_lost = :on_lost", on_lost=on_lost)
        (self.claim,) = self.transact(self.runner.claim)
        return self.claim

    def started(self, on_lost: str = "fail") -> Claim:
        """The only job runs."""
        claim = self.claimed(on_lost)
        self.transact(queue.mark_started([Fenced(claim.job_id, claim.fence)]).on)
        return claim

    def cancel(self) -> Act:
        return partial(queue.cancel, job_ids=[self.job], by="alice")

    def beat(self) -> int:
        return self.transact(liveness.heartbeats)[self.runner.id][1]

    def run(self, prepare: Callable[[], tuple[Act, Act]], check: Callable[[Any, Any, Any], None]) -> None:
        """`check` gets both results, and where the job stands."""
        for first, second in every_order(self.transact.engine, prepare):
            self.orders += 1
            assert_consistent(self.transact)
            check(first, second, place(self.transact, self.job))
        assert self.orders >= 4


@pytest.fixture
def meeting(transact: Transactions, user: int) -> Meeting:
    return Meeting(transact, user)


def test_claim_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        meeting.ready()
        return meeting.runner.claim, meeting.cancel()

    def check(claims: list[Claim], _: None, now: Any) -> None:
        if not claims:
            assert (now.status, now.cancelled_by) == ("CANCELLED", "alice")
            return
        assert now.cancel_requested_at
        fenced = [Fenced(meeting.job, claims[0].fence)]
        assert meeting.transact(queue.mark_started(fenced).on) == [False]
        assert meeting.transact(queue.release, fenced) == [True]
        assert place(meeting.transact, meeting.job).status == "CANCELLED"

    meeting.run(prepare, check)


def test_claim_and_expire(meeting: Meeting) -> None:
    def claim(session: Session) -> Any:
        try:
            return meeting.runner.claim(session)
        except Exception:
            session.rollback()
            return "fenced"

    def prepare() -> tuple[Act, Act]:
        meeting.ready()
        return claim, expire(meeting.runner, meeting.beat())

    def check(claims: Any, expired: bool, now: Any) -> None:
        assert expired
        assert now.ready or claims != "fenced"
        assert now.ready  # nothing stays with a runner that is gone

    meeting.run(prepare, check)


@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_finish_and_expire(meeting: Meeting, on_lost: str) -> None:
    def prepare() -> tuple[Act, Act]:
        return finish(meeting.started(on_lost)), expire(meeting.runner, meeting.beat())

    def check(counted: list[bool], expired: bool, now: Any) -> None:
        assert expired
        if counted == [True]:
            assert now.status == "COMPLETED"
        elif on_lost == "fail":
            assert now.status == "NODE_FAIL"
        else:
            assert now.deferred

    meeting.run(prepare, check)


def test_start_and_expire(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        claim = meeting.claimed()
        start = queue.mark_started(attempts=[Fenced(claim.job_id, claim.fence)]).on
        return start, expire(meeting.runner, meeting.beat())

    def check(may: list[bool], expired: bool, now: Any) -> None:
        assert expired
        assert now.status == "NODE_FAIL" if may == [True] else now.ready

    meeting.run(prepare, check)


def test_beat_and_expire(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        claim = meeting.started()
        del claim
        runner = meeting.runner
        whose = {"runner_id": runner.id, "incarnation": runner.incarnation}
        beat = partial(liveness.beat, **whose, obstacle=None, state="live", facts={})
        return beat, expire(runner, meeting.beat())

    def check(alive: bool, expired: bool, now: Any) -> None:
        assert alive != expired
        assert (now.status == "NODE_FAIL") == expired

    meeting.run(prepare, check)


def test_finish_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        return finish(meeting.started()), meeting.cancel()

    def check(counted: list[bool], _: None, now: Any) -> None:
        assert counted == [True]
        assert (now.status, now.cancelled_by) == ("COMPLETED", None)

    meeting.run(prepare, check)


def test_a_failure_to_be_tried_again_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        return finish(meeting.started(), "FAILED", retry_in=0.0), meeting.cancel()

    def check(counted: list[bool], _: None, now: Any) -> None:
        assert counted == [True]
        assert now.status in ("FAILED", "CANCELLED")  # never tried again after the cancel

    meeting.run(prepare, check)


def test_finish_and_finish(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        claim = meeting.started()
        return finish(claim), finish(claim, "TIMEOUT")

    def check(first: list[bool], second: list[bool], now: Any) -> None:
        assert first[0] != second[0]
        assert now.status == ("COMPLETED" if first[0] else "TIMEOUT")

    meeting.run(prepare, check)


def test_start_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        claim = meeting.claimed()
        return queue.mark_started(attempts=[Fenced(claim.job_id, claim.fence)]).on, meeting.cancel()

    def check(may: list[bool], _: None, now: Any) -> None:
        assert now.cancel_requested_at
        assert bool(now.started_at) == may[0]

    meeting.run(prepare, check)


def test_release_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        claim = meeting.claimed()
        return partial(queue.release, attempts=[Fenced(claim.job_id, claim.fence)]), meeting.cancel()

    def check(counted: list[bool], _: None, now: Any) -> None:
        assert counted == [True]
        assert (now.status, now.cancelled_by) == ("CANCELLED", "alice")

    meeting.run(prepare, check)


def test_promote_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        meeting.deferred()
        return queue.promote, meeting.cancel()

    def check(_: int, __: None, now: Any) -> None:
        assert (now.status, now.cancelled_by) == ("CANCELLED", "alice")

    meeting.run(prepare, check)


def test_promote_and_promote(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        meeting.deferred()
        return queue.promote, queue.promote

    def check(first: int, second: int, now: Any) -> None:
        assert first + second == 1
        assert now.ready

    meeting.run(prepare, check)


def test_cancel_and_cancel(meeting: Meeting) -> None:
    def prepare() -> tuple[Act, Act]:
        meeting.ready()
        return meeting.cancel(), partial(queue.cancel, job_ids=[meeting.job], by="bob")

    def check(_: None, __: None, now: Any) -> None:
        assert now.status == "CANCELLED"
        assert now.cancelled_by in ("alice", "bob")

    meeting.run(prepare, check)


def test_two_runners_claim(meeting: Meeting) -> None:
    other = meeting.transact(add_runner, "runner_01")

    def prepare() -> tuple[Act, Act]:
        meeting.ready()
        return meeting.runner.claim, other.claim

    def check(first: list[Claim], second: list[Claim], now: Any) -> None:
        assert len(first) + len(second) == 1
        assert now.fence == (first + second)[0].fence

    meeting.run(prepare, check)


def test_register_and_claim_of_the_predecessor(meeting: Meeting) -> None:
    def claim(session: Session) -> Any:
        try:
            return old.claim(session)
        except Exception:
            session.rollback()
            return []

    old = meeting.runner

    def prepare() -> tuple[Act, Act]:
        nonlocal old
        meeting.ready()
        old = meeting.runner
        return claim, add_runner

    def check(claims: list[Claim], new: Enlisted, now: Any) -> None:
        # Either nothing was claimed, or the successor, that looks at all claims of its name, finds it.
        found = [item.fence for item in meeting.transact(liveness.running_of, new.id)]
        assert found == [item.fence for item in claims]
        assert bool(now.ready) != bool(claims)

    meeting.run(prepare, check)


@pytest.mark.parametrize("digest", [b"a", b"b"])
def test_submit_and_submit_with_the_same_key(meeting: Meeting, digest: bytes) -> None:
    def submit(digest: bytes) -> Act:
        jobs = new_jobs(1, user_id=meeting.user)
        return submissions.submit(submissions=[Submission(meeting.user, jobs, "key", digest)], defaults=LIMITS).on

    def prepare() -> tuple[Act, Act]:
        meeting.ready()
        return submit(b"a"), submit(digest)

    def check(first: list[Any], second: list[Any], _: Any) -> None:
        assert meeting.transact.scalar("SELECT count(*) FROM job") == 2  # and the one of `ready`
        if digest == b"a":
            assert first == second
        else:
            assert [type(item) for item in (*first, *second)].count(IdempotencyMismatch) == 1

    meeting.run(prepare, check)
