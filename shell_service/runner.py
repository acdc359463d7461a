"""The runner: claims jobs, runs each in its sandbox, reports how it ended.

It trusts the database for what it may do and its own journal for what it has done. A claim that the database does not
confirm is given up; a result that the database has not confirmed is kept, and said again until it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2

from baselayer.batch import Batcher
from baselayer.database import Database
from baselayer.failpoint import FailPoints
from baselayer.listener import Listener
from baselayer.share import LoopShare
from baselayer.waiting import insist, repeat, wait_for
from shell_service import ends, liveness, queue, relief, retention, room, users
from shell_service.attempt import Attempt, Means, NotBegun
from shell_service.journal import Journal
from shell_service.output import OutputStore
from shell_service.packages import Packages
from shell_service.queue import Claim, Fenced, Result
from shell_service.retention import Discarded
from shell_service.sandbox import Sandbox, kill_leftover
from shell_service.sandbox.cgroup import HARD, Groups
from shell_service.sandbox.gauge import Gauge
from shell_service.settings import Settings
from shell_service.uploads import UploadStore

logger = logging.getLogger(__name__)

# Seconds in which beginnings and ends are gathered, and slots that are free again: by the slot, and at most. Jobs come
# in any number, those who wait for an answer do not: what the jobs cost the database, and all who share it, is by the
# statement. With 10 ms, whoever waited for a job beside many others waited longer (p99 63 to 79 ms, not 53 to 70).
_GATHER, _MOST_GATHERED = 0.001, 0.006
_NETWORK_RETRY = 30.0  # seconds after which a network for jobs is looked for again where there was none
_MASKING = 0.2  # of the loop's time that looking for secrets in all outputs together may take
_DISCARD_SECONDS = 10.0  # after which outputs to be removed are looked for again
_LAST_REPORTS = 5.0  # seconds for what is to be told when the last job has been ended


class Runner:
    """One runner process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        sandbox: Sandbox,
        groups: Groups | None,
        packages: Packages,
        shells: dict[str, str],
        read_secrets: Callable[[Claim], Awaitable[Mapping[str, bytes]]],
        folder: Path,
        host: str,
        name: str,
        failpoints: FailPoints,
    ) -> None:
        """`folder` holds the journal; `host` and `name` say which runner this is, over restarts.

        The rest is told in `Means`.
        """
        self._folders = (settings.output_dir, folder)
        self._settings = settings
        self._database = database
        self._sandbox = sandbox
        self._groups = groups
        self._journal = Journal(folder / "journal")
        self._memory = room.Memory()
        self._means = Means(
            name,
            shells,
            settings.jobs.kill_grace,
            sandbox,
            OutputStore(settings.output_dir),
            UploadStore(settings.upload_dir, settings.uploads, settings.runner.min_free),
            self._journal,
            Gauge(),
            groups,
            packages,
            self._memory,
            read_secrets,
            LoopShare(_MASKING),
            failpoints,
        )
        self._host = host
        self._name = name
        self._failpoints = failpoints
        self._attempts: dict[int, Attempt] = {}  # by fence
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: set[int] = set()  # fences that the last look found in the database only
        self._wake = asyncio.Event()
        self._id = 0
        self._incarnation = uuid.uuid4()
        self._cursor = int.from_bytes(os.urandom(2))
        self._registering = asyncio.Lock()
        self._problem: str | None = "The sandbox has not been tested yet."  # why nothing can be run, by the last test
        self._crowd: str | None = None  # that there are users who have to be kept apart, and no walls
        self._said: str | None = None  # the obstacle that was last logged
        self._short = False  # whether memory was short at the last heartbeat
        self._network_tested = 0.0
        self._draining = False
        self._gather = min(_MOST_GATHERED, _GATHER * settings.runner.slots)
        self._started = Batcher(self._flush_started, max_items=64, pause=self._gather)
        self._finished = Batcher(self._flush_finished, max_items=64, pause=self._gather)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Run jobs until `stop` is set, then let those that run end; when `hurry` is set too, end them at once."""
        entering = asyncio.create_task(self._enter())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({entering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if entering.done():
            entering.result()
            await self._work(stop, hurry)
        entering.cancel()
        await self._sandbox.close()
        await asyncio.to_thread(self._means.close)  # it waits for what has to go
        try:
            if self._id:
                await self._database.run(liveness.leave, self._id, self._incarnation)
                self._journal.leave()
        except Exception as error:
            logger.warning("left without a word: %s", error)
        self._journal.close()

    async def _work(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        heartbeat = self._settings.runner.heartbeat_seconds
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(repeat(self._beat, "a heartbeat", longest=heartbeat))
            others = [
                group.create_task(repeat(self._listener().run, "listening")),
                group.create_task(repeat(self._test_again, "a test of the sandbox")),
                group.create_task(repeat(self._claim_and_wait, "claiming jobs")),
                group.create_task(repeat(self._discard, "removing outputs")),
            ]
            await stop.wait()
            logger.info("draining: %d jobs run", len(self._attempts))
            self._draining = True
            for task in others:
                task.cancel()
            await self._drain(hurry)
            beating.cancel()

    # -- beginnings ------------------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        """Settle what was left, and be known; takes as long as the database is away."""
        await self._settle_predecessor()
        self._problem = await self._test()
        await insist(self._look_for_users, "looking for users")
        await self._register(self._incarnation)

    async def _register(self, incarnation: uuid.UUID) -> None:
        slots = self._settings.runner.slots
        who = (self._host, self._name, incarnation, slots, self._obstacle(), self._facts())
        self._id = await insist(lambda: self._database.run(liveness.register, *who), "being entered")

    async def _settle_predecessor(self) -> None:
        """End what a predecessor of this name left running, and say how its jobs ended as far as it is known."""
        leftovers = {item.fence: item for item in self._journal.leftovers()}
        for item in leftovers.values():
            if await asyncio.to_thread(kill_leftover, item.pid, item.start_time):
                logger.warning("job %s was still running: killed", item.job_id.hex)
        if self._groups:
            await asyncio.to_thread(self._groups.reap)
        await self._register(self._incarnation)  # from here on the predecessor can claim nothing
        rows = await insist(lambda: self._database.run(liveness.running_of, self._id), "looking for jobs left")
        # NODE_FAIL is what the predecessor did to a script as it drained: lost like the others, and maybe requeued.
        results = [item.result for item in leftovers.values() if item.result and item.result.status != "NODE_FAIL"]
        if results:
            await insist(lambda: self._database.fetch(queue.finish(results)), "telling how jobs ended")
        known = {item.fence for item in results}
        left = [row for row in rows if row.fence not in known]
        if left:
            logger.warning("settling %d jobs of the predecessor", len(left))
        # Their start is recorded before they begin, and may be while they do not.
        waiting = [row for row in left if self._journal.never_begun(row.incarnation, row.fence)]
        if waiting:
            await self._release([Fenced(row.job_id, row.fence) for row in waiting])
        lost = [Fenced(row.job_id, row.fence) for row in left if row not in waiting]
        if lost:
            await self._lose(lost, "the runner was killed; how the script ended is not known")
        for fence in leftovers:
            self._journal.settled(fence)
        self._journal.enter(self._incarnation)

    async def _lose(self, attempts: Sequence[Fenced], reason: str) -> None:
        lose = partial(self._database.run, liveness.lose, self._id, attempts, self._name, reason)
        await insist(lose, "telling which jobs are lost")

    def _facts(self) -> Mapping[str, object]:
        """What holds for the jobs that are run here."""
        facts = self._sandbox.facts()
        if self._groups:
            facts["limits"].update(HARD)
        return facts

    # -- whether jobs can be run -----------------------------------------------------------------------------------

    async def _test(self) -> str | None:
        problem = self._journal.problem() or await self._sandbox.self_test(self._settings.limits.defaults)
        if not problem:
            await self._test_network()
        return problem

    async def _test_network(self) -> None:
        await self._sandbox.test_network()
        self._network_tested = time.monotonic()

    async def _test_again(self) -> None:
        await asyncio.sleep(self._settings.runner.heartbeat_seconds)
        if self._problem:
            self._problem = await self._test()
            if not self._problem:
                self._wake.set()
        elif self._facts()["network"] and time.monotonic() - self._network_tested > _NETWORK_RETRY:
            await self._test_network()

    async def _look_for_users(self) -> None:
        """Without walls there may be one user only, who is not kept from harming himself."""
        if self._settings.sandbox.mode == "none":
            count = await self._database.run(users.count)
            self._crowd = f"sandbox.mode is none, which is for one user, and there are {count}" if count > 1 else None

    def _obstacle(self) -> str | None:
        """Why no jobs can be taken now, if so."""
        options = self._settings.runner
        return (
            self._problem
            or self._crowd
            or room.disk_shortage(self._folders, options.min_free)
            or self._memory.shortage(options.min_free_memory)
        )

    def _look_for_obstacles(self) -> str | None:
        """As `_obstacle`, and says so in the log when there is another one than before, or none any more."""
        obstacle = self._obstacle()
        if obstacle != self._said:
            self._said = obstacle
            if obstacle:
                logger.error("no jobs are taken: %s", obstacle)
            else:
                logger.info("jobs are taken again")
        return obstacle

    def _relieve(self) -> None:
        """End a job where the machine's memory has been short for two heartbeats."""
        lacking = self._memory.lacking(self._settings.runner.min_free_memory)
        attempt = relief.choose(self._attempts.values(), lacking) if self._short else None
        self._short = lacking > 0
        if attempt:
            logger.warning("job %s: ended, as memory is short and it has most", attempt.claim.job_id.hex)
            attempt.kill(ends.most_of_all(attempt.memory))

    async def _discard(self) -> None:
        """Remove outputs of jobs that are no more."""
        items = await self._database.ask(retention.discarded)
        if not items:
            await asyncio.sleep(_DISCARD_SECONDS)
            return
        await asyncio.to_thread(self._remove, items)
        await self._database.ask(retention.forget, items)

    def _remove(self, items: Sequence[Discarded]) -> None:
        for item in items:
            self._means.outputs.remove(item.job_id, item.attempts)

    # -- claims ----------------------------------------------------------------------------------------------------

    def _listener(self) -> Listener:
        def woken(_: str = "") -> None:
            self._wake.set()

        def cancelled(payload: str) -> None:
            for attempt in self._attempts.values():
                if attempt.claim.job_id.hex == payload:
                    self._failpoints.reach("runner.cancel_heard")
                    attempt.end(ends.CANCELLED)

        return Listener(self._database.url, {"ready": woken, "cancel": cancelled}, on_connect=woken)

    async def _claim_and_wait(self) -> None:
        """Claim jobs for the free slots, and wait until there may be more of either."""
        self._wake.clear()
        free = self._settings.runner.slots - len(self._attempts)
        if free > 0 and not self._look_for_obstacles():
            await self._claim(free)
        await wait_for(self._wake, self._settings.runner.poll_seconds)

    async def _claim(self, count: int) -> None:
        incarnation = self._incarnation
        try:
            places = await self._database.fetch(
                queue.claim(self._id, incarnation, count, self._cursor, self._settings.users.max_running)
            )
        except psycopg2.Error as error:
            if error.pgcode != "SH001":
                raise
            await self._fenced(incarnation)
            return
        self._failpoints.reach("runner.claimed")
        claims = await self._database.fetch(queue.claimed(places)) if places else []
        for claim in claims:
            self._begin(claim)
        if claims:
            self._cursor = claims[-1].user_id

    def _begin(self, claim: Claim) -> None:
        attempt = self._attempts[claim.fence] = Attempt(claim, self._means)
        task = asyncio.create_task(self._run(attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, attempt: Attempt) -> None:
        fence = attempt.claim.fence
        try:
            result = await attempt.run(self._may_start)
            if result is None:
                await self._release([attempt.fenced])
            elif result.status == "NODE_FAIL":
                await self._lose([attempt.fenced], result.reason)
            else:
                await self._report(result)
            self._journal.settled(fence)
        except NotBegun as error:
            await self._not_begun(attempt, error)
        except Exception:
            # Never expected. The claim stays in the database, and the next look at it finds that nobody here has it.
            logger.exception("job %s", attempt.claim.job_id.hex)
            attempt.kill(ends.NOT_OURS)
        finally:
            self._attempts.pop(fence, None)
            self._look_again()

    async def _not_begun(self, attempt: Attempt, error: NotBegun) -> None:
        """Give the job back if none can be run here now, and take none until they can; else it is the job's fault."""
        self._problem = self._problem or await self._test()
        if error.result is None or self._look_for_obstacles():
            await self._release([attempt.fenced])
        else:
            await self._report(error.result)

    async def _release(self, attempts: Sequence[Fenced]) -> None:
        """Give back jobs whose scripts were not let go, whether or not their starts are recorded."""
        release = partial(self._database.run, queue.release, attempts, True)
        await insist(release, f"giving back {len(attempts)} jobs")

    async def _report(self, result: Result) -> None:
        await insist(lambda: self._finished.put(result), f"telling the end of job {result.job_id.hex}")
        self._failpoints.reach("runner.reported")

    def _look_again(self) -> None:
        """There is a free slot: offered with others, and whoever waits for this job's end has the processor first."""
        asyncio.get_running_loop().call_later(self._gather, self._wake.set)

    async def _may_start(self, fenced: Fenced) -> bool:
        return await insist(lambda: self._started.put(fenced), f"telling the start of job {fenced.job_id.hex}")

    async def _flush_started(self, items: list[Fenced]) -> list[bool | Exception]:
        return [*await self._database.fetch(queue.mark_started(items))]

    async def _flush_finished(self, items: list[Result]) -> list[bool | Exception]:
        return [*await self._database.fetch(queue.finish(items))]

    # -- heartbeats ------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        await asyncio.sleep(self._settings.runner.heartbeat_seconds)
        incarnation = self._incarnation
        state = "draining" if self._draining else "live"
        await self._look_for_users()
        self._relieve()
        news = (self._look_for_obstacles(), state, self._facts())
        if await self._database.run(liveness.beat, self._id, incarnation, *news):
            await self._reconcile()
        else:
            await self._fenced(incarnation)

    async def _reconcile(self) -> None:
        """Compare what the database thinks we run with what we run."""
        here = dict(self._attempts)
        rows = {row.fence: row for row in await self._database.run(liveness.running_of, self._id)}
        for fence, attempt in here.items():
            row = rows.get(fence)
            if row is None and fence in self._attempts:
                logger.warning("job %s is not ours any more: killed", attempt.claim.job_id.hex)
                attempt.kill(ends.NOT_OURS)
            elif row and row.cancel_requested:
                attempt.end(ends.CANCELLED)
        strangers = {fence for fence in rows if fence not in here and fence not in self._attempts}
        stay = [Fenced(rows[fence].job_id, fence) for fence in strangers & self._strangers]
        if stay:  # seen twice: no answer to a claim can still be on its way
            logger.warning("giving back %d jobs that nobody here runs", len(stay))
            await self._lose(stay, "the runner lost track of the script; how it ended is not known")
            for item in stay:
                self._journal.settled(item.fence)
        self._strangers = strangers

    async def _fenced(self, incarnation: uuid.UUID) -> None:
        """As this `incarnation` we were declared gone, and our jobs settled by others: end them, and begin anew."""
        async with self._registering:
            if incarnation != self._incarnation:
                return  # a claim and a heartbeat learn of it at the same time
            logger.error("declared gone: ending %d jobs", len(self._attempts))
            for attempt in list(self._attempts.values()):
                attempt.kill(ends.NOT_OURS)
            if not self._draining:
                successor = uuid.uuid4()
                self._journal.enter(successor)
                await self._register(successor)
                self._incarnation = successor

    # -- the end ---------------------------------------------------------------------------------------------------

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Let running jobs go on for a while, then end them; at once, where there is no time."""
        await self._all_ended(self._settings.runner.drain_seconds, hurry)
        left = list(self._attempts.values())
        if left:
            logger.warning("ending %d jobs that are still running", len(left))
            for attempt in left:
                attempt.end(ends.STOPPED)
            await self._all_ended(self._settings.jobs.kill_grace + _LAST_REPORTS, hurry)
        if hurry.is_set():
            for attempt in list(self._attempts.values()):
                attempt.kill(ends.STOPPED)
            await self._all_ended(_LAST_REPORTS, asyncio.Event())

    async def _all_ended(self, seconds: float, hurry: asyncio.Event) -> None:
        """Wait until nothing runs, but at most so long, and not any more when there is `hurry`."""
        called = asyncio.create_task(hurry.wait())
        either: set[asyncio.Future[Any]] = {asyncio.gather(*self._tasks), called}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        called.cancel()
