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
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule, run_state_machine_as_test
from sqlalchemy.orm import Session

from baselayer.errors import IdempotencyMismatch
from shell_service import queue
from shell_service.queue import Fenced, Result, Submission
from tests.database import MISPLACED, Server, Transactions, install_witness
from tests.factories import LIMITS, Enlisted, NewJobFactory, add_runner, add_user

_LIMITS = {1: 1, 2: 2, 3: 50}  # running jobs by user
_NAMES = ("runner_00", "runner_01")
_TABLES = 'ready_job, deferred_job, running_job, job, idempotency_key, witness, runner, user_limits, token, "user"'


class QueueMachine(RuleBasedStateMachine):
    """Users submit and cancel; two runners claim, run, die, come back; a scheduler promotes and expires."""

    transact: Transactions

    def __init__(self) -> None:
        super().__init__()
        self.transact.sql(f"TRUNCATE {_TABLES} RESTART IDENTITY")
        for limit in _LIMITS.values():
            self.transact(add_user, {"max_running": limit})
        self.runners = {name: self.transact(add_runner, name) for name in _NAMES}
        self.held: dict[str, set[int]] = {name: set() for name in _NAMES}  # fences that a runner knows of
        self.claims: dict[int, queue.Claim] = {}  # by fence
        self.may: set[int] = set()  # fences whose script may have begun
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
        new = NewJobFactory.build_batch(count, user_id=user, **fields)
        if fields["deferred"]:
            new = [NewJobFactory(**{**vars(job), "run_at": job.created_at}) for job in new]
        (ids,) = self.transact(queue.submit, [Submission(user, new)], LIMITS)
        assert isinstance(ids, list)
        self.accepted.update(ids)
        return multiple(*ids)

    @rule(target=jobs, key=st.sampled_from(["a", "b"]), digest=st.sampled_from([b"1", b"2"]))
    def submit_with_key(self, key: str, digest: bytes) -> Any:
        new = NewJobFactory.build_batch(1, user_id=3)
        (result,) = self.transact(queue.submit, [Submission(3, new, key, digest)], LIMITS)
        known = self.keys.setdefault(key, (digest, [job.id for job in new]))
        if known[0] != digest:
            assert isinstance(result, IdempotencyMismatch)
            return multiple()
        assert result == known[1]
        self.accepted.update(result)
        return multiple(*result)

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
        runner = self.runners[name]
        before = {row.user_id: row.n for row in self.transact.sql("SELECT user_id, count(*) n FROM running_job GROUP BY 1")}
        try:
            claims = self.transact(runner.claim, count)
        except sqlalchemy.exc.DBAPIError as error:
            assert error.orig.pgcode == "SH001"  # type: ignore[union-attr]
            assert runner.incarnation in self.gone
            return multiple()
        assert runner.incarnation not in self.gone
        taken: dict[int, int] = dict(before)
        for claim in claims:
            taken[claim.user_id] = taken.get(claim.user_id, 0) + 1
            assert taken[claim.user_id] <= _LIMITS[claim.user_id]
        self.claims.update({claim.fence: claim for claim in claims})
        if not lost:
            self.held[name].update(claim.fence for claim in claims)
        return multiple(*(Fenced(claim.job_id, claim.fence) for claim in claims))

    @rule(fenced=fences)
    def mark_started(self, fenced: Fenced) -> None:
        rows = self.transact.sql("SELECT cancel_requested_at FROM running_job WHERE fence = :f", f=fenced.fence)
        (may,) = self.transact(queue.mark_started, [fenced])
        assert may == bool(rows and not rows[0].cancel_requested_at)
        if may:
            self.may.add(fenced.fence)

    @rule(
        some=st.lists(fences, min_size=1, max_size=3, unique=True),
        status=st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"]),
    )
    def finish(self, some: list[Fenced], status: str) -> None:
        """Also replays: whatever fence was ever issued, in whatever company."""
        current = {row.fence for row in self.transact.sql("SELECT fence FROM running_job WHERE started_at IS NOT NULL")}
        # A runner says how a script ended only if it began; but when it says it, or again, nobody knows.
        some = [item for item in some if item.fence in self.may]
        results = [
            Result(
                item.job_id, item.fence, status, "as it was", "runner", return_code=item.fence,
                retry_in=0.0 if status in ("FAILED", "TIMEOUT") and self.may_retry(item) else None,
            )
            for item in some
        ]  # fmt: skip
        if results:
            assert self.transact(queue.finish, results) == [item.fence in current for item in some]
            for item in some:
                row = self.transact.sql("SELECT status, return_code FROM job WHERE id = :id", id=item.job_id)[0]
                if item.fence in current and row.status:
                    assert row.return_code == item.fence

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
        alive = self.transact(queue.beat, runner.id, runner.incarnation, None, "live")
        assert alive == (runner.incarnation not in self.gone)
        if not alive:
            return multiple()
        return (name, *self.transact(queue.heartbeats)[runner.id])

    @rule(seen=beats)
    def expire(self, seen: tuple[str, uuid.UUID, int]) -> None:
        """By a scheduler that may have looked long ago."""
        name, incarnation, beat = seen
        runner = self.runners[name]
        now = self.transact(queue.heartbeats).get(runner.id)
        expired = self.transact(queue.expire, runner.id, incarnation, beat)
        assert expired == (now == (incarnation, beat))
        if expired:
            self.gone.add(incarnation)
            assert self.transact(queue.running_of, runner.id) == []

    @rule(name=st.sampled_from(_NAMES))
    def restart(self, name: str) -> None:
        """As after SIGKILL: a successor of the same name settles what was left."""
        self.gone.add(self.runners[name].incarnation)
        self.runners[name] = runner = self.transact(add_runner, name)
        left = [Fenced(row.job_id, row.fence) for row in self.transact(queue.running_of, runner.id)]
        self.transact(queue.lose, runner.id, left, name, "the runner was killed")
        self.held[name].clear()
        assert self.transact(queue.running_of, runner.id) == []

    @precondition(lambda self: any(self.held.values()))
    @rule(name=st.sampled_from(_NAMES))
    def reconcile(self, name: str) -> None:
        """What the database says a runner claimed, and the runner does not know, is given back."""
        runner = self.runners[name]
        rows = self.transact(queue.running_of, runner.id)
        stray = [Fenced(row.job_id, row.fence) for row in rows if row.fence not in self.held[name]]
        self.transact(queue.lose, runner.id, stray, name, "the runner lost track of the script")

    @rule(name=st.sampled_from(_NAMES))
    def leave(self, name: str) -> None:
        runner = self.runners[name]
        self.transact(queue.leave, runner.id, runner.incarnation)
        rows = [row for row in self.transact(queue.running_of, runner.id) if row.incarnation == runner.incarnation]
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
    def each_job_is_in_one_place(self) -> None:
        assert self.transact.sql(MISPLACED) == []
        assert {row.id for row in self.transact.sql("SELECT id FROM job")} == self.accepted

    @invariant()
    def final_is_final(self) -> None:
        rows = {row.id: tuple(row) for row in self.transact.sql("SELECT * FROM job WHERE status IS NOT NULL")}
        for job, row in self.finals.items():
            assert rows[job] == row
        self.finals = rows

    @invariant()
    def scripts_begin_as_often_as_their_owners_allow(self) -> None:
        rows = self.transact.sql(
            "SELECT j.id, j.on_lost, j.retries, j.status, j.attempt, count(w.number) AS starts FROM job j"
            " LEFT JOIN witness w ON w.job_id = j.id AND w.what = 'started' GROUP BY j.id"
        )
        for row in rows:
            again = 0 if row.on_lost == "fail" else 5
            assert row.starts <= 1 + row.retries + again
            assert row.attempt <= 1 + row.retries + again
            if row.status == "NODE_FAIL":
                assert row.starts >= 1  # what never began is never lost

    @invariant()
    def nothing_runs_for_those_who_are_gone(self) -> None:
        rows = self.transact.sql("SELECT r.incarnation FROM running_job r JOIN runner w ON w.id = r.runner_id WHERE w.state = 'gone'")
        assert rows == []

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
                    (may,) = self.transact(queue.mark_started, [fenced])
                    if may:
                        self.transact(queue.finish, [Result(claim.job_id, claim.fence, "COMPLETED", "", "runner")])
                    else:
                        self.transact(queue.release, [fenced])
        assert self.transact.scalar("SELECT count(*) FROM job WHERE status IS NULL") == 0
        self.each_job_is_in_one_place()
        self.final_is_final()
        finals = "SELECT count(*) FROM witness WHERE fence IS NULL"
        assert self.transact.scalar(finals) == len(self.accepted)


@pytest.fixture(scope="module")
def machine(server: Server) -> Iterator[type[QueueMachine]]:
    with server.database() as url:
        engine = sqlalchemy.create_engine(url)
        transact = Transactions(engine)
        install_witness(transact)
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


def test_no_sequence_of_moves_breaks_a_promise(machine: type[QueueMachine]) -> None:
    run_state_machine_as_test(machine, settings=examples(100, 30))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_long_sequence_of_moves_breaks_a_promise(machine: type[QueueMachine]) -> None:
    run_state_machine_as_test(machine, settings=examples(2000, 100))
