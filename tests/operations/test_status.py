"""The status page: right when all is well, there when nothing else is, silent about what is not the public's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from services.status import report, server, terminal
from services.status.server import prefers_json
from services.status.terminal import count, duration
from shell_service.settings import ROOT
from tests.stack import Stack
from tests.waiting import eventually

JSON = {"Accept": "application/json"}


def test_all_is_well(stack: Stack) -> None:
    data = eventually(lambda: (d := _report(stack))["status"] == "ok" and d)
    assert {process["name"] for process in data["processes"]} == set(stack.programs())
    assert data["database"]["state"] == "up"
    assert data["database"]["version"].startswith("18")
    (runner,) = data["runners"]
    assert (runner["state"], runner["jobs"], runner["slots"]) == ("live", "taken", stack.settings.runner.slots)
    assert (runner["sandbox"].startswith("walls, and "), runner["missing"]) == (True, None)
    assert {"disk": "hard", "output": "hard"}.items() <= runner["limits"].items()
    assert data["queue"]["ready"] == 0


def _report(stack: Stack) -> dict:
    with stack.client(token="") as client:
        answer = client.get("/status", headers=JSON)
    assert (answer.status_code, answer.json()["status"]) == (200, "success")
    return answer.json()["data"]


def test_the_page_is_complete_in_itself(stack: Stack) -> None:
    with stack.client(token="") as client:
        answer = client.get("/status", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    page = answer.text
    assert '<html lang="en">' in page
    assert "runner_00" in page
    assert not re.search(r"(src|href)=", page)
    assert "<script" not in page


def test_head_says_as_much_without_a_body(stack: Stack) -> None:
    with stack.client(token="") as client:
        answer = client.head("/status")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 1000


def test_other_methods_are_refused(stack: Stack) -> None:
    with stack.client(token="") as client:
        answer = client.post("/status", json={})
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.json()["data"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_it_tells_nothing_of_tenants_paths_or_secrets(stack: Stack, accept: str) -> None:
    with stack.client() as client:
        made = client.post("/api/jobs?wait=20", json={"code": "echo private", "name": "private-name"}).json()["data"]
        text = client.get("/status", headers={"Accept": accept}).text
    password = stack.settings.cluster.client_password_file.read_text().strip()
    for secret in ("private", made["id"], str(stack.folder), password, stack.admin_token, str(ROOT), "Traceback"):
        assert secret not in text


def test_without_the_database_it_says_so_and_nothing_hangs(stack: Stack) -> None:
    with stack.client(token="") as client:
        assert client.get("/api/sysinfo").json()["data"]["ready"] is True
        stack.stop_group("postgres")
        try:
            data = eventually(lambda: (d := _report(stack))["database"]["state"] == "down" and d)
            assert data["status"] == "degraded"
            assert data["database"] == {"state": "down", "latency_ms": None, "version": None}
            assert {p["name"] for p in data["processes"] if not p["ok"]} == {"postgres"}
            assert "unknown" in client.get("/status", headers={"Accept": "text/html"}).text
            answer = client.get("/api/sysinfo", timeout=10)
            assert (answer.status_code, answer.json()["data"]["code"]) == (503, "database_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        finally:
            stack.start_group("postgres")
        eventually(lambda: client.get("/api/sysinfo").status_code == 200)
    eventually(lambda: _report(stack)["status"] == "ok", 40)


FACTS = {"sandbox": "walls", "uids": "shared", "limits": {"memory": "watched", "cpu": "hard"}, "network": None}


@pytest.mark.parametrize(
    ("facts", "able", "shown"),
    [
        (FACTS, True, ["● walls, and one uid for all users", "held by the kernel: cpu; watched by the runner: memory"]),
        (
            FACTS | {"sandbox": "none", "limits": {"disk": "none"}, "network": "there is no sandbox around them"},
            True,
            ["▲ none: jobs can do all that the service can", "held by nobody: disk", "none: there is no sandbox"],
        ),
        (FACTS | {"missing": "libseccomp2"}, False, ["▲ libseccomp2", "▲ not taken: something is missing"]),
        ({}, False, ["▲ not taken: its log says why", "unknown"]),
    ],
)
def test_what_is_around_jobs_is_shown_and_red_where_it_is_nothing(
    facts: dict[str, object], able: bool, shown: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = report._runner(("runner_00", "live", 4, able, 0.5, 1, facts))
    data = {
        "status": "ok",
        "time": "",
        "version": "1",
        "processes": [],
        "database": {"state": "up", "latency_ms": 1.0, "version": "18"},
        "runners": [runner],
        "queue": None,
    }
    page = re.sub(r"<[^>]*>", "", ask_alone(folder, lambda: data, {"Accept": "text/html"}).text)
    terminal.show(data)
    printed = " ".join(capsys.readouterr().out.split())
    for text in shown:
        assert text in page
        assert text.lstrip("●▲ ") in printed


def ask_alone(folder: Path, collect: Callable[[], dict[str, object]], headers: dict[str, str]) -> httpx.Response:
    """The answer of a status server that makes its reports so."""

    async def ask() -> httpx.Response:
        answering = HTTPServer(server.StatusServer(collect).accept)
        answering.add_socket(bind_unix_socket(str(folder / "socket")))
        transport = httpx.AsyncHTTPTransport(uds=str(folder / "socket"))
        async with httpx.AsyncClient(transport=transport, base_url="http://status", timeout=5) as client:
            return await client.get("/status", headers=headers)

    return asyncio.run(ask())


def test_a_mistake_of_ours_is_answered_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = ask_alone(folder, lambda: {}["missing"], {})
    assert (answer.status_code, answer.json()["data"]["code"]) == (500, "internal_error")
    assert "KeyError: 'missing'" in caplog.text


def test_it_works_when_the_rest_does_not(stack: Stack) -> None:
    stack.stop_group("app", "runner", "scheduler", "postgres")
    try:
        data = eventually(lambda: (d := _report(stack))["database"]["state"] == "down" and d)
        assert data["status"] == "degraded"
        assert (data["runners"], data["queue"]) == (None, None)
        states = {process["name"]: process["state"] for process in data["processes"]}
        assert states["app_00"] == "STOPPED"
    finally:
        stack.start_group("postgres", "app", "runner", "scheduler")
    eventually(lambda: _report(stack)["status"] == "ok", 40)


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("application/json, */*;q=0.5", True),
        ("text/html, application/json;q=0.9", False),
        ("text/html;q=0.1, application/json;q=0.9", True),
        ("application/*", True),
        ("application/json;q=x", False),
        ("text/*, application/json;q=0", False),
    ],
)
def test_which_form_is_preferred(accept: str, json: bool) -> None:
    assert prefers_json(accept) is json


def test_figures_in_words() -> None:
    assert [duration(s) for s in (0.9, 61, 3700, 90000)] == ["0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]
    assert [count(n, 10) for n in (None, 10, 11)] == ["unknown", "10", "more than 10"]


@pytest.mark.parametrize(
    ("runner", "verdict"),
    [
        ({"state": "live", "jobs": "taken", "heartbeat_age_seconds": 1}, "ok"),
        ({"state": "live", "jobs": "taken", "heartbeat_age_seconds": 99}, "degraded"),
        ({"state": "gone", "jobs": "taken", "heartbeat_age_seconds": 1}, "degraded"),
        ({"state": "live", "jobs": "not taken: its log says why", "heartbeat_age_seconds": 1}, "degraded"),
    ],
)
def test_jobs_need_a_runner_that_is_there(runner: dict, verdict: str) -> None:
    data = {"database": {"state": "up"}, "runners": [runner]}
    assert report._verdict([{"ok": True}], data, 60) == verdict
