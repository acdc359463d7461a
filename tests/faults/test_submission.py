"""A web worker killed, or cut off, in the middle of a submission: what was said yes to is there, and only once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.database import EmbeddedServer, Server, assert_consistent
from tests.faults.conftest import Worker
from tests.faults.proxy import Cut
from tests.services import Site
from tests.waiting import eventually

REQUEST = {"code": "echo hello"}


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    with server.database() as url, Site(url) as site:
        yield site
        assert_consistent(site.transact)


def _ids(answer: httpx.Response) -> list[str]:
    data = answer.json()["data"]
    return [job["id"] for job in (data if isinstance(data, list) else [data])]


def count(site: Site) -> int:
    found: int = site.transact.scalar("SELECT count(*) FROM job")
    return found


@pytest.mark.parametrize(("path", "body"), [("/api/jobs", REQUEST), ("/api/jobs/batch", {"jobs": [REQUEST] * 3})])
@pytest.mark.parametrize("place", ["before", "after"])
def test_killed_around_the_commit(site: Site, place: str, path: str, body: dict[str, object]) -> None:
    first = Worker(site, f"app.{place}_commit=kill")
    with pytest.raises(httpx.TransportError):  # no answer: the client cannot know
        first.post("key", path, body)
    assert first.service.wait() == -signal.SIGKILL
    stored = len(body.get("jobs", [1]))  # type: ignore[arg-type]
    assert count(site) == (stored if place == "after" else 0)
    again = Worker(site)
    answers = [again.post("key", path, body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert _ids(answers[0]) == _ids(answers[1])
    assert count(site) == stored


def test_killed_under_many_submissions(site: Site) -> None:
    """Nothing that was answered is missing."""
    first = Worker(site, "app.after_commit=kill@15")
    known = set()
    with pytest.raises(httpx.TransportError):
        for _ in range(100):
            known.add(first.post().json()["data"]["id"])
    stored = {f"{row.name}_{row.id.hex}" for row in site.transact.sql("SELECT name, id FROM job")}
    assert len(known) == 14
    assert known < stored
    assert len(stored) == 15  # the one that nobody was told of is there too


# What is small goes to the server in one statement; what is large is committed by another.
@pytest.mark.parametrize(
    ("marks", "request_body"),
    [((b"submit_jobs",), REQUEST), ((b"submit_jobs", b"COMMIT"), {"code": "#" * 500_000})],
    ids=["small", "large"],
)
def test_the_answer_to_the_commit_is_lost(
    server: Server, tmp_path: Path, marks: tuple[bytes, ...], request_body: dict[str, object]
) -> None:
    with server.database() as url:
        wire = Cut(url, tmp_path / "wire", *marks)
        with Site(url, database={"url": wire.url}) as site:
            worker = Worker(site)
            answer = worker.post("key", body=request_body)
            assert wire.done.is_set()
            assert answer.status_code == 503
            assert answer.json()["data"]["code"] == "outcome_unknown"
            assert int(answer.headers["Retry-After"]) > 0
            assert count(site) == 1
            again = worker.post("key", body=request_body)
            assert again.status_code == 200
            assert count(site) == 1
        wire.close()


def test_a_database_that_is_away_is_said_so(tmp_path: Path) -> None:
    with EmbeddedServer() as server, server.database() as url, Site(url) as site:
        worker = Worker(site)
        server.stop()
        refused = worker.post("key")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "database" in refused.json()["message"].lower()
        server.start()
        eventually(lambda: worker.post("key").status_code == 200, 10)
        assert count(site) == 1
        assert worker.service.process.poll() is None
