"""Output: exact bytes and ranges of them, followed as bytes and as events, without a lost or doubled byte."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.api.conftest import MAX_OUTPUT, MAX_STREAMS
from tests.client import Api, Event, Person, check, events, exchange, texts
from tests.stack import Stack
from tests.waiting import eventually

BYTES = bytes(range(256)) * 4
PRINT_BYTES = "import os; os.write(1, bytes(range(256)) * 4); os.write(2, bytes(range(255, -1, -1)))"


@pytest.fixture(scope="module")
def binary(admin: Api) -> dict[str, Any]:
    """A job that has printed every byte."""
    job = admin.submit(PRINT_BYTES, shell="python", wait=30)
    assert job["status"] == "COMPLETED"
    return job


def cancel(api: Api, job: dict[str, Any]) -> None:
    assert api.post(f"/api/jobs/{job['id']}/cancel").status == 200


def ended(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    return eventually(lambda: (seen := api.job(job["id"]))["finished_at"] and seen)


# -- bytes -----------------------------------------------------------------------------------------------------------


def test_output_is_exact(admin: Api, binary: dict[str, Any]) -> None:
    out = admin.get(f"/api/jobs/{binary['id']}/stdout")
    err = admin.get(f"/api/jobs/{binary['id']}/stderr")
    assert (out.body, err.body) == (BYTES, bytes(range(255, -1, -1)))
    assert out.headers["Content-Length"] == str(len(BYTES))
    assert out.headers["Content-Type"] == "application/octet-stream"
    assert out.headers["X-Content-Type-Options"] == "nosniff"
    assert out.headers["Content-Disposition"] == f'attachment; filename="{binary["id"]}.stdout"'
    assert err.headers["Content-Disposition"] == f'attachment; filename="{binary["id"]}.stderr"'
    assert binary["stdout"] == BYTES.decode(errors="replace")
    assert binary["stdout_bytes"] == len(BYTES)


def test_head_says_how_much_there_is(admin: Api, binary: dict[str, Any]) -> None:
    answer = admin("HEAD", f"/api/jobs/{binary['id']}/stdout")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(BYTES))
    assert answer.headers["ETag"] == admin.get(f"/api/jobs/{binary['id']}/stdout").headers["ETag"]


@pytest.mark.parametrize("path", ["stdout?follow=true", "stream"])
def test_head_does_not_follow(alice: Api, path: str) -> None:
    job = alice.submit("sleep 30")
    eventually(lambda: alice.job(job["id"])["status"] == "RUNNING")
    for _ in range(MAX_STREAMS + 1):
        answer = alice("HEAD", f"/api/jobs/{job['id']}/{path}", timeout=5)
        assert (answer.status, answer.body) == (200, b"")
    cancel(alice, job)


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-", 0, 1024),
        ("bytes=10-19", 10, 20),
        ("bytes=-5", 1019, 1024),
        ("bytes=1000-99999", 1000, 1024),
        ("bytes=0-0", 0, 1),
    ],
)
def test_ranges(admin: Api, binary: dict[str, Any], wanted: str, start: int, end: int) -> None:
    answer = admin.get(f"/api/jobs/{binary['id']}/stdout", headers={"Range": wanted})
    assert (answer.status, answer.body) == (206, BYTES[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/1024"
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("wanted", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_ranges_outside(admin: Api, binary: dict[str, Any], wanted: str) -> None:
    answer = admin.get(f"/api/jobs/{binary['id']}/stdout", headers={"Range": wanted})
    assert (answer.status, answer.code) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == "bytes */1024"


@pytest.mark.parametrize(
    "wanted", ["bytes", "bytes=", "bytes=a-b", "bytes=5-1", "bytes=0-1,5-6", "lines=1-2", "bytes=--1"]
)
def test_no_ranges(admin: Api, binary: dict[str, Any], wanted: str) -> None:
    answer = admin.get(f"/api/jobs/{binary['id']}/stdout", headers={"Range": wanted})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "Range" in answer.body["message"]


def test_what_one_has_already_is_not_sent_again(admin: Api, binary: dict[str, Any]) -> None:
    path = f"/api/jobs/{binary['id']}/stdout"
    tag = admin.get(path).headers["ETag"]
    for header in (tag, f'"x", {tag}', f"W/{tag}"):
        answer = admin.get(path, headers={"If-None-Match": header})
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", tag)
    assert admin.get(path, headers={"If-None-Match": '"other"'}).status == 200
    assert admin.get(path, headers={"If-Range": tag, "Range": "bytes=0-1"}).status == 206
    assert admin.get(path, headers={"If-Range": '"other"', "Range": "bytes=0-1"}).status == 200


def test_the_tag_changes_with_the_output(alice: Api) -> None:
    job = alice.submit("echo one; read x < /tmp/none || sleep 0.3; echo two; sleep 30")
    path = f"/api/jobs/{job['id']}/stdout"
    first = eventually(lambda: (answer := alice.get(path)).body == b"one\n" and answer)
    second = eventually(lambda: (answer := alice.get(path)).body == b"one\ntwo\n" and answer)
    assert first.headers["ETag"] != second.headers["ETag"]
    cancel(alice, job)


def test_nothing_printed_is_nothing(alice: Api) -> None:
    for job in (alice.submit("true", wait=30), alice.submit("true", delay=3600)):
        answer = alice.get(f"/api/jobs/{job['id']}/stdout")
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
        assert alice.get(f"/api/jobs/{job['id']}/stdout", headers={"Range": "bytes=0-"}).status == 416


@pytest.mark.parametrize("query", ["follow=1", "follow=yes", "follow=", "what=1", "follow=true&follow=true"])
def test_no_queries(admin: Api, binary: dict[str, Any], query: str) -> None:
    assert admin.get(f"/api/jobs/{binary['id']}/stdout?{query}").status == 400


def test_follow_and_range_exclude_each_other(admin: Api, binary: dict[str, Any]) -> None:
    assert admin.get(f"/api/jobs/{binary['id']}/stdout?follow=true", headers={"Range": "bytes=0-1"}).status == 400


def test_output_beyond_the_limit_is_dropped_and_said_so(alice: Api) -> None:
    job = alice.submit(f"head -c {MAX_OUTPUT + 10} /dev/zero; echo all >&2; exit 4", wait=60)
    assert (job["status"], job["return_code"], job["stderr"]) == ("FAILED", 4, "all\n")
    assert (job["output_truncated"], job["stdout_bytes"]) == (True, MAX_OUTPUT)
    assert len(alice.get(f"/api/jobs/{job['id']}/stdout").body) == MAX_OUTPUT
    full = alice.submit(f"head -c {MAX_OUTPUT} /dev/zero", wait=60)
    assert (full["output_truncated"], full["stdout_bytes"]) == (False, MAX_OUTPUT)


# -- followed as bytes -----------------------------------------------------------------------------------------------


def test_follow_goes_on_to_the_end(alice: Api) -> None:
    code = "import os, time\nfor n in range(20):\n os.write(1, bytes([n]) * 1000); os.write(2, b'x'); time.sleep(0.02)"
    job = alice.submit(code, shell="python")
    answer = alice.get(f"/api/jobs/{job['id']}/stdout?follow=true")
    assert answer.body == b"".join(bytes([n]) * 1000 for n in range(20))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert alice.get(f"/api/jobs/{job['id']}/stderr?follow=true").body == b"x" * 20


def test_new_bytes_come_soon(alice: Api) -> None:
    """A follower has what the job prints within a moment, though it waits for its answer before it goes on."""
    code = "import time\nfor n in range(15): print(time.time(), flush=True); time.sleep(0.05)"
    job = alice.submit(code, shell="python")
    delays = []
    with alice.client.stream("GET", f"/api/jobs/{job['id']}/stdout?follow=true", headers=alice.headers()) as answer:
        for chunk in answer.iter_raw():
            now = time.time()
            delays += [now - float(line) for line in chunk.decode().splitlines()]
    assert len(delays) == 15
    assert sorted(delays)[7] < 0.25  # the median, on a busy machine


# -- followed as events ----------------------------------------------------------------------------------------------


def test_a_finished_job_s_events(alice: Api) -> None:
    job = alice.submit("echo out; echo err >&2; exit 3", wait=30)
    found = list(events(alice, job["id"]))
    assert [event.kind for event in found] == ["stdout", "stderr", "status", "end"]
    assert [event.data for event in found[:2]] == ["out\n", "err\n"]
    assert found[2].data == found[3].data == {"status": "FAILED", "attempt": 1, "reason": "exit code 3"}
    assert [event.id for event in found] == ["1-4-0", "1-4-4", "1-4-4", "1-4-4"]


def test_events_from_submission_to_end(alice: Api) -> None:
    job = alice.submit("echo one; sleep 0.3; echo two", delay=0.3)
    found = list(events(alice, job["id"]))
    statuses = [event.data["status"] for event in found if event.kind == "status"]
    assert statuses == ["PENDING", "RUNNING", "COMPLETED"]
    assert [event.data for event in found if event.kind == "stdout"] == ["one\n", "two\n"]
    assert found[-1].kind == "end"


def test_events_tell_of_a_cancel(alice: Api) -> None:
    job = alice.submit("true", delay=3600)
    follower = events(alice, job["id"])
    assert next(follower).data["status"] == "PENDING"
    cancel(alice, job)
    status, end = list(follower)
    assert (status.kind, end.kind) == ("status", "end")
    assert end.data == {"status": "CANCELLED", "attempt": 0, "reason": f"cancelled by {job['submitter']}"}


def test_what_jobs_print_cannot_forge_events(alice: Api) -> None:
    text = '\n\ndata: x\n\nevent: end\ndata: {}\n\nid: 9-9-9\n:\r\n\r\n{"status":"success"}\x1b[2J\n'
    job = alice.submit('printf "%s" "$T"', env={"T": text}, wait=30)
    found = list(events(alice, job["id"]))
    assert [event.kind for event in found] == ["stdout", "status", "end"]
    assert found[0].data == text


@pytest.fixture(scope="module")
def mixed(admin: Api) -> tuple[dict[str, Any], str, str]:
    """A job that printed characters of one to four bytes on both streams."""
    out, err = "aß€😀\n" * 3, "z😀y€\n" * 2
    job = admin.submit('printf "%s" "$OUT"; printf "%s" "$ERR" >&2', env={"OUT": out, "ERR": err}, wait=30)
    assert (job["stdout"], job["stderr"]) == (out, err)
    return job, out, err


def test_following_goes_on_from_every_place(admin: Api, mixed: tuple[dict[str, Any], str, str]) -> None:
    job, out, err = mixed
    for stream, text, other in (("stdout", out, err), ("stderr", err, out)):
        raw = text.encode()
        for offset in range(len(raw) + 1):
            place = f"1-{offset}-0" if stream == "stdout" else f"1-0-{offset}"
            found = list(events(admin, job["id"], place))
            rest = raw[offset:].decode(errors="replace")
            assert texts(found, stream) == rest, place
            assert texts(found, "stderr" if stream == "stdout" else "stdout") == other
            assert found[-1].id == f"1-{len(out.encode())}-{len(err.encode())}"


def test_reconnecting_after_every_event_loses_and_doubles_nothing(alice: Api) -> None:
    """A client that is cut off after each event, while the job prints characters in parts."""
    code = "\n".join(
        [
            "import os, time",
            "for n in range(30):",
            "    for byte in '€😀'.encode(): os.write(1, bytes([byte])); time.sleep(0.001)",
            "    os.write(2, b'%d,' % n); time.sleep(0.02)",
        ]
    )
    job = alice.submit(code, shell="python")
    found: list[Event] = []
    last = None
    while not found or found[-1].kind != "end":
        follower = events(alice, job["id"], last)
        event = next(follower)
        if event.kind == "status" and event.id == last and event.data["status"] == "RUNNING":
            event = next(follower)  # the state is told to each who comes
        follower.close()
        found.append(event)
        last = event.id
        if event.kind == "status" and event.data["status"] not in ("PENDING", "RUNNING"):
            break
    assert texts(found, "stdout") == "€😀" * 30
    assert texts(found, "stderr") == "".join(f"{n}," for n in range(30))


def test_half_a_character_at_the_end_is_told_too(alice: Api) -> None:
    job = alice.submit(r"printf 'a\342\202'", wait=30)
    found = list(events(alice, job["id"]))
    assert (texts(found, "stdout"), found[-1].id) == ("a\ufffd", "1-3-0")


def test_following_over_retries(alice: Api) -> None:
    """All of an attempt comes before the next begins, half a character at its end too; each counts for itself."""
    job = alice.submit(r"printf 'try\342\202'; echo err >&2; sleep 0.2; exit 1", retries=2, retry_delay=0.1)
    found = list(events(alice, job["id"]))
    assert texts(found, "stdout") == "try\ufffd" * 3
    assert texts(found, "stderr") == "err\n" * 3
    seen = [event.id for event in found if event.kind in ("stdout", "stderr")]
    assert [max(seen_id for seen_id in seen if seen_id.startswith(f"{n}-")) for n in (1, 2, 3)] == [
        "1-5-4",
        "2-5-4",
        "3-5-4",
    ]
    assert found[-1].data == {"status": "FAILED", "attempt": 3, "reason": "exit code 1"}
    again = list(events(alice, job["id"], "1-5-4"))
    assert texts(again, "stdout") == "try\ufffd" * 2
    assert texts(list(events(alice, job["id"])), "stdout") == "try\ufffd"  # of the last attempt, for who comes later


@pytest.mark.parametrize("place", ["x", "-1-0-0", "1-0", "1--1-0", "2-0-0", "1-5-0", "1-0-1", "99999-0-0", "0-1-0",
                                   "1-999999999999999-0", "1-9999999999999999-0", "1-0-0-0", "1 0 0"])  # fmt: skip
def test_no_places(admin: Api, place: str) -> None:
    job = admin.submit("printf 1234", wait=30)
    response = admin.client.get(f"/api/jobs/{job['id']}/stream", headers={**admin.headers(), "Last-Event-ID": place})
    if place == "0-1-0":  # before the first attempt nothing was printed: from the start
        assert response.status_code == 200
    else:
        assert check(response).status == 400
        assert "Last-Event-ID" in response.json()["message"]


def test_a_place_of_another_job_shows_nothing_of_it(alice: Api, bob: Api) -> None:
    theirs = bob.submit("echo secret-of-bob", wait=30)
    mine = alice.submit("printf mine", wait=30)
    place = list(events(bob, theirs["id"]))[-1].id
    response = alice.client.get(f"/api/jobs/{mine['id']}/stream", headers={**alice.headers(), "Last-Event-ID": place})
    assert check(response).status == 400
    assert "secret" not in response.text


# -- limits and rights of streams ------------------------------------------------------------------------------------


def open_streams(api: Api, job_id: str, count: int) -> list[Any]:
    """So many streams, each after its first event."""
    streams = [events(api, job_id) for _ in range(count)]
    for stream in streams:
        next(stream)
    return streams


def test_streams_are_counted_by_user(workers: list[Api], alice: Api, bob: Api) -> None:
    worker = workers[0].using(alice.token)
    job, other = alice.submit("true", delay=3600), bob.submit("true", delay=3600)
    streams = open_streams(worker, job["id"], MAX_STREAMS)
    for path in ("stream", "stdout?follow=true", "stderr?follow=true"):
        answer = worker.get(f"/api/jobs/{job['id']}/{path}")
        assert (answer.status, answer.code) == (429, "limit_reached")
        assert str(MAX_STREAMS) in answer.body["message"]
    assert worker.get("/api/user").status == 200
    open_streams(workers[0].using(bob.token), other["id"], 1)[0].close()  # others are not hit
    streams.pop().close()  # one that ends makes room
    eventually(lambda: _one_more(worker, job["id"]), seconds=5)
    for stream in streams:
        stream.close()
    cancel(alice, job)
    cancel(bob, other)


def _one_more(api: Api, job_id: str) -> bool:
    with api.client.stream("GET", f"/api/jobs/{job_id}/stream", headers=api.headers()) as answer:
        return answer.status_code == 200


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
@pytest.mark.parametrize("path", ["stream", "stdout?follow=true"])
def test_a_stream_ends_with_its_token(admin: Api, person: Callable[..., Person], how: str, path: str) -> None:
    """Within a second, and not as if it had come to its end."""
    owner = person()
    fields = {"expires_in": 2} if how == "expired" else {}
    token = owner.api.post("/api/tokens", {"name": "follower", **fields}).data
    job = owner.api.submit("trap '' TERM; while :; do echo x; sleep 0.05; done")
    eventually(lambda: owner.api.job(job["id"])["stdout_bytes"])
    headers = owner.api.headers(token["token"])
    with owner.api.client.stream("GET", f"/api/jobs/{job['id']}/{path}", headers=headers) as response:
        assert response.status_code == 200
        begun = time.monotonic()
        if how == "revoked":
            owner.api.delete(f"/api/tokens/{token['id']}").data  # noqa: B018
        elif how == "rotated":
            owner.api.post(f"/api/tokens/{token['id']}/rotate", {}).data  # noqa: B018
        elif how == "deactivated":
            admin.patch(f"/api/users/{owner.username}", {"active": False}).data  # noqa: B018
        closed, got = closed_after(response)
    assert closed - begun < (3.2 if how == "expired" else 1.2)
    assert b"event: end" not in got
    admin.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


def test_an_administrator_who_is_none_any_more_follows_nobody_elses_job(
    admin: Api, person: Callable[..., Person]
) -> None:
    other, owner = person(role="admin"), person()
    job = owner.api.submit("trap '' TERM; while :; do echo x; sleep 0.05; done")
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
    job = owner.api.submit(f"head -c {MAX_OUTPUT} /dev/zero", wait=60)
    reader = workers[0].using(token["token"])
    path = f"/api/jobs/{job['id']}/stdout"
    with reader.client.stream("GET", path, headers=reader.headers()) as response:
        assert response.headers["Content-Length"] == str(MAX_OUTPUT)
        begun = time.monotonic()
        owner.api.delete(f"/api/tokens/{token['id']}").data  # noqa: B018
        eventually(lambda: reader.get("/api/user").status == 401 and time.monotonic() > begun + 0.5)
        _, got = closed_after(response)
    assert len(got) < MAX_OUTPUT


def test_waiting_for_a_job_ends_with_its_token(person: Callable[..., Person]) -> None:
    owner = person()
    token = owner.api.post("/api/tokens", {"name": "waiter"}).data
    waiter = owner.api.using(token["token"])
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(waiter.post, "/api/jobs?wait=30", {"code": "sleep 1.5; echo secret", "name": "waited"})
        eventually(lambda: owner.api.get("/api/jobs?name=waited&status=RUNNING").data)
        owner.api.delete(f"/api/tokens/{token['id']}").data  # noqa: B018
        assert answer.result().status == 401


def test_a_reader_that_never_reads_costs_little(alice: Api, stack: Stack) -> None:
    """The job's output is a mebibyte: hundreds of such readers must not hold it in memory each."""
    job = alice.submit(f"head -c {MAX_OUTPUT} /dev/zero | tr '\\0' x", wait=60)
    request = (
        f"GET /api/jobs/{job['id']}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: token {alice.token}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()

    def memory() -> int:
        pids = [pid for name, pid in stack.pids().items() if name.startswith(("app", "nginx"))]
        return sum(rss_of(pid) for pid in pids)

    before = memory()
    readers = []
    for _ in range(2 * MAX_STREAMS - 2):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", stack.settings.server.port))
        reader.sendall(request)
        assert reader.recv(15).startswith(b"HTTP/1.1 ")
        readers.append(reader)
    assert alice.get("/api/user").status == 200
    assert memory() - before < len(readers) * MAX_OUTPUT
    for reader in readers:
        reader.close()
    assert list(events(alice, job["id"]))[-1].kind == "end"


def rss_of(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1]) * 1024  # type: ignore[index]


def test_names_cannot_split_headers(alice: Api, stack: Stack) -> None:
    job = alice.submit("true", name="..-_..", wait=30)
    disposition = alice.get(f"/api/jobs/{job['id']}/stdout").headers["Content-Disposition"]
    assert disposition == f'attachment; filename="{job["id"]}.stdout"'
    request = (
        f"GET /api/jobs/a%0d%0aX-Evil:%20yes_{'0' * 32}/stdout HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: token {alice.token}\r\n\r\n"
    )
    status, headers, _ = exchange(stack.settings.server.port, request.encode())
    assert status == 404
    assert "x-evil" not in headers
