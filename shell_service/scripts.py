"""Scripts: saved, named, versioned pieces of code.

What a version says to run is its content: code, interpreter, parameters and defaults. It stands once in the database
for all versions that say the same, under the SHA-256 of it. Versions are only ever added; a script that is deleted is
archived: it can be read, and neither run nor changed, until an administrator purges it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, InvalidRequest, NotAllowed, NotFound, PreconditionFailed
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.visibility import Viewer, visible
from shell_service import parameters, uploads
from shell_service.models import Content, GroupMember, Script, ScriptShare, ScriptVersion
from shell_service.settings import Scripts as Bounds
from shell_service.shells import AUTO

_CONTENT_LOCK = 7_301  # advisory: contents are stored, or, by one alone, removed
_CONTENT = ("code", "upload", "entrypoint", "shell", "parameters", "defaults")  # what a version says
_OF_FILES = ("upload", "entrypoint")  # said only where there are files, as the digest of all others was made without
_PLAIN: Mapping[str, Any] = {
    "upload": None,
    "entrypoint": None,
    "shell": "sh",
    "parameters": [],
    "defaults": {},
    "description": "",
    "overlap": "queue",
    "max_running": None,
    "notify": [],
}


class Level(enum.IntEnum):
    """What somebody may do with a script, each with what is before it."""

    NONE = 0
    VIEW = 1
    RUN = 2
    EDIT = 3
    #: Its owner, and administrators: share and delete it.
    OWN = 4


def level_of(viewer: Viewer) -> ColumnElement[int]:
    """The level of a script for somebody, as SQL over `Script`: a number of `Level`."""
    groups = select(GroupMember.group_id).where(GroupMember.user_id == viewer.user_id)
    rank = case(*((ScriptShare.level == _constant(f"'{level.name.lower()}'"), _number(level)) for level in Level))
    shared = select(func.max(rank)).where(
        ScriptShare.script_id == Script.id,
        or_(ScriptShare.user_id == viewer.user_id, ScriptShare.group_id.in_(groups)),
    )
    return case(
        (or_(viewer.is_admin, Script.user_id == viewer.user_id), _number(Level.OWN)),
        else_=func.coalesce(shared.scalar_subquery(), _number(Level.NONE)),
    )


def _number(level: Level) -> ColumnElement[int]:
    return _constant(str(int(level)))


def _constant(text: str) -> ColumnElement[Any]:
    """Written into the statement, as a kept one has no parameters but those that it is asked with."""
    return literal_column(text)


@dataclass(frozen=True)
class Name:
    """A script's name, and its owner's."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True)
class Found:
    """A script that its caller may see."""

    row: Row[Any]

    @property
    def id(self) -> int:
        script_id: int = self.row.id
        return script_id

    @property
    def name(self) -> Name:
        return Name(self.row.username, self.row.name)

    @property
    def level(self) -> Level:
        return Level(self.row.level)

    def require(self, level: Level) -> None:
        """Raise `NotAllowed` where its caller may not do as much with it, and `Conflict` where nobody may any more."""
        if self.level < level:
            verb = {Level.RUN: "run", Level.EDIT: "change", Level.OWN: "share or delete"}[level]
            raise NotAllowed(
                f"You may {self.level.name.lower()} this script, not {verb} it; its owner can allow you to."
            )
        if self.row.archived_at is not None:
            raise Conflict(f"The script {self.name} is archived: it can only be read.")

    def match(self, wanted: Sequence[str] | None) -> None:
        """Raise `PreconditionFailed` unless it is at one of these revisions; None: at any."""
        if wanted is not None and str(self.row.revision) not in wanted:
            raise PreconditionFailed(
                f"The script {self.name} has been changed since you read it and is at revision {self.row.revision}: "
                "read it again, and change that."
            )


_COLUMNS = (
    *(Script.id, Script.user_id, Script.name, Script.description, Script.overlap, Script.max_running, Script.version),
    *(
        Script.notify,
        Script.revision,
        Script.size,
        Script.created_at,
        Script.modified,
        Script.archived_at,
        User.username,
    ),
)
_VERSION = (
    *(ScriptVersion.number, ScriptVersion.digest, ScriptVersion.author, ScriptVersion.message),
    ScriptVersion.created_at.label("saved_at"),
)
SAID = (Content.size, *(getattr(Content, name) for name in _CONTENT))


def with_level(viewer: Viewer, *more: Any) -> Select[*tuple[Any, ...]]:
    """Scripts, all that `Found` needs of them, and more."""
    level = level_of(viewer).label("level")
    return select(*_COLUMNS, level, *more).select_from(Script).join(User, User.id == Script.user_id)


def find(session: Session, caller: Caller, name: Name, level: Level = Level.VIEW, lock: bool = False) -> Found:
    """A script, for a caller who may do as much with it; where it is to be changed, locked against others.

    Raises `NotFound`, and what `Found.require` raises for more than to see it.
    """
    statement = with_level(caller.viewer).where(User.username == name.owner, Script.name == name.name)
    row = session.execute(statement).first()
    if row is None or row.level == Level.NONE:
        raise NotFound
    if lock:
        if level > Level.VIEW:
            Found(row).require(level)  # who may not change it holds up nobody
        # The lock of whoever decides which of its jobs may start, see lock_scripts; then what it is by now.
        session.execute(text("SELECT lock_scripts(ARRAY[CAST(:id AS int)])"), {"id": row.id})
        row = session.execute(statement.with_for_update(of=Script)).first()
        if row is None or row.level == Level.NONE:
            raise NotFound
    found = Found(row)
    if level > Level.VIEW:
        found.require(level)
    return found


def said(session: Session, found: Found, number: int | None = None) -> Row[Any]:
    """A version of a script, by default its newest, with what it says. Raises `NotFound`."""
    row = session.execute(
        select(*_VERSION, *SAID)
        .join(Content, Content.digest == ScriptVersion.digest)
        .where(ScriptVersion.script_id == found.id, ScriptVersion.number == (number or found.row.version))
    ).first()
    if row is None:
        raise NotFound(f"The script {found.name} has no version {number}; its newest is {found.row.version}.")
    return row


# -- what the API tells ------------------------------------------------------------------------------------------------


def summary(found: Found) -> dict[str, Any]:
    """A script without what it says."""
    row = found.row
    return {
        "owner": row.username,
        "name": row.name,
        "description": row.description,
        "level": found.level.name.lower(),
        "overlap": row.overlap,
        "max_running": row.max_running,
        "version": row.version,
        "created_at": rfc3339(row.created_at),
        "modified": rfc3339(row.modified),
        "archived_at": rfc3339(row.archived_at),
    }


def record(session: Session, found: Found) -> dict[str, Any]:
    """A script with its newest version."""
    version = version_record(session, said(session, found))
    del version["created_at"]
    notify = found.row.notify if found.level >= Level.EDIT else None
    return {**version, **summary(found), "revision": found.row.revision, "notify": notify}


def version_summary(row: Row[Any]) -> dict[str, Any]:
    """A version without what it says."""
    return {
        "version": row.number,
        "digest": bytes(row.digest).hex(),
        "author": row.author,
        "message": row.message,
        "created_at": rfc3339(row.saved_at),
    }


def version_record(session: Session, row: Row[Any]) -> dict[str, Any]:
    """A version with what it says."""
    upload = uploads.find(session, row.upload.hex()) if row.upload else None
    files = None if upload is None or upload.files is None else sorted(upload.files.values(), key=attrgetter("path"))
    return {
        **version_summary(row),
        "code": row.code if upload is None else None,
        "upload": upload and upload.digest,
        "files": files and [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files],
        "entrypoint": row.entrypoint,
        "shell": row.shell,
        "parameters": [_parameter(item) for item in row.parameters],
        "defaults": row.defaults,
    }


def _parameter(declared: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("help", "default", "minimum", "maximum", "min_length", "max_length", "choices", "position")
    return {
        "name": declared["name"],
        "type": declared["type"],
        "required": declared.get("required", "default" not in declared),
        "env": parameters.variable_of(declared),
        **{key: declared.get(key) for key in keys},
    }


def page(
    session: Session, caller: Caller, limit: int, before: int | None, owner: str | None, archived: bool
) -> list[Found]:
    """Up to `limit` scripts that the caller may see, newest first, with ids below `before`."""
    statement = with_level(caller.viewer).where(visible(Script, caller.viewer))
    statement = statement.where(Script.archived_at.is_not(None) if archived else Script.archived_at.is_(None))
    if owner is not None:
        statement = statement.where(User.username == owner)
    if before is not None:
        statement = statement.where(Script.id < before)
    return [Found(row) for row in session.execute(statement.order_by(Script.id.desc()).limit(limit))]


def versions(session: Session, found: Found, limit: int, before: int | None) -> list[Row[Any]]:
    """Up to `limit` versions, newest first, with numbers below `before`."""
    statement = select(*_VERSION).where(ScriptVersion.script_id == found.id)
    if before is not None:
        statement = statement.where(ScriptVersion.number < before)
    return list(session.execute(statement.order_by(ScriptVersion.number.desc()).limit(limit)))


# -- saving and changing -----------------------------------------------------------------------------------------------


def create(session: Session, caller: Caller, request: Mapping[str, Any], bounds: Bounds) -> Found:
    """Save a new script of the caller's (see `script_schemas.ScriptRequest`).

    Raises `Conflict` where he has one of this name, maybe archived, or too many.
    """
    script = {**_PLAIN, **request}
    _check(script)
    content = _store(session, script)
    _check_budgets(session, caller.user_id, content, bounds, new=True)
    fields = {name: script[name] for name in ("name", "description", "overlap", "max_running", "notify")}
    statement = insert(Script).values(user_id=caller.user_id, version=1, size=content.size, **fields)
    script_id = session.scalar(statement.on_conflict_do_nothing().returning(Script.id))
    if script_id is None:
        raise _taken(session, caller, script["name"])
    _add_version(session, script_id, 1, content, caller, script["message"])
    return find(session, caller, Name(caller.username, script["name"]))


def _taken(session: Session, caller: Caller, name: str) -> Conflict:
    found = find(session, caller, Name(caller.username, name))
    problem = f"You have a script {name} already; PUT /api/scripts/{name} changes it."
    if found.row.archived_at is not None:
        back = f"POST /api/scripts/{name}/restore brings it back, and an administrator can purge it"
        problem = f"You had a script {name}, which is archived; {back}."
    return Conflict(problem, {"name": ["Taken."]})


def _check_budgets(session: Session, user_id: int, content: _Stored, bounds: Bounds, new: bool = False) -> None:
    """Raise `Conflict` where a user may not have one more version, of a `new` script or another."""
    # Whoever comes at the same time counts this one. Not the lock of submissions, which comes before that of scripts.
    session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    count, total = session.execute(
        select(func.count(), func.coalesce(func.sum(Script.size), 0)).where(Script.user_id == user_id)
    ).one()
    if new and count >= bounds.max_scripts:
        raise Conflict(f"One may have {bounds.max_scripts} scripts, and they are there, archived ones included.")
    if total + content.size > bounds.max_size:
        raise Conflict(
            f"All versions of one's scripts may take {int(bounds.max_size)} bytes, and they take {total}; "
            f"{content.size} more are too many."
        )


def change(
    session: Session,
    caller: Caller,
    name: Name,
    request: Mapping[str, Any],
    revisions: Sequence[str] | None,
    bounds: Bounds,
) -> Found:
    """Change what is named (see `script_schemas.ScriptChange`); what it says in a new version, if it is another.

    `revisions` are those of which it must be at one. Raises what `find` raises, `PreconditionFailed`, `Conflict`.
    """
    found = find(session, caller, name, Level.EDIT, lock=True)
    found.match(revisions)
    now = said(session, found)
    script = {
        **{key: getattr(now, key) for key in _CONTENT},
        "upload": now.upload and now.upload.hex(),
        **{key: getattr(found.row, key) for key in ("description", "overlap", "max_running", "notify")},
        **_instead(now, request),
        **request,
    }
    if script["overlap"] != "parallel" and "max_running" not in request:
        script["max_running"] = None
    _check(script)
    values = {key: script[key] for key in ("description", "overlap", "max_running", "notify")}
    content = _store(session, script)
    if content.digest != bytes(now.digest):
        values |= _next_version(session, found, content, caller, script["message"], bounds)
    _update(session, found, values)
    session.execute(text("SELECT admit_jobs(ARRAY[CAST(:id AS int)])"), {"id": found.id})  # there may be more room
    return find(session, caller, name)


def _instead(now: Row[Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """What else is another way where a script has code instead of files, or files instead of code."""
    if "code" in request:
        return {"upload": None, "entrypoint": None, "shell": "sh" if now.upload else now.shell}
    if "upload" in request:
        return {"code": "", "shell": now.shell if now.upload else AUTO}
    if "entrypoint" in request and now.upload is None:
        raise InvalidRequest.of({"entrypoint": ["Belongs to files only, and the script has none."]})
    return {}


def revert(
    session: Session,
    caller: Caller,
    name: Name,
    number: int,
    message: str,
    revisions: Sequence[str] | None,
    bounds: Bounds,
) -> Found:
    """Let what an older version says be said by a new one, unless the newest does. Raises as `change` does."""
    found = find(session, caller, name, Level.EDIT, lock=True)
    found.match(revisions)
    wanted = said(session, found, number)
    if wanted.digest != said(session, found).digest:
        content = _Stored(bytes(wanted.digest), wanted.size)
        message = message or f"As in version {number}"
        _update(session, found, _next_version(session, found, content, caller, message, bounds))
    return find(session, caller, name)


def _next_version(
    session: Session, found: Found, content: _Stored, caller: Caller, message: str, bounds: Bounds
) -> dict[str, Any]:
    """Store the next version; returns what of the script changes with it."""
    number = found.row.version + 1
    if number > bounds.max_versions:
        raise Conflict(f"A script may have {bounds.max_versions} versions, and {found.name} has them.")
    _check_budgets(session, found.row.user_id, content, bounds)
    _add_version(session, found.id, number, content, caller, message)
    return {"version": number, "size": found.row.size + content.size}


def _update(session: Session, found: Found, values: Mapping[str, Any]) -> None:
    if all(getattr(found.row, key) == value for key, value in values.items()):
        return
    session.execute(
        update(Script)
        .where(Script.id == found.id)
        .values(**values, revision=Script.revision + 1, modified=func.clock_timestamp())
    )


def _check(script: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` where parts that are right by themselves do not go together."""
    errors = {}
    env = {**script["defaults"].get("env", {}), **script["defaults"].get("secret_env", {})}
    if problem := parameters.list_problem(script["parameters"], env):
        errors["parameters"] = [problem]
    if script["max_running"] is not None and script["overlap"] != "parallel":
        errors["max_running"] = ["Belongs to the overlap parallel only."]
    if errors:
        raise InvalidRequest.of(errors)


@dataclass(frozen=True)
class _Stored:
    """What a version says, as it stands in the database."""

    digest: bytes
    size: int


def _store(session: Session, script: Mapping[str, Any]) -> _Stored:
    """Store what a script says to run, unless it is there."""
    said = {name: script[name] for name in _CONTENT if name not in _OF_FILES or script[name] is not None}
    packed = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
    content = _Stored(hashlib.sha256(packed).digest(), len(packed))
    # Until this is committed no purge takes it away for being used by nobody.
    session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _CONTENT_LOCK})
    if script["upload"]:
        uploads.check(uploads.find(session, script["upload"]), script["entrypoint"], script["shell"])
        said["upload"] = bytes.fromhex(script["upload"])
    session.execute(insert(Content).values(**vars(content), **said).on_conflict_do_nothing())
    return content


def _add_version(session: Session, script_id: int, number: int, content: _Stored, caller: Caller, message: str) -> None:
    session.execute(
        insert(ScriptVersion).values(
            script_id=script_id, number=number, digest=content.digest, author=caller.username, message=message
        )
    )


# -- the end -----------------------------------------------------------------------------------------------------------


def archive(session: Session, caller: Caller, name: Name, revisions: Sequence[str] | None) -> Found:
    """Let a script be read only; its schedules pause. Raises as `change` does."""
    found = find(session, caller, name, Level.OWN, lock=True)
    found.match(revisions)
    _update(session, found, {"archived_at": datetime.now(UTC)})
    # Those that somebody has locked just now pause when they are due.
    session.execute(
        text(
            "UPDATE schedule SET enabled = false, due_at = NULL, problem = :problem"
            " WHERE id IN (SELECT id FROM schedule WHERE script_id = :id AND enabled FOR UPDATE SKIP LOCKED)"
        ),
        {"id": found.id, "problem": f"The script {name} is archived."},
    )
    return find(session, caller, name)


def restore(session: Session, caller: Caller, name: Name) -> Found:
    """Let an archived script be run and changed again; its schedules stay paused. Raises `NotFound`, `NotAllowed`."""
    found = find(session, caller, name, lock=True)
    if found.level < Level.OWN:
        raise NotAllowed("Only its owner can restore a script.")
    _update(session, found, {"archived_at": None})
    return find(session, caller, name)


def purge(session: Session, caller: Caller, name: Name) -> None:
    """Remove an archived script, its versions, and what nothing else says. Raises `NotFound`, `Conflict`.

    For administrators. Its jobs stay, and keep what they ran.
    """
    found = find(session, caller, name, lock=True)
    if found.row.archived_at is None:
        raise Conflict(f"The script {name} is in use; DELETE /api/scripts/{name} archives it first.")
    for table in ("ready_job", "deferred_job", "running_job"):
        if session.scalar(text(f"SELECT EXISTS (SELECT FROM {table} WHERE script_id = :id)"), {"id": found.id}):
            raise Conflict(f"Jobs of the script {name} have not ended yet; cancel them, or wait for them.")
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CONTENT_LOCK})
    digests = session.scalars(
        delete(ScriptVersion).where(ScriptVersion.script_id == found.id).returning(ScriptVersion.digest)
    ).all()
    session.execute(delete(Script).where(Script.id == found.id))
    left = select(ScriptVersion.digest).where(ScriptVersion.digest == Content.digest).exists()
    session.execute(delete(Content).where(Content.digest.in_(set(digests)), ~left))
