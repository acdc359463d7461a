"""Where the machine's memory stays short, a job of whoever uses most is ended, and others' go on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shell_service import relief
from shell_service.room import Memory
from tests.database import Server, assert_consistent
from tests.factories import add_user
from tests.runner.conftest import QUICK
from tests.services import Site
from tests.waiting import eventually

GiB = 1 << 30
# More than what the machine has left comes and goes by, while a test runs.
HOLD = f"held = b'x' * {3 * GiB}; print('up', flush=True); import time; time.sleep(1000)"


@dataclass(frozen=True)
class Job:
    user_id: int
    memory: int


@pytest.mark.parametrize(
    ("jobs", "lacking", "chosen"),
    [
        ([], 0, None),
        ([], 1, None),
        ([Job(1, 5)], 0, None),
        ([Job(1, 5)], 5, Job(1, 5)),
        ([Job(1, 5)], 6, None),
        ([Job(1, 5), Job(2, 3), Job(2, 4)], 1, Job(2, 4)),
        ([Job(1, 5), Job(2, 3), Job(2, 4)], 7, Job(2, 4)),
        ([Job(1, 5), Job(2, 3), Job(2, 4)], 8, None),
    ],
)
def test_whose_job_and_which(jobs: list[Job], lacking: int, chosen: Job | None) -> None:
    assert relief.choose(jobs, lacking) == chosen


def test_who_has_most_makes_room_for_others(server: Server) -> None:
    memory = Memory()
    least = memory.lacking(1 << 50)
    memory.close()
    available = (1 << 50) - least
    options = {**QUICK, "min_free_memory": available - 3 * GiB // 2}
    with server.database() as url, Site(url, runner=options) as site:
        hog, other = (site.transact(add_user) for _ in range(2))
        runner = site.start_runner()
        small = site.submit("echo small; exec sleep 1000", user=hog)
        held = site.submit(HOLD, user=hog, shell="python", limits={"memory": 4 * GiB})
        record = site.final(held)
        assert record.status == "OUT_OF_MEMORY"
        assert record.reason.startswith("stopped: the machine's memory was short, and this job used most of it, ")
        waiting = site.submit("echo fine", user=other)
        assert site.final(waiting).status == "COMPLETED"
        assert site.job(small).status is None
        eventually(lambda: "as memory is short and it has most" in runner.log())
        assert_consistent(site.transact)
