"""Whoever changes the audit log afterwards is found out; and sealing misses nothing that is written meanwhile."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service import audit, seals
from shell_service.audit import Entry
from tests.database import Transactions


def write(transact: Transactions, count: int = 1, name: str = "somebody") -> None:
    entries = [Entry("user.change", f"{name} {number}", 1, name, detail={"n": number}) for number in range(count)]
    transact(audit.write(entries).on)


def seal_all(transact: Transactions) -> None:
    while marked := transact(seals.mark().on):
        assert transact(seals.seal, marked)


def problems(transact: Transactions) -> list[str]:
    return [f"{found.number}: {found.problem}" for found in transact(lambda s: list(seals.verify(s))) if found.problem]


def test_what_is_as_it_was_is_found_so(transact: Transactions) -> None:
    seal_all(transact)
    assert transact(lambda session: list(seals.verify(session))) == []
    for number in range(3):
        write(transact, 5, f"user{number}")
        seal_all(transact)
    found = transact(lambda session: list(seals.verify(session)))
    assert [(item.number, item.entries, item.problem) for item in found] == [(n, 5, None) for n in (1, 2, 3)]
    assert len({item.digest for item in found}) == 3
    write(transact, 2)
    assert transact(seals.unsealed) == 2 and problems(transact) == []


CHANGES = {
    "an entry is changed": ("UPDATE audit SET username = 'another' WHERE id = 7", "2: entries are not what they were"),
    "its time is": ("UPDATE audit SET at = at + interval '1 microsecond' WHERE id = 7", "2: entries are not"),
    "its detail is": ("UPDATE audit SET detail = '{\"n\": 99}' WHERE id = 7", "2: entries are not"),
    "an entry is taken out": ("DELETE FROM audit WHERE id = 7", "2: there were 5 entries, and there are 4"),
    "one is put in": (
        "DELETE FROM audit WHERE id = 7; INSERT INTO audit OVERRIDING SYSTEM VALUE SELECT 7, a.at,"
        " a.user_id, a.username, a.token_id, a.address, a.request_id, a.action, a.object, a.outcome,"
        " a.status, a.detail FROM audit a WHERE a.id = 6", "2: entries are not",
    ),
    "two change places": (
        "UPDATE audit a SET username = b.username FROM audit b WHERE (a.id, b.id) IN ((5, 6), (6, 5))",
        "1: entries are not",
    ),
    "a seal is taken out": ("DELETE FROM audit_seal WHERE number = 2", "3: the seals between 1 and 3 are gone"),
    "a seal is changed": ("UPDATE audit_seal SET digest = sha256('x') WHERE number = 2", "2: entries are not"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_found(transact: Transactions, name: str) -> None:
    """By somebody who is above the database's own refusal."""
    for number in range(3):
        write(transact, 5, f"user{number}")
        seal_all(transact)
    statement, said = CHANGES[name]
    with transact.engine.begin() as connection:
        for table in ("audit", "audit_seal"):
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        connection.exec_driver_sql(statement)
    found = problems(transact)
    assert found and found[0].startswith(said), found


def test_seals_are_only_added(transact: Transactions) -> None:
    write(transact)
    seal_all(transact)
    for statement in ("UPDATE audit_seal SET entries = 0", "DELETE FROM audit_seal", "TRUNCATE audit_seal"):
        with pytest.raises(Exception, match="append-only"):
            transact.sql(statement)


def test_nothing_is_sealed_before_what_began_earlier_has_ended(transact: Transactions) -> None:
    with Session(transact.engine) as slow:
        audit.write([Entry("user.change", "slow")]).on(slow)  # has the lower number, and is not committed yet
        write(transact, 1, "fast")
        marked = transact(seals.mark().on)
        assert marked is not None and not transact(seals.seal, marked)
        slow.commit()
    assert transact(seals.seal, marked)
    (found,) = transact(lambda session: list(seals.verify(session)))
    assert (found.entries, found.problem) == (2, None)


def test_nor_where_it_began_later_than_what_has_ended(transact: Transactions) -> None:
    with Session(transact.engine) as fast, Session(transact.engine) as slow:
        fast.execute(text("SELECT pg_current_xact_id()"))  # has the lower number of a transaction
        audit.write([Entry("user.change", "slow")]).on(slow)
        audit.write([Entry("user.change", "fast")]).on(fast)
        fast.commit()
        marked = transact(seals.mark().on)
        assert marked is not None and not transact(seals.seal, marked)
        slow.commit()
    seal_all(transact)
    assert transact(seals.unsealed) == 0 and problems(transact) == []
    assert transact.scalar("SELECT sum(entries) FROM audit_seal") == 2


def test_of_two_who_seal_one_does(transact: Transactions) -> None:
    write(transact, 3)
    marked = transact(seals.mark().on)
    assert marked is not None
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: transact(seals.seal, marked), range(8)))
    assert transact.scalar("SELECT count(*) FROM audit_seal") == 1


def test_sealing_while_many_write_misses_nothing(transact: Transactions) -> None:
    sealed_meanwhile, over = threading.Event(), threading.Event()

    def writer(seed: int) -> None:
        chance = random.Random(seed)
        written = 0
        while written < 60 or not sealed_meanwhile.is_set():
            written += 1
            with Session(transact.engine) as session:
                audit.write([Entry("user.change", f"{seed}")] * chance.randint(1, 3)).on(session)
                session.execute(text("SELECT pg_sleep(:s)"), {"s": chance.random() * 0.01})
                session.rollback() if chance.random() < 0.2 else session.commit()

    def sealer(_: int) -> None:
        while not over.is_set():
            if marked := transact(seals.mark().on):
                while not transact(seals.seal, marked):
                    pass  # what began before the mark has not ended yet
            if transact.scalar("SELECT count(*) FROM audit_seal") > 3:
                sealed_meanwhile.set()

    with ThreadPoolExecutor(6) as threads:
        sealing = [threads.submit(sealer, number) for number in range(2)]
        for task in [threads.submit(writer, seed) for seed in range(4)]:
            task.result()
        over.set()
        for task in sealing:
            task.result()
    seal_all(transact)
    assert problems(transact) == [] and transact(seals.unsealed) == 0
    assert transact.scalar("SELECT sum(entries) FROM audit_seal") == transact.scalar("SELECT count(*) FROM audit")
