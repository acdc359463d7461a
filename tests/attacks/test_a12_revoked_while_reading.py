"""A12: a token, or a right, is taken away while an answer to it is still under way: that ends within a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.client import Api, Person
from tests.waiting import eventually

LARGE = 8 * 2**20
CHATTER = "trap '' TERM; while :; do echo x; sleep 0.05; done"


def closed_after(response: httpx.Response, most: float = 5.0) -> tuple[float, bytes]:
    """Read until the other side closes, for `most` seconds; the time of it, and what came."""
    got, deadline = b"", time.monotonic() + most
    try:
        for chunk in response.iter_raw():
            got += chunk
            assert time.monotonic() < deadline, f"it still goes on after {most} s"
    except httpx.RemoteProtocolError:
        return time.monotonic(), got
    raise AssertionError("it ended as if it were whole")


@pytest.mark.parametrize("how", ["revoked", "deactivated", "expired", "rotated"])
def test_a_stream_ends_with_its_token(admin: Api, person: Callable[..., Person], how: str) -> None:
    """Within a second, and not as if it had come to its end; as events and as bytes."""
    owner = person()
    fields = {"expires_in": 2} if how == "expired" else {}
    token = owner.api.post("/api/tokens", {"name": "follower", **fields}).data
    job = owner.api.submit(CHATTER)
    eventually(lambda: owner.api.job(job["id"])["stdout_bytes"])
    headers = owner.api.headers(token["token"])
    with ExitStack() as opened:
        responses = [
            opened.enter_context(owner.api.client.stream("GET", f"/api/jobs/{job['id']}/{path}", headers=headers))
            for path in ("stream", "stdout?follow=true", "stderr?follow=true")
        ]
        assert [response.status_code for response in responses] == [200, 200, 200]
        begun = time.monotonic()
        if how == "revoked":
            owner.api.delete(f"/api/tokens/{token['id']}").data  # noqa: B018
        elif how == "rotated":
            owner.api.post(f"/api/tokens/{token['id']}/rotate", {}).data  # noqa: B018
        elif how == "deactivated":
            admin.patch(f"/api/users/{owner.username}", {"active": False}).data  # noqa: B018
        with ThreadPoolExecutor() as pool:
            ends = list(pool.map(closed_after, responses))
    for closed, got in ends:
        assert closed - begun < (3.2 if how == "expired" else 1.2)
        assert b"event: end" not in got
    admin.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


def test_an_administrator_who_is_none_any_more_follows_nobody_elses_job(
    admin: Api, person: Callable[..., Person]
) -> None:
    other, owner = person(role="admin"), person()
    job = owner.api.submit(CHATTER)
    eventually(lambda: owner.api.job(job["id"])["stdout_bytes"])
    with other.api.client.stream("GET", f"/api/jobs/{job['id']}/stream", headers=other.api.headers()) as response:
        assert response.status_code == 200
        begun = time.monotonic()
        admin.patch(f"/api/users/{other.username}", {"role": "user"}).data  # noqa: B018
        closed, _ = closed_after(response)
    assert closed - begun < 1.2
    admin.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


def test_a_slow_download_ends_with_its_token(person: Callable[..., Person], workers: list[Api]) -> None:
    """Past the router, which takes much of it at once."""
    owner = person()
    token = owner.api.post("/api/tokens", {"name": "slow"}).data
    job = owner.api.submit(f"head -c {LARGE} /dev/zero", wait=60)
    reader = workers[0].using(token["token"])
    path = f"/api/jobs/{job['id']}/stdout"
    with reader.client.stream("GET", path, headers=reader.headers()) as response:
        assert response.headers["Content-Length"] == str(LARGE)
        begun = time.monotonic()
        owner.api.delete(f"/api/tokens/{token['id']}").data  # noqa: B018
        eventually(lambda: reader.get("/api/user").status == 401 and time.monotonic() > begun + 0.5)
        _, got = closed_after(response)
    assert len(got) < LARGE


def test_waiting_for_a_job_ends_with_its_token(person: Callable[..., Person]) -> None:
    owner = person()
    token = owner.api.post("/api/tokens", {"name": "waiter"}).data
    waiter = owner.api.using(token["token"])
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.post, "/api/jobs?wait=30", {"code": "sleep 1; echo secret", "name": "waited"})
        eventually(lambda: owner.api.get("/api/jobs?name=waited&status=RUNNING").data)
        owner.api.delete(f"/api/tokens/{token['id']}").data  # noqa: B018
        assert answer.result().status == 401
