"""nginx reloaded and restarted under followed jobs and submissions: not a byte is lost or doubled, and not a job."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.client import parse_events
from tests.stack import Stack
from tests.waiting import eventually

JOBS, FOLLOWERS, SUBMITTERS = 10, 5, 2  # followers of each job
LINES = 60
# A line says which it is, and has characters of several bytes that a cut might split.
CODE = 'i=0; while [ $i -lt $LINES ]; do i=$((i+1)); echo "$WHO $i äöü€ $PAD"; sleep 0.1; done'
PAD = "x" * 400


class Reader:
    """One who follows a job, and goes on from the last event that he got whenever he is cut off."""

    def __init__(self, client: httpx.Client, job_id: str) -> None:
        self._client = client
        self._path = f"/api/jobs/{job_id}/stream"
        self._last = ""
        self.text = ""
        self.cuts = 0
        self.status = ""

    def __call__(self) -> None:
        while not self.status:
            try:
                self._follow()
            except httpx.TransportError:
                self.cuts += 1
                time.sleep(0.05)  # as any client would; not to wait for anything

    def _follow(self) -> None:
        headers = {"Last-Event-ID": self._last} if self._last else {}
        with self._client.stream("GET", self._path, headers=headers) as answer:
            if answer.status_code == 503:
                raise httpx.RemoteProtocolError(answer.read().decode())
            assert answer.status_code == 200, answer.read()
            for event in parse_events(answer.iter_raw()):
                self._last = event.id or self._last
                if event.kind == "stdout":
                    self.text += event.data
                elif event.kind == "end":
                    self.status = event.data["status"]


class Submitter:
    """One who submits one job after the other, and each with the same key until he is told its id."""

    def __init__(self, client: httpx.Client, number: int) -> None:
        self._client = client
        self._number = number
        self.known: dict[str, str] = {}  # ids by key
        self.failures = 0
        self.stop = threading.Event()

    def __call__(self) -> None:
        while not self.stop.is_set():
            key = f"key-{self._number}-{len(self.known)}"
            while (job_id := self.submit(key)) is None:
                self.failures += 1
                time.sleep(0.05)
            self.known[key] = job_id

    def submit(self, key: str) -> str | None:
        try:
            answer = self._client.post("/api/jobs", json={"code": "true"}, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return None
        assert answer.status_code in (200, 503), answer.text
        return answer.json()["data"]["id"] if answer.status_code == 200 else None


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(server={"drain_seconds": 0.3}, runner={"drain_seconds": 1}) as stack:
        yield stack


def restart(stack: Stack) -> None:
    stack.stop_group("nginx")
    stack.start_group("nginx")


def reload(stack: Stack) -> None:
    """Its old processes end when what they serve has ended, or after a while."""
    stack.kill("nginx", signal.SIGHUP)


def test_nginx_is_reloaded_and_restarted(stack: Stack) -> None:
    with (
        stack.client(limits=httpx.Limits(max_connections=None), timeout=10) as client,
        ThreadPoolExecutor(JOBS * FOLLOWERS + SUBMITTERS) as threads,
    ):
        jobs = {}
        for number in range(JOBS):
            environment = {"WHO": f"job {number}", "PAD": PAD, "LINES": str(LINES)}
            answer = client.post("/api/jobs", json={"code": CODE, "env": environment})
            jobs[answer.json()["data"]["id"]] = number
        readers = {Reader(client, job_id): number for job_id, number in jobs.items() for _ in range(FOLLOWERS)}
        submitters = [Submitter(client, number) for number in range(SUBMITTERS)]
        work: list[Future[None]] = [threads.submit(call) for call in (*readers, *submitters)]
        try:
            for act in (reload, restart, reload):
                before = {reader: (len(reader.text), reader.cuts) for reader in readers}
                stored = [len(submitter.known) for submitter in submitters]
                eventually(lambda before=before: all(len(reader.text) > before[reader][0] for reader in readers))  # type: ignore[misc]
                eventually(_grows(submitters, stored))
                act(stack)
                eventually(lambda before=before: all(reader.cuts > before[reader][1] for reader in readers))  # type: ignore[misc]
                assert not any(reader.status for reader in readers)  # they were cut off in the middle
        finally:
            for submitter in submitters:
                submitter.stop.set()
        for done in work:
            done.result(60)
        for reader, number in readers.items():
            assert reader.status == "COMPLETED"
            assert reader.text == "".join(f"job {number} {line} äöü€ {PAD}\n" for line in range(1, LINES + 1))
        known = {key: job_id for submitter in submitters for key, job_id in submitter.known.items()}
        assert len(set(known.values())) == len(known) > 50
        assert {key: submitters[0].submit(key) for key in known} == known
        listed: list[str] = []
        path = "/api/jobs?limit=1000"
        while path:
            answer = client.get(path)
            listed += [job["id"] for job in answer.json()["data"]]
            path = answer.links["next"]["url"] if "next" in answer.links else ""
        assert sorted(listed) == sorted([*known.values(), *jobs])


def _grows(submitters: list[Submitter], before: list[int]) -> Callable[[], bool]:
    return lambda: all(len(item.known) > count for item, count in zip(submitters, before, strict=True))
