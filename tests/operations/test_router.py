"""The router: what nginx answers itself has the service's own form, and what it passes on is what came."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Iterable, Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.stack import Stack
from tests.unit.test_log import HIDDEN
from tests.waiting import eventually

PASSWORD = b"hunter2"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"]


def exchange(stack: Stack, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; status, headers (lower case) and body of the answer, which has the safety headers."""
    with socket.create_connection(("127.0.0.1", stack.settings.server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = HTTPResponse(connection)
        answer.begin()
        assert_safe(answer.getheaders())
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def assert_safe(headers: Iterable[tuple[str, str]]) -> None:
    """Every answer says, once, that it is what it says it is, cannot be framed, and is for no other site."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    assert found["x-content-type-options"] == ["nosniff"]
    assert found["referrer-policy"] == ["no-referrer"]
    (policy,) = found["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy or "default-src 'self'" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert found["server"] == ["nginx"]
    assert "strict-transport-security" not in found  # without TLS it would be a lie
    assert not [name for name in found if name.startswith("access-control-")]


def error_of(body: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(body)
    assert content.keys() == {"status", "message", "data", "version"}
    assert content["status"] == "error"
    assert content["message"]
    assert content["data"].keys() == {"code", "errors"}
    return content


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (b"GET /api/sysinfo HTTP/1.1\r\n\r\n", 400, "bad_request"),  # no Host
        (b"GET /api/sysinfo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
        (b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (b"TRACE /api/jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /api/" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "address_too_long"),
        (b"GET /api/jobs HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /api/jobs HTTP/1.1\r\nHost: a\r\n" + b"X: aaaaaaaaaaaa\r\n" * 8000 + b"\r\n", 431, "headers_too_large"),
    ],
)  # fmt: skip
def test_refusals_of_the_router_have_the_envelope(stack: Stack, request_bytes: bytes, status: int, code: str) -> None:
    answered, headers, body = exchange(stack, request_bytes)
    assert answered == status
    assert headers["content-type"].startswith("application/json")
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert error_of(body)["data"]["code"] == code
    line = eventually(lambda: [x for x in stack.log("nginx").splitlines() if f" {headers['x-request-id']} " in x])[0]
    assert f'" {status} ' in line
    assert "/-/" not in line


@pytest.mark.parametrize(
    ("request_line", "more", "status", "code"),
    [
        (b"TRACE /api/jobs", b"", 405, "method_not_allowed"),
        (b"POST /api/jobs", b"Content-Length: 10000000000\r\n", 413, "too_large"),
        (b"POST /api/jobs", b"Transfer-Encoding: gzip\r\n", 501, "not_implemented"),
        (b"GET /api/" + b"a" * 40_000, b"", 414, "address_too_long"),
    ],
)  # fmt: skip
def test_refusals_of_the_router_are_problems_for_who_accepts_them(
    stack: Stack, request_line: bytes, more: bytes, status: int, code: str
) -> None:
    accept = b"Accept: application/json, application/problem+json\r\n"
    answered, headers, body = exchange(
        stack, request_line + b" HTTP/1.1\r\nHost: a\r\n" + accept + more + b"Connection: close\r\n\r\n"
    )
    assert answered == status
    if status == 414:  # refused before its headers are read
        assert error_of(body)["data"]["code"] == code
        return
    assert headers["content-type"].startswith("application/problem+json")
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert problem_of(body)["status"] == status
    assert problem_of(body)["code"] == code


def problem_of(body: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(body)
    assert content.keys() == {"type", "title", "status", "detail", "code", "errors"}
    assert content["detail"]
    return content


def test_a_body_that_is_announced_as_too_large_is_refused_unread(stack: Stack) -> None:
    head = b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\nConnection: close\r\n\r\n"
    status, _, body = exchange(stack, head + b"x" * 100_000)
    assert (status, error_of(body)["data"]["code"]) == (413, "too_large")
    assert "100000 bytes" in error_of(body)["message"]


def test_a_body_that_turns_out_too_large_is_refused(stack: Stack) -> None:
    head = b"POST /api/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    status, _, body = exchange(
        stack, head + b"10000\r\n" + b"x" * 0x10000 + b"\r\n10000\r\n" + b"x" * 0x10000 + b"\r\n"
    )
    assert (status, error_of(body)["data"]["code"]) == (413, "too_large")


def test_a_client_that_sends_it_all_first_still_reads_the_refusal(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.post("/api/jobs", content=b"x" * 5_000_000, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert error_of(answer.content)["data"]["code"] == "too_large"


def test_the_request_has_one_number_and_it_is_ours(stack: Stack) -> None:
    with stack.client() as client:
        answer = client.get("/api/sysinfo", headers={"X-Request-Id": "mine"})
    number = answer.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", number)
    assert answer.headers.get_list("X-Request-Id") == [number]
    eventually(lambda: number in stack.log("nginx"))
    assert " mine " not in stack.log("nginx")


def send_what_should_not_be_logged(stack: Stack) -> None:
    """Tokens wherever one might put them, control characters in one byte and in two, endless methods and addresses;
    returns when the router has logged it all."""
    token = stack.admin_token.encode()
    marker = uuid.uuid4().hex
    more = [
        b"Authorization: token " + token,
        b"Referer: http://a/\xc2\x9b2J?token=" + PASSWORD,
        b"User-Agent: \xc2\x9b2J",
    ]
    head = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + b"\r\n".join(more) + b"\r\n\r\n"
    for line in (
        b"GET /api/%1b%5b2J%0aforged?token=" + token,
        b"GET /%1b%5b2J%0aforged?token=" + token,
        b"GET /api/?password=" + PASSWORD,
        b"GET /" + b"a" * 300 + b"%0aforged",
        b"GET /index.html/%0aforged",
        b"GET /api/" + token,
        b"GET /api/jobs/" + token + b"/stdout",
        b"GET /api/\xc2\x9b2J\x9b2J\xff\xe2\x80\xae",
        b"GET /api/" + b"a" * 14_000,
        b"P" * 14_000 + b" /api/jobs",
        f"GET /api/{marker}".encode(),
    ):
        assert exchange(stack, line + head)[0] in (400, 404, 405, 503)
    eventually(lambda: marker in stack.log("nginx"))


def assert_logs_are_clean(stack: Stack) -> None:
    """No token, nothing but text in whole lines, and no line too long for a pipe to take at once."""
    for log in stack.settings.log_dir.glob("*.log"):
        text = log.read_bytes().decode()
        assert stack.admin_token[:30] not in text, log
        assert PASSWORD.decode() not in text, log
        assert not HIDDEN.search(text), log
        assert not re.search(r"^forged", text, re.MULTILINE), log
        assert max(len(line.encode()) for line in text.split("\n")) < 4096, log


def test_the_logs_hold_neither_tokens_nor_control_characters(stack: Stack) -> None:
    send_what_should_not_be_logged(stack)
    assert_logs_are_clean(stack)
    assert '"GET /api/\\xC2\\x9B2J\\x9B2J\\xFF' in stack.log("nginx")
    assert '"PPPPPPPPPPPPPPPPPPPP..." 405' in stack.log("nginx")


@pytest.mark.parametrize(
    "path",
    ["/api/sysinfo", "/api/user", "/api/none", "/api", "/api/openapi.json", "/status", "/metrics", "/", "/folder",
     "/folder/", "/.hidden", "/nothing", "/static/..%2f.."],
)  # fmt: skip
def test_every_answer_is_safe_and_for_no_other_site(stack: Stack, path: str) -> None:
    (stack.settings.site_dir / "folder").mkdir(exist_ok=True)
    with stack.client(token="") as client:
        for origin in ("null", "https://evil.example", f"{stack.base_url}.evil.example", stack.base_url):
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
                answer = client.request(method, path, headers={"Origin": origin, **preflight})
                assert_safe(answer.headers.multi_items())
        tag = client.get("/").headers["ETag"]
        assert_safe(client.get("/", headers={"If-None-Match": tag}).headers.multi_items())


def test_the_site_is_compressed_and_the_api_is_not(stack: Stack) -> None:
    (stack.settings.site_dir / "long.html").write_text("<p>hello</p>" * 1000)
    with stack.client() as client:
        assert client.get("/long.html").headers["Content-Encoding"] == "gzip"
        assert "Content-Encoding" not in client.get("/api/openapi.json").headers


def test_without_workers_and_status_server_it_is_503_as_well(stack: Stack) -> None:
    stack.stop_group("app", "status")
    try:
        with stack.client() as client:
            for path in ("/api/jobs", "/status"):
                answer = client.post(path, json={"code": "true"})
                assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
                assert error_of(answer.content)["data"]["code"] == "unavailable"
        send_what_should_not_be_logged(stack)  # of what it cannot pass on, the router says in an error log why
        assert "failed (111: Connection refused)" in stack.log("nginx")
        assert_logs_are_clean(stack)
    finally:
        stack.start_group("status", "app")


def test_one_dead_worker_is_skipped_whatever_the_method(stack: Stack) -> None:
    stack.supervisor.call("supervisor.stopProcess", "app:app_00")
    try:
        with stack.client() as client:
            eventually(lambda: client.get("/api/user").status_code == 200)  # may have been restarted
            for _ in range(20):
                assert client.post("/api/jobs", json={"code": "true"}).status_code == 200
    finally:
        stack.supervisor.call("supervisor.startProcess", "app:app_00")


def test_without_workers_it_is_a_problem_for_who_accepts_one(without_workers: Stack) -> None:
    with without_workers.client() as client:
        answer = client.get("/api/jobs", headers={"Accept": "application/problem+json"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert int(answer.headers["Retry-After"]) > 0
    assert problem_of(answer.content)["code"] == "unavailable"


@pytest.fixture(scope="module")
def without_workers(stack: Stack) -> Iterator[Stack]:
    stack.stop_group("app")
    yield stack
    stack.start_group("app")


@pytest.mark.parametrize("method", METHODS)
def test_without_workers_every_method_gets_503(without_workers: Stack, method: str) -> None:
    with without_workers.client() as client:
        answer = client.request(method, "/api/jobs", content=b'{"code": "true"}' if method == "POST" else None)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    if method != "HEAD":
        assert error_of(answer.content)["data"]["code"] == "unavailable"
        assert "Idempotency-Key" in answer.json()["message"]
