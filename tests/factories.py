"""Users, jobs and runners for tests."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import uuid_utils.compat
from sqlalchemy.orm import Session

from baselayer.models import User
from shell_service import liveness, queue, submissions
from shell_service.audit import Entry
from shell_service.limits import Bounds
from shell_service.models import Script, UserLimits
from shell_service.submissions import Limits, NewJob, Stored, Submission

JOB_LIMITS: dict[str, float] = {
    "memory": 1 << 30,
    "processes": 256,
    "cpu": 256,
    "cpu_seconds": 36_000,
    "open_files": 1024,
    "file_size": 1 << 30,
    "disk": 1 << 28,
    "output": 1 << 26,
    "artifacts": 1 << 28,
}
DEFAULTS = {"timeout": 3600.0, **JOB_LIMITS}
BOUNDS = Bounds(DEFAULTS, {name: 4 * value for name, value in DEFAULTS.items()})
_numbers = itertools.count()
LIMITS = Limits(max_running=50, max_queued=1_000_000, jobs_per_minute=1_000_000, job=BOUNDS)


def add_user(session: Session, limits: dict[str, Any] | None = None, **fields: Any) -> int:
    """Store a user, with `limits` of his own if given; returns his id."""
    user = User(**{"username": f"user{next(_numbers)}", **fields})
    session.add(user)
    session.flush()
    if limits:
        session.add(UserLimits(user_id=user.id, **limits))
    return user.id


def new_job(user_id: int = 1, **fields: Any) -> NewJob:
    """A complete job, as it is handed to `submissions.submit`."""
    job_id = uuid_utils.compat.uuid7()
    values: dict[str, Any] = {
        "id": job_id,
        "user_id": user_id,
        "name": "job",
        "priority": 0,
        "code": "echo hello",
        "shell": "sh",
        "args": [],
        "env": {},
        "stdin": "",
        "timeout": 60.0,
        "limits": {},
        "network": False,
        "secrets": [],
        "secrets_in_env": False,
        "run_at": None,
        "retries": 0,
        "retry_delay": 0.0,
        "on_lost": "fail",
        "created_at": datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC),
        "deferred": False,
    }
    return NewJob(**{**values, **fields})


def new_jobs(count: int, user_id: int = 1, **fields: Any) -> list[NewJob]:
    """Some of them."""
    return [new_job(user_id, **fields) for _ in range(count)]


def add_jobs(session: Session, user_id: int, count: int = 1, **fields: Any) -> list[uuid.UUID]:
    """Submit jobs of a user; returns their ids."""
    new = new_jobs(count, user_id, **fields)
    stored = submissions.submit([Submission(user_id, new)], LIMITS).on(session)[0]
    assert isinstance(stored, Stored), stored
    return stored.ids


@dataclass(frozen=True)
class Enlisted:
    """A runner that is known to the database."""

    id: int
    incarnation: uuid.UUID

    def claim(self, session: Session, count: int = 1, cursor: int = 0, max_running: int = 50) -> list[queue.Claim]:
        """Claim jobs for it."""
        places = queue.claim(self.id, self.incarnation, count, cursor, max_running).on(session)
        session.commit()
        return queue.claimed(places).on(session)


def add_runner(session: Session, name: str = "runner_00", slots: int = 32) -> Enlisted:
    """Enter a runner, or a new incarnation of the one that has this name."""
    incarnation = uuid.uuid4()
    return Enlisted(liveness.register(session, "host", name, incarnation, slots, None, {}), incarnation)


def add_script(session: Session, user_id: int, overlap: str = "queue", max_running: int | None = None) -> int:
    """Save a script that says nothing; returns its number."""
    script = Script(
        user_id=user_id, name=f"s{uuid.uuid4().hex}", description="", overlap=overlap, max_running=max_running,
        version=1, size=0,
    )  # fmt: skip
    session.add(script)
    session.flush()
    return script.id


def run(session: Session, user_id: int, script_id: int, **fields: Any) -> Stored | Exception:
    """Submit a job of a script."""
    job = new_job(user_id, script_id=script_id, script="user/script", script_version=1, **fields)
    entry = Entry("script.run", "user/script", user_id, f"user{user_id}")
    return submissions.submit([Submission(user_id, [job], audit=entry)], LIMITS).on(session)[0]
