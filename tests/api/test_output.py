"""Output: exact bytes and ranges of them, followed as bytes and as events, without a lost or doubled byte."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.api.conftest import MAX_OUTPUT, MAX_STREAMS
from tests.client import Api, Event, events, texts
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
