"""What goes with time goes, and nothing else; and nobody waits for it."""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uuid_utils.compat

from baselayer.config import Bytes
from baselayer.errors import Conflict, NotAllowed, NotFound, Unavailable
from shell_service import jobs, queue, retention, uploads
from shell_service.queue import Fenced, Result
from shell_service.retention import Cut
from shell_service.settings import Retention, Uploads
from shell_service.uploads import UploadStore
from tests.database import Transactions
from tests.factories import Enlisted, add_jobs, add_user
from tests.queue.test_schedules import caller_of

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> UploadStore:
    return UploadStore(tmp_path, Uploads(Bytes(MIB), Bytes(0), 4), 0)


def old_id(days: float) -> uuid.UUID:
    """The id of a job of so many days ago."""
    at = datetime.now(UTC) - timedelta(days=days)
    fresh = uuid_utils.compat.uuid7()
    return uuid.UUID(int=(int(at.timestamp() * 1000) << 80) | (fresh.int & (2**80 - 1)))


def add(
    transact: Transactions, user: int, days: float = 0, size: int = 0, *, ended: bool = True, pinned: bool = False
) -> uuid.UUID:
    """A job of so many days ago, that printed so much."""
    job_id = old_id(days)
    transact(add_jobs, user, 1, id=job_id, created_at=datetime.now(UTC) - timedelta(days=days))
    if ended:
        transact.sql("DELETE FROM ready_job WHERE job_id = :id", id=job_id)
        transact.sql(
            "UPDATE job SET status = 'COMPLETED', finished_at = created_at, attempt = 2, stdout_bytes = :size / 2,"
            " stderr_bytes = :size - :size / 2, pinned = :pinned WHERE id = :id",
            id=job_id, size=size, pinned=pinned,
        )  # fmt: skip
    return job_id


def retain(transact: Transactions, days: float = 0, size: int = 0) -> int:
    """Remove what goes; returns how many jobs that were."""
    removed, options = 0, Retention(days, size, 10)
    by_size = [transact(retention.by_size, options, user) for user in transact(retention.users, options)]
    for cut in [transact(retention.by_age, options), *by_size]:
        last = None
        while cut is not None:
            step = transact(retention.remove_some, cut, last)
            removed += step.removed
            if (last := step.last) is None:
                break
    return removed


def left(transact: Transactions) -> set[uuid.UUID]:
    return {row.id for row in transact.sql("SELECT id FROM job")}


def test_by_age(transact: Transactions, user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 3)
    old = [add(transact, user, 10 + number) for number in range(7)]
    kept = [
        add(transact, user, 9), add(transact, user), add(transact, user, 30, pinned=True),
        add(transact, user, 40, ended=False),
    ]  # fmt: skip
    transact.sql("INSERT INTO delivery (id, job_id, user_id, url, status) SELECT id, id, user_id, '', '' FROM job")
    assert retain(transact) == 0
    assert retain(transact, days=9.5) == 7
    assert {row.job_id for row in transact.sql("SELECT job_id FROM delivery")} == set(kept)
    assert left(transact) == set(kept)
    assert {item.job_id for item in transact(retention.discarded)} <= set(old)
    assert transact.scalar("SELECT count(*) FROM discarded WHERE attempt = 2") == 7
    assert retain(transact, days=9.5) == 0


def test_what_has_just_ended_stays(transact: Transactions, user: int) -> None:
    """Though it was submitted long ago."""
    job_id = add(transact, user, 100)
    transact.sql("UPDATE job SET finished_at = now() - interval '1 hour'")
    assert retain(transact, days=30) == 0
    transact.sql("UPDATE job SET finished_at = now() - interval '31 days'")
    assert left(transact) == {job_id} and retain(transact, days=30) == 1


def test_by_size_the_newest_stay(transact: Transactions, user: int) -> None:
    other = transact(add_user)
    mine = [add(transact, user, days, MIB) for days in range(10)]
    pinned = add(transact, user, 20, MIB, pinned=True)
    theirs = [add(transact, other, days, MIB) for days in range(4)]
    assert retain(transact, size=4 * MIB) == 6
    assert left(transact) == {*mine[:4], pinned, *theirs}
    assert retain(transact, size=4 * MIB) == 0


def give(transact: Transactions, job_id: uuid.UUID, digest: bytes, size: int) -> None:
    """Let a job have been given files."""
    transact.sql(
        "INSERT INTO upload (digest, kind, size, user_id, used_at)"
        " VALUES (:digest, 'zip', :size, 0, now() - interval '2 hours') ON CONFLICT DO NOTHING",
        digest=digest, size=size,
    )  # fmt: skip
    transact.sql("UPDATE job SET upload = :digest, entrypoint = 'x.sh' WHERE id = :id", digest=digest, id=job_id)


def test_artifacts_and_files_count_for_size(transact: Transactions, user: int) -> None:
    """The same files once, with the newest job that was given them."""
    mine = [add(transact, user, days, MIB) for days in range(8)]
    transact.sql("UPDATE job SET artifacts_bytes = :size WHERE id = :id", size=MIB, id=mine[0])
    for number in (2, 3, 4):
        give(transact, mine[number], b"same", 2 * MIB)
    # 2 of the first, 1 of the second, 3 of the third with its files, 1 of the fourth: 7; the fifth makes 8.
    rows = transact(retention.outlook, Retention(0, 7 * MIB, 10))
    assert [(int(row["bytes"]), row["beyond"]) for row in rows] == [(11 * MIB, 4)]
    assert retain(transact, size=7 * MIB) == 4
    assert left(transact) == set(mine[:4])


def test_files_go_with_the_last_that_uses_them(transact: Transactions, user: int, store: UploadStore) -> None:
    old, new = add(transact, user, 10), add(transact, user, 1)
    for job_id, digest in ((old, b"old"), (new, b"new"), (old, b"old")):
        give(transact, job_id, digest, 3)
    for digest in (b"old", b"new", b"script"):
        path = store.path(digest.hex(), "zip")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PK")
    transact.sql("INSERT INTO upload (digest, kind, size, user_id) VALUES ('fresh', 'zip', 1, 0)")
    transact.sql(
        "INSERT INTO upload (digest, kind, size, user_id, used_at) VALUES ('script', 'zip', 1, 0, '2020-01-01Z')"
    )
    transact.sql(
        "INSERT INTO content (digest, code, shell, parameters, defaults, size, upload)"
        " VALUES ('c', '', 'auto', '[]', '{}', 1, 'script')"
    )
    assert transact(uploads.collect, store) == 0
    assert retain(transact, days=5) == 1
    assert transact(uploads.collect, store) == 1
    assert {bytes(row.digest) for row in transact.sql("SELECT digest FROM upload")} == {b"new", b"fresh", b"script"}
    assert not store.path(b"old".hex(), "zip").exists()
    assert store.path(b"new".hex(), "zip").exists() and store.path(b"script".hex(), "zip").exists()


def test_files_that_no_row_stands_for_are_swept(transact: Transactions, user: int, store: UploadStore) -> None:
    give(transact, add(transact, user), bytes([7]) * 32, 2)
    for digest, age in (("07" * 32, 7200), ("07" + "11" * 31, 7200), ("07" + "22" * 31, 60), ("08" * 32, 7200)):
        path = store.path(digest, "zip")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PK")
        os.utime(path, (time.time() - age,) * 2)
    transact(uploads.sweep, store, 7)
    assert {path.name[2:6] for path in store.folder.rglob("*.zip")} == {"0707", "2222", "0808"}


def test_uploads_of_a_user_are_bounded(transact: Transactions, user: int, store: UploadStore) -> None:
    give(transact, add(transact, user), b"first", 5)

    def keep(data: bytes, who: int, most: int) -> None:
        incoming = store.receive()
        incoming.begin("archive", "a.zip")
        incoming.write(b"PK\3\4" + data)
        incoming.end()
        transact(uploads.keep, store, incoming, incoming.finish(), who, most)

    with pytest.raises(Conflict, match="may take 10 bytes, and they take 5; 6 more"):
        keep(b"ab", user, 10)
    keep(b"a", user, 10)
    with pytest.raises(Conflict, match="they take 10; 5 more"):  # what nothing refers to yet counts, too
        keep(b"b", user, 10)
    keep(b"ab", transact(add_user), 10)
    keep(b"abcdefghi", user, 0)


def test_what_comes_in_small_pieces_is_the_same(store: UploadStore) -> None:
    for kind, content in (("zip", b"PK\3\4rest"), ("tar.gz", b"\x1f\x8brest")):
        incoming = store.receive()
        incoming.begin("archive", "a")
        for at in range(len(content)):
            incoming.write(content[at : at + 1])
        incoming.end()
        assert (incoming.finish().kind, incoming.finish().size) == (kind, len(content))
        incoming.close()


def test_no_upload_takes_the_last_room(tmp_path: Path) -> None:
    full = UploadStore(tmp_path, Uploads(Bytes(2**40), Bytes(0), 4), 2**60)
    with pytest.raises(Unavailable, match="no room"):
        full.receive(1)
    assert not list((tmp_path / "incoming").iterdir())


def test_the_outlook_says_what_will_go(transact: Transactions, user: int) -> None:
    other = transact(add_user)
    for days in range(10):
        add(transact, user, days, MIB)
    add(transact, user, 30, MIB, pinned=True)
    add(transact, other, 3, MIB)
    rows = {row["username"]: row for row in transact(retention.outlook, Retention(7.5, 6 * MIB, 10))}
    name = transact.scalar('SELECT username FROM "user" WHERE id = :id', id=user)
    mine = rows.pop(name)
    assert {key: int(mine[key]) for key in ("jobs", "bytes", "pinned", "old", "beyond", "freed")} == {
        "jobs": 11, "bytes": 11 * MIB, "pinned": 1, "old": 2, "beyond": 2, "freed": 4 * MIB,
    }  # fmt: skip
    assert [int(row["freed"]) for row in rows.values()] == [0]
    assert retain(transact, 7.5, 6 * MIB) == 4


def test_pins(transact: Transactions, user: int) -> None:
    caller, stranger, admin = caller_of(user), caller_of(transact(add_user)), caller_of(transact(add_user), "admin")
    names = [jobs.public_id("job", add(transact, user, 10 + number)) for number in range(3)]
    transact(retention.pin, caller, names[0], True, 2)
    transact(retention.pin, admin, names[1], True, 2)
    transact(retention.pin, caller, names[1], True, 2)  # it is one of the two
    with pytest.raises(Conflict, match="2 pinned"):
        transact(retention.pin, caller, names[2], True, 2)
    with pytest.raises(NotFound):
        transact(retention.pin, stranger, names[0], False, 2)
    assert retain(transact, days=1) == 1
    transact(retention.pin, caller, names[0], False, 2)
    assert retain(transact, days=1) == 1


def test_a_shared_job_is_pinned_by_its_owner_alone(transact: Transactions, user: int) -> None:
    owner = transact(add_user)
    transact.sql(
        "INSERT INTO script (user_id, name, description, overlap, version, size) VALUES (:u, 's', '', 'queue', 1, 0)",
        u=owner,
    )
    job_id = add(transact, user, 10)
    transact.sql("UPDATE job SET script_id = (SELECT id FROM script), share_output = true WHERE id = :id", id=job_id)
    with pytest.raises(NotAllowed):
        transact(retention.pin, caller_of(owner), jobs.public_id("job", job_id), True, 2)


def test_claims_do_not_wait_for_it(transact: Transactions, user: int, runner: Enlisted) -> None:
    """While 100,000 old jobs are removed, claiming and ending others takes as long as without."""
    transact.sql(
        "INSERT INTO job (id, user_id, name, priority, code, shell, args, env, stdin, timeout, retries, retry_delay,"
        " on_lost, created_at, modified, attempt, status, finished_at) SELECT CAST(lpad(to_hex(n), 12, '0') ||"
        " '70008' || lpad(to_hex(n), 15, '0') AS uuid), :user, 'job', 0, 'true', 'sh', '[]', '{}', '', 60, 0, 0,"
        " 'fail', now(), now(), 1, 'COMPLETED', now() FROM generate_series(1, 100000) AS n",
        user=user,
    )
    transact.sql("ANALYZE job")

    def work(rounds: int) -> list[float]:
        took = []
        for _ in range(rounds):
            transact(add_jobs, user)
            begun = time.monotonic()
            (claim,) = transact(runner.claim)
            transact(queue.mark_started([Fenced(claim.job_id, claim.fence)]).on)
            transact(queue.finish([Result(claim.job_id, claim.fence, "COMPLETED", "", "r")]).on)
            took.append(time.monotonic() - begun)
        return sorted(took)

    before = work(100)
    cut = Cut(jobs.first_id_of(10**9), datetime.now(UTC) + timedelta(days=1))
    over = threading.Event()

    def remove() -> None:
        last = None
        while True:
            step = transact(retention.remove_some, cut, last)
            if (last := step.last) is None:
                break
        over.set()

    remover = threading.Thread(target=remove)
    remover.start()
    during: list[float] = []
    while not over.is_set():
        during += work(10)
    remover.join()
    during.sort()
    assert len(during) >= 50
    assert transact.scalar("SELECT count(*) FROM discarded") == 100_000
    # Half of them wait for a processor on a machine with two, but none for a lock.
    assert during[len(during) * 9 // 10] < 10 * before[len(before) * 9 // 10] + 0.05
