"""Scripts: saved, changed in versions that never change, compared, and shared."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import sqlalchemy

from tests.api.test_lists import pages
from tests.client import Api, Person
from tests.stack import Stack
from tests.waiting import eventually

DAYS = {"name": "days", "type": "integer", "default": 7, "minimum": 1, "maximum": 365, "help": "Days to keep."}


def save(api: Api, name: str | None = None, **fields: Any) -> dict[str, Any]:
    """A new script's record."""
    request = {"name": name or f"s{uuid.uuid4().hex}", "code": "echo one", **fields}
    record: dict[str, Any] = api.post("/api/scripts", request).data
    return record


def text(api: Api, path: str) -> str:
    answer = api.get(path)
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/plain; charset=utf-8", answer.body
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    body: str = answer.body.decode()
    return body


def test_a_script_from_its_first_version_to_its_purge(alice: Api, admin: Api) -> None:
    owner = alice.get("/api/user").data["username"]
    made = save(alice, "backup", code="echo one\necho two\n", description="Says two words.", message="First")
    assert (made["owner"], made["name"], made["version"], made["level"]) == (owner, "backup", 1, "own")
    assert (made["author"], made["message"], made["shell"], made["overlap"]) == (owner, "First", "sh", "queue")
    assert alice.get("/api/scripts/backup").data == alice.get(f"/api/scripts/{owner}/backup").data == made
    assert [item["name"] for item in alice.get("/api/scripts").data] == ["backup"]
    assert "code" not in alice.get("/api/scripts").data[0]

    second = alice.put("/api/scripts/backup", {"code": "echo one\necho 2\n", "message": "A number"}).data
    assert (second["version"], second["description"], second["message"]) == (2, "Says two words.", "A number")
    third = alice.put("/api/scripts/backup", {"defaults": {"timeout": 60, "env": {"A": "b"}}}).data
    assert (third["version"], third["defaults"]) == (3, {"timeout": 60.0, "env": {"A": "b"}})
    assert text(alice, "/api/scripts/backup/code") == "echo one\necho 2\n"
    assert text(alice, "/api/scripts/backup/code?version=1") == "echo one\necho two\n"
    assert [item["version"] for item in alice.get("/api/scripts/backup/versions").data] == [3, 2, 1]
    paged = pages(alice, "/api/scripts/backup/versions?limit=2")
    assert [[item["version"] for item in page] for page in paged] == [[3, 2], [1]]
    first = alice.get("/api/scripts/backup/versions/1").data
    assert {key: made[key] for key in first if key != "created_at"} == {
        key: value for key, value in first.items() if key != "created_at"
    }
    said = {key: first[key] for key in ("code", "shell", "defaults")} | {"parameters": []}
    assert hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest() == first["digest"]

    difference = text(alice, "/api/scripts/backup/diff?from=1&to=2")
    assert difference.splitlines() == [
        "--- backup version 1", "+++ backup version 2", "@@ -1,2 +1,2 @@", " echo one", "-echo two", "+echo 2",
    ]  # fmt: skip
    assert '+    "timeout": 60.0' in text(alice, "/api/scripts/backup/diff").splitlines()
    assert text(alice, "/api/scripts/backup/diff?from=2&to=2") == ""

    back = alice.post("/api/scripts/backup/revert", {"version": 1}).data
    assert (back["version"], back["digest"], back["message"]) == (4, made["digest"], "As in version 1")
    assert alice.post("/api/scripts/backup/revert", {"version": 1}).data == back  # it says so already

    gone = alice.delete("/api/scripts/backup").data
    assert gone["archived_at"] is not None
    assert alice.get("/api/scripts").data == []
    assert [item["name"] for item in alice.get("/api/scripts?archived=true").data] == ["backup"]
    assert alice.get("/api/scripts/backup/versions/2").data["code"] == "echo one\necho 2\n"
    for answer in (
        alice.put("/api/scripts/backup", {"code": "x"}), alice.delete("/api/scripts/backup"),
        alice.post("/api/scripts/backup/run", {}), alice.post("/api/scripts", {"name": "backup", "code": "x"}),
    ):  # fmt: skip
        assert (answer.status, answer.code) == (409, "conflict")
    assert alice.post("/api/scripts/backup/restore").data["archived_at"] is None
    assert admin.post(f"/api/scripts/{owner}/backup/purge").status == 409  # it is in use
    alice.delete("/api/scripts/backup")
    assert alice.post("/api/scripts/backup/purge").status == 403
    assert admin.post(f"/api/scripts/{owner}/backup/purge").data == {}
    assert alice.get("/api/scripts/backup").status == 404
    assert save(alice, "backup")["version"] == 1


def test_the_same_again_is_no_new_version(alice: Api) -> None:
    fields = {
        "code": "echo $days", "parameters": [{**DAYS, "maximum": 1e-7 + 365}], "shell": "sh",
        "defaults": {"timeout": 1.5e-3, "limits": {"memory": "64MiB"}, "retries": 2, "retry_delay": 1e4 / 3},
    }  # fmt: skip
    made = save(alice, "same", **fields)
    for request in (fields, {"code": fields["code"]}, {}, {"message": "nothing"}):
        assert alice.put("/api/scripts/same", request).data == made
    changed = alice.put("/api/scripts/same", {"description": "Another."}).data
    assert (changed["version"], changed["digest"]) == (1, made["digest"])
    assert changed["revision"] == made["revision"] + 1
    assert alice.put("/api/scripts/same", {**fields, "code": "echo $days "}).data["version"] == 2


def test_lost_updates_are_refused(alice: Api) -> None:
    save(alice, "guarded")
    tag = alice.get("/api/scripts/guarded").headers["ETag"]
    changed = alice.put("/api/scripts/guarded", {"code": "echo mine"}, headers={"If-Match": tag})
    assert changed.data["version"] == 2 and changed.headers["ETag"] != tag
    for method, path, body in (
        ("PUT", "/api/scripts/guarded", {"code": "echo theirs"}),
        ("DELETE", "/api/scripts/guarded", None),
        ("POST", "/api/scripts/guarded/revert", {"version": 1}),
    ):
        answer = alice(method, path, headers={"If-Match": tag}, **({"json": body} if body else {}))
        assert (answer.status, answer.code) == (412, "precondition_failed")
    assert alice.get("/api/scripts/guarded").data["code"] == "echo mine"
    for good in ("*", changed.headers["ETag"], f'"0", {changed.headers["ETag"]}'):
        assert alice.put("/api/scripts/guarded", {}, headers={"If-Match": good}).status == 200
    assert alice.put("/api/scripts/guarded", {}, headers={"If-Match": "2"}).status == 400


def test_of_edits_at_once_each_is_a_version_and_with_if_match_one_wins(alice: Api) -> None:
    tag = alice.get(f"/api/scripts/{save(alice, 'busy')['name']}").headers["ETag"]

    def edit(number: int, **headers: str) -> int:
        return alice.put("/api/scripts/busy", {"code": f"echo {number}"}, headers=headers).status

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(edit, range(16))) == [200] * 16
        versions = alice.get("/api/scripts/busy/versions").data
        assert [item["version"] for item in versions] == list(range(17, 0, -1))
        tag = alice.get("/api/scripts/busy").headers["ETag"]
        statuses = list(threads.map(lambda number: edit(100 + number, **{"If-Match": tag}), range(8)))
    assert sorted(statuses) == [200, *[412] * 7]


def test_of_many_who_save_one_name_one_does(alice: Api) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda n: alice.post("/api/scripts", {"name": "one", "code": f"{n}"}).status, range(8))
        )
    assert sorted(answers) == [200, *[409] * 7]


BAD = {
    "no name": {"name": None}, "a path": {"name": "a/b"}, "a line": {"name": "a\nb"}, "long": {"name": "a" * 101},
    "a word of the API": {"name": "versions"}, "a folder": {"name": ".."},
    "no code": {"code": ""}, "NUL": {"code": "a\0b"},
    "a shell that is none": {"shell": "cobol"}, "an overlap": {"overlap": "never"},
    "at once, one by one": {"max_running": 2}, "none at once": {"overlap": "parallel", "max_running": 0},
    "another field": {"x": 1}, "a default": {"defaults": {"code": "x"}}, "a time": {"defaults": {"run_at": None}},
    "limits": {"defaults": {"limits": {"memory": "much"}}}, "retries": {"defaults": {"retries": 1001}},
    "variables": {"defaults": {"env": {"A": "b"}, "secret_env": {"A": "B"}}},
    "long message": {"message": "m" * 1001},
    "a type": {"parameters": [{"name": "a", "type": "date"}]},
    "parameter's name": {"parameters": [{"name": "a-b", "type": "string"}]},
    "twice": {"parameters": [{"name": "a", "type": "string"}, {"name": "a", "type": "number"}]},
    "a default of another type": {"parameters": [{"name": "a", "type": "integer", "default": "7"}]},
    "a default out of bounds": {"parameters": [{**DAYS, "default": 0}]},
    "a default and required": {"parameters": [{**DAYS, "required": True}]},
    "bounds of text": {"parameters": [{"name": "a", "type": "string", "minimum": 1}]},
    "no choices": {"parameters": [{"name": "a", "type": "choice"}]},
    "a gap": {"parameters": [{"name": "a", "type": "string", "position": 2}]},
    "a secret for all to see": {"parameters": [{"name": "a", "type": "secret", "position": 1}]},
    "nowhere": {"parameters": [{"name": "a", "type": "string", "env": None}]},
    "an argument that may be missing": {
        "parameters": [{"name": "a", "type": "string", "required": False, "position": 1}]
    },
    "a variable of two": {"parameters": [{**DAYS, "env": "A"}, {"name": "A", "type": "string"}]},
    "a variable of the defaults": {"parameters": [DAYS], "defaults": {"env": {"days": "1"}}},
    "bounds the wrong way": {"parameters": [{"name": "a", "type": "number", "minimum": 2, "maximum": 1}]},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_script_is_refused_and_not_stored(alice: Api, name: str) -> None:
    request = {"name": "bad", "code": "echo one", **BAD[name]}
    answer = alice.post("/api/scripts", request)
    assert (answer.status, answer.code) == (400, "invalid_request"), answer.body
    assert answer.errors.keys() == BAD[name].keys() & answer.errors.keys() and answer.errors
    assert alice.get("/api/scripts").data == []
    if "name" not in BAD[name]:
        made = save(alice, "good")
        assert alice.put("/api/scripts/good", BAD[name]).status == 400
        assert alice.get("/api/scripts/good").data == made


def test_nothing_is_purged_that_has_jobs(alice: Api, admin: Api) -> None:
    owner = alice.get("/api/user").data["username"]
    save(alice, "used")
    job = alice.post("/api/scripts/used/run", {"overrides": {"delay": 3600}}).data
    alice.delete("/api/scripts/used").data  # noqa: B018
    answer = admin.post(f"/api/scripts/{owner}/used/purge")
    assert (answer.status, answer.code) == (409, "conflict") and "not ended" in answer.body["message"]
    alice.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018
    assert admin.post(f"/api/scripts/{owner}/used/purge").data == {}
    assert alice.job(job["id"])["script"] == f"{owner}/used"


def test_versions_that_are_not_there(alice: Api) -> None:
    save(alice, "short")
    for path in ("versions/2", "versions/0", "versions/x", "code?version=2", "diff?from=1&to=2"):
        assert alice.get(f"/api/scripts/short/{path}").status == 404
    assert alice.get("/api/scripts/short/diff").status == 400  # nothing is before the first
    assert alice.post("/api/scripts/short/revert", {"version": 2}).status == 404
    assert alice.post("/api/scripts/short/run", {"version": 2}).status == 404


def test_the_database_itself_changes_no_version(alice: Api, stack: Stack) -> None:
    save(alice, "fixed")
    engine = sqlalchemy.create_engine(stack.settings.database_url, poolclass=sqlalchemy.NullPool)
    for statement in (
        "UPDATE script_version SET author = 'nobody'", "UPDATE content SET code = 'rm -rf /'",
        "TRUNCATE script_version", "TRUNCATE content CASCADE",
    ):  # fmt: skip
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(statement)


def test_budgets(person: Callable[..., Person], stack: Stack) -> None:
    api, bounds = person().api, stack.settings.scripts
    save(api, "one", code="#" * 600_000)
    taken = 0
    while True:
        answer = api.put("/api/scripts/one", {"code": f"{taken}" + "#" * 1_000_000})
        if answer.status == 409:
            break
        taken += 1
    assert "bytes" in answer.body["message"]
    assert taken == (bounds.max_size - 600_000) // 1_000_000 or taken == (bounds.max_size - 600_000) // 1_000_000 - 1


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_shares_go_as_far_as_they_say(alice: Api, bob: Api, person: Callable[..., Person]) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    save(alice, "tool")
    path = f"/api/scripts/{owner}/tool"
    stranger = person().api
    what = {
        "see": lambda api: api.get(path),
        "read": lambda api: api.get(f"{path}/code"),
        "run": lambda api: api.post(f"{path}/run", {}),
        "edit": lambda api: api.put(path, {"message": "mine"}),
        "revert": lambda api: api.post(f"{path}/revert", {"version": 1}),
        "look who": lambda api: api.get(f"{path}/shares"),
        "share": lambda api: api.post(f"{path}/shares", {"user": "nobody", "level": "view"}),
    }

    def may(api: Api) -> dict[str, int]:
        return {name: act(api).status for name, act in what.items()}

    assert set(may(bob).values()) == {404}
    for level, allowed in (("view", 2), ("run", 3), ("edit", 5)):
        share = alice.post(f"{path}/shares", {"user": colleague, "level": level}).data
        assert list(may(bob).values()) == [*[200] * allowed, *[403] * (7 - allowed)]
        assert bob.get(path).data["level"] == level
        assert [item["owner"] for item in bob.get("/api/scripts").data] == [owner]
        assert bob.delete(path).status == 403
        assert set(may(stranger).values()) == {404}
    assert [item["level"] for item in alice.get(f"{path}/shares").data] == ["edit"]
    assert bob.put(path, {"code": "echo bob"}).data["author"] == colleague
    assert alice.delete(f"{path}/shares/{share['id']}").data == {}
    assert alice.delete(f"{path}/shares/{share['id']}").status == 404
    assert set(may(bob).values()) == {404}
    assert bob.get("/api/scripts").data == []


def test_a_group_stands_for_its_members(alice: Api, bob: Api, admin: Api) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    group = f"g{uuid.uuid4().hex}"
    assert alice.post("/api/groups", {"name": group}).status == 403
    assert admin.post("/api/groups", {"name": group, "description": "All."}).data["members"] == []
    assert admin.post("/api/groups", {"name": group}).status == 409
    assert alice.get(f"/api/groups/{group}").status == 404
    admin.put(f"/api/groups/{group}/members/{owner}", {"owner": True})
    assert alice.get("/api/groups").data[0]["members"] == [{"username": owner, "owner": True}]
    save(alice, "tool")
    path = f"/api/scripts/{owner}/tool"
    assert bob.get(path).status == 404
    alice.post("/api/scripts/tool/shares", {"group": group, "level": "run"})
    assert bob.get(path).status == 404
    assert bob.put(f"/api/groups/{group}/members/{colleague}", {}).status == 404
    alice.put(f"/api/groups/{group}/members/{colleague}", {"owner": False})
    assert bob.get(path).data["level"] == "run"
    assert bob.put(f"/api/groups/{group}/members/{owner}", {}).status == 403
    assert bob.patch(f"/api/groups/{group}", {"description": "Mine."}).status == 403
    assert bob.delete(f"/api/groups/{group}/members/{owner}").status == 403
    alice.post("/api/scripts/tool/shares", {"user": colleague, "level": "view"})
    assert bob.get(path).data["level"] == "run"  # the most of what he has
    assert bob.delete(f"/api/groups/{group}/members/{colleague}").data == {}  # he leaves
    assert bob.get(path).data["level"] == "view"
    assert alice.patch(f"/api/groups/{group}", {"description": "Ours."}).data["description"] == "Ours."
    assert alice.delete(f"/api/groups/{group}").status == 403
    assert admin.delete(f"/api/groups/{group}").data == {}
    assert [item["user"] for item in alice.get("/api/scripts/tool/shares").data] == [colleague]
    for request in (
        {"user": colleague, "group": "x", "level": "view"}, {"level": "view"}, {"user": "nobody", "level": "view"},
        {"user": owner, "level": "view"}, {"group": group, "level": "view"}, {"user": colleague, "level": "own"},
    ):  # fmt: skip
        assert alice.post("/api/scripts/tool/shares", request).status == 400


def test_what_is_done_is_in_the_audit_log(alice: Api, bob: Api, admin: Api) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    made = save(alice, "told")
    alice.put("/api/scripts/told", {"code": "echo 2"})
    alice.post("/api/scripts/told/revert", {"version": 1})
    share = alice.post("/api/scripts/told/shares", {"user": colleague, "level": "run"}).data
    job = bob.post(f"/api/scripts/{owner}/told/run", {"wait": 20}).data
    bob.put(f"/api/scripts/{owner}/told", {"code": "echo bob"})
    alice.delete(f"/api/scripts/told/shares/{share['id']}")
    alice.delete("/api/scripts/told")
    admin.post(f"/api/scripts/{owner}/told/purge")
    log = f"/api/audit?object={owner}/told"
    # What was refused is written behind the answer.
    eventually(lambda: any(item["outcome"] == "not_allowed" for item in admin.get(log).data))
    entries = admin.get(log).data[::-1]
    refused = [item for item in entries if item["outcome"] != "ok"]
    assert [(item["action"], item["username"]) for item in refused] == [("script.edit", colleague)]
    assert [(item["action"], item["username"], item["outcome"]) for item in entries if item not in refused] == [
        ("script.create", owner, "ok"), ("script.edit", owner, "ok"), ("script.revert", owner, "ok"),
        ("script.share", owner, "ok"), ("script.run", colleague, "ok"), ("script.unshare", owner, "ok"),
        ("script.delete", owner, "ok"), ("script.purge", "admin", "ok"),
    ]  # fmt: skip
    details = [item["detail"] for item in entries if item["outcome"] == "ok"]
    assert details[0] == {"version": 1, "digest": made["digest"]}
    assert details[1]["version"] == 2 and details[2] == {"version": 3, "digest": made["digest"]}
    assert details[3] == {"user": colleague, "level": "run"}
    assert details[4] == {"version": 3, "job": job["id"]}
