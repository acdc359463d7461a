"""Seals of the audit log: a chain of digests, so that whoever changed an entry afterwards would be found out.

A seal stands for the entries from after the one before it up to its `last_id`, and its digest is made of that one's and
of theirs. So the last digest stands for the whole log: whoever has kept it, or any, outside the database can tell later
whether what was sealed then is still the same (`verify`).

Entries are sealed some moments after they were written, when all that began before them has ended: a number is taken
before its transaction is committed, and others may be committed first. Nobody who writes waits for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.query import Query

AT_ONCE = 20_000  # entries of a seal


@dataclass(frozen=True)
class Mark:
    """Up to which entry can be sealed, as soon as all transactions before `horizon` have ended."""

    last_id: int
    horizon: int


def mark() -> Query[Mark | None]:
    """The newest entry of now; None where all are sealed. write_audit takes care that no older one comes later."""
    return Query(
        """
        SELECT least(newest.id, sealed.id + CAST(%(most)s AS int)) AS id,
          -- A number of its own is above those of all that have begun to write; the snapshot's end is not.
          CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS horizon
        FROM (SELECT coalesce(max(id), 0) AS id FROM audit) AS newest,
          (SELECT coalesce(max(last_id), 0) AS id FROM audit_seal) AS sealed
        WHERE newest.id > sealed.id
        """,
        {"most": AT_ONCE},
        lambda rows: Mark(*rows[0]) if rows else None,
        kept=True,
    )


def seal(session: Session, marked: Mark) -> bool:
    """Seal the entries up to a mark, if all that began before it has ended; whether they are sealed now."""
    settled = session.scalar(
        text("SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) >= :horizon"),
        {"horizon": marked.horizon},
    )
    if not settled:
        return False
    # Of several schedulers one is first: the number is a key.
    session.execute(
        text(
            """
            INSERT INTO audit_seal (number, last_id, entries, digest)
            SELECT coalesce(p.number, 0) + 1, :last_id, d.entries, d.digest
            FROM (SELECT max(number) AS number, max(last_id) AS last_id FROM audit_seal) AS p
            LEFT JOIN audit_seal b ON b.number = p.number
            CROSS JOIN LATERAL audit_digest(coalesce(b.digest, ''), coalesce(p.last_id, 0), :last_id) AS d
            WHERE coalesce(p.last_id, 0) < :last_id
            ON CONFLICT DO NOTHING
            """
        ),
        {"last_id": marked.last_id},
    )
    return True


@dataclass(frozen=True)
class Verdict:
    """What is found of a seal. Without a `problem` its entries are as they were when it was made."""

    number: int
    last_id: int
    entries: int
    digest: str
    problem: str | None


def verify(session: Session) -> Iterator[Verdict]:
    """Look at each seal, from the first on."""
    before, last_id, number = b"", 0, 0
    while True:
        row = session.execute(
            text(
                "SELECT s.number, s.last_id, s.entries, s.digest, d.entries AS now_entries, d.digest AS now_digest"
                " FROM audit_seal s CROSS JOIN LATERAL audit_digest(:before, :after, s.last_id) AS d"
                " WHERE s.number > :number ORDER BY s.number LIMIT 1"
            ),
            {"before": before, "after": last_id, "number": number},
        ).first()
        if row is None:
            return
        problem = None
        if row.number != number + 1:
            problem = f"the seals between {number} and {row.number} are gone"
        elif row.entries != row.now_entries:
            problem = f"there were {row.entries} entries, and there are {row.now_entries}"
        elif bytes(row.digest) != bytes(row.now_digest):
            problem = "entries are not what they were, or the seal is not"
        yield Verdict(row.number, row.last_id, row.entries, bytes(row.digest).hex(), problem)
        # What follows is held against what this seal says, so that one change is told of once.
        before, last_id, number = bytes(row.digest), row.last_id, row.number


def unsealed(session: Session) -> int:
    """How many entries are newer than the last seal."""
    count: int = session.execute(
        text("SELECT count(*) FROM audit WHERE id > (SELECT coalesce(max(last_id), 0) FROM audit_seal)")
    ).scalar_one()
    return count
