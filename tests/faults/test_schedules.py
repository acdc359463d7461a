"""Schedules with two schedulers, of which one is killed at every step: no fire is lost, and none is doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest

from baselayer.access import EVERY_SCOPE, Caller
from shell_service import queue, schedules, scripts
from shell_service.schedule_schemas import ScheduleRequest
from shell_service.scopes import SCOPES
from tests.database import Server, assert_truthful
from tests.faults.conftest import QUICK
from tests.services import Site
from tests.waiting import eventually

COUNT, SECONDS = 5, 4


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    """A site where nothing runs yet, and a second is not too often."""
    with (
        server.database() as url,
        Site(url, runner=QUICK, schedules={"min_interval": 1}, scheduler={"tick_seconds": 0.1}) as site,
    ):
        yield site
        assert_truthful(site.transact)


def begin(site: Site) -> None:
    """Schedules that fire every second, from now on."""
    name = site.transact.scalar('SELECT username FROM "user" WHERE id = :id', id=site.user)
    caller = Caller(site.user, name, "user", SCOPES.effective("user", [EVERY_SCOPE]), 1, None)
    script = {"name": "tick", "code": "true", "message": "", "overlap": "parallel"}
    site.transact(scripts.create, caller, script, site.settings.scripts)
    means = schedules.Means(site.settings.schedules, site.settings.jobs)
    for _ in range(COUNT):
        request = ScheduleRequest().load({"script": "tick", "every": 1, "catch_up": "all", "catch_up_limit": 1000})
        site.transact(schedules.create, caller, request, means)


def fires(site: Site) -> int:
    count: int = site.transact.scalar("SELECT count(*) FROM job")
    return count


def check(site: Site) -> None:
    """Each schedule has fired for every second from its first to its last, once."""
    rows = site.transact.sql("SELECT id, created_at, last_instant FROM schedule")
    assert len(rows) == COUNT
    counts = Counter((row.schedule_id, row.fired_for) for row in site.transact.sql("SELECT * FROM job"))
    for row in rows:
        seconds = round((row.last_instant - row.created_at).total_seconds())
        assert seconds >= SECONDS
        wanted = {(row.id, row.created_at + timedelta(seconds=number)) for number in range(1, seconds + 1)}
        assert {key for key in counts if key[0] == row.id} == wanted
    assert set(counts.values()) == {1}
    jobs = [row.id for row in site.transact.sql("SELECT id FROM job")]
    site.transact(queue.cancel, jobs, "the test")


@pytest.mark.parametrize("place", ["before_fire=kill@2", "before_commit=kill", "before_commit=kill@3", "fired=kill@2"])
def test_no_fire_is_lost_and_none_doubled(site: Site, place: str) -> None:
    begin(site)
    other = site.start("scheduler", number=0)
    deaths = 0
    while not deaths or fires(site) < COUNT * SECONDS:  # for seconds the other may be first each time: then none dies
        dying = site.start("scheduler", f"scheduler.{place}")
        eventually(
            lambda dying=dying, died=deaths > 0: (
                dying.process.poll() is not None or (died and fires(site) >= COUNT * SECONDS)
            )
        )
        deaths += dying.process.poll() is not None
        dying.kill()
    other.kill()
    site.transact.sql("UPDATE schedule SET due_at = NULL")
    check(site)


def test_what_was_missed_while_none_ran_is_made_up_for(site: Site) -> None:
    begin(site)
    first = site.start("scheduler")
    eventually(lambda: fires(site) >= COUNT)
    first.kill()
    before = fires(site)
    eventually(lambda: site.transact.scalar("SELECT now() - max(due_at) > interval '2 seconds' FROM schedule"))
    assert fires(site) == before
    site.start("scheduler")
    eventually(lambda: fires(site) >= COUNT * SECONDS)
    for service in site.services:
        service.kill()
    check(site)
