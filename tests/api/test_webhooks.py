"""Webhooks: the end of a job is told, signed, again until it is heard, and only where that is allowed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.api.conftest import HOOKS
from tests.api.test_jobs import at, ended
from tests.api.test_scripts import save
from tests.client import Api
from tests.waiting import eventually


@dataclass
class Heard:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found

    def signed_by(self, key: str) -> bool:
        """Whether one of its signatures is made with this key, as Standard Webhooks says."""
        secret = base64.b64decode(key.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
        return f"v1,{wanted}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Hook:
    """Where jobs' ends are told of; `answers` says what to answer to each path, the last for ever."""

    url: str
    answers: dict[str, list[int | tuple[int, str]]] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)

    def of(self, path: str) -> list[Heard]:
        return [item for item in self.heard if item.path == path]

    def wait(self, path: str, count: int = 1, seconds: float = 20) -> list[Heard]:
        eventually(lambda: len(self.of(path)) >= count, seconds)
        return self.of(path)


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.heard.append(Heard(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            answers = found.answers.get(self.path, [204])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            status, location = answer if isinstance(answer, tuple) else (answer, "")
            if status == 0:
                time.sleep(3)  # longer than the service waits
            self.send_response(status or 200)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((HOOKS, 0), Handler)
    found = Hook(f"http://{HOOKS}:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def path() -> str:
    return f"/{uuid.uuid4().hex}"


def deliveries(api: Api, job: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get(f"/api/jobs/{job['id']}/deliveries").data
    return found


def test_the_end_is_told_and_signed(alice: Api, hook: Hook, path: str) -> None:
    key = alice.post("/api/webhooks/key").data["key"]
    target = {"url": hook.url + path}
    job = alice.submit("echo private; exit 3", wait=20, notify=[target])
    (heard,) = hook.wait(path)
    assert heard.signed_by(key) and not heard.signed_by("whsec_" + base64.b64encode(b"x" * 32).decode())
    assert abs(int(heard.headers["webhook-timestamp"]) - time.time()) < 60
    told = json.loads(heard.body)
    assert (told["type"], told["timestamp"]) == ("job.ended", job["finished_at"])
    assert told["data"] == {
        **{name: job[name] for name in (
            "id", "submitter", "script", "script_version", "schedule", "status", "reason", "return_code", "created_at",
            "started_at", "finished_at", "wall_seconds",
        )},
    }  # fmt: skip
    assert b"private" not in heard.body
    (seen,) = eventually(lambda: (found := deliveries(alice, job))[0]["delivered_at"] and found)
    assert (seen["url"], seen["status"], seen["attempts"], seen["answer"]) == (target["url"], "FAILED", 1, 204)
    assert (seen["id"], seen["problem"], seen["next_attempt"]) == (heard.headers["webhook-id"], None, None)
    assert job["notify"] == [{"url": target["url"], "on": job["notify"][0]["on"]}] and len(job["notify"][0]["on"]) == 6
    # A key that is replaced signs as well.
    another = alice.post("/api/webhooks/key").data["key"]
    alice.submit("true", wait=20, notify=[target])
    second = hook.wait(path, 2)[1]
    assert second.signed_by(key) and second.signed_by(another)


def test_of_those_ends_that_are_wanted(alice: Api, hook: Hook, path: str) -> None:
    notify = [{"url": f"{hook.url}{path}", "on": ["FAILED", "CANCELLED"]}]
    good = alice.submit("true", wait=20, notify=notify)
    bad = alice.submit("false", wait=20, notify=notify)
    waiting = alice.submit("true", delay=3600, notify=notify)
    alice.post(f"/api/jobs/{waiting['id']}/cancel")
    heard = hook.wait(path, 2)
    assert {(item.data["id"], item.data["status"]) for item in heard} == {
        (bad["id"], "FAILED"), (waiting["id"], "CANCELLED"),
    }  # fmt: skip
    assert deliveries(alice, good) == []


def test_it_is_told_again_until_it_is_heard(alice: Api, hook: Hook, path: str) -> None:
    hook.answers[path] = [500, 0, 204]
    job = alice.submit("true", wait=20, notify=[{"url": hook.url + path}])
    hook.wait(path)
    (seen,) = eventually(lambda: (found := deliveries(alice, job))[0]["problem"] and found)
    assert (seen["answer"], seen["problem"], seen["delivered_at"]) == (500, "The answer was 500.", None)
    assert 3 < (at(seen["next_attempt"]) - datetime.now(UTC)).total_seconds() <= 5
    heard = hook.wait(path, 2)
    assert heard[0].headers["webhook-id"] == heard[1].headers["webhook-id"] and heard[0].body == heard[1].body
    (seen,) = eventually(lambda: (found := deliveries(alice, job))[0]["attempts"] == 2 and found)
    eventually(lambda: deliveries(alice, job)[0]["problem"] == "No answer within 2 s.")


def test_who_does_not_want_it_is_not_told_again(alice: Api, hook: Hook, path: str) -> None:
    hook.answers[path] = [410]
    job = alice.submit("true", wait=20, notify=[{"url": hook.url + path}])
    (seen,) = eventually(lambda: (found := deliveries(alice, job))[0]["problem"] and found)
    assert (seen["answer"], seen["next_attempt"], seen["attempts"]) == (410, None, 1)


@pytest.mark.parametrize("place", ["http://127.0.0.1:{port}", "http://localhost:{port}", "http://[::1]:{port}",
                                   "http://[::ffff:127.0.0.1]:{port}", "http://0.0.0.0:{port}", "http://2130706433:{port}",
                                   "http://169.254.169.254", "http://10.0.0.1", "http://127.1:{port}"])  # fmt: skip
def test_this_machine_and_its_network_are_not_told(alice: Api, hook: Hook, path: str, place: str) -> None:
    url = place.format(port=hook.url.rpartition(":")[2]) + path
    for notify in ([{"url": url}], [{"url": f"{hook.url}{path}/on"}]):
        hook.answers[f"{path}/on"] = [(307, url)]
        job = alice.submit("true", wait=20, notify=notify)
        (seen,) = eventually(lambda job=job: (found := deliveries(alice, job))[0]["problem"] and found)
        assert "no address of the public internet" in seen["problem"] or "could not be sent" in seen["problem"]
        assert seen["delivered_at"] is None
    assert hook.of(path) == []


def test_what_is_sent_on_is_told_there(alice: Api, hook: Hook, path: str) -> None:
    hook.answers[path] = [(308, f"{path}/there")]
    alice.submit("true", wait=20, notify=[{"url": hook.url + path}])
    hook.wait(f"{path}/there")
    hook.answers[f"{path}/round"] = [(307, f"{path}/round")]
    job = alice.submit("true", wait=20, notify=[{"url": f"{hook.url}{path}/round"}])
    (seen,) = eventually(lambda: (found := deliveries(alice, job))[0]["problem"] and found)
    assert "sent on more than 3 times" in seen["problem"] and len(hook.of(f"{path}/round")) == 4
    hook.answers[f"{path}/get"] = [(302, f"{path}/never")]
    job = alice.submit("true", wait=20, notify=[{"url": f"{hook.url}{path}/get"}])
    (seen,) = eventually(lambda: (found := deliveries(alice, job))[0]["problem"] and found)
    assert seen["answer"] == 302 and hook.of(f"{path}/never") == []


def test_scripts_and_schedules_tell_of_their_jobs(alice: Api, bob: Api, hook: Hook, path: str) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    keys = [api.post("/api/webhooks/key").data["key"] for api in (alice, bob)]
    made = save(alice, "told", notify=[{"url": f"{hook.url}{path}/script", "on": ["COMPLETED"]}])
    assert [item["url"] for item in made["notify"]] == [f"{hook.url}{path}/script"]
    alice.post("/api/scripts/told/shares", {"user": colleague, "level": "run"}).data  # noqa: B018
    assert bob.get(f"/api/scripts/{owner}/told").data["notify"] is None
    overrides = {"notify": [{"url": f"{hook.url}{path}/run"}]}
    job = bob.post(f"/api/scripts/{owner}/told/run", {"wait": 20, "overrides": overrides}).data
    assert [item["url"] for item in job["notify"]] == [f"{hook.url}{path}/run"]
    (by_script,), (by_run,) = hook.wait(f"{path}/script"), hook.wait(f"{path}/run")
    assert by_script.data == by_run.data and by_run.data["script"] == f"{owner}/told"
    assert by_script.signed_by(keys[0]) and not by_script.signed_by(keys[1])
    assert by_run.signed_by(keys[1]) and not by_run.signed_by(keys[0])
    assert [item["url"] for item in deliveries(bob, job)] == [f"{hook.url}{path}/run"]
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    schedule = {"script": f"{owner}/told", "at": soon, "notify": [{"url": f"{hook.url}{path}/schedule"}]}
    number = bob.post("/api/schedules", schedule).data["id"]
    (heard,) = hook.wait(f"{path}/schedule")
    assert (heard.data["schedule"], heard.data["submitter"]) == (number, colleague) and heard.signed_by(keys[1])
    hook.wait(f"{path}/script", 2)
    again = bob.post(f"/api/jobs/{job['id']}/rerun").data
    ended(bob, again["id"])
    hook.wait(f"{path}/script", 3)
    hook.wait(f"{path}/run", 2)
    unchanged = alice.put("/api/scripts/told", {"notify": []}).data
    assert (unchanged["version"], unchanged["notify"]) == (1, [])


BAD: list[Any] = [
    "https://example.org", [{}], [{"url": "example.org"}], [{"url": "ftp://example.org"}], [{"url": "https://"}],
    [{"url": "https://a b"}], [{"url": "https://a\nb"}], [{"url": "https://é"}], [{"url": "https://u:p@example.org"}],
    [{"url": "https://example.org:0"}], [{"url": "https://example.org:99999"}], [{"url": "file:///etc/passwd"}],
    [{"url": "https://example.org/" + "a" * 2000}], [{"url": "https://example.org", "on": []}],
    [{"url": "https://example.org", "on": ["RUNNING"]}], [{"url": "https://example.org", "on": ["FAILED", "FAILED"]}],
    [{"url": "https://example.org", "x": 1}], [{"url": "https://example.org"}] * 6, [{"url": "http://[::1"}],
    [{"url": "javascript:alert(1)"}],
]  # fmt: skip


@pytest.mark.parametrize("notify", BAD, ids=lambda notify: str(notify)[:40])
def test_what_is_no_target(alice: Api, notify: Any) -> None:
    save(alice, "tool")
    for method, where, body in (
        ("POST", "/api/jobs", {"code": "true"}), ("PUT", "/api/scripts/tool", {}),
        ("POST", "/api/schedules", {"script": "tool", "every": 3600}),
    ):  # fmt: skip
        answer = alice(method, where, json={**body, "notify": notify})
        assert (answer.status, answer.errors.keys()) == (400, {"notify"})


def test_a_slow_target_of_one_holds_up_no_other(alice: Api, bob: Api, hook: Hook, path: str) -> None:
    hook.answers[f"{path}/slow"] = [0]
    slow = [{"url": f"{hook.url}{path}/slow"}] * 5
    for _ in range(6):
        alice.submit("true", wait=20, notify=slow)
    bob.submit("true", wait=20, notify=[{"url": f"{hook.url}{path}/quick"}])
    hook.wait(f"{path}/quick", seconds=10)
    alice.submit("true")
