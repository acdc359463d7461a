"""All runners killed before a long queue: the work goes on at once, nothing is lost, and limits hold all the time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from shell_service import queue
from tests.database import Server, assert_truthful
from tests.factories import add_jobs, add_user
from tests.faults.conftest import QUICK
from tests.services import Service, Site, processes
from tests.waiting import eventually

USERS, JOBS = 50, 200  # of each user
LIMIT = 2  # jobs that a user may have running
RUNNERS, SLOTS = 3, 12
MARK = "0.0625"


class Watcher:
    """Looks all the time at how many jobs run, until closed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._threads = ThreadPoolExecutor(1)
        self._stop = False
        self.looks = 0
        self.most = {"user": 0, "runner": 0}
        self._watching = self._threads.submit(self._watch)

    def _watch(self) -> None:
        while not self._stop:
            self.looks += 1
            for kind, most in self.most.items():
                found = self._site.transact.sql(
                    f"SELECT count(*) FROM running_job GROUP BY {kind}_id ORDER BY 1 DESC LIMIT 1"
                )
                self.most[kind] = max(most, found[0][0] if found else 0)

    def close(self) -> None:
        self._stop = True
        self._watching.result()
        self._threads.shutdown()


def start_runners(site: Site) -> list[Service]:
    return [site.start("runner", number=number) for number in range(RUNNERS)]


def ended(site: Site) -> int:
    count: int = site.transact.scalar("SELECT count(*) FROM job WHERE status IS NOT NULL")
    return count


def test_ten_thousand_jobs_wait_and_all_runners_are_killed(server: Server) -> None:
    with (
        server.database() as url,
        Site(url, runner={**QUICK, "slots": SLOTS}, users={"max_running": LIMIT}, jobs={"kill_grace": 0.5}) as site,
    ):
        users = [site.transact(add_user) for _ in range(USERS)]
        ids = [job for user in users for job in site.transact(add_jobs, user, JOBS, code=f"sleep {MARK}; echo done")]
        assert len(ids) == 10_000
        watcher = Watcher(site)
        lost = 0
        runners = start_runners(site)
        for _ in range(2):
            before = ended(site)
            eventually(lambda before=before: ended(site) > before + 100)  # type: ignore[misc]
            for runner in runners:
                runner.kill()
            eventually(lambda: not processes(f"sleep\0{MARK}"), 5)
            killed, lost = datetime.now(UTC), lost + RUNNERS * SLOTS
            runners = start_runners(site)
            begun = time.monotonic()
            eventually(
                lambda killed=killed: (
                    site.transact.scalar(  # type: ignore[misc]
                        "SELECT count(*) FROM job WHERE status = 'COMPLETED' AND started_at > :killed", killed=killed
                    )
                    > RUNNERS * SLOTS
                )
            )
            assert time.monotonic() - begun < 5
        eventually(lambda: len({row.runner for row in site.transact.sql("SELECT DISTINCT runner FROM job")}) > RUNNERS)
        for start in range(0, len(ids), 500):  # enough is seen; what still waits would only take its time
            site.transact(queue.cancel, ids[start : start + 500], "the test")
        site.all_final()
        watcher.close()
        assert watcher.looks > 100
        assert watcher.most["user"] == LIMIT  # it was reached, and never exceeded
        assert watcher.most["runner"] <= SLOTS
        assert_truthful(site.transact)
        ends = dict(site.transact.sql("SELECT status, count(*) FROM job GROUP BY 1"))  # type: ignore[arg-type]
        assert ends.keys() <= {"COMPLETED", "CANCELLED", "NODE_FAIL"}
        assert sum(ends.values()) == len(ids)
        assert ends["COMPLETED"] > 200
        assert ends.get("NODE_FAIL", 0) <= lost  # only what ran when its runner was killed
        done = site.transact.sql("SELECT * FROM job WHERE status = 'COMPLETED'")
        assert {(job.attempt, site.output(job)) for job in done} == {(1, b"done\n")}
        assert all(runner.process.poll() is None for runner in runners)
