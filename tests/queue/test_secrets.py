"""Secrets in the database: sealed for whom they are, and sealed anew with other keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.config import ConfigError
from baselayer.database import Database
from shell_service import audit, secrets
from shell_service.queue import Claim
from shell_service.secrets import Broken, Keyring, new_key
from tests.database import Transactions
from tests.factories import Enlisted, add_jobs, add_user


def caller(user: int) -> Caller:
    return Caller(user, "somebody", "user", frozenset(), 1, None)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring([new_key()])


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, size=1, statement_timeout=5.0)
    yield database
    database.close()


@pytest.fixture
def store(transact: Transactions, keyring: Keyring) -> Callable[..., Any]:
    return lambda user, **values: [
        transact(secrets.put, keyring, caller(user), name, value, 100) for name, value in values.items()
    ]


def test_what_is_sealed_opens_in_its_place_only(keyring: Keyring) -> None:
    sealed = keyring.seal(7, "KEY", b"a value")
    assert b"value" not in sealed
    assert keyring.seal(7, "KEY", b"a value") != sealed
    assert keyring.open(7, "KEY", sealed) == b"a value"
    others = [
        (8, "KEY", sealed),
        (7, "KEY2", sealed),
        (7, "KEY", sealed[:-1] + b"A"),
        (7, "KEY", b""),
        (7, "KEY", b"x"),
    ]
    for place in others:
        with pytest.raises(Broken):
            keyring.open(*place)
    with pytest.raises(Broken):
        Keyring([new_key()]).open(7, "KEY", sealed)
    # Names hold no colon, so no user and name can be written as another user and name.
    assert keyring.open(1, "A", keyring.seal(1, "A", b":x:y")) == b":x:y"


def test_the_first_key_seals_and_each_opens() -> None:
    old, new = new_key(), new_key()
    sealed = Keyring([old]).seal(1, "A", b"value")
    both = Keyring([new, old])
    assert both.open(1, "A", sealed) == b"value"
    assert Keyring([new]).open(1, "A", both.seal(1, "A", b"other")) == b"other"


def claim_of(transact: Transactions, runner: Enlisted, user: int, names: list[str]) -> Claim:
    transact(add_jobs, user)
    transact.sql("UPDATE job SET secrets = to_jsonb(CAST(:names AS text[]))", names=names)
    (claim,) = transact(runner.claim)
    return claim


def test_a_claim_is_given_the_values_of_its_owner(
    transact: Transactions, runner: Enlisted, database: Database, keyring: Keyring, store: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    user, other = transact(add_user), transact(add_user)
    store(user, A="the first", B="the second", C="not named")
    store(other, A="that of another", D="too")
    claim = claim_of(transact, runner, user, ["A", "B", "D"])

    def read(ring: Keyring = keyring) -> Any:
        return asyncio.run(secrets.of_claim(database, ring, claim))

    assert read() == {"A": b"the first", "B": b"the second"}
    # Whoever can write into the database still gives no job the value of another's.
    transact.sql(
        "UPDATE secret SET value = (SELECT value FROM secret WHERE user_id = :other AND name = 'A')"
        " WHERE user_id = :user AND name = 'B'",
        user=user, other=other,
    )  # fmt: skip
    for ring, name in ((keyring, "B"), (Keyring([new_key()]), "A")):
        caplog.clear()
        with (
            caplog.at_level(logging.ERROR),
            pytest.raises(ValueError, match=f"The secret {name} cannot be read any more"),
        ):
            read(ring)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert f"secret {name} of user {user}" in caplog.text


# -- the file of keys --------------------------------------------------------------------------------------------------


def test_the_first_to_come_makes_the_key(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    with ThreadPoolExecutor(16) as pool:
        rings = list(pool.map(lambda _: Keyring.of(path), range(16)))
    assert path.stat().st_mode & 0o777 == 0o600
    sealed = rings[0].seal(1, "A", b"value")
    assert all(ring.open(1, "A", sealed) == b"value" for ring in rings)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\n", b"x", b"\xff\xfe", b"secret-nonsense-" * 3, new_key()[:-4]])
def test_a_file_that_holds_no_key_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secrets.key"
    for whole in (content, new_key() + b"\n" + content) if content.strip() else (content,):
        path.write_bytes(whole)
        with pytest.raises(ConfigError, match=r"secrets\.key") as error:
            Keyring.of(path)
        assert "nonsense" not in str(error.value)
        assert path.read_bytes() == whole
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        Keyring.of(path)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    Keyring.of(tmp_path / "secrets.key")
    return tmp_path / "secrets.key"


def opened(transact: Transactions, path: Path, user: int) -> list[bytes]:
    ring = Keyring.of(path)
    rows = transact.sql("SELECT name, value FROM secret WHERE user_id = :user ORDER BY name", user=user)
    return [ring.open(user, row.name, row.value) for row in rows]


def test_a_new_key_seals_all_and_the_old_one_is_gone(transact: Transactions, key_file: Path) -> None:
    user = transact(add_user)
    old = key_file.read_bytes()
    values = [f"value {number:03}" for number in range(250)]

    def store(session: Session) -> None:
        for number, value in enumerate(values):
            secrets.put(session, Keyring.of(key_file), caller(user), f"N{number:03}", value, 1000)

    transact(store)
    before = transact.sql("SELECT name, created_at, modified FROM secret ORDER BY name")
    assert secrets.rotate(transact.engine, key_file) == (250, 0)
    (entry,) = transact.sql("SELECT username, detail FROM audit WHERE action = 'secret.rotate'")
    assert tuple(entry) == (audit.OPERATOR, {"sealed": 250, "broken": 0})
    assert key_file.read_bytes() != old and len(key_file.read_bytes().split()) == 1
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert opened(transact, key_file, user) == [value.encode() for value in values]
    assert transact.sql("SELECT name, created_at, modified FROM secret ORDER BY name") == before
    key_file.write_bytes(old)
    with pytest.raises(Broken):
        opened(transact, key_file, user)


def test_a_rotation_that_was_cut_short_is_finished(
    transact: Transactions, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of its steps: whatever was sealed by then opens, and the next call brings it to its end."""
    user = transact(add_user)
    monkeypatch.setattr(secrets, "_AT_ONCE", 2)
    for number in range(5):
        transact(secrets.put, Keyring.of(key_file), caller(user), f"N{number}", f"value {number}", 100)
    expected = [f"value {number}".encode() for number in range(5)]

    class Cut(Exception):
        pass

    def cut(point: Any, after: int) -> Any:
        left = after

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if not left:
                raise Cut
            left -= 1
            return point(*args, **kwargs)

        return call

    for name, owner, most in (("_write", secrets, 2), ("seal", Keyring, 5)):
        for after in range(most):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, cut(getattr(owner, name), after))
                with pytest.raises(Cut):
                    secrets.rotate(transact.engine, key_file)
            assert opened(transact, key_file, user) == expected
            keys = key_file.read_bytes().split()
            assert secrets.rotate(transact.engine, key_file) == (5, 0)
            assert len(keys) == 1 or key_file.read_bytes().split() == keys[:1]
            assert opened(transact, key_file, user) == expected


def test_what_no_key_opens_is_left_and_counted(transact: Transactions, key_file: Path) -> None:
    user = transact(add_user)
    transact(secrets.put, Keyring([new_key()]), caller(user), "LOST", "value of LOST", 100)
    transact(secrets.put, Keyring.of(key_file), caller(user), "KEPT", "value of KEPT", 100)
    assert secrets.rotate(transact.engine, key_file) == (1, 1)
    assert transact.scalar("SELECT count(*) FROM secret") == 2
