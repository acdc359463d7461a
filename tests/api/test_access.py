"""Who may do what: a table of every route by everybody who may come, and what is left unchanged by a refusal."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from baselayer.handler import ANY, PUBLIC
from shell_service.handlers import ROUTES
from shell_service.scopes import SCOPES
from tests.client import Answer, Api, Person, check, new_person
from tests.waiting import eventually

WHO = ("nobody", "wrong scope", "other", "owner", "admin")
JOB = {"code": "true"}
LEFT = "/api/jobs/{job_id}/artifacts"
ONE, GROUP = "/api/scripts/{owner}/{script}", "/api/groups/{group}"
SCHEDULE = "/api/schedules/{schedule_id}"

# Method and path, what is sent, and the status for each of WHO. {job} is a job of the owner's that has ended, {waiting}
# one that waits, {token} another token and {secret} a secret of the owner's, {owner} his name. {script} and {archived}
# are addresses of scripts of his, {share} a share of the first, {group} the address of a group that he manages,
# {schedule} that of a schedule.
TABLE: list[tuple[str, str, str, Any, tuple[int, int, int, int, int]]] = [
    ("GET", "/api/jobs", "/api/jobs", None, (401, 403, 200, 200, 200)),
    ("POST", "/api/jobs", "/api/jobs", JOB, (401, 403, 200, 200, 200)),
    ("POST", "/api/jobs/batch", "/api/jobs/batch", {"jobs": [JOB]}, (401, 403, 200, 200, 200)),
    ("POST", "/api/jobs/cancel", "/api/jobs/cancel", {"name": "none"}, (401, 403, 200, 200, 200)),
    ("GET", "/api/jobs/{job_id}", "/api/jobs/{job}", None, (401, 403, 404, 200, 200)),
    ("POST", "/api/jobs/{job_id}/cancel", "/api/jobs/{waiting}/cancel", None, (401, 403, 404, 200, 200)),
    ("POST", "/api/jobs/{job_id}/rerun", "/api/jobs/{job}/rerun", None, (401, 403, 404, 200, 403)),
    ("POST", "/api/jobs/{job_id}/pin", "/api/jobs/{waiting}/pin", None, (401, 403, 404, 200, 200)),
    ("DELETE", "/api/jobs/{job_id}/pin", "/api/jobs/{waiting}/pin", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/jobs/{job_id}/deliveries", "/api/jobs/{job}/deliveries", None, (401, 403, 404, 200, 200)),
    ("POST", "/api/webhooks/key", "/api/webhooks/key", None, (401, 403, 200, 200, 200)),
    ("GET", "/api/jobs/{job_id}/stdout", "/api/jobs/{job}/stdout", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/jobs/{job_id}/stderr", "/api/jobs/{job}/stderr", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/jobs/{job_id}/stream", "/api/jobs/{job}/stream", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/jobs/{job_id}/setup", "/api/jobs/{job}/setup", None, (401, 403, 404, 200, 200)),
    ("GET", LEFT, "/api/jobs/{job}/artifacts", None, (401, 403, 404, 200, 200)),
    ("GET", f"{LEFT}/{{path*}}", "/api/jobs/{job}/artifacts/left", None, (401, 403, 404, 200, 200)),
    ("GET", f"{LEFT}/archive", "/api/jobs/{job}/artifacts/archive", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/scripts", "/api/scripts", None, (401, 403, 200, 200, 200)),
    ("POST", "/api/scripts", "/api/scripts", {"name": "{new}", "code": "true"}, (401, 403, 200, 200, 200)),
    ("GET", f"{ONE}", "{script}", None, (401, 403, 404, 200, 200)),
    ("PUT", f"{ONE}", "{script}", {"code": "echo other"}, (401, 403, 404, 200, 200)),
    ("DELETE", f"{ONE}", "{script}", None, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/code", "{script}/code", None, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/files", "{files}/files", None, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/versions", "{script}/versions", None, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/versions/{{version}}", "{script}/versions/1", None, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/diff", "{script}/diff?from=1&to=2", None, (401, 403, 404, 200, 200)),
    ("POST", f"{ONE}/revert", "{script}/revert", {"version": 1}, (401, 403, 404, 200, 200)),
    ("POST", f"{ONE}/restore", "{script}/restore", None, (401, 403, 404, 200, 200)),
    ("POST", f"{ONE}/purge", "{archived}/purge", None, (401, 403, 403, 403, 200)),
    ("GET", f"{ONE}/shares", "{script}/shares", None, (401, 403, 404, 200, 200)),
    ("POST", f"{ONE}/shares", "{script}/shares", {"user": "admin", "level": "view"}, (401, 403, 404, 200, 200)),
    ("DELETE", f"{ONE}/shares/{{share_id}}", "{script}/shares/{share}", None, (401, 403, 404, 200, 200)),
    ("POST", f"{ONE}/run", "{script}/run", {}, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/status", "{script}/status", None, (401, 403, 404, 200, 200)),
    ("GET", f"{ONE}/jobs", "{script}/jobs", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/schedules", "/api/schedules", None, (401, 403, 200, 200, 200)),
    ("POST", "/api/schedules", "/api/schedules", {"script": "{name}", "every": 3600}, (401, 403, 400, 200, 400)),
    ("GET", SCHEDULE, "{schedule}", None, (401, 403, 404, 200, 200)),
    ("PATCH", SCHEDULE, "{schedule}", {"every": 7200}, (401, 403, 404, 200, 403)),
    ("DELETE", SCHEDULE, "{schedule}", None, (401, 403, 404, 200, 200)),
    ("GET", f"{SCHEDULE}/next", "{schedule}/next", None, (401, 403, 404, 200, 200)),
    ("POST", f"{SCHEDULE}/pause", "{schedule}/pause", None, (401, 403, 404, 200, 200)),
    ("POST", f"{SCHEDULE}/resume", "{schedule}/resume", None, (401, 403, 404, 200, 403)),
    ("POST", f"{SCHEDULE}/run", "{schedule}/run", None, (401, 403, 404, 200, 403)),
    ("GET", "/api/groups", "/api/groups", None, (401, 403, 200, 200, 200)),
    ("POST", "/api/groups", "/api/groups", {"name": "{new}"}, (401, 403, 403, 403, 200)),
    ("GET", GROUP, "{group}", None, (401, 403, 404, 200, 200)),
    ("PATCH", GROUP, "{group}", {"description": "x"}, (401, 403, 404, 200, 200)),
    ("DELETE", GROUP, "{group}", None, (401, 403, 403, 403, 200)),
    ("PUT", f"{GROUP}/members/{{username}}", "{group}/members/{owner}", {"owner": True}, (401, 403, 404, 200, 200)),
    ("DELETE", f"{GROUP}/members/{{username}}", "{group}/members/{owner}", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/secrets", "/api/secrets", None, (401, 403, 200, 200, 200)),
    ("GET", "/api/secrets/{name}", "/api/secrets/{secret}", None, (401, 403, 404, 200, 404)),
    ("PUT", "/api/secrets/{name}", "/api/secrets/{secret}", {"value": "another"}, (401, 403, 200, 200, 200)),
    ("DELETE", "/api/secrets/{name}", "/api/secrets/{secret}", None, (401, 403, 404, 200, 404)),
    ("GET", "/api/tokens", "/api/tokens", None, (401, 403, 200, 200, 200)),
    ("POST", "/api/tokens", "/api/tokens", {"name": "new"}, (401, 403, 200, 200, 200)),
    ("DELETE", "/api/tokens/{token_id}", "/api/tokens/{token}", None, (401, 403, 404, 200, 200)),
    ("POST", "/api/tokens/{token_id}/rotate", "/api/tokens/{token}/rotate", {}, (401, 403, 404, 200, 200)),
    ("GET", "/api/user", "/api/user", None, (401, 200, 200, 200, 200)),
    ("GET", "/api/users", "/api/users", None, (401, 403, 403, 403, 200)),
    ("POST", "/api/users", "/api/users", {"username": "{new}"}, (401, 403, 403, 403, 200)),
    ("GET", "/api/users/{username}", "/api/users/{owner}", None, (401, 403, 403, 403, 200)),
    ("PATCH", "/api/users/{username}", "/api/users/{owner}", {"limits": {}}, (401, 403, 403, 403, 200)),
    ("GET", "/api/audit", "/api/audit", None, (401, 403, 403, 403, 200)),
    ("GET", "/api/shells", "/api/shells", None, (401, 200, 200, 200, 200)),
    ("GET", "/api/stats", "/api/stats", None, (401, 403, 200, 200, 200)),
    ("GET", "/api/sysinfo", "/api/sysinfo", None, (200, 200, 200, 200, 200)),
    ("GET", "/api/openapi.json", "/api/openapi.json", None, (200, 200, 200, 200, 200)),
    # From this machine itself everybody may; for others see test_info.py.
    ("GET", "/metrics", "/metrics", None, (200, 200, 200, 200, 200)),
]  # fmt: skip
CASES = [
    pytest.param(method, address, body, who, status, id=f"{method} {path} {who}")
    for method, path, address, body, statuses in TABLE
    for who, status in zip(WHO, statuses, strict=True)
]


@dataclass
class World:
    """An owner with a job, a token and a secret, and all who may come to them."""

    owner: Person
    callers: dict[str, Api]
    job: str

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """A job that waits, a token and a secret that nobody has touched yet."""
        self.waiting = self.owner.api.submit(delay=3600)["id"]
        self.token = self.owner.api.post("/api/tokens", {"name": "spare"}).data
        self.secret = f"S{uuid.uuid4().hex}"
        self.secret_record = self.owner.api.put(f"/api/secrets/{self.secret}", {"value": "private"}).data
        api, self.script, self.archived = self.owner.api, f"s{uuid.uuid4().hex}", f"a{uuid.uuid4().hex}"
        for name in (self.script, self.archived):
            api.post("/api/scripts", {"name": name, "code": "echo private"}).data  # noqa: B018
        self.script_record = api.put(f"/api/scripts/{self.script}", {"code": "echo hidden"}).data
        api.delete(f"/api/scripts/{self.archived}").data  # noqa: B018
        self.files = f"f{uuid.uuid4().hex}"
        given = {"name": self.files, "files": {"main.sh": "echo private"}, "entrypoint": "main.sh"}
        api.post("/api/scripts", given).data  # noqa: B018
        self.group = f"g{uuid.uuid4().hex}"
        admin = self.callers["admin"]
        admin.post("/api/groups", {"name": self.group}).data  # noqa: B018
        admin.put(f"/api/groups/{self.group}/members/{self.owner.username}", {"owner": True}).data  # noqa: B018
        share = api.post(f"/api/scripts/{self.script}/shares", {"group": self.group, "level": "edit"})
        self.share = share.data["id"]
        self.schedule_record = api.post("/api/schedules", {"script": self.script, "every": 3600}).data
        self.schedule = self.schedule_record["id"]

    def fill(self, text: str) -> str:
        return (
            text.replace("{job}", self.job)
            .replace("{waiting}", self.waiting)
            .replace("{token}", str(self.token["id"]))
            .replace("{secret}", self.secret)
            .replace("{name}", self.script)
            .replace("{schedule}", f"/api/schedules/{self.schedule}")
            .replace("{script}", f"/api/scripts/{self.owner.username}/{self.script}")
            .replace("{files}", f"/api/scripts/{self.owner.username}/{self.files}")
            .replace("{archived}", f"/api/scripts/{self.owner.username}/{self.archived}")
            .replace("{share}", str(self.share))
            .replace("{group}", f"/api/groups/{self.group}")
            .replace("{owner}", self.owner.username)
            .replace("{new}", f"new{uuid.uuid4().hex}")
        )

    def fill_body(self, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: self.fill(value) if isinstance(value, str) else value for name, value in body.items()}

    def assert_untouched(self) -> None:
        assert self.owner.api.job(self.waiting)["status"] == "PENDING"
        assert self.owner.api.get("/api/user", token=self.token["token"]).data["username"] == self.owner.username
        assert self.owner.api.job(self.job)["status"] == "COMPLETED"
        assert self.owner.api.get(f"/api/secrets/{self.secret}").data == self.secret_record
        assert self.owner.api.get(f"/api/scripts/{self.script}").data == self.script_record
        assert len(self.owner.api.get(f"/api/scripts/{self.script}/shares").data) == 1
        assert self.owner.api.get(f"/api/schedules/{self.schedule}").data == self.schedule_record
        members = self.owner.api.get(f"/api/groups/{self.group}").data["members"]
        assert members == [{"username": self.owner.username, "owner": True}]


@pytest.fixture(scope="module")
def world(admin: Api) -> World:
    return new_world(admin)


def new_world(admin: Api) -> World:
    """A world of people whom nobody else has met."""
    owner = new_person(admin)
    narrow = owner.api.post("/api/tokens", {"name": "narrow", "scopes": ["secrets:use"]}).data["token"]
    callers = {
        "wrong scope": admin.using(narrow),
        "other": new_person(admin).api,
        "owner": owner.api,
        "admin": admin,
    }
    job = owner.api.submit("echo private; echo hidden >&2; mkdir artifacts; echo hidden > artifacts/left", wait=30)
    assert job["status"] == "COMPLETED"
    return World(owner, callers, job["id"])


def ask(api: Api, method: str, address: str, body: Any) -> Answer:
    """One request of the table."""
    return api(method, address, **({} if body is None else {"json": body}))


@pytest.mark.parametrize(("method", "address", "body", "who", "status"), CASES)
def test_who_may_do_what(
    world: World, stranger: Api, method: str, address: str, body: Any, who: str, status: int
) -> None:
    api = stranger if who == "nobody" else world.callers[who]
    body = world.fill_body(body)
    answer = ask(api, method, world.fill(address), body)
    assert answer.status == status, answer.body
    if status == 404:
        replaced = world.fill(address).replace(world.job, f"job_{uuid.uuid4().hex}")
        replaced = replaced.replace(world.waiting, f"job_{uuid.uuid4().hex}")
        replaced = replaced.replace(f"/{world.token['id']}", "/999999999").replace(world.secret, "NONE")
        replaced = (
            replaced.replace(f"/schedules/{world.schedule}", "/schedules/999999999")
            .replace(world.script, "none")
            .replace(world.files, "none")
            .replace(world.group, "none")
        )
        assert replaced != world.fill(address)
        unknown = ask(api, method, replaced, body)
        assert (answer.status, answer.body) == (unknown.status, unknown.body)
        assert answer.headers.keys() == unknown.headers.keys()
    if status != 200:
        world.assert_untouched()
        if who != "nobody" and method == "GET" and isinstance(answer.body, bytes):
            assert b"private" not in answer.body
    elif method != "GET":
        world.renew()


def test_every_route_has_its_rows() -> None:
    """A route without rows in the table has nobody who says who may use it."""
    served = {(method, route.path) for route in ROUTES for method in route.endpoints()}
    assert {(method, path) for method, path, *_ in TABLE} == served


def test_the_table_agrees_with_what_the_routes_declare() -> None:
    declared = {
        (method, route.path): endpoint.scope for route in ROUTES for method, (endpoint, _) in route.endpoints().items()
    }
    for method, path, _, _, statuses in TABLE:
        scope = declared[method, path]
        assert (statuses[0] == 200) == (scope == PUBLIC), path
        assert (statuses[1] == 200) == (scope in (PUBLIC, ANY)), path
        assert (statuses[2] == 403) == (scope in SCOPES.of_role("admin") - SCOPES.of_role("user")), path


def test_what_others_see_in_lists(world: World, admin: Api) -> None:
    others = world.callers["other"].get("/api/jobs?limit=1000").data
    assert world.job not in {job["id"] for job in others}
    assert world.job in {job["id"] for job in world.owner.api.get("/api/jobs?limit=1000").data}
    assert world.job in {job["id"] for job in admin.get(f"/api/jobs?limit=1000&submitter={world.owner.username}").data}
    assert world.callers["other"].get(f"/api/jobs?submitter={world.owner.username}").data == []
    tokens = world.callers["other"].get("/api/tokens?limit=1000").data
    assert {token["username"] for token in tokens} == {world.callers["other"].get("/api/user").data["username"]}


def test_a_role_taken_away_takes_its_rights_with_it(
    admin: Api, workers: list[Api], person: Callable[..., Person]
) -> None:
    deputy = person(role="admin")
    assert [worker.get("/api/users", token=deputy.token).status for worker in workers] == [200, 200]
    admin.patch(f"/api/users/{deputy.username}", {"role": "user"}).data  # noqa: B018
    eventually(lambda: {worker.get("/api/users", token=deputy.token).status for worker in workers} == {403}, seconds=1)
    assert "users:admin" not in deputy.api.get("/api/user").data["scopes"]


def test_problems_have_the_form_that_is_asked_for(alice: Api, stranger: Api) -> None:
    for api, path, status in ((stranger, "/api/user", 401), (alice, "/api/users", 403), (alice, "/api/none", 404)):
        response = api.client.get(path, headers={**api.headers(), "Accept": "application/problem+json"})
        assert response.headers["Content-Type"] == "application/problem+json"
        problem = response.json()
        assert problem.keys() == {"type", "title", "status", "detail", "code", "errors"}
        assert problem["status"] == response.status_code == status
        assert problem["detail"] == check(api.client.get(path, headers=api.headers())).body["message"]
