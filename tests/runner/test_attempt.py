"""An attempt by itself: what comes between two moments of which the database is told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import uuid_utils.compat

from baselayer.failpoint import FailPoints
from shell_service import ends
from shell_service.attempt import Attempt, Means
from shell_service.ends import Ending
from shell_service.journal import Journal
from shell_service.output import OutputStore
from shell_service.queue import Claim, Fenced, Result
from shell_service.room import Memory
from shell_service.sandbox import Sandbox
from shell_service.sandbox.gauge import Gauge
from tests.sandbox.support import LIMITS, run, sandbox
from tests.waiting import eventually


def attempt_at(code: str, folder: Path, walls: Sandbox) -> Attempt:
    """One with real parts, as far as a job without files or secrets has to do with them."""
    parts: dict[str, Any] = {"sandbox": walls, "outputs": OutputStore(folder), "journal": Journal(folder / "journal")}
    parts |= {"gauge": Gauge(), "memory": Memory(), "failpoints": FailPoints(), "shells": {"sh": "/bin/sh"}}
    parts |= dict.fromkeys(("groups", "uploads", "packages", "read_secrets", "masking"))
    means = Means(runner="runner_00", kill_grace=5.0, **parts)
    nothing: dict[str, Any] = dict.fromkeys(("upload", "upload_kind", "entrypoint", "requirements"))
    nothing |= {"args": [], "env": {}, "stdin": "", "secrets": [], "secrets_in_env": False, "secret_env": {}}
    what = {"limits": LIMITS, "name": "attempt", "code": code, "shell": "sh", "timeout": 60.0, "retries": 0}
    whose = {"job_id": uuid_utils.compat.uuid7(), "user_id": 1, "attempt": 1, "fence": 1}
    return Attempt(Claim(**whose, **what, **nothing, retry_delay=0.0, network=False, may_network=False), means)


def ended_while_held(folder: Path, ending: Ending) -> Result | None:
    """What becomes of one that is to end when its start is being recorded; its script was not let go."""

    async def main() -> tuple[Result | None, str]:
        async with sandbox() as walls:
            attempt = attempt_at("echo began", folder, walls)
            asked = asyncio.Event()

            async def mark_started(_: Fenced) -> bool:
                await asked.wait()
                return True

            running = asyncio.create_task(attempt.run(mark_started))
            await asyncio.to_thread(eventually, lambda: attempt._process)
            attempt.end(ending)
            asked.set()
            result = await running
            attempt._means.close()
            return result, attempt._means.outputs.path(attempt.claim.job_id, 1, "stdout")

    result, stdout = run(main())
    assert not os.path.exists(stdout)
    assert Journal(folder / "journal").leftovers() == []
    return result


def test_what_is_cancelled_before_it_began_does_not_begin(tmp_path: Path) -> None:
    result = ended_while_held(tmp_path, ends.CANCELLED)
    assert result and (result.status, result.return_code, result.wall_seconds) == ("CANCELLED", None, None)


@pytest.mark.parametrize("ending", [ends.STOPPED, ends.NOT_OURS], ids=["stopped", "not ours"])
def test_what_had_not_begun_is_given_back_though_its_start_is_recorded(tmp_path: Path, ending: Ending) -> None:
    assert ended_while_held(tmp_path, ending) is None
