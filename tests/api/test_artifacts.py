"""Artifacts: what a job left, listed, one by one, and all together."""

from __future__ import annotations

import io
import tarfile
import time
from datetime import datetime
from typing import Any

import pytest

from tests.client import Api
from tests.waiting import eventually

SCRIPT = r"""
mkdir -p artifacts/deep/er
printf 0123456789 > artifacts/digits
printf x > "artifacts/deep/er/a b%\"ä'.txt"
printf page > artifacts/archive
printf '#!/bin/sh\n' > artifacts/run; chmod +x artifacts/run
head -c 3000000 /dev/urandom > artifacts/large
ln -s /etc/passwd artifacts/passwd
"""
NAMED = "deep/er/a b%25%22ä'.txt"


@pytest.fixture(scope="module")
def left(admin: Api) -> dict[str, Any]:
    """A job that has left artifacts."""
    job = admin.submit(SCRIPT, wait=30)
    assert (job["status"], job["artifacts"], job["artifacts_truncated"]) == ("COMPLETED", 5, True)
    return job


def test_they_are_listed(admin: Api, left: dict[str, Any]) -> None:
    listed = admin.get(f"/api/jobs/{left['id']}/artifacts").data
    assert [(item["path"], item["size"], item["executable"]) for item in listed] == [
        ("archive", 4, False),
        ("deep/er/a b%\"ä'.txt", 1, False),
        ("digits", 10, False),
        ("large", 3_000_000, False),
        ("run", 10, True),
    ]
    assert abs(datetime.fromisoformat(listed[0]["modified"]).timestamp() - time.time()) < 120
    assert sum(item["size"] for item in listed) < left["artifacts_bytes"] < 3_010_000


def test_one_is_exact_and_no_page_of_ours(admin: Api, left: dict[str, Any]) -> None:
    answer = admin.get(f"/api/jobs/{left['id']}/artifacts/digits")
    assert (answer.status, answer.body) == (200, b"0123456789")
    headers = answer.headers
    assert headers["Content-Disposition"] == 'attachment; filename="digits"'
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("application/octet-stream", "nosniff")
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["Content-Length"] == "10"
    again = admin.get(f"/api/jobs/{left['id']}/artifacts/digits", headers={"If-None-Match": headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    head = admin("HEAD", f"/api/jobs/{left['id']}/artifacts/digits")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "10")


def test_parts_of_one(admin: Api, left: dict[str, Any]) -> None:
    address = f"/api/jobs/{left['id']}/artifacts/digits"
    for wanted, body in (("0-3", b"0123"), ("4-", b"456789"), ("-2", b"89"), ("8-100", b"89")):
        answer = admin.get(address, headers={"Range": f"bytes={wanted}"})
        assert (answer.status, answer.body) == (206, body)
    assert answer.headers["Content-Range"] == "bytes 8-9/10"
    assert admin.get(address, headers={"Range": "bytes=10-"}).status == 416


def test_a_name_with_everything(admin: Api, left: dict[str, Any]) -> None:
    answer = admin.get(f"/api/jobs/{left['id']}/artifacts/{NAMED}")
    assert (answer.status, answer.body) == (200, b"x")
    told = answer.headers["Content-Disposition"]
    assert told == "attachment; filename=\"a_b____.txt\"; filename*=UTF-8''a%20b%25%22%C3%A4%27.txt"


@pytest.mark.parametrize(
    "path", ["nothing", "deep", "deep/er", "passwd", "digits/", "%2e%2e/digits", "/etc/passwd", "DIGITS"]
)
def test_what_is_not_there(admin: Api, left: dict[str, Any], path: str) -> None:
    assert admin.get(f"/api/jobs/{left['id']}/artifacts/{path}").status == 404


def test_all_together(admin: Api, left: dict[str, Any]) -> None:
    answer = admin.get(f"/api/jobs/{left['id']}/artifacts/archive")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{left["id"]}.tar.gz"'
    assert answer.headers["Content-Type"] == "application/gzip"
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r:gz") as tar:
        sizes = {member.name: member.size for member in tar}
        assert tar.extractfile("archive").read() == b"page"  # type: ignore[union-attr]
    assert sizes == {item["path"]: item["size"] for item in admin.get(f"/api/jobs/{left['id']}/artifacts").data}
    large = admin.get(f"/api/jobs/{left['id']}/artifacts/large").body
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r:gz") as tar:
        assert tar.extractfile("large").read() == large  # type: ignore[union-attr]


def test_without_any(alice: Api) -> None:
    job = alice.submit("true", wait=30)
    assert (job["artifacts"], job["artifacts_bytes"], job["artifacts_truncated"]) == (0, 0, False)
    assert alice.get(f"/api/jobs/{job['id']}/artifacts").data == []
    with tarfile.open(fileobj=io.BytesIO(alice.get(f"/api/jobs/{job['id']}/artifacts/archive").body)) as tar:
        assert tar.getnames() == []
    waiting = alice.submit("true", delay=3600)
    assert (waiting["artifacts"], alice.get(f"/api/jobs/{waiting['id']}/artifacts").data) == (None, [])


def test_the_last_attempt_s_are_shown(alice: Api) -> None:
    job = alice.submit("mkdir artifacts; echo $$ $RANDOM > artifacts/tried; exit 1", retries=1, retry_delay=0, wait=30)
    ended = eventually(lambda: (seen := alice.job(job["id"]))["finished_at"] and seen)
    assert (ended["attempt"], ended["artifacts"]) == (2, 1)
    assert [item["path"] for item in alice.get(f"/api/jobs/{job['id']}/artifacts").data] == ["tried"]


def test_limit(alice: Api) -> None:
    script = "mkdir artifacts; head -c 5000 /dev/zero > artifacts/big; echo x > artifacts/small"
    job = alice.submit(script, limits={"artifacts": "4KiB"}, wait=30)
    assert (job["limits"]["artifacts"], job["artifacts"], job["artifacts_truncated"]) == (4096, 1, True)
    assert job["artifacts_bytes"] <= 4096


def test_what_a_killed_job_left(alice: Api) -> None:
    job = alice.submit("mkdir artifacts; echo partly > artifacts/x; sleep 1000", timeout=0.5, wait=30)
    assert (job["status"], job["artifacts"], job["artifacts_truncated"]) == ("TIMEOUT", 1, False)
    assert alice.get(f"/api/jobs/{job['id']}/artifacts/x").body == b"partly\n"
    assert 0.4 < job["wall_seconds"] < 5
