"""The API's OpenAPI document: the routes, and what only the product knows about them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from marshmallow import Schema

from baselayer import openapi
from baselayer.handler import Route
from baselayer.openapi import About
from shell_service import __version__, schedule_schemas, schemas, script_schemas, user_schemas, webhook_schemas
from shell_service.audit_schemas import AuditRecord
from shell_service.limits import NAMES, shown
from shell_service.models import STATUSES
from shell_service.scopes import MEANINGS
from shell_service.settings import Jobs, Limits

DESCRIPTION = """\
Submit shell scripts, follow what they print, and read how they ended.

A success answers 200 with `{"status": "success", "data": …, "version": …}`. An error answers with its HTTP status and
`{"status": "error", "message": …, "data": {"code": …, "errors": …}, "version": …}`, or as RFC 9457 has it for those who
accept `application/problem+json`. Unknown fields and query parameters are refused, and so are values out of range.
Times are RFC 3339 in UTC, durations are seconds, sizes are bytes. Every answer has an `X-Request-Id`.

Any address can also answer 405 to a method that it does not have, 414 or 431 to an address or headers that are too
long, and 413 or 415 to a body that it does not take."""

_AT = "2030-01-31T12:00:00.000000Z"
JOB_ID = "hello_019a2b3c4d5e7f60a1b2c3d4e5f60718"
PARAMETERS: dict[str, dict[str, Any]] = {
    "job_id": {
        "description": "The job's id.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,100}_[0-9a-f]{32}$"},
        "example": JOB_ID,
    },
    "token_id": {
        "description": "The token's number.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "example": 7,
    },
    "name": {
        "description": "The secret's name.",
        "schema": {"type": "string", "pattern": f"^{schemas.VARIABLE}$"},
        "example": "API_KEY",
    },
    "script": {
        "description": "The script's name.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": f"^{schemas.NAME}$"},
        "example": "backup",
    },
    "owner": {
        "description": "The name of the script's owner.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": f"^{schemas.NAME}$"},
        "example": "alice",
    },
    "path": {
        "description": "The artifact's path.",
        "schema": {"type": "string", "minLength": 1},
        "example": "report/index.html",
    },
    "version": {
        "description": "The version's number.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "example": 1,
    },
    "share_id": {
        "description": "The share's number.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "example": 7,
    },
    "schedule_id": {
        "description": "The schedule's number.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "example": 7,
    },
    "group": {
        "description": "The group's name.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": f"^{schemas.NAME}$"},
        "example": "ops",
    },
    "username": {
        "description": "The user's name.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": f"^{schemas.NAME}$"},
        "example": "carol",
    },
}

_JOB_LIMITS = {
    "memory": 1_073_741_824,
    "processes": 256,
    "cpu": 256.0,
    "cpu_seconds": 36_000.0,
    "open_files": 1024,
    "file_size": 1_073_741_824,
    "disk": 268_435_456,
    "output": 67_108_864,
    "artifacts": 268_435_456,
}
_JOB_REQUEST = {"name": "hello", "code": "for i in 1 2 3; do echo $i; done"}
_JOB = {
    "id": JOB_ID,
    "name": "hello",
    "submitter_id": 2,
    "submitter": "alice",
    "status": "COMPLETED",
    "reason": "exit code 0",
    "code": "for i in 1 2 3; do echo $i; done",
    "upload": None,
    "entrypoint": None,
    "shell": "sh",
    "args": [],
    "env": {},
    "timeout": 3600.0,
    "limits": _JOB_LIMITS,
    "network": False,
    "secrets": [],
    "secrets_in_env": False,
    "secret_env": {},
    "script": None,
    "script_version": None,
    "parameters": None,
    "share_output": False,
    "schedule": None,
    "fired_for": None,
    "priority": 0,
    "retries": 0,
    "retry_delay": 1.0,
    "on_lost": "fail",
    "attempt": 1,
    "created_at": _AT,
    "modified": "2030-01-31T12:00:00.009000Z",
    "run_at": None,
    "started_at": "2030-01-31T12:00:00.004000Z",
    "finished_at": "2030-01-31T12:00:00.009000Z",
    "return_code": 0,
    "signal": None,
    "stdout": "1\n2\n3\n",
    "stderr": "",
    "stdout_bytes": 6,
    "stderr_bytes": 0,
    "output_truncated": False,
    "artifacts": 0,
    "artifacts_bytes": 0,
    "artifacts_truncated": False,
    "wall_seconds": 0.004,
    "cpu_seconds": 0.002,
    "peak_memory_bytes": 10_485_760,
    "written_bytes": 6,
    "runner": "runner_00",
    "cancelled_by": None,
    "notify": [],
    "pinned": False,
    "position": None,
    "pending_reason": None,
}
_TOKEN = {
    "id": 7,
    "name": "laptop",
    "username": "alice",
    "scopes": ["jobs:read"],
    "prefix": "shs_Zx3k9Q",
    "created_at": _AT,
    "expires_at": "2030-02-01T12:00:00.000000Z",
    "last_used_at": None,
}
_NEW_TOKEN = {**_TOKEN, "token": "shs_Zx3k9Q…"}
_LIMITS = {
    "max_running": 50,
    "max_queued": 20_000,
    "jobs_per_minute": 6_000,
    "job": {
        "default": {"timeout": 3600.0, **_JOB_LIMITS},
        "max": {"timeout": 86_400.0, **_JOB_LIMITS, "memory": 8_589_934_592},
    },
    "network": False,
}
_USER = {
    "id": 3,
    "username": "carol",
    "role": "user",
    "active": True,
    "created_at": _AT,
    "modified": _AT,
    "limits": _LIMITS,
}
_AUDIT = {
    "id": 1234,
    "at": _AT,
    "user_id": 2,
    "username": "alice",
    "token_id": 7,
    "address": "192.0.2.17",
    "request_id": "0123456789abcdef0123456789abcdef",
    "action": "job.cancel",
    "object": JOB_ID,
    "outcome": "ok",
    "status": 200,
    "detail": {},
}
_RUNNER = {"name": "runner_00", "state": "live", "slots": 32, "running": 2}
_RUNNER_FACTS = {
    "host": "build1",
    "name": "runner_00",
    "state": "live",
    "obstacle": None,
    "sandbox": "walls",
    "uids": "own",
    "limits": {**dict.fromkeys(NAMES, "hard"), "cpu_seconds": "watched"},
    "network": None,
}
_PARAMETER = {"name": "days", "type": "integer", "help": "How many days to keep.", "default": 7, "minimum": 1}
_SAID = {
    "code": 'echo "kept for $days days"',
    "upload": None,
    "files": None,
    "entrypoint": None,
    "shell": "sh",
    "parameters": [
        {
            **dict.fromkeys(("maximum", "min_length", "max_length", "choices", "position")),
            **_PARAMETER,
            "minimum": 1.0,
            "required": False,
            "env": "days",
        }
    ],
    "defaults": {"timeout": 600.0},
}
_SCRIPT = {
    "owner": "alice",
    "name": "backup",
    "description": "Backs up the database.",
    "level": "own",
    "overlap": "queue",
    "max_running": None,
    "version": 1,
    "created_at": _AT,
    "modified": _AT,
    "archived_at": None,
}
_SAVED = {
    "version": 1,
    "digest": "f3a9b5f0c1d24e6f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f7",
    "author": "alice",
    "message": "First version",
    "created_at": _AT,
}
_TARGET = {"url": "https://example.org/hook", "on": ["FAILED", "TIMEOUT"]}
_RUN = {
    "id": "backup_019a2b3c4d5e7f60a1b2c3d4e5f60719",
    "submitter": "bob",
    "version": 1,
    "status": "COMPLETED",
    "reason": "exit code 0",
    "created_at": _AT,
    "started_at": "2030-01-31T12:00:00.004000Z",
    "finished_at": "2030-01-31T12:00:00.009000Z",
    "return_code": 0,
    "wall_seconds": 0.004,
    "share_output": False,
}
_GROUP = {
    "name": "ops",
    "description": "Who runs the backups.",
    "created_at": _AT,
    "modified": _AT,
    "members": [{"username": "bob", "owner": False}],
}
_SCHEDULE = {
    "id": 7,
    "owner": "alice",
    "script": "alice/backup",
    "version": None,
    "parameters": {"days": 30},
    "overrides": {},
    "overlap": None,
    "cron": "30 2 * * 1-5",
    "every": None,
    "at": None,
    "timezone": "America/New_York",
    "start": None,
    "end": None,
    "jitter": 0.0,
    "catch_up": "none",
    "catch_up_limit": 100,
    "notify": [],
    "enabled": True,
    "problem": None,
    "created_at": _AT,
    "modified": _AT,
    "next_fire": "2030-02-01T07:30:00.000000Z",
    "last_fire": None,
    "last_job": None,
}
_COUNTS = dict.fromkeys(STATUSES, 0) | {"RUNNING": 2, "COMPLETED": 512, "FAILED": 3}

EXAMPLES: dict[type[Schema], Any] = {
    schemas.JobRequest: _JOB_REQUEST,
    schemas.SubmitRequest: _JOB_REQUEST,
    schemas.BatchRequest: {"jobs": [{"code": "echo one"}, {"code": "echo two", "priority": 5}]},
    schemas.Filters: {"name": "hello", "status": "PENDING"},
    user_schemas.TokenRequest: {"name": "laptop", "scopes": ["jobs:read"], "expires_in": schemas.DAY},
    user_schemas.RotateRequest: {"overlap": 60},
    user_schemas.UserRequest: {"username": "carol", "limits": {"max_running": 10}},
    user_schemas.UserPatch: {"limits": {"max_running": 20, "job": {"max": {"memory": "2GiB"}}}},
    schemas.RerunRequest: {"limits": {"memory": "2GiB"}},
    schemas.JobRecord: _JOB,
    schemas.Cancelled: {"cancelled": 2},
    user_schemas.TokenRecord: _TOKEN,
    user_schemas.NewTokenRecord: _NEW_TOKEN,
    user_schemas.SecretRequest: {"value": "correct horse battery staple"},
    user_schemas.SecretRecord: {"name": "API_KEY", "created_at": _AT, "modified": _AT},
    user_schemas.UserRecord: _USER,
    user_schemas.WhoAmI: {**_USER, "scopes": ["jobs:read"], "token": _TOKEN, "running": 2, "queued": 0},
    script_schemas.ScriptRequest: {
        "name": "backup",
        "code": _SAID["code"],
        "parameters": [_PARAMETER],
        "defaults": {"timeout": 600},
        "message": "First version",
    },
    script_schemas.ScriptChange: {"code": 'echo "kept for $days days, and packed"', "message": "Packs"},
    script_schemas.RevertRequest: {"version": 1, "message": "The second one lost files."},
    script_schemas.ShareRequest: {"user": "bob", "level": "run"},
    script_schemas.RunRequest: {"parameters": {"days": 30}},
    script_schemas.GroupRequest: {"name": "ops", "description": "Who runs the backups."},
    script_schemas.GroupPatch: {"description": "Who runs the backups."},
    script_schemas.MemberRequest: {"owner": False},
    script_schemas.ScriptSummary: _SCRIPT,
    script_schemas.ScriptRecord: {**_SAVED, **_SAID, **_SCRIPT, "revision": 1, "notify": []},
    script_schemas.VersionSummary: _SAVED,
    script_schemas.VersionRecord: {**_SAVED, **_SAID},
    script_schemas.ShareRecord: {"id": 7, "user": "bob", "group": None, "level": "run", "created_at": _AT},
    script_schemas.RunRecord: _RUN,
    script_schemas.ScriptStatus: {
        "latest": _RUN,
        "last_success": _RUN,
        "last_failure": None,
        "waiting": 0,
        "running": 0,
        "counted": 1,
        "success_rate": 1.0,
        "durations": {"shortest": 0.004, "median": 0.004, "longest": 0.004},
    },
    script_schemas.GroupRecord: _GROUP,
    schedule_schemas.ScheduleRequest: {
        "script": "backup",
        "cron": "30 2 * * 1-5",
        "timezone": "America/New_York",
        "parameters": {"days": 30},
    },
    schedule_schemas.SchedulePatch: {"cron": "0 3 * * *", "catch_up": "last"},
    schedule_schemas.ScheduleRecord: _SCHEDULE,
    schedule_schemas.FireRecord: {"at": "2030-02-01T07:30:00.000000Z", "local": "2030-02-01T02:30:00-05:00"},
    webhook_schemas.Target: _TARGET,
    webhook_schemas.TargetRecord: _TARGET,
    webhook_schemas.KeyRecord: {"key": "whsec_…"},
    webhook_schemas.DeliveryRecord: {
        "id": "msg_0193a2b3c4d54e6f80a1b2c3d4e5f607",
        "url": "https://example.org/hook",
        "status": "FAILED",
        "attempts": 2,
        "answer": 200,
        "problem": None,
        "created_at": _AT,
        "delivered_at": "2030-01-31T12:00:05.000000Z",
        "next_attempt": None,
    },
    AuditRecord: _AUDIT,
    schemas.ArtifactRecord: {"path": "report/index.html", "size": 5120, "modified": _AT, "executable": False},
    schemas.ShellRecord: {"name": "sh", "path": "/bin/sh"},
    schemas.SysInfo: {"version": __version__, "ready": True, "runners": [_RUNNER_FACTS]},
    schemas.Stats: {"jobs": _COUNTS, "oldest_ready_seconds": None, "runners": [_RUNNER]},
    schemas.Nothing: {},
}


def routes() -> list[Route]:
    """All routes, this document's included."""
    from shell_service.handlers import ROUTES  # one of these handlers serves the document

    return ROUTES


def build(server: str, jobs: Jobs, limits: Limits, shells: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The document for a service at `server`, with its configured limits, and the interpreters that it offers."""
    about = About("Shell Service", __version__, DESCRIPTION, server, MEANINGS, PARAMETERS, EXAMPLES)
    found = openapi.document(routes(), about)
    components = found["components"]["schemas"]
    for request in ("JobRequest", "SubmitRequest", "Overrides"):
        components[request]["not"] = {
            "required": ["run_at", "delay"],
            "properties": {"run_at": {"type": "string"}, "delay": {"type": "number"}},
        }
    for request in ("SubmitRequest", "ScriptRequest"):
        components[request]["oneOf"] = [
            {"required": ["code"], "properties": {"files": False, "entrypoint": False}},
            {"required": ["files", "entrypoint"], "properties": {"code": False}},
        ]
    components["ShareRequest"]["oneOf"] = [{"required": ["user"]}, {"required": ["group"]}]
    for request in ("JobRequest", "SubmitRequest", "ScriptRequest", "ScriptChange"):
        code = copy.deepcopy(components[request]["properties"]["code"])  # the field gives the same each time
        code["oneOf"][0]["maxLength"] = int(jobs.max_code)
        components[request]["properties"]["code"] = code
        if shells:
            components[request]["properties"]["shell"]["enum"] = list(shells)
    for name in NAMES:
        _describe(components["JobLimitsRequest"]["properties"][name], name, limits)
    for request in ("JobRequest", "SubmitRequest", "Defaults", "Overrides"):
        _bound(components[request]["properties"], jobs)
    for request in ("JobRequest", "SubmitRequest", "Defaults", "Overrides", "RerunRequest"):
        _describe(components[request]["properties"]["timeout"], "timeout", limits)
    return found


def _describe(field: dict[str, Any], name: str, limits: Limits) -> None:
    """Say what is configured for a limit. Not as its bounds: administrators can set others for single users."""
    limit = getattr(limits, name)
    default, most = shown(name, limit.default), shown(name, limit.max)
    field["description"] += f" {default} when it is not given, {most} at the most, unless yours differ (GET /api/user)."


def _bound(properties: dict[str, Any], jobs: Jobs) -> None:
    """Put the bounds that are configured into the fields of a job request, as far as they are there."""
    for name, most in (
        ("retries", jobs.max_retries),
        ("retry_delay", jobs.max_retry_delay),
        ("delay", jobs.max_delay),
    ):
        if name in properties:
            properties[name]["maximum"] = most
