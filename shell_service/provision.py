"""The first administrator, and demo users: made once, their tokens written to a file that only the operator reads."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import sqlalchemy
import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from baselayer.access import EVERY_SCOPE
from baselayer.models import User
from shell_service import audit, tokens, users

FIRST_ADMIN = "admin"
DEMO_USERS = ("alice", "bob", "carol")


def first_admin(engine: sqlalchemy.Engine, tokens_file: Path) -> bool:
    """Make the user ``admin`` with a token in `tokens_file`, unless there are users; whether it did.

    The token is written before it is committed: a crash between leaves a useless line, never an unknown administrator.
    """
    with Session(engine) as session, session.begin():
        session.execute(sqlalchemy.text('LOCK TABLE "user" IN EXCLUSIVE MODE'))
        if session.scalar(select(User.id).limit(1)) is not None:
            return False
        made = _user_with_token(session, FIRST_ADMIN, "admin", "Initial admin token")
        write_tokens(tokens_file, {"INITIAL_ADMIN": made})
        return True


def demo_data(engine: sqlalchemy.Engine, tokens_file: Path, alone: bool = False) -> list[str]:
    """Make the demo users that are missing, each with a token in `tokens_file`; returns the names of those made.

    Raises `baselayer.errors.Conflict` where a user must be `alone`.
    """
    made: dict[str, str] = {}
    with Session(engine) as session, session.begin():
        for name in DEMO_USERS:
            if session.scalar(select(User.id).where(User.username == name)) is None:
                made[name] = _user_with_token(session, name, "user", "Demo token", alone)
        if made:
            write_tokens(tokens_file, {f"DEMO_{name.upper()}": token for name, token in made.items()})
    return list(made)


def _user_with_token(session: Session, name: str, role: str, token_name: str, alone: bool = False) -> str:
    """Make a user who has a token for everything; returns the token."""
    made = tokens.insert(session, users.create(session, name, role, alone=alone), token_name, [EVERY_SCOPE], None)
    audit.by_operator(session, "user.create", name, {"role": role})
    audit.by_operator(session, "token.create", str(made["id"]), {"username": name, "scopes": [EVERY_SCOPE]})
    token: str = made["token"]
    return token


def write_tokens(path: Path, new: dict[str, str]) -> None:
    """Add tokens to a YAML file that only its owner can read; it is replaced whole, so nobody reads half of it."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = yaml.safe_load(path.read_text()) or {} if path.exists() else {}
        fresh = unfinished(path)
        fresh.unlink(missing_ok=True)  # as the folder is locked, only one who was killed can have left it
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("# Tokens of Shell Service, for its operator only.\n")
            yaml.safe_dump({**known, **new}, file, sort_keys=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        os.close(folder)


def unfinished(path: Path) -> Path:
    """Where a tokens file is written before it takes the place of the old one."""
    return path.with_name(f"{path.name}.new")
