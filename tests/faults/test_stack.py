"""kill -9 of each process of the whole service in turn, under a load of 1,000 jobs: none is lost, none runs twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy

from tests.database import Transactions, assert_truthful, install_witness
from tests.stack import Stack
from tests.waiting import eventually

JOBS = 1000
CLIENTS = 8
SLOTS = 16


class Ledger:
    """What clients asked for, and what they were told; whoever was told nothing asks again with the same key."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._token = stack.admin_token
        self.known: dict[str, str] = {}  # job ids by key
        self.refused: list[Any] = []
        self._threads = ThreadPoolExecutor(CLIENTS)
        self._stop = threading.Event()

    def start(self) -> None:
        for client in range(CLIENTS):
            self._threads.submit(self._submit, range(client, JOBS, CLIENTS))

    def _submit(self, numbers: range) -> None:
        with self._stack.client(self._token, timeout=10) as client:
            for number in numbers:
                key = f"key-{number}"
                while key not in self.known and not self._stop.is_set():
                    self._try(client, key, number)

    def _try(self, client: httpx.Client, key: str, number: int) -> None:
        body = {"code": f"echo begun {number}; sleep 0.3; echo ended {number}; exit {number % 3}"}
        try:
            answer = client.post("/api/jobs", json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            time.sleep(0.05)  # as any client would; not to wait for anything
            return
        if answer.status_code == 200:
            self.known[key] = answer.json()["data"]["id"]
        elif answer.status_code == 503:  # never 502 or 504: nobody knows what to make of those
            time.sleep(0.05)
        else:
            self.refused.append((answer.status_code, answer.text))
            self._stop.set()

    def close(self) -> None:
        self._stop.set()
        self._threads.shutdown(wait=True)


def supervisord(stack: Stack) -> int:
    """The supervisor's process, a child of the one in front."""
    (pid,) = Path(f"/proc/{stack.pid}/task/{stack.pid}/children").read_text().split()
    return int(pid)


@pytest.mark.timeout(300)
def test_every_process_killed_under_load() -> None:
    overrides = {
        "runner": {"slots": SLOTS, "heartbeat_seconds": 0.5, "lost_after": 20, "drain_seconds": 5},
        "jobs": {"kill_grace": 1},
        "users": {"max_running": 100, "jobs_per_minute": 100_000},
        "server": {"drain_seconds": 1},
    }
    with Stack(**overrides) as stack:
        transact = Transactions(sqlalchemy.create_engine(stack.settings.owner_url, pool_pre_ping=True))
        install_witness(transact)
        ledger = Ledger(stack)

        def stored() -> int:
            try:
                number: int = transact.scalar("SELECT count(*) FROM job")
            except sqlalchemy.exc.OperationalError:
                number = 0
            return number

        def ended() -> int:
            try:
                number: int = transact.scalar("SELECT count(*) FROM job WHERE status IS NOT NULL")
            except sqlalchemy.exc.OperationalError:
                number = -1
            return number

        ledger.start()
        try:
            for program in ("app_00", "runner_00", "scheduler", "nginx", "app_01", "postgres", "status", "runner_00"):
                before = max(0, ended())
                eventually(lambda before=before: ended() >= before + 20, 60)  # type: ignore[misc]
                killed = stack.kill(program)
                stack.wait_for(program, killed, 30)
            assert ended() < JOBS  # there was a load all the time
            os.kill(supervisord(stack), signal.SIGKILL)
            assert stack._process is not None
            assert stack._process.wait(60) != 0  # it says so, and ends what is left
            stack.start()
            eventually(lambda: ledger.refused or len(ledger.known) == JOBS, 90)
            eventually(lambda: ledger.refused or ended() == JOBS, 90)
        finally:
            ledger.close()
        assert ledger.refused == []
        assert stored() == JOBS == len(set(ledger.known.values()))
        assert_truthful(transact)
        rows = {f"{row.name}_{row.id.hex}": row for row in transact.sql("SELECT * FROM job")}
        lost = 0
        for key, job_id in ledger.known.items():
            row, number = rows[job_id], int(key.removeprefix("key-"))
            if row.status == "NODE_FAIL":
                lost += 1
                continue
            assert (row.status, row.return_code) == ("FAILED" if number % 3 else "COMPLETED", number % 3)
            assert row.attempt == 1
        # Only what ran under a runner that was killed; for everything else, a kill is nothing.
        assert lost <= 2 * SLOTS, lost
        with stack.client() as client:
            for key in list(ledger.known)[::50]:
                job = client.get(f"/api/jobs/{ledger.known[key]}").json()["data"]
                number = int(key.removeprefix("key-"))
                if job["status"] != "NODE_FAIL":
                    assert job["stdout"] == f"begun {number}\nended {number}\n"
        transact.engine.dispose()
