"""Webhooks: telling an address of its owner's choice how a job ended.

Where a job is to be told of, its end and what has to be delivered are stored in one transaction, by a trigger. So each
end is told of, and told again until the other side has said that it has it, or so often that nobody believes it will
come; what comes twice has the same id. Signed as Standard Webhooks has it (standardwebhooks.com), with a key of the
user's whose target it is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.fields import rfc3339
from baselayer.query import Query
from shell_service import jobs
from shell_service.jobs import public_id
from shell_service.secrets import Broken, Keyring

#: Seconds before each further attempt: eleven in three days.
DELAYS = (5, 30, 120, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400)
LEASE = 60.0  # seconds after which another may try what somebody has taken and said nothing of
_EACH = 4  # deliveries of a user that are taken at once: his slow target holds up no others
AT_ONCE = 64
_OLD_KEY_SECONDS = 86_400  # for which a key that was replaced signs as well
_PLACE = "webhook key"  # among what is sealed for a user, where names of secrets hold no spaces


@dataclass(frozen=True)
class Delivery:
    """What is to be sent, and where to."""

    id: uuid.UUID
    url: str
    attempts: int  # this one included
    content: bytes
    #: What signs it.
    keys: Sequence[bytes]

    @property
    def public_id(self) -> str:
        """The same at each attempt."""
        return f"msg_{self.id.hex}"

    def headers(self, at: datetime) -> dict[str, str]:
        """With its signatures at this time."""
        seconds = str(int(at.timestamp()))
        signed = f"{self.public_id}.{seconds}.".encode() + self.content
        signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in self.keys]
        return {
            "Content-Type": "application/json",
            "User-Agent": "shell-service",
            "webhook-id": self.public_id,
            "webhook-timestamp": seconds,
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }


# -- sending -----------------------------------------------------------------------------------------------------------

_TAKE = text(
    """
    WITH RECURSIVE whose(user_id) AS (
      (SELECT user_id FROM delivery WHERE due_at IS NOT NULL ORDER BY user_id LIMIT 1)
      UNION ALL
      SELECT (SELECT d.user_id FROM delivery d WHERE d.due_at IS NOT NULL AND d.user_id > w.user_id
              ORDER BY d.user_id LIMIT 1)
      FROM whose w WHERE w.user_id IS NOT NULL),
    due AS MATERIALIZED (
      SELECT d.id FROM (SELECT user_id FROM whose WHERE user_id IS NOT NULL ORDER BY random()) AS s
      CROSS JOIN LATERAL (
        SELECT e.id FROM delivery e WHERE e.user_id = s.user_id AND e.due_at <= statement_timestamp()
        ORDER BY e.due_at LIMIT :each FOR UPDATE SKIP LOCKED) AS d
      LIMIT :most)
    UPDATE delivery d SET attempts = attempts + 1, due_at = clock_timestamp() + make_interval(secs => :lease)
    FROM due WHERE d.id = due.id RETURNING d.id, d.job_id, d.user_id, d.url, d.attempts
    """
)
_ABOUT = text(
    """
    SELECT j.id, j.name, j.script, j.script_version, j.schedule_id, j.status, j.reason, j.return_code, j.created_at,
      j.started_at, j.finished_at, j.wall_seconds, u.username
    FROM job j JOIN "user" u ON u.id = j.user_id WHERE j.id = ANY (CAST(:ids AS uuid[]))
    """
)


def any_due() -> Query[bool]:
    """Whether anything is to be delivered now."""
    statement = "SELECT EXISTS (SELECT FROM delivery WHERE due_at <= statement_timestamp())"
    return Query(statement, {}, lambda rows: bool(rows[0][0]), kept=True)


def take(session: Session, keyring: Keyring) -> list[Delivery]:
    """Deliveries that are due, for whoever sends them now; he has to say what came of each with `settle`."""
    rows = session.execute(_TAKE, {"each": _EACH, "most": AT_ONCE, "lease": LEASE}).all()
    if not rows:
        return []
    ended = {row.id: row for row in session.execute(_ABOUT, {"ids": [str(row.job_id) for row in rows]})}
    gone = [row.id for row in rows if row.job_id not in ended]
    settle(
        session,
        [Outcome(each, 1, None, "The job was removed before this could be sent.", unwanted=True) for each in gone],
    )
    keys = {user: _keys(session, keyring, user) for user in {row.user_id for row in rows}}
    return [
        Delivery(row.id, row.url, row.attempts, _content(ended[row.job_id]), keys[row.user_id])
        for row in rows
        if row.job_id in ended
    ]


def _content(row: Any) -> bytes:
    """What is told of a job: how it ended, and nothing that it printed."""
    data = {
        "id": public_id(row.name, row.id),
        "submitter": row.username,
        "script": row.script,
        "script_version": row.script_version,
        "schedule": row.schedule_id,
        "status": row.status,
        "reason": row.reason,
        "return_code": row.return_code,
        "created_at": rfc3339(row.created_at),
        "started_at": rfc3339(row.started_at),
        "finished_at": rfc3339(row.finished_at),
        "wall_seconds": row.wall_seconds,
    }
    return orjson.dumps({"type": "job.ended", "timestamp": data["finished_at"], "data": data})


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt to deliver: the status of the answer, or the problem; `attempts` with this one."""

    id: uuid.UUID
    attempts: int
    answer: int | None
    problem: str | None
    #: The other side does not want it any more.
    unwanted: bool = False

    @property
    def retry_in(self) -> float | None:
        """Seconds before the next attempt; None: there is none."""
        if self.problem is None or self.unwanted or self.attempts > len(DELAYS):
            return None
        return DELAYS[self.attempts - 1]


def settle(session: Session, outcomes: Sequence[Outcome]) -> None:
    """Note what came of attempts."""
    for item in outcomes:
        session.execute(
            text(
                "UPDATE delivery SET answer = :answer, problem = :problem,"
                " delivered_at = CASE WHEN CAST(:problem AS text) IS NULL THEN clock_timestamp() END,"
                " due_at = clock_timestamp() + make_interval(secs => CAST(:retry_in AS float8))"
                " WHERE id = :id AND delivered_at IS NULL"
            ),
            {"id": item.id, "answer": item.answer, "problem": item.problem, "retry_in": item.retry_in},
        )


# -- keys --------------------------------------------------------------------------------------------------------------


def _keys(session: Session, keyring: Keyring, user_id: int) -> list[bytes]:
    """What signs a user's deliveries, one or two; made where he has none yet."""
    _make(session, keyring, user_id)
    row = session.execute(
        text(
            "SELECT value, CASE WHEN replaced_at > now() - make_interval(secs => :old) THEN previous END AS previous"
            " FROM webhook_key WHERE user_id = :user"
        ),
        {"user": user_id, "old": _OLD_KEY_SECONDS},
    ).one()
    found = []
    for sealed in (row.value, row.previous):
        if sealed is not None:
            try:
                found.append(keyring.open(user_id, _PLACE, bytes(sealed)))
            except Broken:
                continue  # sealed with a key that is gone; its owner has to ask for another one
    return found


def _make(session: Session, keyring: Keyring, user_id: int) -> None:
    session.execute(
        text("INSERT INTO webhook_key (user_id, value) VALUES (:user, :value) ON CONFLICT DO NOTHING"),
        {"user": user_id, "value": keyring.seal(user_id, _PLACE, os.urandom(32))},
    )


def replace_key(session: Session, keyring: Keyring, caller: Caller) -> dict[str, Any]:
    """Give the caller another key, and show it; the one before signs as well for a day."""
    _make(session, keyring, caller.user_id)
    key = os.urandom(32)
    session.execute(
        text("UPDATE webhook_key SET previous = value, value = :value, replaced_at = now() WHERE user_id = :user"),
        {"user": caller.user_id, "value": keyring.seal(caller.user_id, _PLACE, key)},
    )
    return {"key": f"whsec_{base64.b64encode(key).decode()}"}


# -- the log of deliveries ---------------------------------------------------------------------------------------------


def of_job(session: Session, caller: Caller, text_id: str) -> list[dict[str, Any]]:
    """What was delivered, or is to be, about the end of a job, to targets of the caller's; administrators see all.

    Raises `NotFound` where he may not see the job.
    """
    found = jobs.find(session, caller, text_id)
    rows = session.execute(
        text(
            "SELECT id, url, status, created_at, due_at, attempts, answer, problem, delivered_at FROM delivery"
            " WHERE job_id = :job AND (:admin OR user_id = :user) ORDER BY created_at DESC, id"
        ),
        {"job": found.job_id, "admin": caller.is_admin, "user": caller.user_id},
    )
    return [
        {
            "id": f"msg_{row.id.hex}",
            "url": row.url,
            "status": row.status,
            "attempts": row.attempts,
            "answer": row.answer,
            "problem": row.problem,
            "created_at": rfc3339(row.created_at),
            "delivered_at": rfc3339(row.delivered_at),
            "next_attempt": None if row.delivered_at else rfc3339(row.due_at),
        }
        for row in rows
    ]
