"""A21: line ends in whatever could come out again in a header."""

from __future__ import annotations

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire
from tests.client import Person

EVIL = ["%0d%0aX-Evil:%20yes", "%0aX-Evil:%20yes", "%0dX-Evil:%20yes", "%E5%98%8A%E5%98%8DX-Evil:%20yes"]


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_comes_out_as_a_header(wire: Wire, alice: Person, belongings: Belongings, evil: str) -> None:
    job_id = belongings.things["job_id"][0]
    reading = [operation for operation in OPERATIONS if operation.method == "GET"]
    naming = [operation for operation in reading if operation.parts]
    targets = [operation.address(**dict.fromkeys(operation.parts, f"x{evil}")) for operation in naming]
    targets += [f"{operation.address(**next(belongings.of(operation)))}?x{evil}=1" for operation in reading]
    targets += [f"/api/jobs?name={evil}", f"/api/jobs?cursor={evil}", f"/api/jobs?limit=1&status={evil}", f"/{evil}"]
    targets += [f"/api/jobs/{job_id}{evil}/stdout", f"/api/jobs/a{evil}_{'0' * 32}/stdout", f"/status?{evil}"]
    for target in targets:
        reply = wire.ask("GET", target, token=alice.token)
        assert reply.status in (400, 403, 404) or target.startswith("/status"), (target, reply)
        assert "x-evil" not in reply.headers, target


READ = ["X-Request-Id", "Idempotency-Key", "Last-Event-ID", "Range", "Prefer", "Origin", "Host"]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("end", ["\r", "\r\r", "\x0b", "\x0c", "\x85", "\u2028"])
def test_nor_out_of_one_that_came_in(wire: Wire, alice: Person, belongings: Belongings, name: str, end: str) -> None:
    job_id = belongings.things["job_id"][0]
    for path in ("/api/user", f"/api/jobs/{job_id}/stdout", f"/api/jobs/{job_id}/stream"):
        reply = wire.ask("GET", path, f"{name}: a{end}X-Evil: yes", token=alice.token)
        assert "x-evil" not in reply.headers


def test_a_job_s_name_stays_within_its_header(alice: Person) -> None:
    job = alice.api.submit("true", name="..-_..", wait=30)
    disposition = alice.api.get(f"/api/jobs/{job['id']}/stdout").headers["Content-Disposition"]
    assert disposition == f'attachment; filename="{job["id"]}.stdout"'
