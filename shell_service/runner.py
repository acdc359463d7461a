"""The runner: claims jobs, runs each in its sandbox, reports how it ended.

It trusts the database for what it may do and its own journal for what it has done. A claim that the database does not
confirm is given up; a result that the database has not confirmed is kept, and said again until it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import sqlalchemy.exc

from baselayer.batch import Batcher
from baselayer.database import Database, Listener
from baselayer.errors import Unavailable
from baselayer.failpoint import FailPoints
from shell_service import queue
from shell_service.attempt import Attempt, NotBegun
from shell_service.journal import Journal
from shell_service.output import OutputStore
from shell_service.queue import Claim, Fenced, Result
from shell_service.sandbox import Sandbox, kill_leftover
from shell_service.settings import Settings

logger = logging.getLogger(__name__)

R = TypeVar("R")

_RETRY_MAX = 2.0  # longest pause between tries to reach the database, seconds
_NO_HURRY = 0.005  # seconds before a slot is offered that was free anyway
_RETEST_SECONDS = 10.0  # between self-tests of a sandbox that did not work


class Runner:
    """One runner process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        sandbox: Sandbox,
        shells: dict[str, str],
        folder: Path,
        host: str,
        name: str,
        failpoints: FailPoints,
    ) -> None:
        """`folder` holds the journal; `host` and `name` say which runner this is, over restarts."""
        self._settings = settings
        self._database = database
        self._sandbox = sandbox
        self._shells = shells
        self._outputs = OutputStore(settings.output_dir)
        self._journal = Journal(folder / "journal")
        self._host = host
        self._name = name
        self._failpoints = failpoints
        self._attempts: dict[int, Attempt] = {}  # by fence
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: set[int] = set()  # fences that the last look found in the database only
        self._wake = asyncio.Event()
        self._full = False  # whether the last claim got all that it asked for, so that more may be waiting
        self._id = 0
        self._incarnation = uuid.uuid4()
        self._cursor = int.from_bytes(os.urandom(2))
        self._problem: str | None = "the sandbox has not been tested yet"
        self._draining = False
        self._started = Batcher(self._flush_started, max_items=64)
        self._finished = Batcher(self._flush_finished, max_items=64)

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set, then drain."""
        entering = asyncio.create_task(self._enter())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({entering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if entering.done():
            entering.result()
            await self._work(stop)
        entering.cancel()
        await self._sandbox.close()
        try:
            if self._id:
                await self._database.run(queue.leave, self._id, self._incarnation)
        except Unavailable:
            logger.warning("left without a word: the database is away")
        self._journal.close()

    async def _work(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat_forever())
            others = [
                group.create_task(work)
                for work in (self._listener().run(), self._test_forever(), self._claim_forever())
            ]
            await stop.wait()
            logger.info("draining: %d jobs run", len(self._attempts))
            self._draining = True
            for task in others:
                task.cancel()
            await self._drain()
            beating.cancel()

    # -- beginnings ------------------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        """Settle what was left, and be known; takes as long as the database is away."""
        await self._settle_predecessor()
        self._problem = await self._sandbox.self_test()
        if self._problem:
            logger.error("no jobs are taken: %s", self._problem)
        await self._persist(self._register)

    async def _register(self) -> None:
        slots = self._settings.runner.slots
        self._id = await self._database.run(
            queue.register, self._host, self._name, self._incarnation, slots, self._problem
        )

    async def _settle_predecessor(self) -> None:
        """End what a predecessor of this name left running, and say how its jobs ended as far as it is known."""
        leftovers = {item.fence: item for item in self._journal.leftovers()}
        for item in leftovers.values():
            if kill_leftover(item.pid, item.start_time):
                logger.warning("job %s was still running: killed", item.job_id.hex)
        await self._persist(self._register)  # from here on the predecessor can claim nothing
        rows = await self._persist(lambda: self._database.run(queue.running_of, self._id))
        # NODE_FAIL is what the predecessor did to a script as it drained: lost like the others, and maybe requeued.
        results = [item.result for item in leftovers.values() if item.result and item.result.status != "NODE_FAIL"]
        if results:
            await self._persist(lambda: self._database.run(queue.finish, results))
        known = {item.fence for item in results}
        lost = [Fenced(row.job_id, row.fence) for row in rows if row.fence not in known]
        if lost:
            logger.warning("settling %d jobs of the predecessor", len(lost))
            await self._lose(lost, "the runner was killed; how the script ended is not known")
        for fence in leftovers:
            self._journal.settled(fence)

    async def _lose(self, attempts: Sequence[Fenced], reason: str) -> None:
        await self._persist(lambda: self._database.run(queue.lose, self._id, attempts, self._name, reason))

    async def _test_forever(self) -> None:
        while True:
            await asyncio.sleep(_RETEST_SECONDS)
            if self._problem:
                self._problem = await self._sandbox.self_test()
                if not self._problem:
                    logger.info("the sandbox works now")
                    self._wake.set()

    def _listener(self) -> Listener:
        def woken(_: str = "") -> None:
            self._wake.set()

        def cancelled(payload: str) -> None:
            for attempt in self._attempts.values():
                if attempt.claim.job_id.hex == payload:
                    attempt.end("CANCELLED")

        return Listener(self._database.url, {"ready": woken, "cancel": cancelled}, on_connect=woken)

    # -- claims ----------------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        poll = self._settings.runner.poll_seconds
        while True:
            self._wake.clear()
            free = self._settings.runner.slots - len(self._attempts)
            claimed = await self._claim(free) if free > 0 and not self._problem else 0
            self._full = claimed == free
            if claimed and self._full:
                continue  # the next free slot wakes us
            try:
                async with asyncio.timeout(poll):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _claim(self, count: int) -> int:
        incarnation = self._incarnation
        try:
            claims = await self._database.ask(
                queue.claim,
                self._id,
                incarnation,
                count,
                self._cursor,
                self._settings.users.max_running,
            )
        except Unavailable:
            return 0
        except sqlalchemy.exc.DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != "SH001":
                raise
            await self._fenced(incarnation)
            return 0
        self._failpoints.reach("runner.claimed")
        for claim in claims:
            self._begin(claim)
        if claims:
            self._cursor = claims[-1].user_id
        return len(claims)

    def _begin(self, claim: Claim) -> None:
        attempt = Attempt(
            claim,
            self._shells.get(claim.shell),
            self._settings.jobs,
            self._sandbox,
            self._outputs,
            self._journal,
            self._failpoints,
            self._name,
        )
        self._attempts[claim.fence] = attempt
        task = asyncio.create_task(self._run(attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, attempt: Attempt) -> None:
        fence = attempt.claim.fence
        try:
            result = await attempt.run(self._may_start)
            if result and result.status == "NODE_FAIL":
                reason = "the runner was stopped while the script ran" if self._draining else result.reason
                await self._lose([attempt.fenced], reason)
            elif result:
                await self._persist(lambda: self._finished.put(result))
                self._failpoints.reach("runner.reported")
            else:
                await self._persist(lambda: self._database.run(queue.release, [attempt.fenced]))
            self._journal.settled(fence)
        except NotBegun as error:
            await self._not_begun(attempt, error.result)
        except Exception:
            # Never expected. The claim stays in the database, and the next look at it finds that nobody here has it.
            logger.exception("job %s", attempt.claim.job_id.hex)
            attempt.kill("NODE_FAIL")
        finally:
            self._attempts.pop(fence, None)
            self._look_again()

    async def _not_begun(self, attempt: Attempt, result: Result) -> None:
        """Give the job back if no sandbox can be made here now, and take none until one can; else it is the job's."""
        self._problem = self._problem or await self._sandbox.self_test()
        if self._problem:
            logger.error("no jobs are taken: %s", self._problem)
            await self._persist(lambda: self._database.run(queue.release, [attempt.fenced], True))
        else:
            await self._persist(lambda: self._finished.put(result))

    def _look_again(self) -> None:
        """There is a free slot. If none was missing, only users at their limit can have a job for it: no hurry then,
        and whoever waits for the job that has just ended has the processor first."""
        if self._full:
            self._wake.set()
        else:
            asyncio.get_running_loop().call_later(_NO_HURRY, self._wake.set)

    async def _may_start(self, fenced: Fenced) -> bool:
        return await self._persist(lambda: self._started.put(fenced))

    async def _flush_started(self, items: list[Fenced]) -> list[bool | Exception]:
        return [*await self._database.ask(queue.mark_started, items)]

    async def _flush_finished(self, items: list[Result]) -> list[bool | Exception]:
        return [*await self._database.ask(queue.finish, items)]

    async def _persist(self, act: Callable[[], Awaitable[R]]) -> R:
        """Do `act`, as often as it takes while the database is away."""
        pause = 0.05
        while True:
            try:
                return await act()
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_MAX)

    # -- heartbeats ------------------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.runner.heartbeat_seconds)
            incarnation = self._incarnation
            try:
                state = "draining" if self._draining else "live"
                alive = await self._database.run(queue.beat, self._id, incarnation, self._problem, state)
                if alive:
                    await self._reconcile()
                else:
                    await self._fenced(incarnation)
            except Unavailable:
                continue

    async def _reconcile(self) -> None:
        """Compare what the database thinks we run with what we run."""
        here = dict(self._attempts)
        rows = {row.fence: row for row in await self._database.run(queue.running_of, self._id)}
        for fence, attempt in here.items():
            row = rows.get(fence)
            if row is None and fence in self._attempts:
                logger.warning("job %s is not ours any more: killed", attempt.claim.job_id.hex)
                attempt.kill("NODE_FAIL")
            elif row and row.cancel_requested:
                attempt.end("CANCELLED")
        strangers = {fence for fence in rows if fence not in here and fence not in self._attempts}
        stay = [Fenced(rows[fence].job_id, fence) for fence in strangers & self._strangers]
        if stay:  # seen twice: no answer to a claim can still be on its way
            logger.warning("giving back %d jobs that nobody here runs", len(stay))
            await self._lose(stay, "the runner lost track of the script; how it ended is not known")
        self._strangers = strangers

    async def _fenced(self, incarnation: uuid.UUID) -> None:
        """As this `incarnation` we were declared gone, and our jobs settled by others: end them, and begin anew."""
        if incarnation != self._incarnation:
            return  # a claim and a heartbeat learn of it at the same time
        logger.error("declared gone: ending %d jobs", len(self._attempts))
        for attempt in list(self._attempts.values()):
            attempt.kill("NODE_FAIL")
        if not self._draining:
            self._incarnation = uuid.uuid4()
            await self._persist(self._register)

    async def _drain(self) -> None:
        """Let running jobs go on for a while, then end them."""
        await self._wait_for_tasks(self._settings.runner.drain_seconds)
        left = list(self._attempts.values())
        if left:
            logger.warning("ending %d jobs that are still running", len(left))
            for attempt in left:
                attempt.end("NODE_FAIL")
            await self._wait_for_tasks(self._settings.jobs.kill_grace + 5)

    async def _wait_for_tasks(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
