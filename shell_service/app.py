"""The web application: what its handlers share, and which handler answers where."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from tornado import web

from baselayer.access import Authenticator
from baselayer.batch import Batcher
from baselayer.database import Database
from baselayer.failpoint import FailPoints
from baselayer.handler import NothingHere, RequestsAtHand
from baselayer.listener import Listener
from baselayer.metrics import RequestMetrics
from shell_service import __version__, jobs, runs, submissions
from shell_service.diff import Differ
from shell_service.handlers import ROUTES
from shell_service.hub import Hub
from shell_service.jobs import Wanted
from shell_service.output import OutputReader, OutputStore
from shell_service.pending import Supply
from shell_service.records import Record, Records
from shell_service.refusals import Refusals
from shell_service.schemas import JobRules
from shell_service.scopes import SCOPES
from shell_service.scripts import Found
from shell_service.secrets import Keyring
from shell_service.settings import Settings
from shell_service.streams import Ticker
from shell_service.submissions import Limits, Stored, Submission
from shell_service.uploads import UploadStore

_SMALL = 100_000  # characters that are written out and sent within a millisecond: on the event loop
_RECORDS = 20  # that are read at once: each may hold some megabytes
_SCRIPTS = 8  # that are looked up at once: of a megabyte each they hold up the event loop for 3 ms, 20 for 22
_UPLOAD_THREADS = 4
_LARGE = 4_000_000  # characters after which a transaction of several submissions takes no more


@dataclass(frozen=True)
class App:
    """What the handlers of one worker process share."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    metrics: RequestMetrics
    hub: Hub
    ticker: Ticker
    reader: OutputReader
    uploads: UploadStore
    upload_threads: Executor
    uploading: Counter[int]  # uploads that are being sent, by user
    rules: JobRules
    limits: Limits
    keyring: Keyring
    submissions: Batcher[Submission, Stored]
    batches: Batcher[Submission, Stored]
    singles: Batcher[Submission, Stored]  # those that no other may be stored with
    records: Records
    lookups: Batcher[Wanted, Record | None]
    scripts: Batcher[runs.Wanted, Found]  # that are to be run
    streams: dict[int, int]  # open streams by user
    requests: RequestsAtHand
    refusals: Refusals
    differ: Differ
    failpoints: FailPoints
    version: str = __version__

    @property
    def log_requests(self) -> bool:
        return self.settings.log.requests

    def batcher(self, overlap: str | None) -> Batcher[Submission, Stored]:
        """Whom to give a job to whose script says this about others of it (`models.OVERLAPS`); None: it has none."""
        return self.submissions if overlap in (None, "queue", "parallel") else self.singles

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run beside the handlers."""
        listener = Listener(
            self.database.url,
            {"job": self.hub.heard, "access": lambda _: self.authenticator.forget()},
            on_connect=self._caught_up,
        )
        others = (self.hub.run(), self.ticker.run(), self.refusals.run())
        return [listener.run(), *others, *self.authenticator.background()]

    def _caught_up(self) -> None:
        self.authenticator.forget()
        self.hub.poll_now()


def make_app(
    settings: Settings, database: Database, shells: Mapping[str, str], keyring: Keyring, failpoints: FailPoints
) -> App:
    """The application of one worker. `shells` are the interpreters found on this host."""
    limits = submissions.default_limits(settings)
    outputs = OutputStore(settings.output_dir)
    supply = Supply(settings.runner.lost_after)
    records = Records(outputs, supply, limits.max_running)
    size = attrgetter("size")
    submit = partial(_submit, database, limits, supply, failpoints)
    return App(
        settings=settings,
        database=database,
        authenticator=Authenticator(
            database,
            SCOPES,
            trust=settings.access.token_cache_seconds,
            # Each worker counts for itself, and requests are spread over all.
            failures_per_minute=settings.access.failures_per_minute / settings.server.processes,
        ),
        metrics=RequestMetrics(),
        hub=Hub(database),
        ticker=Ticker(),
        reader=OutputReader(outputs),
        uploads=UploadStore(settings.upload_dir, settings.uploads, settings.runner.min_free),
        upload_threads=ThreadPoolExecutor(_UPLOAD_THREADS, "uploads"),
        uploading=Counter(),
        rules=JobRules(settings.jobs, shells),
        limits=limits,
        keyring=keyring,
        submissions=Batcher(submit, max_items=200, weigh=size, max_weight=_LARGE),
        batches=Batcher(submit, max_items=5, weigh=size, max_weight=_LARGE),
        singles=Batcher(submit, max_items=1),
        records=records,
        lookups=Batcher(partial(_look_up, database, records), max_items=_RECORDS),
        scripts=Batcher(lambda wanted: database.fetch(runs.look_up(wanted)), max_items=_SCRIPTS),
        streams={},
        requests=RequestsAtHand(),
        refusals=Refusals(database, settings.server.processes),
        differ=Differ(),
        failpoints=failpoints,
    )


async def _submit(
    database: Database, limits: Limits, supply: Supply, failpoints: FailPoints, items: list[Submission]
) -> list[Stored | Exception]:
    if supply.stale:
        await database.ask(supply.look)
    failpoints.reach("app.before_commit")
    if sum(item.size for item in items) <= _SMALL:
        results = await database.fetch(submissions.submit(items, limits), stores=True)
    else:
        results = await database.run(lambda session: submissions.submit(items, limits).on(session))
    failpoints.reach("app.after_commit")
    return results


async def _look_up(database: Database, records: Records, wanted: list[Wanted]) -> list[Record | Exception | None]:
    if sum(_SMALL if item.size is None else item.size for item in wanted) < _SMALL:
        found = await database.fetch(jobs.look_up(wanted))
        if all(job is None or job.status != "PENDING" for job in found):  # else there is more to ask
            return [*await asyncio.to_thread(records.of_found, found, wanted, {})]
    return [*await database.ask(records.of, wanted)]


def routes(app: App) -> web.Application:
    """A Tornado application over `app`."""
    handlers: list[Any] = [(pattern, route.handler, {"context": app}) for route in ROUTES for pattern in route.patterns]
    return web.Application(
        [*handlers, (r".*", NothingHere, {"context": app})],
        default_handler_class=NothingHere,
        default_handler_args={"context": app},
        compress_response=False,
        log_function=lambda handler: None,
    )


async def run_background(app: App, until: asyncio.Event) -> None:
    """Run what the handlers need beside them; fail when any of it fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in app.background()]
        await until.wait()
        for task in tasks:
            task.cancel()
    await app.refusals.close()
