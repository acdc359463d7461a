"""SECURITY.md says what is so: its tables are held against the service that was attacked, and against the tests."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shell_service.limits import NAMES
from shell_service.sandbox.cgroup import HARD
from shell_service.sandbox.sandbox import LIMITS
from tests.attacks.jobs import running
from tests.client import Api, Person
from tests.services import processes
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
#: The columns of the first table, by what a runner says of its jobs' uids.
COLUMNS = {"own": "root", "subordinate": "subordinate uids", "shared": "one uid"}

Table = list[dict[str, str]]


@pytest.fixture(scope="module")
def tables() -> tuple[Table, Table]:
    """The rows of both tables, by the words above their columns."""
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    walls, limits = (_rows(block) for block in blocks)
    return walls, limits


def _rows(block: str) -> Table:
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_each_guarantee_is_shown_by_tests_that_there_are(tables: tuple[Table, Table]) -> None:
    for row in tables[0]:
        shown_by = re.findall(r"`([^`]+)`", row["shown by"])
        assert shown_by, row
        for path in shown_by:
            assert "def test_" in (ROOT / path).read_text(), path
        assert {row[column] for column in COLUMNS.values()} <= {"yes", "no"}


def test_users_have_uids_where_that_is_said(
    tables: tuple[Table, Table], admin: Api, alice: Person, bob: Person
) -> None:
    (runner,) = admin.get("/api/sysinfo").data["runners"]
    (row,) = (row for row in tables[0] if "have a uid" in row["guarantee"])
    with running(alice, "echo up; exec sleep 1000.11"), running(bob, "echo up; exec sleep 1000.22"):
        hers, his = (_uid(f"sleep\0{seconds}") for seconds in ("1000.11", "1000.22"))
    assert row[COLUMNS[runner["uids"]]] == ("no" if hers == his else "yes")
    assert (hers == os.geteuid()) == (runner["uids"] == "shared")


def _uid(command: str) -> int:
    """Whose a process is, as the host sees it."""
    (pid,) = eventually(lambda: processes(command))
    return os.stat(f"/proc/{pid}").st_uid


def test_limits_are_held_as_it_is_said(tables: tuple[Table, Table], admin: Api) -> None:
    said = {row["limit"].strip("`"): row for row in tables[1]}
    assert list(said) == list(NAMES)
    assert {name: row["without control groups"] for name, row in said.items()} == LIMITS
    assert {name: row["with delegated cgroup v2"] for name, row in said.items()} == LIMITS | HARD
    (runner,) = admin.get("/api/sysinfo").data["runners"]
    column = "with delegated cgroup v2" if runner["limits"]["memory"] == "hard" else "without control groups"
    assert {name: row[column] for name, row in said.items()} == runner["limits"]
