"""Secrets: values that their owner stores once and jobs are given by name. Nobody is ever shown one again.

In the database they are sealed: encrypted and authenticated (Fernet), together with whose they are and what they are
called, so that a value that somebody moves to another row there is none. The keys are in a file that only the operator
can read; web workers and runners read it when they start, while they still may.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import Row, Select, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.config import ConfigError
from baselayer.database import Database
from baselayer.errors import Conflict, NotFound
from baselayer.fields import rfc3339
from baselayer.waiting import insist
from shell_service import audit, submissions
from shell_service.models import Secret
from shell_service.queue import Claim

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

logger = logging.getLogger(__name__)

_AT_ONCE = 100  # secrets of a transaction that seals them anew


class Broken(Exception):
    """A sealed value cannot be opened: it was sealed with a key that is not there, or for another place."""


class Keyring:
    """The keys of this service: the first seals, each opens."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, path: Path) -> Keyring:
        """The keys in the file at `path`, one a line; where there is none it is made, with a new key.

        Raises `ConfigError` for a file that cannot be used.
        """
        if not path.exists():
            try:
                _write(path, [new_key()], exclusively=True)
                logger.info("made a key for secrets: %s", path)
            except FileExistsError:
                pass  # another process was quicker
            except OSError as error:
                raise ConfigError(f"cannot make the key for secrets, {path}: {error.strerror}") from error
        return cls(read_keys(path))

    def seal(self, user_id: int, name: str, value: bytes) -> bytes:
        """`value` as it is stored for this user, under this name."""
        return self._fernet.encrypt(_place(user_id, name) + value)

    def open(self, user_id: int, name: str, sealed: bytes) -> bytes:
        """The value that was sealed for this user and name. Raises `Broken`."""
        from cryptography.fernet import InvalidToken

        try:
            opened = self._fernet.decrypt(bytes(sealed))
        except InvalidToken:
            raise Broken from None
        place = _place(user_id, name)
        if not opened.startswith(place):
            raise Broken
        return opened[len(place) :]

    @cached_property
    def _fernet(self) -> MultiFernet:
        # Imported when it is needed: most services here hold no secrets, and it is some megabytes.
        from cryptography.fernet import Fernet, MultiFernet

        return MultiFernet([Fernet(key) for key in self._keys])


def _place(user_id: int, name: str) -> bytes:
    return f"{user_id}:{name}:".encode()


# -- the file of keys ------------------------------------------------------------------------------------------------


def new_key() -> bytes:
    """A key, as Fernet has it: 32 random bytes in base64."""
    return base64.urlsafe_b64encode(os.urandom(32))


def read_keys(path: Path) -> list[bytes]:
    """The keys of a file. Raises `ConfigError` for a file that cannot be used; the message holds nothing of it."""
    try:
        keys = path.read_bytes().split()
    except OSError as error:
        raise ConfigError(f"cannot read the key for secrets, {path}: {error.strerror}") from error
    for number, key in enumerate(keys, 1):
        try:
            length = len(base64.urlsafe_b64decode(key))
        except (binascii.Error, ValueError):
            length = 0
        if length != 32:
            raise ConfigError(f"{path}: line {number} is not a key; put the file of a backup in its place")
    if not keys:
        raise ConfigError(f"{path} holds no key; put the file of a backup in its place")
    return keys


def _write(path: Path, keys: Sequence[bytes], *, exclusively: bool = False) -> None:
    """Write the file, whole or not at all. Where it must be new, raises `FileExistsError` if it is there."""
    descriptor, fresh = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"".join(key + b"\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
        (os.link if exclusively else os.replace)(fresh, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)


def rotate(engine: sqlalchemy.Engine, path: Path) -> tuple[int, int]:
    """Seal all secrets anew with a new key, then forget the old ones; how many were sealed, and how many were broken.

    For when no service runs, as each knows the keys from its start. Whoever is cut short calls it again: until the last
    secret is sealed the file holds both keys, and what two keys are found for is a rotation that was begun.
    """
    keys = read_keys(path)
    if len(keys) == 1:
        keys.insert(0, new_key())
        _write(path, keys)
    keyring, last, sealed, broken = Keyring(keys), 0, 0, 0
    while True:
        with Session(engine) as session, session.begin():
            rows = session.execute(
                select(Secret.id, Secret.user_id, Secret.name, Secret.value)
                .where(Secret.id > last)
                .order_by(Secret.id)
                .limit(_AT_ONCE)
                .with_for_update()
            ).all()
            for row in rows:
                try:
                    value = keyring.open(row.user_id, row.name, row.value)
                except Broken:
                    broken += 1
                    continue
                sealed += 1
                anew = keyring.seal(row.user_id, row.name, value)
                session.execute(update(Secret).where(Secret.id == row.id).values(value=anew))
        if not rows:
            break
        last = rows[-1].id
    with Session(engine) as session, session.begin():
        audit.by_operator(session, "secret.rotate", None, {"sealed": sealed, "broken": broken})
    _write(path, keys[:1])
    return sealed, broken


# -- what owners do --------------------------------------------------------------------------------------------------

_RECORD: Select[*tuple[Any, ...]] = select(Secret.id, Secret.name, Secret.created_at, Secret.modified)


def record(row: Row[Any]) -> dict[str, Any]:
    """What the API tells of a secret."""
    return {"name": row.name, "created_at": rfc3339(row.created_at), "modified": rfc3339(row.modified)}


def page(session: Session, caller: Caller, limit: int, before: int | None) -> list[Row[Any]]:
    """Up to `limit` of the caller's own secrets, newest first, with ids below `before`."""
    statement = _RECORD.where(Secret.user_id == caller.user_id).order_by(Secret.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(Secret.id < before)
    return list(session.execute(statement))


def find(session: Session, caller: Caller, name: str) -> dict[str, Any]:
    """The record of this secret of the caller's own. Raises `NotFound`."""
    row = session.execute(_RECORD.where(Secret.user_id == caller.user_id, Secret.name == name)).first()
    if row is None:
        raise NotFound
    return record(row)


def put(session: Session, keyring: Keyring, caller: Caller, name: str, value: str, most: int) -> dict[str, Any]:
    """Store a secret of the caller's, in place of one of this name if there is one; returns its record.

    Raises `Conflict` where he has `most` others.
    """
    submissions.lock_user(session, caller.user_id)  # whoever comes at the same time counts this one
    others = select(func.count()).where(Secret.user_id == caller.user_id, Secret.name != name)
    if (session.scalar(others) or 0) >= most:
        raise Conflict(f"You may have {most} secrets, and you have them; delete one that you do not need.")
    sealed = keyring.seal(caller.user_id, name, value.encode())
    statement = insert(Secret).values(user_id=caller.user_id, name=name, value=sealed)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Secret.user_id, Secret.name], set_={"value": sealed, "modified": func.now()}
        )
    )
    return find(session, caller, name)


def remove(session: Session, caller: Caller, name: str) -> None:
    """Delete a secret of the caller's. Raises `NotFound`."""
    found = session.execute(delete(Secret).where(Secret.user_id == caller.user_id, Secret.name == name))
    if not found.rowcount:  # type: ignore[attr-defined]
        raise NotFound


# -- what jobs are given ---------------------------------------------------------------------------------------------


async def of_claim(database: Database, keyring: Keyring, claim: Claim) -> Mapping[str, bytes]:
    """The values of the secrets that a job names, by their names; of those that there are.

    Takes as long as the database is away. Raises ValueError, with a sentence for the job's owner, for one that cannot
    be opened.
    """
    read = partial(database.run, _opened, keyring, claim.user_id, claim.all_secrets)
    opened = await insist(read, f"reading the secrets of job {claim.job_id.hex}")
    found = {}
    for name, value in opened.items():
        if value is None:
            logger.error("job %s: secret %s of user %d cannot be opened", claim.job_id.hex, name, claim.user_id)
            raise ValueError(f"The secret {name} cannot be read any more; store it again.")
        found[name] = value
    return found


def _opened(session: Session, keyring: Keyring, user_id: int, names: Sequence[str]) -> dict[str, bytes | None]:
    """The values by their names; None for one that is broken."""
    rows = session.execute(select(Secret.name, Secret.value).where(Secret.user_id == user_id, Secret.name.in_(names)))
    opened: dict[str, bytes | None] = {}
    for row in rows:
        try:
            opened[row.name] = keyring.open(user_id, row.name, row.value)
        except Broken:
            opened[row.name] = None
    return opened
