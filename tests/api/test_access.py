"""Who may do what: a table of every route by everybody who may come, and what is left unchanged by a refusal."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
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

# Method and path, what is sent, and the status for each of WHO. {job} is a job of the owner's that has ended, {waiting}
# one that waits, {token} another token of the owner's, {owner} his name.
TABLE: list[tuple[str, str, str, Any, tuple[int, int, int, int, int]]] = [
    ("GET", "/api/jobs", "/api/jobs", None, (401, 403, 200, 200, 200)),
    ("POST", "/api/jobs", "/api/jobs", JOB, (401, 403, 200, 200, 200)),
    ("POST", "/api/jobs/batch", "/api/jobs/batch", {"jobs": [JOB]}, (401, 403, 200, 200, 200)),
    ("POST", "/api/jobs/cancel", "/api/jobs/cancel", {"name": "none"}, (401, 403, 200, 200, 200)),
    ("GET", "/api/jobs/{job_id}", "/api/jobs/{job}", None, (401, 403, 404, 200, 200)),
    ("POST", "/api/jobs/{job_id}/cancel", "/api/jobs/{waiting}/cancel", None, (401, 403, 404, 200, 200)),
    ("POST", "/api/jobs/{job_id}/rerun", "/api/jobs/{job}/rerun", None, (401, 403, 404, 200, 403)),
    ("GET", "/api/jobs/{job_id}/stdout", "/api/jobs/{job}/stdout", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/jobs/{job_id}/stderr", "/api/jobs/{job}/stderr", None, (401, 403, 404, 200, 200)),
    ("GET", "/api/jobs/{job_id}/stream", "/api/jobs/{job}/stream", None, (401, 403, 404, 200, 200)),
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
    """An owner with a job and a token, and all who may come to them."""

    owner: Person
    callers: dict[str, Api]
    job: str

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """A job that waits and a token that nobody has touched yet."""
        self.waiting = self.owner.api.submit(delay=3600)["id"]
        self.token = self.owner.api.post("/api/tokens", {"name": "spare"}).data

    def fill(self, text: str) -> str:
        return (
            text.replace("{job}", self.job)
            .replace("{waiting}", self.waiting)
            .replace("{token}", str(self.token["id"]))
            .replace("{owner}", self.owner.username)
            .replace("{new}", f"new{uuid.uuid4().hex}")
        )

    def assert_untouched(self) -> None:
        assert self.owner.api.job(self.waiting)["status"] == "PENDING"
        assert self.owner.api.get("/api/user", token=self.token["token"]).data["username"] == self.owner.username
        assert self.owner.api.job(self.job)["status"] == "COMPLETED"


@pytest.fixture(scope="module")
def world(admin: Api) -> World:
    return new_world(admin)


def new_world(admin: Api) -> World:
    """A world of people whom nobody else has met."""
    owner = new_person(admin)
    narrow = owner.api.post("/api/tokens", {"name": "narrow", "scopes": ["schedules:read"]}).data["token"]
    callers = {
        "wrong scope": admin.using(narrow),
        "other": new_person(admin).api,
        "owner": owner.api,
        "admin": admin,
    }
    job = owner.api.submit("echo private; echo hidden >&2", wait=30)
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
    if isinstance(body, dict) and "username" in body:
        body = {"username": world.fill(body["username"])}
    answer = ask(api, method, world.fill(address), body)
    assert answer.status == status, answer.body
    if status == 404:
        replaced = world.fill(address).replace(world.job, f"job_{uuid.uuid4().hex}")
        replaced = replaced.replace(world.waiting, f"job_{uuid.uuid4().hex}")
        replaced = replaced.replace(f"/{world.token['id']}", "/999999999")
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


BAD_TOKENS = ["", "token", "token x", "token shs_" + "a" * 38, "Basic YTpi", "Bearer", "shs_" + "a" * 38]


@pytest.mark.parametrize("header", BAD_TOKENS)
def test_what_is_no_token_is_refused(stranger: Api, header: str) -> None:
    answer = stranger.get("/api/user", headers={"Authorization": header})
    assert (answer.status, answer.code) == (401, "not_authenticated")
    assert "Authorization: token" in answer.body["message"]


@pytest.mark.parametrize("scheme", ["token", "Token", "Bearer", "bearer"])
def test_both_schemes_are_taken(stranger: Api, alice: Api, scheme: str) -> None:
    assert stranger.get("/api/user", headers={"Authorization": f"{scheme} {alice.token}"}).status == 200


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "api_key"])
def test_a_token_in_the_query_is_no_token(stranger: Api, alice: Api, name: str) -> None:
    assert stranger.get(f"/api/user?{name}={alice.token}").status == 401


@pytest.mark.parametrize("path", ["/api/user", "/api/jobs", "/api/jobs/job_" + "0" * 32 + "/stdout", "/api/tokens"])
def test_head_tells_no_more_than_get(stranger: Api, path: str) -> None:
    answer = stranger("HEAD", path)
    assert (answer.status, answer.body) == (401, b"")


@pytest.mark.parametrize("path", ["/api/user", "/api/jobs", "/api/jobs/batch", "/api/sysinfo"])
def test_options_tell_nothing(stranger: Api, path: str) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = stranger("OPTIONS", path, headers=headers)
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"]


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://localhost.evil.example"])
def test_other_origins_are_given_nothing(alice: Api, origin: str) -> None:
    answer = alice.get("/api/user", headers={"Origin": origin})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def twisted(job_id: str) -> Iterator[str]:
    name, digits = job_id.rsplit("_", 1)
    yield f"other_{digits}"
    yield f"{name}_{digits.upper()}"
    yield f"{name}_{digits}0"
    yield f"{name}_{digits[:-1]}"
    yield digits
    yield f"{name}_{uuid.UUID(digits)}"
    yield f"{name}%00_{digits}"
    yield f"{job_id}%0a"
    yield f"{job_id}%20"
    yield f"{name}%5f{digits}x"


def test_an_id_is_taken_only_as_it_was_given(world: World) -> None:
    for text in twisted(world.job):
        for rest in ("", "/stdout", "/stream"):
            answer = world.owner.api.get(f"/api/jobs/{text}{rest}")
            assert answer.status in (400, 404), text
    assert world.owner.api.post(f"/api/jobs/other_{world.job[-32:]}/cancel").status == 404


def test_what_others_see_in_lists(world: World, admin: Api) -> None:
    others = world.callers["other"].get("/api/jobs?limit=1000").data
    assert world.job not in {job["id"] for job in others}
    assert world.job in {job["id"] for job in world.owner.api.get("/api/jobs?limit=1000").data}
    assert world.job in {job["id"] for job in admin.get(f"/api/jobs?limit=1000&submitter={world.owner.username}").data}
    assert world.callers["other"].get(f"/api/jobs?submitter={world.owner.username}").data == []
    tokens = world.callers["other"].get("/api/tokens?limit=1000").data
    assert {token["username"] for token in tokens} == {world.callers["other"].get("/api/user").data["username"]}


def test_an_administrator_s_narrow_token_is_narrow(admin: Api, world: World) -> None:
    """The role is not enough: tokens of others are for tokens with users:admin."""
    made = admin.post("/api/tokens", {"name": "narrow", "scopes": ["tokens:read", "tokens:write"]}).data
    narrow = admin.using(made["token"])
    assert {token["username"] for token in narrow.get("/api/tokens?limit=1000").data} == {"admin"}
    assert narrow.delete(f"/api/tokens/{world.token['id']}").status == 404
    assert narrow.post(f"/api/tokens/{world.token['id']}/rotate", {}).status == 404
    assert narrow.post("/api/tokens", {"name": "x", "username": world.owner.username}).status == 403
    assert narrow.get("/api/users").status == 403
    assert narrow.get("/api/jobs").status == 403
    world.assert_untouched()


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
