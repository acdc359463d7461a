"""Services that nobody waits for: what they have of the processors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.background import NICE, SESSION_NICE
from shell_service.sandbox.protocol import AUTOGROUP

ROOT = Path(__file__).parents[2]
SHARE = Path(AUTOGROUP)  # that a session has of them, where the kernel shares by sessions
TELL = f"""
import os
from pathlib import Path
from services import background
background.give_way()
share = Path("{SHARE}")
print(os.getsid(0) == os.getpid(), os.getpriority(os.PRIO_PROCESS, 0))
print(share.read_text().split()[-1] if share.exists() else "")
"""
# Leads a group of a session that whoever started it was in, and has gone.
ORPHAN = f"""
import os, select
os.setsid()
parent = os.pidfd_open(os.getpid())
if os.fork():
    os._exit(0)
select.select([parent], [], [])
os.setpgid(0, 0)
{TELL}
"""


def told(code: str, **how: object) -> list[str]:
    command = [sys.executable, "-c", code]
    ran = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=30, check=True, **how
    )  # type: ignore[call-overload]
    return ran.stdout.split()


def share(nice: int) -> list[str]:
    return [str(nice)] if SHARE.exists() else []


@pytest.mark.parametrize("how", [{"process_group": 0}, {"start_new_session": True}, {}], ids=str)
def test_it_has_a_session_of_its_own_that_gets_little(how: dict[str, object]) -> None:
    assert told(TELL, **how) == ["True", str(NICE), *share(SESSION_NICE)]


def test_where_it_cannot_have_one_the_others_keep_what_they_get() -> None:
    assert told(ORPHAN) == ["False", str(NICE), *share(0)]
