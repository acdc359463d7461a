"""The running service against its own API document: no 500, nothing undocumented, answers as their schemas say."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks

from shell_service import document, shells
from shell_service.settings import load
from tests.client import Api, new_person
from tests.stack import Stack

load_all_checks()
LEFT_OUT = [
    # Without a token every route counts a failure of this address: test_access.py and test_limits.py look at that.
    CHECKS.get_one("ignored_auth"),
]
QUICK = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def tokens(admin: Api) -> dict[str, str]:
    """A user's token for what users do, an administrator's for what only they do."""
    return {"user": new_person(admin).token, "admin": new_person(admin, role="admin").token}


SETTINGS = load()
SCHEMA = schemathesis.openapi.from_dict(
    document.build("http://localhost", SETTINGS.jobs, SETTINGS.limits, shells.available(SETTINGS.shells))
).exclude(path="/metrics")


def depends(body: object) -> bool:
    """Whether a request, or one of its batch, says when to start, where too far from now is refused, asks for what not
    everybody may have, or holds files, of which one has to be named."""
    if not isinstance(body, dict):
        return False
    several = body.get("jobs")
    asks = any(body.get(name) for name in ("run_at", "timeout", "limits", "network", "secrets", "secret_env", "files"))
    return asks or (isinstance(several, list) and any(map(depends, several)))


@SCHEMA.parametrize()
@QUICK
def test_the_service_is_as_its_document_says(case: schemathesis.Case, stack: Stack, tokens: dict[str, str]) -> None:
    query, headers = case.query or {}, case.headers or {}
    wait = query.get("wait")
    if isinstance(wait, int | float) and wait > 0.1:
        query["wait"] = 0.1
    headers.pop("Prefer", None)
    # Whether these are right depends on what was before, or on when one asks, which no schema says.
    # Of scripts and schedules much has to go together: parameters with one another, times with one another.
    together = case.method in ("POST", "PUT", "PATCH") and case.path.startswith(("/api/scripts", "/api/schedules"))
    unsure = (
        together
        or "cursor" in query
        or "If-Match" in headers
        or "Idempotency-Key" in headers
        or "Last-Event-ID" in headers
        or depends(case.body)
        or case.media_type == "multipart/form-data"
    )
    admins = case.path.startswith(("/api/users", "/api/audit", "/api/groups")) or case.path.endswith("/purge")
    role = "admin" if admins else "user"
    case.call_and_validate(
        base_url=stack.base_url,
        headers={"Authorization": f"token {tokens[role]}"},
        excluded_checks=[*LEFT_OUT, *([CHECKS.get_one("positive_data_acceptance")] if unsure else [])],
        timeout=20,
    )


def test_the_document_served_is_the_one_built(admin: Api, stack: Stack) -> None:
    served = admin.get("/api/openapi.json").body
    offered = {shell["name"]: shell["path"] for shell in admin.get("/api/shells").data}
    assert served == document.build(stack.settings.base_url, stack.settings.jobs, stack.settings.limits, offered)
