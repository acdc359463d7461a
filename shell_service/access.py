"""Telling every worker that users or tokens have changed."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session


def tell_access_changed(session: Session) -> None:
    """With this transaction's commit, every worker forgets what it knew of tokens."""
    session.execute(text("SELECT pg_notify('access', '')"))
