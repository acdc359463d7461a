"""Jobs: every field of a request, and of the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baselayer.fields import rfc3339
from shell_service.limits import NAMES
from tests.client import Answer, Api, Person
from tests.stack import Stack
from tests.waiting import eventually

RECORD = """
    id name submitter_id submitter status reason code upload entrypoint shell args env timeout limits network secrets
    secrets_in_env secret_env script script_version parameters share_output schedule fired_for
    pinned notify priority retries retry_delay on_lost attempt created_at modified run_at started_at finished_at
    return_code signal stdout stderr stdout_bytes stderr_bytes output_truncated artifacts artifacts_bytes
    artifacts_truncated wall_seconds cpu_seconds peak_memory_bytes written_bytes runner
    cancelled_by position pending_reason
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


# -- the record --------------------------------------------------------------------------------------------------------


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
    assert job["limits"] == {name: me["limits"]["job"]["default"][name] for name in NAMES}
    assert (job["network"], job["secrets"], job["secrets_in_env"]) == (False, [], False)
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
    assert 100_000 < job["peak_memory_bytes"] < 100_000_000
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


# -- the request -------------------------------------------------------------------------------------------------------


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
    refused(alice, "code", {"code": ["x" * 7] * (2**17 + 1)})


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


def test_between_attempts_the_record_tells_of_the_last(alice: Api) -> None:
    job = alice.submit("echo out; exit 1", retries=1, retry_delay=3600)
    waiting = eventually(lambda: (now := alice.job(job["id"]))["attempt"] == 1 and now["pending_reason"] and now)
    assert waiting["pending_reason"].startswith("attempt 2 starts at 20")
    assert (waiting["status"], waiting["started_at"], waiting["return_code"]) == ("PENDING", None, None)
    assert (waiting["stdout"], waiting["stderr"]) == ("out\n", "")
    assert (waiting["stdout_bytes"], waiting["stderr_bytes"]) == (4, 0)
    assert alice.get(f"/api/jobs/{job['id']}/stdout").body == b"out\n"
    (listed,) = alice.get("/api/jobs").data
    assert listed == waiting
    cancelled = alice.post(f"/api/jobs/{job['id']}/cancel").data
    assert (cancelled["status"], cancelled["attempt"], cancelled["stdout"]) == ("CANCELLED", 1, "out\n")


def test_priority_acts_among_one_s_own_jobs(person: Callable[..., Person]) -> None:
    api = person(max_running=1).api
    blocker = api.submit("sleep 30")
    eventually(lambda: api.job(blocker["id"])["status"] == "RUNNING")
    low, high = api.submit("true", priority=-10), api.submit("true", priority=10)
    assert (api.job(high["id"])["position"], api.job(low["id"])["position"]) == (1, 2)
    api.post(f"/api/jobs/{blocker['id']}/cancel").data  # noqa: B018
    low, high = ended(api, low["id"]), ended(api, high["id"])
    assert at(high["finished_at"]) <= at(low["started_at"])


def test_what_a_pending_job_waits_for(person: Callable[..., Person], admin: Api) -> None:
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
        assert admin.job(job["id"])["pending_reason"] == "its owner already runs 1 jobs"
    listed = {job["id"]: job["pending_reason"] for job in api.get("/api/jobs").data}
    assert listed == {
        later["id"]: later["pending_reason"],
        blocker["id"]: None,
        **dict.fromkeys([job["id"] for job in waiting], "you already run 1 jobs"),
    }
    api.post(f"/api/jobs/{waiting[0]['id']}/cancel").data  # noqa: B018
    assert api.job(waiting[1]["id"])["position"] == 1
    api.post("/api/jobs/cancel", {}).data  # noqa: B018
