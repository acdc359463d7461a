"""Whatever kills a runner, and when: nothing of its jobs is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.database import Server
from tests.factories import add_user
from tests.runner.conftest import QUICK
from tests.services import Site
from tests.waiting import eventually

PLACES = ("held", "journaled", "running", "terminated", "exited")
USER = 7_770  # whose uid no other test uses
MARK = "7773.25"


def processes_of(site: Site) -> list[tuple[int, str]]:
    """Launchers, inits and whatever else runs for the user."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            marked = MARK in (entry / "cmdline").read_text()
        except OSError:
            continue  # it has ended
        uid = int(status["Uid"].split()[0])
        if os.geteuid() == 0:
            ours = uid == site.settings.sandbox.uid_base + USER
        else:  # itself, or one of those in /etc/subuid: neither root nor of his tests, which may run beside
            ours = 0 < uid < 1 << 30 and (marked or status["Name"].startswith("job-"))
        if ours and not status["State"].startswith("Z"):
            found.append((int(entry.name), status["Name"]))
    return found


def mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


@pytest.fixture(scope="module")
def site(server: Server) -> Iterator[Site]:
    with server.database() as url, Site(url, runner=QUICK, jobs={"kill_grace": 30}) as site:
        site.transact.sql(f'ALTER TABLE "user" ALTER COLUMN id RESTART WITH {USER}')
        site.user = site.transact(add_user)
        assert site.user == USER
        yield site


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_left_of_a_runner_killed_at(site: Site, place: str) -> None:
    before = mounts()
    # What it leaves behind holds on: a daemon that ignores signals.
    daemon = f"(trap '' TERM HUP; sh -mc 'sleep {MARK} >/dev/null 2>&1 &')"
    code = f"{daemon}; {f'exec sleep {MARK}' if place in ('running', 'terminated') else 'exit 7'}"
    site.submit(code, timeout=0.2 if place == "terminated" else 60.0)
    runner = site.start("runner", f"runner.{place}=kill")
    assert runner.wait() == -signal.SIGKILL, runner.log()
    eventually(lambda: not processes_of(site), 3)
    assert mounts() <= before
