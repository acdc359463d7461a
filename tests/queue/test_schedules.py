"""Schedules fire once for each instant, whoever fires them and whatever becomes of him."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.access import EVERY_SCOPE, Caller
from baselayer.errors import InvalidRequest, NotAllowed
from shell_service import firing, queue, schedules, scripts, shares
from shell_service.schedule_schemas import ScheduleRequest
from shell_service.scopes import SCOPES
from shell_service.scripts import Name
from shell_service.settings import load
from shell_service.timetable import Timetable
from tests.database import Transactions
from tests.factories import LIMITS, add_user

MINUTE = timedelta(minutes=1)
SETTINGS = load()
RULES, MEANS = SETTINGS.jobs, schedules.Means(SETTINGS.schedules, SETTINGS.jobs)
GRACE = 60.0


def caller_of(user: int, role: str = "user") -> Caller:
    return Caller(user, f"name{user}", role, SCOPES.effective(role, [EVERY_SCOPE]), 1, None)


def owner(transact: Transactions) -> Caller:
    """A user whose name is that of his caller."""
    user = transact(add_user)
    transact.sql('UPDATE "user" SET username = :name WHERE id = :id', name=f"name{user}", id=user)
    return caller_of(user)


def save(transact: Transactions, caller: Caller, name: str = "tool", **fields: Any) -> None:
    request = {"name": name, "code": "true", "message": "", **fields}
    transact(scripts.create, caller, request, SETTINGS.scripts)


def schedule(transact: Transactions, caller: Caller, **fields: Any) -> int:
    """A new schedule's number; of fields as the API takes them."""
    request = ScheduleRequest().load({"script": "tool", "every": 60, **fields})
    return transact(schedules.create, caller, request, MEANS).id


def past(transact: Transactions, number: int, by: timedelta) -> datetime:
    """Let as much time go by for a schedule as if it had been made so long ago, and nobody had fired it since."""
    transact.sql(
        "UPDATE schedule SET created_at = created_at - CAST(:by AS interval),"
        " instant = instant - CAST(:by AS interval), due_at = due_at - CAST(:by AS interval) WHERE id = :id",
        by=by, id=number,
    )  # fmt: skip
    instant: datetime = transact.scalar("SELECT instant FROM schedule WHERE id = :id", id=number)
    return instant


def fire(transact: Transactions, grace: float = GRACE) -> int:
    return transact(fire_some, grace)


def fire_some(session: Session, grace: float = GRACE) -> int:
    """As many as go into a transaction; returns how many those were."""
    parts = firing.due(session)
    return firing.fire(session, parts[0].ids, LIMITS, RULES, grace) if parts else 0


def fire_all(transact: Transactions, grace: float = GRACE) -> None:
    while fire(transact, grace):
        pass


def fired(transact: Transactions) -> list[tuple[int, datetime]]:
    """For what jobs were made, in order."""
    rows = transact.sql("SELECT schedule_id, fired_for FROM job ORDER BY fired_for, schedule_id")
    return [(row.schedule_id, row.fired_for) for row in rows]


def row_of(transact: Transactions, number: int) -> Any:
    return transact.sql("SELECT * FROM schedule WHERE id = :id", id=number)[0]


@pytest.fixture
def alice(transact: Transactions) -> Caller:
    caller = owner(transact)
    save(transact, caller)
    return caller


def test_it_fires_when_it_is_due_and_not_before(transact: Transactions, alice: Caller) -> None:
    number = schedule(transact, alice)
    assert fire(transact) == 0 and fired(transact) == []
    instant = past(transact, number, MINUTE)
    assert fire(transact) == 1
    assert fired(transact) == [(number, instant)]
    row = row_of(transact, number)
    assert (row.instant, row.due_at, row.last_instant, row.problem) == (
        instant + MINUTE, instant + MINUTE, instant, None,
    )  # fmt: skip
    (job,) = transact.sql("SELECT * FROM job")
    assert (job.id, job.user_id, job.script, job.script_version) == (
        row.last_job_id, alice.user_id, f"{alice.username}/tool", 1,
    )  # fmt: skip
    (entry,) = transact.sql("SELECT * FROM audit WHERE action = 'script.run'")
    assert (entry.username, entry.object) == (alice.username, f"{alice.username}/tool")
    assert entry.detail["schedule"] == number and entry.detail["version"] == 1


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, 1), ({"catch_up": "last"}, 1), ({"catch_up": "all"}, 61), ({"catch_up": "all", "catch_up_limit": 7}, 7),
])  # fmt: skip
def test_what_was_missed(transact: Transactions, alice: Caller, fields: dict[str, Any], expected: int) -> None:
    save(transact, alice, "free", overlap="parallel")
    number = schedule(transact, alice, script="free", **fields)
    first = past(transact, number, 61 * MINUTE)
    transact.sql("UPDATE schedule SET instant = instant - interval '1 second', due_at = due_at - interval '1 second',"
                 " created_at = created_at - interval '1 second'")  # fmt: skip
    first -= timedelta(seconds=1)
    fire_all(transact)
    every = [first + k * MINUTE for k in range(61)]
    assert [instant for _, instant in fired(transact)] == every[-expected:]
    assert row_of(transact, number).instant == first + 61 * MINUTE


def test_what_is_missed_altogether_is_told(transact: Transactions, alice: Caller) -> None:
    number = schedule(transact, alice, every=3600)
    past(transact, number, timedelta(hours=1, minutes=30))
    fire_all(transact)
    row = row_of(transact, number)
    assert fired(transact) == [] and row.problem.startswith("Missed") and row.enabled
    assert datetime.now(UTC) < row.instant < datetime.now(UTC) + timedelta(hours=1)
    past(transact, number, row.instant - datetime.now(UTC) + timedelta(seconds=5))
    fire_all(transact)
    assert len(fired(transact)) == 1 and row_of(transact, number).problem is None


def test_a_single_time_is_over_when_it_has_fired(transact: Transactions, alice: Caller) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    number = schedule(transact, alice, every=None, at=at.isoformat())
    transact.sql("UPDATE schedule SET at = at - interval '1 hour', instant = instant - interval '1 hour',"
                 " due_at = due_at - interval '1 hour'")  # fmt: skip
    fire_all(transact)
    assert len(fired(transact)) == 1
    row = row_of(transact, number)
    assert (row.instant, row.due_at, row.enabled) == (None, None, True)


def test_clocks_that_are_put_back_fire_nothing_twice(transact: Transactions, alice: Caller) -> None:
    number = schedule(transact, alice)
    past(transact, number, MINUTE)
    fire_all(transact)
    before = fired(transact)
    # As if an hour had gone by when it was changed, and come again.
    transact.sql("UPDATE schedule SET last_instant = last_instant + interval '1 hour'")
    transact(schedules.change, alice, number, {"every": 60.0}, MEANS)
    row = row_of(transact, number)
    assert row.instant > row.last_instant > datetime.now(UTC)
    assert fired(transact) == before


@pytest.mark.parametrize("workers", [2, 4])
def test_however_many_fire_at_once_each_instant_has_one_job(transact: Transactions, workers: int) -> None:
    numbers = []
    for _ in range(4):
        caller = owner(transact)
        save(transact, caller, overlap="parallel")
        numbers += [schedule(transact, caller, catch_up="all", catch_up_limit=1000) for _ in range(5)]
    starts = {number: past(transact, number, 10 * MINUTE) for number in numbers}

    def work(seed: int) -> None:
        chance = random.Random(seed)
        idle = 0
        while idle < 3:
            try:
                idle = 0 if transact(_fire_or_die, chance) else idle + 1
            except Killed:
                pass

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, range(workers)))
    counts = Counter(fired(transact))
    assert set(counts.values()) == {1}
    for number, start in starts.items():
        instants = [instant for other, instant in counts if other == number]
        assert sorted(instants) == [start + k * MINUTE for k in range(len(instants))] and len(instants) >= 10


class Killed(Exception):
    """Somebody who fires dies before his transaction is committed."""


def _fire_or_die(session: Session, chance: random.Random) -> int:
    count = fire_some(session)
    if chance.random() < 0.3:
        raise Killed
    return count


def test_jobs_of_a_script_that_skips_come_one_by_one(transact: Transactions, alice: Caller) -> None:
    save(transact, alice, "single", overlap="skip")
    numbers = [schedule(transact, alice, script="single") for _ in range(3)]
    for number in numbers:
        past(transact, number, MINUTE)
    fire_all(transact)
    assert len(fired(transact)) == 1
    problems = [row_of(transact, number).problem for number in numbers]
    assert problems.count(None) == 1 and sum("skipped" in (problem or "") for problem in problems) == 2


def gone(transact: Transactions, alice: Caller, how: str) -> None:
    if how == "inactive":
        transact.sql('UPDATE "user" SET active = false WHERE id = :id', id=alice.user_id)
    else:
        transact(scripts.archive, alice, Name(alice.username, "tool"), None)
        transact.sql("UPDATE schedule SET enabled = true, due_at = instant")  # as one that was locked just then
    if how == "purged":
        transact(scripts.purge, caller_of(alice.user_id, "admin"), Name(alice.username, "tool"))


@pytest.mark.parametrize(("how", "said"), [
    ("inactive", "owner is not active"), ("archived", "is archived"), ("purged", "is gone"),
])  # fmt: skip
def test_it_pauses_itself_and_says_why(transact: Transactions, alice: Caller, how: str, said: str) -> None:
    number = schedule(transact, alice)
    past(transact, number, MINUTE)
    gone(transact, alice, how)
    fire_all(transact)
    row = row_of(transact, number)
    assert (row.enabled, row.due_at) == (False, None) and said in row.problem
    assert fired(transact) == []


def test_archiving_pauses_at_once_and_waits_for_nobody_who_fires(transact: Transactions, alice: Caller) -> None:
    locked, other = schedule(transact, alice), schedule(transact, alice)
    with transact.engine.begin() as connection:
        connection.execute(text("SELECT FROM schedule WHERE id = :id FOR UPDATE"), {"id": locked})
        transact(scripts.archive, alice, Name(alice.username, "tool"), None)
    row = row_of(transact, other)
    assert (row.enabled, row.due_at, row.problem) == (False, None, f"The script {alice.username}/tool is archived.")
    assert row_of(transact, locked).enabled


def test_a_share_taken_back_pauses_it(transact: Transactions, alice: Caller) -> None:
    colleague = owner(transact)
    name = Name(alice.username, "tool")
    share = {"user": colleague.username, "group": None, "level": "run"}
    made = transact(shares.share, alice, name, share)
    number = schedule(transact, colleague, script=str(name))
    past(transact, number, 2 * MINUTE)
    fire(transact, 600)
    assert len(fired(transact)) == 1
    assert transact.scalar("SELECT user_id FROM job") == colleague.user_id
    transact(shares.unshare, alice, name, made["id"])
    fire_all(transact, 600)
    assert "not shared" in row_of(transact, number).problem and len(fired(transact)) == 1


def test_what_cannot_be_made_is_told_and_it_goes_on(transact: Transactions, alice: Caller) -> None:
    number = schedule(transact, alice)
    asked = {"name": "days", "type": "integer"}
    transact(scripts.change, alice, Name(alice.username, "tool"), {"parameters": [asked], "message": ""}, None,
             SETTINGS.scripts)  # fmt: skip
    instant = past(transact, number, MINUTE)
    fire_all(transact)
    row = row_of(transact, number)
    assert row.enabled and "days" in row.problem and row.instant == instant + MINUTE
    assert fired(transact) == []


def test_who_has_too_many_jobs_is_fired_later(transact: Transactions, alice: Caller) -> None:
    number = schedule(transact, alice)
    instant = past(transact, number, MINUTE)
    transact.sql("INSERT INTO user_limits (user_id, max_queued) VALUES (:id, 0)", id=alice.user_id)
    fire(transact)
    row = row_of(transact, number)
    assert fired(transact) == [] and (row.instant, row.last_instant) == (instant, None)
    assert row.due_at > datetime.now(UTC) and "queued" in row.problem
    transact.sql("DELETE FROM user_limits")
    transact.sql("UPDATE schedule SET due_at = now()")
    fire(transact)
    assert fired(transact) == [(number, instant)]


def test_whoever_may_only_run_a_script_has_no_jobs_of_others_cancelled(transact: Transactions, alice: Caller) -> None:
    colleague, name = owner(transact), Name(alice.username, "tool")
    share = {"user": colleague.username, "group": None, "level": "edit"}
    transact(shares.share, alice, name, share)
    number = schedule(transact, colleague, script=str(name), overlap="cancel_previous")
    mine = schedule(transact, alice)
    past(transact, mine, MINUTE)
    fire_all(transact)
    transact(shares.share, alice, name, {**share, "level": "run"})
    past(transact, number, MINUTE)
    fire_all(transact)
    assert transact.scalar("SELECT count(*) FROM job WHERE status IS NULL") == 2  # one waits for the other
    for overlap in ("cancel_previous", "queue_latest"):
        with pytest.raises(InvalidRequest, match="may change the script"):
            schedule(transact, colleague, script=str(name), overlap=overlap)
    schedule(transact, colleague, script=str(name), overlap="skip")


def test_it_has_no_more_rights_than_the_token_that_made_it(transact: Transactions, alice: Caller) -> None:
    narrow = dataclasses.replace(alice, scopes=alice.scopes - {"secrets:use"})
    numbers = [schedule(transact, narrow), schedule(transact, alice)]
    transact.sql("INSERT INTO secret (user_id, name, value) VALUES (:id, 'KEY', 'x')", id=alice.user_id)
    change = {"defaults": {"secrets": ["KEY"]}, "message": ""}
    transact(scripts.change, narrow, Name(alice.username, "tool"), change, None, SETTINGS.scripts)
    for number in numbers:
        past(transact, number, MINUTE)
    fire_all(transact)
    assert [number for number, _ in fired(transact)] == numbers[1:]
    assert "secrets:use" in row_of(transact, numbers[0]).problem
    with pytest.raises(NotAllowed):
        transact(schedules.change, narrow, numbers[1], {"every": 120.0}, MEANS)
    transact(schedules.change, alice, numbers[0], {"every": 120.0}, MEANS)
    past(transact, numbers[0], 2 * MINUTE)
    fire_all(transact, 600)
    assert len(fired(transact)) == 2


def test_much_that_was_missed_is_not_looked_for_in_one_transaction(
    transact: Transactions, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "_SECONDS", 0)
    save(transact, alice, "free", overlap="parallel")
    numbers = [schedule(transact, alice, script="free", catch_up="all", catch_up_limit=3) for _ in range(4)]
    for number in numbers:
        past(transact, number, timedelta(days=2))
    assert fire(transact) == 1  # and the others the next time
    looked = []
    latest = Timetable.latest
    monkeypatch.setattr(Timetable, "latest", lambda *args: looked.append(args) or latest(*args))
    fire_all(transact)
    assert len(fired(transact)) == 12 and len(looked) == 3  # once for each of them


def test_what_is_only_late_still_comes(transact: Transactions, alice: Caller) -> None:
    number = schedule(transact, alice, every=3600, jitter=1800)
    row = row_of(transact, number)
    ago = row.instant - datetime.now(UTC) + timedelta(seconds=1)
    transact.sql("UPDATE schedule SET created_at = created_at - CAST(:by AS interval)", by=ago)  # its instant has come
    row = transact(schedules.find, alice, number)
    late = schedules.timetable(row).late(row.created_at + timedelta(hours=1))
    if late > datetime.now(UTC) + timedelta(seconds=2):  # by chance, but for one in a thousand
        assert schedules.coming(row, transact(schedules.clock), 1) == [late]
        transact(schedules.change, alice, number, {"catch_up": "last"}, MEANS)
        assert row_of(transact, number).due_at == late


def test_many_at_once_are_fired_in_parts(transact: Transactions, alice: Caller) -> None:
    save(transact, alice, "large", code="#" * 900_000, overlap="parallel")
    numbers = [schedule(transact, alice, script="large") for _ in range(9)]
    for number in numbers:
        past(transact, number, MINUTE)
    parts = list(itertools.takewhile(bool, iter(lambda: fire(transact), None)))
    assert len(parts) > 1 and sum(parts) == 9
    assert len(fired(transact)) == 9


def test_a_look_finds_one_of_those_whose_jobs_are_skipped_for_one_another(
    transact: Transactions, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "_AT_ONCE", 2)
    save(transact, alice, "single", overlap="skip")
    save(transact, alice, "free", overlap="parallel")
    numbers = [schedule(transact, alice, script=name) for name in ("single", "free", "single", "free", "free")]
    for number in numbers:
        past(transact, number, MINUTE)
    transact.sql("UPDATE schedule SET due_at = now()")
    parts = [(part.ids, part.held) for part in transact(firing.due)]
    assert parts == [([numbers[0]], False), ([numbers[1], numbers[3]], True), ([numbers[4]], True)]


def test_each_user_s_first_comes_first_and_is_not_held(transact: Transactions, alice: Caller) -> None:
    mine = [schedule(transact, alice) for _ in range(4)]
    bob = owner(transact)
    save(transact, bob, overlap="parallel")
    his = [schedule(transact, bob) for _ in range(2)]
    for number in (*mine, *his):
        past(transact, number, MINUTE)
    transact.sql("UPDATE schedule SET due_at = now()")
    parts = [(part.ids, part.held) for part in transact(firing.due)]
    assert parts == [([mine[0], his[0]], False), ([*mine[1:], his[1]], True)]


def test_what_is_held_begins_at_its_time_and_counts_before(transact: Transactions, alice: Caller) -> None:
    save(transact, alice, "many", overlap="parallel")
    number = schedule(transact, alice, script="many")
    past(transact, number, MINUTE)
    assert transact(firing.fire, [number], LIMITS, RULES, GRACE, 60.0) == 1
    waits = transact.scalar("SELECT run_at - now() FROM deferred_job")
    assert timedelta(seconds=50) < waits <= timedelta(seconds=60)
    assert transact.scalar("SELECT run_at FROM job") is None
    assert transact(queue.promote, 10) == 0
    # A run that is to be skipped while there is another sees it.
    transact.sql("UPDATE script SET overlap = 'skip' WHERE name = 'many'")
    other = schedule(transact, alice, script="many")
    past(transact, other, MINUTE)
    fire_all(transact)
    assert "skipped" in row_of(transact, other).problem and len(fired(transact)) == 1
    transact.sql("UPDATE deferred_job SET run_at = now()")
    assert transact(queue.promote, 10) == 1
    assert transact.scalar("SELECT count(*) FROM ready_job") == 1


def test_the_next_look_is_when_something_is_due(transact: Transactions, alice: Caller) -> None:
    assert transact(firing.seconds_until_due(1.5).on) == 1.5
    number = schedule(transact, alice)
    transact.sql("UPDATE schedule SET due_at = now() + interval '1 hour' WHERE id = :id", id=number)
    assert transact(firing.seconds_until_due(1.5).on) == 1.5
    assert 3500 < transact(firing.seconds_until_due(1e6).on) <= 3600
    transact.sql("UPDATE schedule SET due_at = now() - interval '1 hour' WHERE id = :id", id=number)
    assert transact(firing.seconds_until_due(1.5).on) < 0


def test_those_of_one_script_share_what_it_says_and_nothing_else(transact: Transactions, alice: Caller) -> None:
    change = {"parameters": [{"name": "days", "type": "integer", "default": 1, "position": 1}], "message": ""}
    transact(scripts.change, alice, Name(alice.username, "tool"), change, None, SETTINGS.scripts)
    urls = [f"https://example.org/{number}" for number in range(3)]
    numbers = [
        schedule(transact, alice, notify=[{"url": urls[0]}], parameters=given) for given in ({}, {"days": 2}, {})
    ]
    transact.sql("""UPDATE schedule SET overrides = '{"env": {"A": "1"}}' WHERE id = :id""", id=numbers[2])
    numbers += [schedule(transact, alice, notify=[{"url": url}]) for url in urls[1:]]
    for number in numbers:
        past(transact, number, MINUTE)
    fire_all(transact)
    rows = transact.sql("SELECT args, env, notify FROM job ORDER BY schedule_id")
    env = {"days": "1"}
    assert [(row.args, row.env) for row in rows] == [
        (["1"], env), (["2"], {"days": "2"}), (["1"], {**env, "A": "1"}), (["1"], env), (["1"], env),
    ]  # fmt: skip
    assert [[target["url"] for target in row.notify] for row in rows] == [
        [urls[0]], [urls[0]], [urls[0]], [urls[1]], [urls[2]],
    ]  # fmt: skip


def test_one_that_cannot_be_fired_keeps_no_other_from_it(
    transact: Transactions, alice: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = [schedule(transact, alice, cron="* * * * *", every=None) for _ in range(3)]
    transact.sql("UPDATE schedule SET timezone = 'Gone/Zone' WHERE id = :id", id=numbers[0])
    transact.sql("UPDATE schedule SET parameters = '5' WHERE id = :id", id=numbers[1])
    for number in numbers:
        past(transact, number, MINUTE)
    fire_all(transact)
    assert [number for number, _ in fired(transact)] == numbers[2:]
    rows = [row_of(transact, number) for number in numbers]
    assert [(row.enabled, row.due_at is None) for row in rows] == [(False, True), (False, True), (True, False)]
    assert "Gone/Zone" in rows[0].problem and "log" in rows[1].problem
    assert caplog.text.count("cannot be fired: paused") == 2


def test_jitter_is_of_the_schedule(transact: Transactions, alice: Caller) -> None:
    numbers = [schedule(transact, alice, every=3600, jitter=1800) for _ in range(5)]
    rows = [row_of(transact, number) for number in numbers]
    late = [(row.due_at - row.instant).total_seconds() for row in rows]
    assert len(set(late)) == 5 and all(0 <= seconds < 1800 for seconds in late)
