"""Without walls there is one user: nobody makes a second one, by whatever way."""

from __future__ import annotations

from tests.operations.test_service import manage
from tests.stack import Stack


def test_without_a_sandbox_no_second_user_is_made() -> None:
    with Stack(sandbox={"mode": "none"}, runner={"drain_seconds": 1}) as stack, stack.client() as client:
        made = client.post("/api/users", json={"username": "second", "limits": {"max_running": 1}})
        assert (made.status_code, made.json()["data"]["code"]) == (409, "conflict")
        assert "only one user may exist" in made.json()["message"] and "sandbox.mode" in made.json()["message"]
        demo = manage(stack.config, "load_demo_data")
        assert (demo.returncode, demo.stdout) == (1, "")
        assert "only one user may exist" in demo.stderr
        assert [user["username"] for user in client.get("/api/users").json()["data"]] == ["admin"]
        job = client.post("/api/jobs?wait=30", json={"code": "echo alone"}).json()["data"]
        assert (job["status"], job["stdout"]) == ("COMPLETED", "alone\n")
        assert client.get("/api/sysinfo").json()["data"]["runners"][0]["sandbox"] == "none"
