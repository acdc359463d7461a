"""Bad input: every malformed request gets a 4xx with a sentence that helps, soon, and costs little."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client import Answer, Api, exchange
from tests.stack import Stack

JSON = {"Content-Type": "application/json"}
MAX_BODY = 8 * 2**20


def post(api: Api, body: bytes, path: str = "/api/jobs", **headers: str) -> Answer:
    return api("POST", path, content=body, headers={**JSON, **headers})


@pytest.fixture(autouse=True)
def nothing_is_stored(alice: Api) -> Iterator[None]:
    """Whatever a test here sends as `alice`, no job comes of it."""
    yield
    assert alice.get("/api/jobs").data == []


BAD_JSON = {
    "empty": b"",
    "spaces": b"  ",
    "cut off": b'{"code": "true"',
    "trailing comma": b'{"code": "true",}',
    "two values": b'{"code": "true"} {"code": "true"}',
    "single quotes": b"{'code': 'true'}",
    "bare word": b"code",
    "comment": b'{"code": "true" /* x */}',
    "NaN": b'{"code": "true", "timeout": NaN}',
    "Infinity": b'{"code": "true", "timeout": Infinity}',
    "-Infinity": b'{"code": "true", "timeout": -Infinity}',
    "1e999": b'{"code": "true", "timeout": 1e999}',
    "many digits": b'{"code": "true", "timeout": ' + b"1" * 100_000 + b"}",
    "leading zero": b'{"code": "true", "timeout": 01}',
    "plus": b'{"code": "true", "timeout": +1}',
    "lone high surrogate": b'{"code": "\\ud800"}',
    "lone low surrogate": b'{"code": "\\udc00x"}',
    "surrogate in a key": b'{"code": "true", "\\ud800": 1}',
    "surrogate in UTF-8": b'{"code": "\xed\xa0\x80"}',
    "not UTF-8": b'{"code": "\xff\xfe"}',
    "overlong UTF-8": b'{"code": "\xc0\xaf"}',
    "UTF-16": '{"code": "true"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"code": "true"}',
    "raw newline": b'{"code": "a\nb"}',
    "raw NUL": b'{"code": "a\x00b"}',
    "NUL": b'{"code": "a\\u0000b"}',
    "NUL in a key": b'{"code": "true", "a\\u0000": 1}',
    "deep lists": b"[" * 100_000,
    "deep closed lists": b'{"code": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a list": b'[{"code": "true"}]',
    "a string": b'"true"',
    "a number": b"1",
    "null": b"null",
    "true": b"true",
    "many keys": b"{" + b",".join(b'"k%d":1' % n for n in range(300_000)) + b"}",
    "many items": b'{"code": "true", "args": [' + b",".join([b'"x"'] * 1_000_000) + b"]}",
    "many pairs": b'{"code": "true", "env": {' + b",".join(b'"K%d":"x"' % n for n in range(300_000)) + b"}}",
    "many lines": b'{"code": [' + b",".join([b'""'] * 2_000_000) + b"]}",
    "a huge text": b'{"code": "' + b"x" * (MAX_BODY - 20) + b'"}',
    "a huge name": b'{"code": "true", "' + b"x" * 1_000_000 + b'": 1}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(alice: Api, name: str) -> None:
    begun = time.monotonic()
    answer = post(alice, BAD_JSON[name])
    assert time.monotonic() - begun < 2  # of which the router's reading is a part, on a busy machine
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert len(json.dumps(answer.body)) < 3_000_000
    assert len(answer.body["message"]) < 500


def test_a_thousand_bad_jobs_are_refused_soon(alice: Api) -> None:
    for jobs in ([{}] * 1_000_000, [{}] * 1000, [{str(number): 1 for number in range(90)}] * 1000):
        begun = time.monotonic()
        answer = post(alice, json.dumps({"jobs": jobs}).encode(), "/api/jobs/batch")
        assert answer.status == 400
        assert time.monotonic() - begun < 5


def test_others_are_answered_meanwhile(alice: Api, workers: list[Api]) -> None:
    """A large body is checked beside the event loop: the same worker answers others while it does."""
    worker = workers[0].using(alice.token)
    body = json.dumps({"jobs": [{"code": "x", "timeout": -1, "env": {"A": "b"}, "what": 1}] * 1000}).encode()
    assert worker.get("/api/sysinfo", headers={"X-Request-Id": "x"}).status == 200
    with ThreadPoolExecutor(2) as pool:
        large = [pool.submit(post, worker, body, "/api/jobs/batch", **{"X-Request-Id": "x"}) for _ in range(4)]
        times = []
        while not all(future.done() for future in large):
            begun = time.monotonic()
            worker.get("/api/sysinfo", headers={"X-Request-Id": "x"}).data  # noqa: B018
            times.append(time.monotonic() - begun)
        assert {future.result().status for future in large} == {400}
    assert sorted(times)[len(times) // 2] < 0.2


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e300, 1e300) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/api/jobs", "/api/jobs/batch", "/api/tokens", "/api/jobs/cancel", "/api/users"]),
    st.dictionaries(
        st.sampled_from(["name", "shell", "args", "env", "stdin", "timeout", "run_at", "jobs", "scopes", "limits"])
        | st.text(max_size=8),
        values,
        max_size=5,
    ),
)  # fmt: skip
def test_no_json_is_ever_a_500(alice: Api, path: str, body: dict[str, Any]) -> None:
    assert alice.post(path, {**body, "unknown field": 1}).status in (400, 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"}, {"Content-Type": "text/json"}, {"Content-Type": ""},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "multipart/form-data"}, {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json5"}, {"Content-Type": "application/json, text/plain"},
        {"Content-Type": "*/*"},
        {"Content-Type": "application/json", "Content-Encoding": "identity"},
        {"Content-Type": "application/json", "Content-Encoding": "deflate"},
    ],
)  # fmt: skip
def test_other_media_types(alice: Api, headers: dict[str, str]) -> None:
    answer = alice("POST", "/api/jobs", content=b'{"code": "true"}', headers=headers)
    assert answer.status in (400, 415)
    assert answer.status == 415 or "multipart" in headers["Content-Type"]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]
)
def test_the_media_type(alice: Api, kind: str) -> None:
    answer = alice("POST", "/api/jobs/cancel", content=b"{}", headers={"Content-Type": kind})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/user"), ("DELETE", "/api/tokens/1"), ("GET", "/api/sysinfo")]
)
def test_bodies_where_none_is_wanted(alice: Api, method: str, path: str) -> None:
    assert alice(method, path, content=b'{"a": 1}', headers=JSON).status == 400
    assert alice(method, path, content=b"x").status == 415


def request(alice: Api, line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [line, "Host: x", f"Authorization: token {alice.token}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("line", "headers", "statuses"),
    [
        ("GET /api/jobs?" + "&".join(f"a{n}=1" for n in range(100_000)) + " HTTP/1.1", [], [414]),
        ("GET /api/jobs?" + "&".join(f"a{n}=1" for n in range(1_900)) + " HTTP/1.1", [], [400]),
        ("GET /api/jobs?" + "&" * 16_000 + " HTTP/1.1", [], [200]),
        ("GET /api/jobs?" + "a&" * 7_000 + " HTTP/1.1", [], [400]),
        ("GET /api/" + "a" * 100_000 + " HTTP/1.1", [], [414]),
        ("GET /api/jobs HTTP/1.1", ["X: " + "a" * 100_000], [431]),
        ("GET /api/jobs HTTP/1.1", [f"X-{n}: {'a' * 20}" for n in range(5_000)], [400, 431]),
        ("GET /api/jobs HTTP/1.1", ["Cookie: " + '"\\' * 30_000], [431]),
        ("GET /api/jobs HTTP/1.1", ["Cookie: " + '"\\' * 7_000, "Bad Header"], [400, 200]),
        ("GET /api/jobs HTTP/1.1", ["Idempotency-Key: " + "x" * 10_000, "Range: " + "x" * 5_000, "What"], [400, 200]),
        ("GET /api/jobs\x00 HTTP/1.1", [], [400]),
        ("GET /api/jobs/%00 HTTP/1.1", [], [400, 404]),
        ("GET /api/users/%ff%fe HTTP/1.1", [], [400]),
        ("GET /api/jobs/%ed%a0%80 HTTP/1.1", [], [400]),
        ("GET /api/jobs/..%2f..%2fapi%2fnone HTTP/1.1", [], [400, 404]),
        ("GET /api/jobs/%252e%252e%252f HTTP/1.1", [], [400, 404]),
        ("GET /api/jobs/job_" + "0" * 32 + "%2fstdout HTTP/1.1", [], [404]),
        ("GET /api/%2e%2e%2fapi/none HTTP/1.1", [], [400, 404]),
        ("GET /api/jobs?%ff=1 HTTP/1.1", [], [400]),
        ("GET /api/jobs?name=%ff HTTP/1.1", [], [400]),
        ("GET /api/jobs?name=%zz HTTP/1.1", [], [400]),
        ("GET /api/jobs HTTP/9.9", [], [400, 505]),
        ("GARBAGE", [], [400]),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_requests_that_are_no_good(
    alice: Api, stack: Stack, line: str, headers: list[str], statuses: list[int]
) -> None:
    status, got, body = exchange(stack.settings.server.port, request(alice, line, *headers))
    assert status in statuses, (status, body[:300])
    if status >= 400:
        assert json.loads(body)["status"] == "error"
        assert got["x-request-id"]
