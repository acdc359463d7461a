"""The queue under any sequence of moves, by a machine that looks for one that breaks a promise.

The machine forgets nothing: every fence ever issued, and every heartbeat ever seen, may come back late. Steps of
several processes mix as Hypothesis likes; time passes when a rule says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from baselayer.errors import IdempotencyMismatch
from shell_service import liveness, queue, submissions
from shell_service.queue import Fenced, Result
from shell_service.submissions import Stored, Submission
from tests.database import Server, Transactions, install_witness
from tests.factories import LIMITS, add_runner, add_user, new_job, new_jobs

_LIMITS = {1: 1, 2: 2, 3: 50}  # running jobs by user
_NAMES = ("runner_00", "runner_01")
_TABLES = ("ready_job", "deferred_job", "running_job", "job", "idempotency_key", "witness")

_LOOK = """
SELECT j.id, j.on_lost, j.retries, j.attempt, j.status, j.return_code, j.reason, j.finished_at, j.modified,
  (j.status IS NOT NULL)::int + (q.job_id IS NOT NULL)::int + (d.job_id IS NOT NULL)::int + (r.job_id IS NOT NULL)::int
    AS places,
  r.job_id IS NOT NULL AND w.state = 'gone' AS orphaned,
  (SELECT count(*) FROM witness s WHERE s.job_id = j.id AND s.what = 'started') AS starts
FROM job j LEFT JOIN ready_job q ON q.job_id = j.id LEFT JOIN deferred_job d ON d.job_id = j.id
  LEFT JOIN running_job r ON r.job_id = j.id LEFT JOIN runner w ON w.id = r.runner_id
"""


class QueueMachine(RuleBasedStateMachine):
    """Users submit and cancel; two runners claim, run, die, come back; a scheduler promotes and expires."""

    transact: Transactions

    def __init__(self) -> None:
        super().__init__()
        self.transact.sql("; ".join(f"DELETE FROM {table}" for table in _TABLES))
        self.runners = {name: self.transact(add_runner, name) for name in _NAMES}
        self.held: dict[str, set[int]] = {name: set() for name in _NAMES}  # fences that a runner knows of
        self.claims: dict[int, queue.Claim] = {}  # by fence
        self.gone: set[uuid.UUID] = set()  # incarnations declared gone, replaced, or left
        self.keys: dict[str, tuple[bytes, list[uuid.UUID]]] = {}
        self.accepted: set[uuid.UUID] = set()
        self.finals: dict[uuid.UUID, Any] = {}

    fences = Bundle("fences")
    jobs = Bundle("jobs")
    beats = Bundle("beats")

    # -- users -----------------------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        user=st.sampled_from(sorted(_LIMITS)),
        count=st.integers(1, 3),
        on_lost=st.sampled_from(["fail", "requeue"]),
        retries=st.integers(0, 1),
        deferred=st.booleans(),
        priority=st.sampled_from([-10, 0, 10]),
    )
    def submit(self, user: int, count: int, **fields: Any) -> Any:
        new = new_jobs(count, user_id=user, **fields)
        if fields["deferred"]:
            new = [new_job(**{**vars(job), "run_at": job.created_at}) for job in new]
        (stored,) = self.transact(submissions.submit([Submission(user, new)], LIMITS).on)
        assert isinstance(stored, Stored)
        self.accepted.update(stored.ids)
        return multiple(*stored.ids)

    @rule(target=jobs, key=st.sampled_from(["a", "b"]), digest=st.sampled_from([b"1", b"2"]))
    def submit_with_key(self, key: str, digest: bytes) -> Any:
        new = new_jobs(1, user_id=3)
        (result,) = self.transact(submissions.submit([Submission(3, new, key, digest)], LIMITS).on)
        known = self.keys.setdefault(key, (digest, [job.id for job in new]))
        if known[0] != digest:
            assert isinstance(result, IdempotencyMismatch)
            return multiple()
        assert isinstance(result, Stored)
        assert result.ids == known[1]
        self.accepted.update(result.ids)
        return multiple(*result.ids)

    @rule(job=jobs)
    def cancel(self, job: uuid.UUID) -> None:
        self.transact(queue.cancel, [job], "alice")
        rows = self.transact.sql(
            "SELECT status, cancel_requested_at FROM job LEFT JOIN running_job ON job_id = id WHERE id = :id", id=job
        )
        assert rows[0].status or rows[0].cancel_requested_at

    # -- runners ---------------------------------------------------------------------------------------------------

    @rule(target=fences, name=st.sampled_from(_NAMES), count=st.integers(1, 4), lost=st.booleans())
    def claim(self, name: str, count: int, lost: bool) -> Any:
        """Where the answer is `lost`, the runner does not learn that it has claimed."""
        return multiple(*self._claim(name, count, lost))

    @rule(target=fences, names=st.permutations(_NAMES), count=st.integers(1, 2))
    def claim_and_give_back_and_claim(self, names: list[str], count: int) -> Any:
        """So that there are old fences of jobs that run."""
        old = self._claim(names[0], count)
        self.release(old)
        return multiple(*old, *self._claim(names[1], count))

    def _claim(self, name: str, count: int, lost: bool = False) -> list[Fenced]:
        runner = self.runners[name]
        before = {
            row.user_id: row.n for row in self.transact.sql("SELECT user_id, count(*) n FROM running_job GROUP BY 1")
        }
        try:
            claims = self.transact(runner.claim, count)
        except sqlalchemy.exc.DBAPIError as error:
            assert error.orig.pgcode == "SH001"  # type: ignore[union-attr]
            assert runner.incarnation in self.gone
            return []
        assert runner.incarnation not in self.gone
        taken: dict[int, int] = dict(before)
        for claim in claims:
            taken[claim.user_id] = taken.get(claim.user_id, 0) + 1
            assert taken[claim.user_id] <= _LIMITS[claim.user_id]
        self.claims.update({claim.fence: claim for claim in claims})
        if not lost:
            self.held[name].update(claim.fence for claim in claims)
        return [Fenced(claim.job_id, claim.fence) for claim in claims]

    @rule(fenced=fences)
    def mark_started(self, fenced: Fenced) -> None:
        rows = self.transact.sql("SELECT cancel_requested_at FROM running_job WHERE fence = :f", f=fenced.fence)
        (may,) = self.transact(queue.mark_started([fenced]).on)
        assert may == bool(rows and not rows[0].cancel_requested_at)

    @rule(
        some=st.lists(fences, min_size=1, max_size=3, unique=True),
        status=st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"]),
    )
    def finish(self, some: list[Fenced], status: str) -> None:
        """Also replays: whatever fence was ever issued, in whatever company."""
        current = {row.fence for row in self.transact.sql("SELECT fence FROM running_job")}
        results = [
            Result(
                item.job_id, item.fence, status, "as it was", "runner", peak_memory_bytes=item.fence,
                retry_in=0.0 if status in ("FAILED", "TIMEOUT") and self.may_retry(item) else None,
            )
            for item in some
        ]  # fmt: skip
        assert self.transact(queue.finish(results).on) == [item.fence in current for item in some]
        for item in some:
            row = self.transact.sql("SELECT status, peak_memory_bytes FROM job WHERE id = :id", id=item.job_id)[0]
            if item.fence in current and row.status:
                assert row.peak_memory_bytes == item.fence

    def may_retry(self, fenced: Fenced) -> bool:
        claim = self.claims[fenced.fence]
        return claim.attempt <= claim.retries

    @rule(some=st.lists(fences, min_size=1, max_size=3, unique=True))
    def release(self, some: list[Fenced]) -> None:
        current = {row.fence for row in self.transact.sql("SELECT fence FROM running_job WHERE started_at IS NULL")}
        assert self.transact(queue.release, some) == [item.fence in current for item in some]

    @rule(target=beats, name=st.sampled_from(_NAMES))
    def beat(self, name: str) -> Any:
        runner = self.runners[name]
        alive = self.transact(liveness.beat, runner.id, runner.incarnation, None, "live", {})
        assert alive == (runner.incarnation not in self.gone)
        if not alive:
            return multiple()
        return (name, *self.transact(liveness.heartbeats)[runner.id])

    @rule(seen=beats)
    def expire(self, seen: tuple[str, uuid.UUID, int]) -> None:
        """By a scheduler that may have looked long ago."""
        name, incarnation, beat = seen
        runner = self.runners[name]
        now = self.transact(liveness.heartbeats).get(runner.id)
        expired = self.transact(liveness.expire, runner.id, incarnation, beat)
        assert expired == (now == (incarnation, beat))
        if expired:
            self.gone.add(incarnation)
            assert self.transact(liveness.running_of, runner.id) == []

    @rule(name=st.sampled_from(_NAMES))
    def restart(self, name: str) -> None:
        """As after SIGKILL: a successor of the same name settles what was left."""
        self.gone.add(self.runners[name].incarnation)
        self.runners[name] = runner = self.transact(add_runner, name)
        left = [Fenced(row.job_id, row.fence) for row in self.transact(liveness.running_of, runner.id)]
        self.transact(liveness.lose, runner.id, left, name, "the runner was killed")
        self.held[name].clear()
        assert self.transact(liveness.running_of, runner.id) == []

    @precondition(lambda self: any(self.held.values()))
    @rule(name=st.sampled_from(_NAMES))
    def reconcile(self, name: str) -> None:
        """What the database says a runner claimed, and the runner does not know, is given back."""
        runner = self.runners[name]
        rows = self.transact(liveness.running_of, runner.id)
        stray = [Fenced(row.job_id, row.fence) for row in rows if row.fence not in self.held[name]]
        self.transact(liveness.lose, runner.id, stray, name, "the runner lost track of the script")

    @rule(name=st.sampled_from(_NAMES))
    def leave(self, name: str) -> None:
        runner = self.runners[name]
        self.transact(liveness.leave, runner.id, runner.incarnation)
        rows = [row for row in self.transact(liveness.running_of, runner.id) if row.incarnation == runner.incarnation]
        assert all(row.started for row in rows)
        if not rows:
            self.gone.add(runner.incarnation)
        else:
            self.transact.sql("UPDATE runner SET state = 'live' WHERE id = :id AND state = 'draining'", id=runner.id)

    # -- time ------------------------------------------------------------------------------------------------------

    @rule(pass_=st.booleans())
    def promote(self, pass_: bool) -> None:
        if pass_:
            self.transact.sql("UPDATE deferred_job SET run_at = clock_timestamp()")
        due = self.transact.scalar("SELECT count(*) FROM deferred_job WHERE run_at <= clock_timestamp()")
        assert self.transact(queue.promote) == due

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        rows = self.transact.sql(_LOOK)
        assert {row.id for row in rows} == self.accepted
        for row in rows:
            assert row.places == 1
            assert not row.orphaned  # nothing runs for a runner that is gone
            again = 0 if row.on_lost == "fail" else 5
            assert row.starts <= 1 + row.retries + again
            assert row.attempt <= 1 + row.retries + again
            if row.status == "NODE_FAIL":
                assert row.starts >= 1  # what never began is never lost
            if row.status:
                final = (row.status, row.return_code, row.reason, row.finished_at, row.modified)
                assert self.finals.setdefault(row.id, final) == final

    # -- in the end ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """When all is well again, everything ends within a bounded number of steps."""
        for name in _NAMES:
            self.restart(name)
        for _ in range(len(self.accepted) * 2 + 2):
            if not self.transact.scalar("SELECT count(*) FROM job WHERE status IS NULL"):
                break
            self.promote(True)
            for runner in self.runners.values():
                for claim in self.transact(runner.claim, 4):
                    fenced = Fenced(claim.job_id, claim.fence)
                    (may,) = self.transact(queue.mark_started([fenced]).on)
                    if may:
                        self.transact(queue.finish([Result(claim.job_id, claim.fence, "COMPLETED", "", "runner")]).on)
                    else:
                        self.transact(queue.release, [fenced])
        assert self.transact.scalar("SELECT count(*) FROM job WHERE status IS NULL") == 0
        self.promises_hold()
        finals = "SELECT count(*) FROM witness WHERE fence IS NULL"
        assert self.transact.scalar(finals) == len(self.accepted)


@pytest.fixture(scope="module")
def machine(server: Server) -> Iterator[type[QueueMachine]]:
    with server.database() as url:
        engine = sqlalchemy.create_engine(url)
        transact = Transactions(engine)
        install_witness(transact)
        assert [transact(add_user, {"max_running": limit}) for limit in _LIMITS.values()] == list(_LIMITS)
        yield type("Machine", (QueueMachine,), {"transact": transact})
        engine.dispose()


def examples(count: int, steps: int) -> settings:
    return settings(
        max_examples=count,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.mark.timeout(600)  # when it has found something, it takes its time to find the shortest
def test_no_sequence_of_moves_breaks_a_promise(machine: type[QueueMachine]) -> None:
    run_state_machine_as_test(machine, settings=examples(100, 40))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_long_sequence_of_moves_breaks_a_promise(machine: type[QueueMachine]) -> None:
    run_state_machine_as_test(machine, settings=examples(2000, 100))
