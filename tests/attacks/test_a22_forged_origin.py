"""A22: a client that says it is somebody else, comes from elsewhere, or asked for another host."""

from __future__ import annotations

import uuid

import pytest

from tests.attacks.tools import Wire
from tests.client import Api, Person, new_address
from tests.stack import Stack
from tests.waiting import eventually

ELSEWHERE = "203.0.113.9"
FORGED = {
    **dict.fromkeys(("X-Real-IP", "X-Forwarded-For", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP"), ELSEWHERE),
    "Forwarded": f"for={ELSEWHERE};proto=https",
    "X-Forwarded-Proto": "https",
    "X-Scheme": "https",
}


@pytest.mark.parametrize("peer", ["127.0.0.1", "other"])
def test_the_log_has_the_peer(stack: Stack, peer: str) -> None:
    address, marker = new_address() if peer == "other" else peer, f"/api/{uuid.uuid4().hex}"
    with Api(stack.base_url, address=address) as api:
        api.get(marker, headers=FORGED)
    lines = eventually(lambda: [line for n in (0, 1) for line in stack.log(f"app_0{n}").splitlines() if marker in line])
    assert address in lines[0]
    assert ELSEWHERE not in lines[0]
    lines = eventually(lambda: [line for line in stack.log("nginx").splitlines() if marker in line])
    assert address in lines[0]
    assert ELSEWHERE not in lines[0]


def test_attempts_are_counted_of_the_peer(stack: Stack) -> None:
    """However many addresses one client names: see also test_a02_guessing.py."""
    with Api(stack.base_url, address=new_address()) as api:
        statuses = [
            api.get("/api/user", headers={"X-Forwarded-For": f"203.0.113.{n}", "X-Real-IP": f"203.0.113.{n}"}).status
            for n in range(2 * stack.settings.access.failures_per_minute)
        ]
    assert statuses[-1] == 429


def test_nobody_can_say_that_he_is_this_machine(stack: Stack, workers: list[Api]) -> None:
    """Metrics are for this machine without a token: it is the router who says who asks, and names only the peer."""
    assert workers[0].using("").get("/metrics", headers={"X-Real-IP": ELSEWHERE}).status == 401
    with Api(stack.base_url, address=new_address()) as api:
        for name in FORGED:
            assert api.get("/metrics", headers={name: ELSEWHERE}).status == 200  # the peer's address counts


def test_links_name_the_configured_address(bob: Person, wire: Wire, stack: Stack) -> None:
    assert bob.api.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 2}).status == 200
    forged = [f"{name}: evil.example" for name in ("X-Forwarded-Host", "X-Host", "X-Original-Host", "Forwarded")]
    for target, host in (("/api/jobs?limit=1", "evil.example"), ("http://evil.example/api/jobs?limit=1", "localhost")):
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close", *forged]
        request = "\r\n".join([*lines, f"Authorization: token {bob.token}"]).encode() + b"\r\n\r\n"
        reply = wire.send(request)
        assert reply.headers["link"].startswith(f"<{stack.settings.base_url}/api/jobs?")
        assert b"evil" not in repr(reply).encode()
    assert bob.api.post("/api/jobs/cancel", {}).data == {"cancelled": 2}
    assert b"evil" not in wire.ask("GET", "/api/openapi.json", "X-Forwarded-Host: evil.example").body


@pytest.mark.parametrize("path", ["/api/jobs", "/", "/status", "/none", "/guides"])
def test_no_answer_repeats_the_host(wire: Wire, path: str, stack: Stack) -> None:
    (stack.settings.site_dir / "guides").mkdir(exist_ok=True)
    reply = wire.send(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
    assert "evil" not in repr(reply)
