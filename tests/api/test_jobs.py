"""Jobs: every field of a request, the record, waiting, batches, lists, cancelling, running again, idempotency."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baselayer.fields import rfc3339
from tests.client import Answer, Api, Person
from tests.stack import Stack
from tests.waiting import eventually

RECORD = """
    id name submitter_id submitter status reason code shell args env timeout priority retries retry_delay on_lost
    attempt created_at modified run_at started_at finished_at return_code signal stdout stderr stdout_bytes stderr_bytes
    output_truncated wall_seconds cpu_seconds max_rss_bytes runner cancelled_by position pending_reason
""".split()  # noqa: SIM905
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL"}


def at(text: str) -> datetime:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    return datetime.fromisoformat(text)


def refused(api: Api, field: str, body: dict[str, Any]) -> Answer:
    """Assert that this is a 400 about `field`, and that nothing was stored."""
    before = api.get("/api/user").data["queued"]
    answer = api.post("/api/jobs", body)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert field in answer.errors
    assert field in answer.body["message"]
    assert api.get("/api/user").data["queued"] == before
    return answer


def ended(api: Api, job_id: str) -> dict[str, Any]:
    """The job's record when it has ended."""
    return eventually(lambda: (job := api.job(job_id))["status"] in FINAL and job)


# -- the record ------------------------------------------------------------------------------------------------------


def test_a_new_job_s_record(alice: Api) -> None:
    before = datetime.now(UTC)
    me = alice.get("/api/user").data
    job = alice.submit("echo hello", delay=3600, name="my.job-1_x")
    assert list(job.keys()) and set(job) == set(RECORD)
    assert re.fullmatch(r"my\.job-1_x_[0-9a-f]{32}", job["id"])
    assert (job["name"], job["submitter"], job["submitter_id"]) == ("my.job-1_x", me["username"], me["id"])
    assert (job["status"], job["attempt"], job["code"], job["shell"]) == ("PENDING", 0, "echo hello", "sh")
    assert (job["args"], job["env"], job["priority"], job["retries"], job["on_lost"]) == ([], {}, 0, 0, "fail")
    assert (job["timeout"], job["retry_delay"]) == (3600, 1)
    assert before - timedelta(seconds=1) < at(job["created_at"]) < datetime.now(UTC) + timedelta(seconds=1)
    assert at(job["run_at"]) - at(job["created_at"]) == timedelta(seconds=3600)
    for name in ("reason", *RECORD[RECORD.index("started_at") : RECORD.index("position") + 1]):
        assert job[name] is None, name
    seen = alice.job(job["id"])
    assert {**seen, "pending_reason": ""} == {**job, "pending_reason": ""}


def test_a_finished_job_s_record(alice: Api, stack: Stack) -> None:
    job = alice.submit("echo out; echo err >&2; exit 3", wait=30)
    assert set(job) == set(RECORD)
    assert (job["status"], job["reason"], job["return_code"], job["signal"]) == ("FAILED", "exit code 3", 3, None)
    assert (job["stdout"], job["stderr"], job["stdout_bytes"], job["stderr_bytes"]) == ("out\n", "err\n", 4, 4)
    assert (job["output_truncated"], job["attempt"], job["runner"]) == (False, 1, "runner_00")
    assert at(job["created_at"]) <= at(job["started_at"]) <= at(job["finished_at"]) == at(job["modified"])
    assert 0 < job["wall_seconds"] < 10
    assert 0 <= job["cpu_seconds"] < 10
    assert 100_000 < job["max_rss_bytes"] < 100_000_000
    assert (job["cancelled_by"], job["position"], job["pending_reason"]) == (None, None, None)
    assert alice.job(job["id"]) == job


def test_a_running_job_s_record(alice: Api) -> None:
    job = alice.submit("echo begun; sleep 30")
    running = eventually(lambda: (seen := alice.job(job["id"]))["stdout"] and seen)
    assert (running["status"], running["stdout"], running["stdout_bytes"]) == ("RUNNING", "begun\n", 6)
    assert (running["stderr"], running["stderr_bytes"]) == ("", 0)
    assert (running["attempt"], running["runner"], running["finished_at"]) == (1, "runner_00", None)
    assert running["position"] is running["pending_reason"] is running["reason"] is None
    alice.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


@pytest.mark.parametrize(
    ("code", "fields", "status", "reason", "return_code", "signal"),
    [
        ("true", {}, "COMPLETED", "exit code 0", 0, None),
        ("exit 255", {}, "FAILED", "exit code 255", 255, None),
        ("exit 137", {}, "FAILED", "exit code 137", 137, None),
        ("kill -KILL $$", {}, "FAILED", "killed by SIGKILL from inside", None, "SIGKILL"),
        ("kill -USR1 $$", {}, "FAILED", "killed by SIGUSR1 from inside", None, "SIGUSR1"),
        ("exec sleep 30", {"timeout": 0.2}, "TIMEOUT", "stopped after its timeout of 0.2 s", None, "SIGTERM"),
        ("trap 'exit 7' TERM; sleep 30 & wait", {"timeout": 1}, "TIMEOUT", "stopped after its timeout of 1 s", 7, None),
        ("trap '' TERM; sleep 9; :", {"timeout": 1}, "TIMEOUT", "stopped after its timeout of 1 s", None, "SIGKILL"),
        ("/nothing/there", {}, "FAILED", "exit code 127", 127, None),
    ],
)  # fmt: skip
def test_how_it_ended(
    alice: Api, code: str, fields: dict[str, Any], status: str, reason: str, return_code: int | None, signal: str | None
) -> None:
    job = alice.submit(code, wait=30, **fields)
    assert (job["status"], job["reason"]) == (status, reason)
    assert (job["return_code"], job["signal"]) == (return_code, signal)


def test_values_of_the_environment_are_for_the_owner_only(alice: Api, admin: Api) -> None:
    job = alice.submit("true", wait=30, env={"SECRET": "hidden-value"})
    assert alice.job(job["id"])["env"] == {"SECRET": "hidden-value"}
    assert admin.job(job["id"])["env"] == {"SECRET": None}
    username = job["submitter"]
    for api, value in ((alice, "hidden-value"), (admin, None)):
        (listed,) = api.get(f"/api/jobs?submitter={username}").data
        assert listed["env"] == {"SECRET": value}
    assert "hidden-value" not in admin.client.get(f"/api/jobs?submitter={username}", headers=admin.headers()).text
    cancelled = admin.client.post(f"/api/jobs/{job['id']}/cancel", headers=admin.headers())
    assert cancelled.status_code == 200 and "hidden-value" not in cancelled.text


# -- the request -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("echo a\necho b", "a\nb\n"),
        (["echo a", "echo b"], "a\nb\n"),
        (["for i in 1 2", "do echo $i", "done"], "1\n2\n"),
        ("printf '%s' \"ünï\u2028cödé\"", "ünï\u2028cödé"),
        ("echo no newline at the end", "no newline at the end\n"),
        ("cat <<'X'\n$HOME `id` \\\nX\n", "$HOME `id` \\\n"),
        (" ", ""),
    ],
)
def test_code(alice: Api, code: Any, stdout: str) -> None:
    job = alice.submit(code, wait=30)
    assert (job["status"], job["stdout"], job["stderr"]) == ("COMPLETED", stdout, "")
    assert job["code"] == ("\n".join(code) + "\n" if isinstance(code, list) else code)


def test_code_may_be_a_mebibyte_and_not_more(alice: Api) -> None:
    code = "echo first\n#" + "x" * (2**20 - 12)
    assert len(code) == 2**20
    job = alice.submit(code, wait=30)
    assert (job["status"], job["stdout"]) == ("COMPLETED", "first\n")
    assert job["code"] == code
    assert "at most 1048576 bytes" in refused(alice, "code", {"code": code + "x"}).errors["code"][0]
    refused(alice, "code", {"code": "ü" * (2**19 + 1)})
    refused(alice, "code", {"code": ["x"] * (2**19 + 1)})


@pytest.mark.parametrize("code", ["", [], None, 1, True, {}, [1], ["a", None], "a\0b", ["a\0"]])
def test_no_code(alice: Api, code: Any) -> None:
    refused(alice, "code", {"code": code})


def test_code_is_required(alice: Api) -> None:
    assert refused(alice, "code", {}).errors == {"code": ["Missing data for required field."]}


TRICKY = ["", " ", "a b", "'", '"', "$HOME", "`id`", "\n", "\\", "--", "-c", "*", "é\u2028", "\x01\x7f", "a\r\nb"]
PRINT_ARGS = 'for a in "$@"; do printf \'%s\\001\' "$a"; done'


def test_arguments_arrive_byte_for_byte(alice: Api) -> None:
    args = [item for item in TRICKY if "\x01" not in item]
    job = alice.submit(PRINT_ARGS, args=args, wait=30)
    assert job["stdout"] == "".join(f"{item}\x01" for item in args)
    assert job["args"] == args


def test_variables_arrive_byte_for_byte(alice: Api) -> None:
    env = {f"V{number}": value for number, value in enumerate(TRICKY)} | {"_x9": "under", "LD_PRELOAD": "none.so"}
    names = " ".join(f"V{number}" for number in range(len(TRICKY)))
    job = alice.submit(f"for v in {names}; do printenv $v; done", env=env, wait=30)
    assert job["stdout"] == "".join(f"{value}\n" for value in TRICKY)
    assert job["env"] == env


text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\x01"), max_size=20)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(text, max_size=5), text, text)
def test_whatever_is_given_arrives(alice: Api, args: list[str], value: str, stdin: str) -> None:
    code = PRINT_ARGS + "; printf '%s\\001' \"$V\"; cat"
    job = alice.submit(code, args=args, env={"V": value}, stdin=stdin, wait=30)
    got = alice.get(f"/api/jobs/{job['id']}/stdout").body
    assert got == "".join(f"{item}\x01" for item in [*args, value]).encode() + stdin.encode()


def test_standard_input(alice: Api) -> None:
    text = "one\ntwo\nno end of line \u00e9"
    assert alice.submit("cat", stdin=text, wait=30)["stdout"] == text
    assert alice.submit("wc -c", stdin="x" * 2**20, wait=30)["stdout"].strip() == str(2**20)
    assert alice.submit("cat; echo end", wait=30)["stdout"] == "end\n"
    assert alice.submit("true", stdin="x" * 2**20, wait=30)["status"] == "COMPLETED"  # nobody reads it


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "a b"), ("name", "x" * 101), ("name", "a/b"), ("name", "é"), ("name", None), ("name", 5),
        ("name", "a\n"), ("name", "a\r\nX: y"), ("name", "a\0"),
        ("shell", "nosuch"), ("shell", ""), ("shell", None), ("shell", 1), ("shell", "/bin/sh"),
        ("args", "x"), ("args", [1]), ("args", [None]), ("args", ["a\0"]), ("args", {"a": 1}), ("args", ["x"] * 1001),
        ("args", ["x" * 2**17]),
        ("env", []), ("env", {"A": 1}), ("env", {"A": None}), ("env", {"A": "\0"}), ("env", {"1A": "x"}),
        ("env", {"A B": "x"}), ("env", {"": "x"}), ("env", {"A=B": "x"}), ("env", {"É": "x"}), ("env", {"A" * 65: "x"}),
        ("env", {"A\n": "x"}), ("env", {f"A{n}": "" for n in range(1001)}),
        ("stdin", 5), ("stdin", None), ("stdin", "\0"), ("stdin", "x" * (2**20 + 1)), ("stdin", ["x"]),
        ("timeout", 0), ("timeout", -1), ("timeout", "1"), ("timeout", True), ("timeout", 86401), ("timeout", 2**63),
        ("timeout", 1e308),
        ("priority", 11), ("priority", -11), ("priority", 1.5), ("priority", "1"), ("priority", True),
        ("priority", None), ("priority", 10**18),
        ("retries", -1), ("retries", 21), ("retries", "1"), ("retries", True), ("retries", 2**63 - 1),
        ("retry_delay", -1), ("retry_delay", 86401), ("retry_delay", "1"), ("retry_delay", None),
        ("delay", -1), ("delay", "1"), ("delay", 1e11), ("delay", True),
        ("run_at", "tomorrow"), ("run_at", "2030-01-01"), ("run_at", "2030-01-01T00:00:00"), ("run_at", 1893456000),
        ("run_at", "9999-01-01T00:00:00Z"), ("run_at", "2030-02-30T00:00:00Z"), ("run_at", ""),
        ("on_lost", "retry"), ("on_lost", None), ("on_lost", True), ("on_lost", ""),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(alice: Api, field: str, value: Any) -> None:
    refused(alice, field, {"code": "true", field: value})


@pytest.mark.parametrize(
    "field", ["uid", "gid", "id", "user_id", "submitter", "status", "sandbox", "network", "limits", "Code", "a\r\nb"]
)
def test_unknown_fields_are_refused_by_name(alice: Api, field: str) -> None:
    answer = refused(alice, field, {"code": "true", field: "x"})
    assert answer.errors == {field: ["Unknown field."]}
    assert answer.body["message"] == f"Unknown field {field}."


def test_all_errors_come_at_once(alice: Api) -> None:
    bad = {"code": "", "name": " ", "timeout": -1, "what": 1, "shell": "nosuch", "retries": 99}
    answer = refused(alice, "code", bad)
    assert answer.errors.keys() == {"code", "name", "timeout", "what", "shell", "retries"}
    assert "5 more in data.errors" in answer.body["message"]


def test_run_at_or_delay_not_both(alice: Api) -> None:
    assert refused(alice, "delay", {"code": "true", "delay": 1, "run_at": "2030-01-01T00:00:00Z"})


def test_every_offered_shell_runs_its_language(alice: Api) -> None:
    samples = {"python": "print(6*7)", "perl": 'print 6*7,"\\n"', "ruby": "puts 6*7", "node": "console.log(6*7)"}
    shells = [shell["name"] for shell in alice.get("/api/shells").data]
    assert {"sh", "bash"} <= set(shells)
    for shell in shells:
        job = alice.submit(samples.get(shell, "echo $((6*7))"), shell=shell, wait=30)
        assert (job["shell"], job["status"], job["stdout"]) == (shell, "COMPLETED", "42\n"), job["stderr"]
    (problem,) = refused(alice, "shell", {"code": "x", "shell": "nosuch"}).errors["shell"]
    assert problem == f"Must be one of: {', '.join(shells)}."


def test_not_before_its_time(alice: Api) -> None:
    job = alice.submit("true", delay=0.7, wait=30)
    assert at(job["started_at"]) >= at(job["run_at"])
    assert at(job["run_at"]) - at(job["created_at"]) == timedelta(seconds=0.7)
    moment = datetime.now(UTC) + timedelta(seconds=0.5)
    job = alice.submit("true", run_at=rfc3339(moment), wait=30)
    assert at(job["started_at"]) >= moment
    assert abs(at(job["run_at"]) - moment) < timedelta(milliseconds=1)
    past = alice.submit("true", run_at="2020-01-01T00:00:00+02:00", wait=30)
    assert past["run_at"] == "2019-12-31T22:00:00.000000Z"


def test_retries(alice: Api) -> None:
    job = alice.submit("echo try; exit 3", retries=2, retry_delay=0.1, wait=30)
    assert (job["status"], job["attempt"], job["return_code"], job["stdout"]) == ("FAILED", 3, 3, "try\n")
    # 0.1 s and 0.2 s between the attempts
    assert at(job["finished_at"]) - at(job["created_at"]) >= timedelta(seconds=0.3)
    job = alice.submit("sleep 30", retries=1, retry_delay=0, timeout=0.2, wait=30)
    assert (job["status"], job["attempt"]) == ("TIMEOUT", 2)
    assert alice.submit("true", retries=5, wait=30)["attempt"] == 1
    waiting = alice.submit("exit 1", retries=1, retry_delay=3600)
    waiting = eventually(lambda: (job := alice.job(waiting["id"]))["attempt"] == 1 and job["pending_reason"] and job)
    assert waiting["pending_reason"].startswith("attempt 2 starts at 20")
    assert (waiting["status"], waiting["stdout"], waiting["started_at"]) == ("PENDING", None, None)


def test_priority_acts_among_one_s_own_jobs(person: Callable[..., Person]) -> None:
    api = person(max_running=1).api
    blocker = api.submit("sleep 30")
    eventually(lambda: api.job(blocker["id"])["status"] == "RUNNING")
    low, high = api.submit("true", priority=-10), api.submit("true", priority=10)
    assert (api.job(high["id"])["position"], api.job(low["id"])["position"]) == (1, 2)
    api.post(f"/api/jobs/{blocker['id']}/cancel").data  # noqa: B018
    low, high = ended(api, low["id"]), ended(api, high["id"])
    assert at(high["finished_at"]) <= at(low["started_at"])


def test_what_a_pending_job_waits_for(person: Callable[..., Person], stack: Stack) -> None:
    api = person(max_running=1).api
    later = api.submit("true", delay=3600)
    assert later["pending_reason"] == api.job(later["id"])["pending_reason"] == f"starts at {later['run_at']}"
    assert api.job(later["id"])["position"] is None
    blocker = api.submit("sleep 30")
    eventually(lambda: api.job(blocker["id"])["status"] == "RUNNING")
    waiting = [api.submit("true") for _ in range(3)]
    for place, job in enumerate(waiting, 1):
        seen = api.job(job["id"])
        assert (seen["position"], seen["pending_reason"]) == (place, "you already run 1 jobs")
    api.post(f"/api/jobs/{waiting[0]['id']}/cancel").data  # noqa: B018
    assert api.job(waiting[1]["id"])["position"] == 1
    api.post("/api/jobs/cancel", {}).data  # noqa: B018


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_wait_answers_with_the_end(alice: Api) -> None:
    assert alice.submit("sleep 0.3; echo done", wait=30)["stdout"] == "done\n"
    job = alice.post("/api/jobs", {"code": "echo done"}, headers={"Prefer": "respond-async, wait=30"}).data
    assert job["stdout"] == "done\n"


def test_wait_answers_at_its_limit(alice: Api) -> None:
    begun = time.monotonic()
    job = alice.submit("sleep 30", wait=0.5)
    assert 0.5 <= time.monotonic() - begun < 5
    assert job["status"] in ("RUNNING", "PENDING")
    alice.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


def test_not_waiting_is_at_once(alice: Api) -> None:
    for options in ({}, {"headers": {"Prefer": "wait=0"}}, {"params": {"wait": "0"}}):
        job = alice.post("/api/jobs", {"code": "sleep 30"}, **options).data
        assert job["status"] == "PENDING"
    # the query says it before the header
    job = alice.post("/api/jobs?wait=0", {"code": "sleep 30"}, headers={"Prefer": "wait=30"}).data
    assert job["status"] == "PENDING"
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_wait_may_be_300_and_not_more(alice: Api) -> None:
    assert alice.submit("true", wait=300)["status"] == "COMPLETED"
    assert alice.post("/api/jobs", {"code": "true"}, headers={"Prefer": "wait=300"}).data["status"] == "COMPLETED"


@pytest.mark.parametrize("wait", ["301", "-1", "300.1", "x", "", "nan", "inf", "1e3", "1e999", "true", "9" * 20, "٣"])
def test_no_waits(alice: Api, wait: str) -> None:
    answer = alice.post("/api/jobs", {"code": "true"}, params={"wait": wait})
    assert (answer.status, list(answer.errors)) == (400, ["wait"])


@pytest.mark.parametrize("wait", ["301", "-1", "x", "1.5"])
def test_no_preferences(alice: Api, wait: str) -> None:
    answer = alice.post("/api/jobs", {"code": "true"}, headers={"Prefer": f"wait={wait}"})
    assert (answer.status, list(answer.errors)) == (400, ["Prefer"])
    assert alice.get("/api/jobs").data == []


def test_hundreds_wait_at_once(stack: Stack, alice: Api) -> None:
    """500 wait for jobs that all end at one moment, and nobody else is disturbed meanwhile."""
    count = 500
    body = json.dumps({"code": "true", "delay": 3600, "name": "crowd"})
    request = (
        f"POST /api/jobs?wait=300 HTTP/1.1\r\nHost: x\r\nAuthorization: token {alice.token}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )

    async def wait() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.settings.server.port)
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
        return answer

    def assert_undisturbed() -> None:
        times = []
        for _ in range(20):
            begun = time.monotonic()
            alice.get("/api/user").data  # noqa: B018
            times.append(time.monotonic() - begun)
        assert statistics.median(times) < 0.1

    async def main() -> list[bytes]:
        waiting = [asyncio.create_task(wait()) for _ in range(count)]
        await asyncio.to_thread(eventually, lambda: alice.get("/api/user").data["queued"] == count)
        await asyncio.to_thread(assert_undisturbed)
        assert not any(task.done() for task in waiting)
        begun = time.monotonic()
        cancelled = await asyncio.to_thread(alice.post, "/api/jobs/cancel", {"name": "crowd"})
        assert cancelled.data == {"cancelled": count}
        answers = await asyncio.gather(*waiting)
        assert time.monotonic() - begun < 5
        return answers

    for answer in asyncio.run(main()):
        head, body = answer.decode().split("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 ")
        assert json.loads(body)["data"]["status"] == "CANCELLED"


def test_who_goes_away_while_waiting_leaves_the_job(alice: Api, stack: Stack) -> None:
    with pytest.raises(httpx.ReadTimeout):
        alice.client.post(
            "/api/jobs?wait=300", json={"code": "true", "delay": 3600}, headers=alice.headers(), timeout=0.5
        )
    (job,) = alice.get("/api/jobs").data
    assert job["status"] == "PENDING"


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_stored_in_order(alice: Api) -> None:
    jobs = alice.post("/api/jobs/batch", {"jobs": [{"code": f"echo {n}", "name": f"n{n}"} for n in range(50)]}).data
    assert [job["name"] for job in jobs] == [f"n{n}" for n in range(50)]
    assert set(jobs[0]) == set(RECORD)
    for number, job in enumerate(jobs):
        assert ended(alice, job["id"])["stdout"] == f"{number}\n"
    assert [job["name"] for job in alice.get("/api/jobs").data] == [f"n{n}" for n in reversed(range(50))]


def test_a_batch_of_a_thousand_and_not_more(alice: Api) -> None:
    job = {"code": "true", "delay": 3600}
    assert len(alice.post("/api/jobs/batch", {"jobs": [job] * 1000}).data) == 1000
    assert alice.post("/api/jobs/cancel", {}).data == {"cancelled": 1000}
    for jobs in ([job] * 1001, [], None, "x", {"a": 1}):
        answer = alice.post("/api/jobs/batch", {"jobs": jobs})
        assert (answer.status, list(answer.errors)) == (400, ["jobs"])
    assert alice.get("/api/user").data["queued"] == 0


def test_a_batch_with_one_bad_job_stores_none(alice: Api) -> None:
    good, bad = {"code": "true", "delay": 3600}, {"code": "true", "timeout": -1, "what": 1}
    answer = alice.post("/api/jobs/batch", {"jobs": [good, good, bad, good, {}]})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.errors["jobs"].keys() == {"2", "4"}
    assert answer.errors["jobs"]["2"].keys() == {"timeout", "what"}
    assert answer.errors["jobs"]["4"].keys() == {"code"}
    assert "jobs.2." in answer.body["message"]
    assert alice.get("/api/jobs").data == []


@pytest.mark.parametrize("jobs", [[None], ["x"], [[]], [1], [{"code": "true"}, None]])
def test_no_batches(alice: Api, jobs: Any) -> None:
    answer = alice.post("/api/jobs/batch", {"jobs": jobs})
    assert (answer.status, list(answer.errors)) == (400, ["jobs"])
    assert alice.get("/api/jobs").data == []


def test_concurrent_submissions_do_not_fail_one_another(alice: Api, bob: Api, person: Callable[..., Person]) -> None:
    """They share a transaction: one that is refused must not take its neighbours with it."""
    full = person(max_queued=0).api

    def one(number: int) -> int:
        api = (alice, bob, full)[number % 3]
        return api.post("/api/jobs", {"code": "true", "delay": 3600} if number % 5 else {"code": ""}).status

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(150)))
    for number, status in enumerate(found):
        assert status == (400 if number % 5 == 0 else 429 if number % 3 == 2 else 200), number
    assert [api.get("/api/user").data["queued"] for api in (alice, bob, full)] == [40, 40, 0]


# -- lists -----------------------------------------------------------------------------------------------------------


def pages(api: Api, path: str) -> list[list[dict[str, Any]]]:
    """Follow the Link header, by its own address, to the end."""
    found = []
    address: str | None = path
    while address:
        answer = api.get(address)
        found.append(answer.data)
        link = answer.headers.get("Link")
        address = None
        if link:
            match = re.fullmatch(r'<([^<>]+)>; rel="next"', link)
            assert match
            address = match[1]
            assert address.startswith(("http://localhost:", "http://127.0.0.1:"))
        assert len(found) < 100
    return found


def test_pages_are_newest_first_and_stay_so_under_new_jobs(alice: Api) -> None:
    jobs = alice.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 25}).data
    expected = [job["id"] for job in reversed(jobs)]
    assert [[job["id"] for job in page] for page in pages(alice, "/api/jobs?limit=10")] == [
        expected[:10],
        expected[10:20],
        expected[20:],
    ]
    first = alice.get("/api/jobs?limit=10")
    newer = alice.submit(delay=3600)
    second = alice.get(re.fullmatch(r'<(.+)>; rel="next"', first.headers["Link"])[1])  # type: ignore[index]
    assert [job["id"] for job in second.data] == expected[10:20]
    assert alice.get("/api/jobs?limit=1").data[0]["id"] == newer["id"]
    exact = alice.get("/api/jobs?limit=26")
    assert len(exact.data) == 26 and "Link" not in exact.headers
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_a_page_s_link_keeps_the_filters(alice: Api) -> None:
    jobs = [{"code": "true", "delay": 3600, "name": "ab" if number % 2 else "c"} for number in range(10)]
    assert alice.post("/api/jobs/batch", {"jobs": jobs}).status == 200
    since = "2020-01-01T00:00:00%2B01:00"
    found = pages(alice, f"/api/jobs?limit=2&name=ab&status=PENDING&created_after={since}")
    assert [len(page) for page in found] == [2, 2, 1]
    assert {job["name"] for page in found for job in page} == {"ab"}
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_filters(alice: Api, bob: Api, admin: Api) -> None:
    failed = alice.submit("exit 1", wait=30, name="one")
    completed = alice.submit("true", wait=30, name="two")
    running = alice.submit("sleep 30", name="two")
    eventually(lambda: alice.job(running["id"])["status"] == "RUNNING")
    pending = alice.submit(delay=3600, name="three")
    other = bob.submit(delay=3600, name="three")
    username = failed["submitter"]

    def ids(query: str, api: Api = alice) -> list[str]:
        return [job["id"] for job in api.get(f"/api/jobs?{query}").data]

    every = [pending["id"], running["id"], completed["id"], failed["id"]]
    assert ids("") == every
    for job, status in ((failed, "FAILED"), (completed, "COMPLETED"), (running, "RUNNING"), (pending, "PENDING")):
        assert ids(f"status={status}") == [job["id"]]
    assert ids("status=NODE_FAIL") == []
    assert ids("name=two") == [running["id"], completed["id"]]
    assert ids("name=two&status=COMPLETED") == [completed["id"]]
    assert ids("name=tw") == ids("name=TWO") == ids("name=none") == []
    assert ids(f"created_after={completed['created_at']}") == every[:2]
    assert ids(f"created_before={completed['created_at']}") == every[3:]
    assert ids(f"submitter={username}") == every
    assert ids(f"submitter={other['submitter']}") == []
    assert ids(f"submitter={username}", admin) == every
    assert ids("submitter=nobody-has-this-name", admin) == []
    assert {pending["id"], other["id"]} <= set(ids("name=three", admin))
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=1.5", "limit=", "limit=1&limit=2",
     "limit=99999999999999999999",
     "cursor=", "cursor=x", "cursor=" + "A" * 21, "cursor=" + "A" * 101, "cursor=%00", "cursor=AAAA",
     "status=pending", "status=", "status=DONE", "status=PENDING&status=FAILED", "status=PENDING,FAILED",
     "name=", "name=a%20b", "name=%00", "name=" + "x" * 101, "name=%ff", "submitter=", "submitter=%00",
     "created_after=yesterday", "created_after=2030-01-01", "created_before=1e9", "created_before=",
     "created_after=2030-01-01T00:00:00+01:00",  # a plus in a query is a space
     "what=1", "Status=PENDING", "order=asc", "=", "%00=1", "offset=5"],
)  # fmt: skip
def test_no_lists(alice: Api, query: str) -> None:
    answer = alice.get(f"/api/jobs?{query}")
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_lists_show_a_little_of_long_texts(alice: Api) -> None:
    code = "head -c 100000 /dev/zero | tr '\\0' x; echo end #" + "y" * 5000
    job = alice.submit(code, wait=30)
    assert (len(job["stdout"]), job["stdout"][-5:], job["stdout_bytes"]) == (65536, "xend\n", 100_004)
    (listed,) = alice.get("/api/jobs").data
    assert (len(listed["stdout"]), listed["stdout"][-5:], listed["stdout_bytes"]) == (1024, "xend\n", 100_004)
    assert listed["code"] == code[:1024]
    assert alice.job(job["id"])["code"] == code


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_waiting_job_ends_at_once(alice: Api) -> None:
    job = alice.submit(delay=3600)
    answer = alice.post(f"/api/jobs/{job['id']}/cancel").data
    assert (answer["status"], answer["reason"]) == ("CANCELLED", f"cancelled by {job['submitter']}")
    assert answer["cancelled_by"] == job["submitter"]
    assert answer["finished_at"] and answer["started_at"] is None and answer["stdout"] is None
    again = alice.post(f"/api/jobs/{job['id']}/cancel").data
    assert again == answer == alice.job(job["id"])


def test_a_running_job_is_asked_and_then_killed(alice: Api, admin: Api) -> None:
    polite = alice.submit("trap 'echo bye; exit 0' TERM; echo ready; sleep 30 & wait")
    stubborn = alice.submit("trap '' TERM; echo ready; while :; do sleep 1; done")
    for job in (polite, stubborn):
        eventually(lambda job=job: alice.job(job["id"])["stdout"] == "ready\n")
        admin.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018
    polite, stubborn = ended(alice, polite["id"]), ended(alice, stubborn["id"])
    for job in (polite, stubborn):
        assert (job["status"], job["reason"], job["cancelled_by"]) == ("CANCELLED", "cancelled by admin", "admin")
    assert (polite["stdout"], polite["return_code"]) == ("ready\nbye\n", 0)
    assert stubborn["signal"] == "SIGKILL"
    for job in (polite, stubborn):
        assert alice.post(f"/api/jobs/{job['id']}/cancel").data == job


def test_a_finished_job_stays_as_it_is(alice: Api) -> None:
    job = alice.submit("true", wait=30)
    assert alice.post(f"/api/jobs/{job['id']}/cancel").data == job == alice.job(job["id"])


def test_cancel_against_finish_is_one_truth(alice: Api) -> None:
    """Jobs end by themselves at about the time when they are cancelled, each by five at once."""
    jobs = alice.post("/api/jobs/batch", {"jobs": [{"code": f"sleep 0.{n % 10}"} for n in range(40)]}).data

    def cancel(job: dict[str, Any]) -> list[str]:
        return [alice.post(f"/api/jobs/{job['id']}/cancel").data["status"] for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(cancel, jobs))
    for job, statuses in zip(jobs, seen, strict=True):
        final = ended(alice, job["id"])
        assert final["status"] in ("COMPLETED", "CANCELLED")
        assert {status for status in statuses if status in FINAL} <= {final["status"]}
        assert (final["cancelled_by"] is None) == (final["status"] == "COMPLETED")
        assert alice.job(job["id"]) == final


def test_many_are_cancelled_by_the_list_s_filters(alice: Api, bob: Api, admin: Api) -> None:
    def submit(api: Api, name: str) -> dict[str, Any]:
        return api.submit(delay=3600, name=name)

    mine, also, theirs = submit(alice, "a"), submit(alice, "b"), submit(bob, "a")
    running = alice.submit("sleep 30", name="r")
    eventually(lambda: alice.job(running["id"])["status"] == "RUNNING")

    def cancel(api: Api, **filters: str) -> int:
        return api.post("/api/jobs/cancel", filters).data["cancelled"]

    def statuses() -> list[str]:
        return [alice.job(mine["id"])["status"], alice.job(also["id"])["status"], bob.job(theirs["id"])["status"]]

    assert cancel(alice, name="none") == 0
    assert cancel(alice, submitter=theirs["submitter"]) == 0
    assert cancel(alice, created_before=mine["created_at"]) == 0
    assert cancel(alice, name="a") == 1
    assert statuses() == ["CANCELLED", "PENDING", "PENDING"]
    assert cancel(alice, status="RUNNING") == 1
    assert ended(alice, running["id"])["status"] == "CANCELLED"
    assert statuses() == ["CANCELLED", "PENDING", "PENDING"]
    assert cancel(admin) == 0  # without filters: one's own
    assert cancel(alice) == 1
    assert statuses() == ["CANCELLED", "CANCELLED", "PENDING"]
    assert cancel(admin, submitter=theirs["submitter"], name="a", status="PENDING") == 1
    assert bob.job(theirs["id"])["cancelled_by"] == "admin"


@pytest.mark.parametrize("body", [{"status": "DONE"}, {"limit": 5}, {"ids": []}, {"name": 5}, {"created_after": "x"}])
def test_no_cancels(alice: Api, body: dict[str, Any]) -> None:
    job = alice.submit(delay=3600)
    assert alice.post("/api/jobs/cancel", body).status == 400
    assert alice.job(job["id"])["status"] == "PENDING"


# -- running again ---------------------------------------------------------------------------------------------------


def test_rerun_is_a_new_job_with_the_same_request(alice: Api) -> None:
    request = {
        "code": PRINT_ARGS + '; echo "$A"; cat', "args": ["x y"], "env": {"A": "b"}, "stdin": "in", "timeout": 77,
        "priority": 3, "retries": 1, "retry_delay": 0, "on_lost": "requeue", "name": "again", "shell": "bash",
    }  # fmt: skip
    first = alice.submit(wait=30, **request)
    second = alice.post(f"/api/jobs/{first['id']}/rerun").data
    assert second["id"] != first["id"]
    assert second["status"] == "PENDING"
    second = ended(alice, second["id"])
    for name in (*(request.keys() - {"stdin"}), "stdout", "status"):
        assert second[name] == first[name], name
    assert alice.job(first["id"]) == first


def test_rerun_of_a_later_job_is_at_once(alice: Api) -> None:
    job = alice.submit("true", delay=3600)
    again = alice.post(f"/api/jobs/{job['id']}/rerun").data
    assert again["run_at"] is None
    assert ended(alice, again["id"])["status"] == "COMPLETED"


def test_rerun_takes_an_idempotency_key(alice: Api) -> None:
    first, other = alice.submit(wait=30), alice.submit(wait=30)
    headers = {"Idempotency-Key": "again"}
    once, twice = (alice.post(f"/api/jobs/{first['id']}/rerun", headers=headers).data for _ in range(2))
    assert once["id"] == twice["id"]
    assert alice.post(f"/api/jobs/{other['id']}/rerun", headers=headers).status == 422


# -- idempotency -----------------------------------------------------------------------------------------------------


def test_the_same_key_and_request_is_the_same_job(alice: Api, bob: Api) -> None:
    headers = {"Idempotency-Key": "my key".replace(" ", "-")}
    body = {"code": "true", "delay": 3600, "name": "one"}
    first = alice.post("/api/jobs", body, headers=headers).data
    again = alice.post("/api/jobs", dict(reversed(body.items())), headers=headers).data
    assert again["id"] == first["id"]
    spaced = alice("POST", "/api/jobs", headers={**headers, "Content-Type": "application/json"},
                   content=b'{ "name":"one" ,\n"delay":3600,"code":"true"}')  # fmt: skip
    assert spaced.data["id"] == first["id"]
    other = alice.post("/api/jobs", {**body, "name": "two"}, headers=headers)
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    assert alice.post("/api/jobs/batch", {"jobs": [body]}, headers=headers).status == 422
    assert bob.post("/api/jobs", {**body, "name": "two"}, headers=headers).data["id"] != first["id"]
    assert len(alice.get("/api/jobs").data) == 1
    assert alice.post("/api/jobs", body).data["id"] != first["id"]


def test_the_same_key_waits_too(alice: Api) -> None:
    headers = {"Idempotency-Key": "w"}
    first = alice.post("/api/jobs", {"code": "sleep 0.3; echo x"}, headers=headers).data
    again = alice.post("/api/jobs?wait=30", {"code": "sleep 0.3; echo x"}, headers=headers).data
    assert (again["id"], again["stdout"]) == (first["id"], "x\n")
    final = alice.post("/api/jobs?wait=30", {"code": "sleep 0.3; echo x"}, headers=headers).data
    assert final == again


def test_a_batch_is_idempotent_as_a_whole(alice: Api) -> None:
    headers = {"Idempotency-Key": "b"}
    body = {"jobs": [{"code": "true", "delay": 3600, "name": f"n{n}"} for n in range(20)]}
    first = alice.post("/api/jobs/batch", body, headers=headers).data
    again = alice.post("/api/jobs/batch", body, headers=headers).data
    assert [job["id"] for job in again] == [job["id"] for job in first]
    assert alice.post("/api/jobs/batch", {"jobs": body["jobs"][:19]}, headers=headers).status == 422
    assert alice.post("/api/jobs/cancel", {}).data == {"cancelled": 20}


def test_the_same_key_at_once_makes_one_job(alice: Api) -> None:
    barrier = threading.Barrier(16)

    def submit(_: int) -> str:
        barrier.wait()
        record = alice.post("/api/jobs", {"code": "true", "delay": 3600}, headers={"Idempotency-Key": "k"}).data
        return str(record["id"])

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(submit, range(16)))) == 1
    assert len(alice.get("/api/jobs").data) == 1


def test_a_refused_request_does_not_use_up_its_key(person: Callable[..., Person], admin: Api) -> None:
    owner = person(max_queued=0)
    headers, body = {"Idempotency-Key": "k"}, {"code": "true", "delay": 3600}
    assert owner.api.post("/api/jobs", body, headers=headers).status == 429
    assert owner.api.post("/api/jobs", {"code": ""}, headers=headers).status == 400
    admin.patch(f"/api/users/{owner.username}", {"limits": {"max_queued": 5}}).data  # noqa: B018
    assert owner.api.post("/api/jobs", body, headers=headers).status == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é", "a\tb"])
def test_no_keys(alice: Api, key: str) -> None:
    answer = alice.post("/api/jobs", {"code": "true"}, headers={"Idempotency-Key": key.encode()})  # type: ignore[dict-item]
    assert answer.status == 400
    assert "Idempotency-Key" in answer.body["message"]
    assert alice.get("/api/jobs").data == []


def test_ids_are_never_given_twice(alice: Api, bob: Api) -> None:
    def batch(api: Api) -> list[str]:
        jobs = api.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 200}).data
        return [job["id"] for job in jobs]

    with ThreadPoolExecutor(4) as pool:
        ids = list(itertools.chain(*pool.map(batch, [alice, bob] * 4)))
    assert len(set(ids)) == len(ids) == 1600
    assert all(uuid.UUID(job_id[-32:]).version == 7 for job_id in ids)
    for api in (alice, bob):
        api.post("/api/jobs/cancel", {}).data  # noqa: B018
