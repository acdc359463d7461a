"""Secrets: stored once, handed to the jobs that name them, and seen nowhere else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.api.conftest import MAX_SECRETS
from tests.api.test_jobs import at, ended
from tests.api.test_lists import pages
from tests.client import Api, Person, events
from tests.stack import Stack
from tests.waiting import eventually

VALUE = "S3cret-7f2a9c41e0-é"  # found wherever it might have got to


def put(api: Api, name: str, value: str = VALUE) -> dict[str, Any]:
    record: dict[str, Any] = api.put(f"/api/secrets/{name}", {"value": value}).data
    return record


def test_a_secret_from_its_making_to_its_end(alice: Api, bob: Api) -> None:
    made = put(alice, "API_KEY")
    assert made.keys() == {"name", "created_at", "modified"}
    assert made["name"] == "API_KEY" and at(made["created_at"]) == at(made["modified"])
    again = put(alice, "API_KEY", "another value")
    assert again["created_at"] == made["created_at"] and at(again["modified"]) > at(made["modified"])
    put(alice, "_b9")
    put(bob, "API_KEY", "that of bob")
    assert [item["name"] for item in alice.get("/api/secrets").data] == ["_b9", "API_KEY"]
    assert [[item["name"] for item in page] for page in pages(alice, "/api/secrets?limit=1")] == [["_b9"], ["API_KEY"]]
    assert alice.get("/api/secrets/API_KEY").data == again == alice.get("/api/secrets").data[1]
    assert alice.delete("/api/secrets/API_KEY").data == {}
    for answer in (
        alice.delete("/api/secrets/API_KEY"), alice.get("/api/secrets/API_KEY"), bob.get("/api/secrets/_b9"),
    ):  # fmt: skip
        assert (answer.status, answer.code) == (404, "not_found")
    assert [item["name"] for item in bob.get("/api/secrets").data] == ["API_KEY"]


def test_administrators_see_none_but_their_own(alice: Api, person: Callable[..., Person]) -> None:
    put(alice, "PRIVATE")
    deputy = person(role="admin").api
    assert deputy.get("/api/secrets").data == []
    assert [deputy(method, "/api/secrets/PRIVATE").status for method in ("GET", "DELETE")] == [404, 404]
    answer = deputy.post("/api/jobs", {"code": "true", "secrets": ["PRIVATE"]})
    assert (answer.status, answer.errors.keys()) == (400, {"secrets"})


BAD = {
    "nothing": {}, "null": {"value": None}, "a number": {"value": 12345678}, "a list": {"value": [VALUE]},
    "an object": {"value": {VALUE: VALUE}}, "short": {"value": "abc"}, "NUL": {"value": f"{VALUE}\0"},
    "long": {"value": VALUE * 5000}, "long in bytes": {"value": "é" * 32_769},
    "another field": {"value": VALUE, "x": VALUE},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_is_none_is_refused_and_not_said_again(alice: Api, name: str) -> None:
    answer = alice.put("/api/secrets/BAD", BAD[name])
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert VALUE[:12] not in json.dumps(answer.body, ensure_ascii=False) and "abc" not in answer.body["message"]
    assert answer.errors.keys() <= {"value", "x"}
    assert alice.get("/api/secrets").data == []


def test_a_body_that_is_no_json_is_not_said_again(alice: Api) -> None:
    for body in (f'{{"value": "{VALUE}}}', f'{{"value": {VALUE}}}', VALUE):
        headers = {"Content-Type": "application/json"}
        answer = alice("PUT", "/api/secrets/BAD", content=body.encode(), headers=headers)
        assert answer.status == 400 and VALUE[:6] not in answer.body["message"]
    assert alice.put(f"/api/secrets/BAD?value={VALUE}", {"value": VALUE}).status == 400


@pytest.mark.parametrize(
    "name", ["9A", "A-B", "A.B", "A" * 65, "%C3%89", "A%20", "A%00", "A%2FB", "..%2fA", "%2e%2e", "A%0a", "A=B"]
)
def test_a_name_that_is_none_is_not_there(alice: Api, name: str) -> None:
    answer = alice.put(f"/api/secrets/{name}", {"value": VALUE})
    assert answer.status in (400, 404)
    assert "variables" in answer.body["message"] or "/" in unquote(name) or name in ("%2e%2e", "A%00")
    assert alice.get("/api/secrets").data == []


def test_longest_and_shortest(alice: Api) -> None:
    for name, value in (("A", "x" * 65_536), ("B" * 64, "four")):
        put(alice, name, value)
    job = alice.submit('wc -c < "/run/job/secrets/A"; printenv | wc -c', secrets=["A"], secrets_in_env=True, wait=30)
    size, environment = map(int, job["stdout"].split())
    assert size == 65_536 < environment


def test_a_job_is_given_what_it_names_and_only_its_own(alice: Api, bob: Api) -> None:
    put(alice, "ONE")
    put(alice, "OTHER", "is not named")
    put(bob, "ONE", "that of bob")
    look = "ls /run/job/secrets; sha1sum < /run/job/secrets/ONE | cut -c 1-40; echo ${ONE-none} ${OTHER-none}"
    job = alice.submit(look, secrets=["ONE"], wait=30)
    assert (job["secrets"], job["secrets_in_env"]) == (["ONE"], False)
    names, digest, variables = job["stdout"].splitlines()
    assert (names, variables) == ("ONE", "none none")
    theirs = bob.submit(look, secrets=["ONE"], secrets_in_env=True, wait=30)
    assert theirs["stdout"].splitlines()[2] == "*** none"
    assert theirs["stdout"].splitlines()[1] != digest
    without = alice.submit("ls /run/job/secrets; printenv ONE", wait=30)
    assert without["stdout"] == ""


def test_what_is_unknown_is_refused_by_name(alice: Api, bob: Api) -> None:
    put(alice, "MINE")
    put(bob, "THEIRS")
    before = alice.get("/api/user").data["queued"]
    answer = alice.post("/api/jobs", {"code": "true", "secrets": ["MINE", "THEIRS", "NONE"]})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.errors == {
        "secrets": [f"You have no secret {name}; PUT /api/secrets/{name} makes it." for name in ("THEIRS", "NONE")]
    }
    jobs = [{"code": "true", "secrets": names} for names in ([], ["MINE"], ["NONE"])]
    answer = alice.post("/api/jobs/batch", {"jobs": jobs})
    assert (answer.status, answer.errors["jobs"].keys()) == (400, {"2"})
    answer = alice.post(
        "/api/jobs", {"code": "true", "env": {"MINE": "x"}, "secrets": ["MINE"], "secrets_in_env": True}
    )
    assert (answer.status, answer.errors) == (400, {"secrets": ["MINE is a variable in env already."]})
    assert alice.get("/api/user").data["queued"] == before


def test_what_tokens_may(alice: Api) -> None:
    put(alice, "KEY")

    def token(*scopes: str) -> Api:
        return alice.using(alice.post("/api/tokens", {"name": "x", "scopes": scopes}).data["token"])

    body = {"code": "true", "delay": 3600, "secrets": ["KEY"]}
    writer = token("jobs:read", "jobs:write", "secrets:read", "secrets:write")
    answer = writer.post("/api/jobs", body)
    assert (answer.status, answer.code, answer.errors.keys()) == (403, "not_allowed", {"secrets"})
    assert "scope secrets:use" in answer.body["message"]
    assert writer.post("/api/jobs/batch", {"jobs": [body]}).status == 403
    job = token("jobs:write", "secrets:use").post("/api/jobs", body).data
    assert writer.post(f"/api/jobs/{job['id']}/rerun").status == 403
    assert writer.post(f"/api/jobs/{job['id']}/rerun", {"secrets": []}).data["secrets"] == []
    user = token("secrets:use")
    assert [user(method, "/api/secrets/KEY").status for method in ("GET", "DELETE")] == [403, 403]
    assert user.put("/api/secrets/KEY", {"value": VALUE}).status == user.get("/api/secrets").status == 403
    reader = token("secrets:read")
    assert reader.put("/api/secrets/KEY", {"value": VALUE}).status == reader.delete("/api/secrets/KEY").status == 403
    assert len(alice.get("/api/jobs").data) == 2
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_a_secret_is_seen_nowhere(alice: Api, admin: Api, stranger: Api, stack: Stack) -> None:
    """Neither in an answer about it or its jobs, nor in any file of the service, its database's among them."""
    value = f"{VALUE}\nsecond line of it"
    put(alice, "KEY", value)
    code = 'cat /run/job/secrets/KEY >&2; echo "<$KEY>"; exit 3'
    job = alice.submit(code, secrets=["KEY"], secrets_in_env=True, wait=30, args=["x"])
    assert (job["status"], job["stdout"], job["stderr"]) == ("FAILED", "<***>\n", "***")
    again = ended(alice, alice.post(f"/api/jobs/{job['id']}/rerun").data["id"])
    assert (again["stdout"], again["secrets"], again["secrets_in_env"]) == ("<***>\n", ["KEY"], True)
    answers = [
        job, again, alice.get("/api/jobs").body, alice.get("/api/secrets").body, alice.get("/api/user").body,
        alice.get(f"/api/jobs/{job['id']}/stdout").body, alice.get(f"/api/jobs/{job['id']}/stderr").body,
        list(events(alice, job["id"])), admin.get("/api/audit?limit=1000").body, admin.get("/api/stats").body,
        admin.get(f"/api/jobs/{job['id']}").body, stranger.get("/metrics").body, admin.get("/api/sysinfo").body,
    ]  # fmt: skip
    written = repr(answers)
    for part in (VALUE, VALUE[:12], "second line", base64.b64encode(value.encode()).decode()[:20]):
        assert part not in written
    needles = [part.encode() for part in (VALUE[:12], "second line of", base64.b64encode(value.encode()).decode()[:20])]
    looked_at = 0
    for path in stack.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # the database's come and go
                continue
            looked_at += len(content)
            assert not [part for part in needles if part in content], path
    assert looked_at > 10_000_000
    for pid in stack.pids().values():
        assert VALUE[:12].encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    key = stack.settings.secrets_key
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in written


def test_a_job_has_the_value_of_when_it_starts(alice: Api) -> None:
    put(alice, "KEY", "old value")
    job = alice.submit("wc -c < /run/job/secrets/KEY", secrets=["KEY"], delay=0.5)
    put(alice, "KEY", "a longer new value")
    assert ended(alice, job["id"])["stdout"] == "18\n"


def test_a_secret_that_is_gone_fails_its_jobs_once(admin: Api, person: Callable[..., Person]) -> None:
    owner = person(max_running=0)
    put(owner.api, "KEY")
    put(owner.api, "GONE")
    job = owner.api.submit("true", secrets=["KEY", "GONE"], retries=5, retry_delay=0, on_lost="requeue")
    owner.api.delete("/api/secrets/GONE").data  # noqa: B018
    admin.patch(f"/api/users/{owner.username}", {"limits": {"max_running": 5}}).data  # noqa: B018
    record = ended(owner.api, job["id"])
    assert (record["status"], record["attempt"]) == ("FAILED", 1)
    assert record["reason"] == "The secret GONE does not exist any more."
    answer = owner.api.post(f"/api/jobs/{job['id']}/rerun")
    assert (answer.status, answer.errors.keys()) == (400, {"secrets"})


def test_as_many_as_one_may_have_and_no_more(alice: Api, bob: Api) -> None:
    def store(number: int) -> int:
        return alice.put(f"/api/secrets/N{number}", {"value": VALUE}).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(store, range(MAX_SECRETS + 8)))
    assert (statuses.count(200), statuses.count(409)) == (MAX_SECRETS, 8)
    names = [item["name"] for item in alice.get("/api/secrets").data]
    assert len(names) == MAX_SECRETS
    answer = alice.put("/api/secrets/MORE", {"value": VALUE})
    assert answer.code == "conflict" and f"{MAX_SECRETS} secrets" in answer.body["message"]
    put(alice, names[0], "a new value")
    put(bob, "MORE")
    alice.delete(f"/api/secrets/{names[1]}").data  # noqa: B018
    put(alice, "MORE")


def test_two_who_store_the_same_at_once(alice: Api) -> None:
    """Both succeed, and one of them is the last."""
    values = [f"value {'x' * number}" for number in range(1, 17)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda value: put(alice, "SAME", value), values))
    (record,) = alice.get("/api/secrets").data
    assert record["name"] == "SAME"
    size = int(alice.submit("wc -c < /run/job/secrets/SAME", secrets=["SAME"], wait=30)["stdout"])
    assert size in {len(value) for value in values}


def test_what_is_done_is_in_the_audit_log(alice: Api, admin: Api) -> None:
    name = f"KEY_{alice.get('/api/user').data['id']}"
    put(alice, name)
    alice.delete(f"/api/secrets/{name}").data  # noqa: B018
    alice.get(f"/api/secrets/{name}")
    entries = eventually(lambda: (found := admin.get(f"/api/audit?object={name}").data) and len(found) == 3 and found)
    assert [(entry["action"], entry["outcome"]) for entry in reversed(entries)] == [
        ("secret.put", "ok"), ("secret.delete", "ok"), ("read", "not_found"),
    ]  # fmt: skip
    assert entries[2]["detail"] == entries[1]["detail"] == {}
