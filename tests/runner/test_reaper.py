"""The reaper: who beats is never declared gone, who does not is in time, and no outage is held against anybody."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_service.scheduler import Reaper

LOST_AFTER = 60.0
NAMES = [uuid.UUID(int=number) for number in range(3)]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_noticed_when_it_has_lasted() -> None:
    clock = Clock()
    reaper = Reaper(LOST_AFTER, clock)
    silent: list[tuple[int, uuid.UUID, int]] = []
    while not silent:
        silent = reaper.observe({1: (NAMES[0], 5)})
        clock.now += 1
    assert silent == [(1, NAMES[0], 5)]
    assert LOST_AFTER < clock.now - 1000 < LOST_AFTER + 3


# Steps: time passes, some of the runners beat, and the database can be asked, or (one time in sixteen) cannot.
steps = st.tuples(st.floats(0.1, LOST_AFTER / 4), st.sets(st.sampled_from([0, 1, 2])), st.integers(0, 15))


@given(trace=st.lists(steps, min_size=15, max_size=100))
def test_who_beats_is_never_declared_gone(trace: list[tuple[float, set[int], int]]) -> None:
    clock = Clock()
    reaper = Reaper(LOST_AFTER, clock)
    beats = dict.fromkeys(range(3), 0)
    last = dict.fromkeys(range(3), clock.now)  # when each has beaten
    for seconds, beating, luck in trace:
        clock.now += seconds
        for runner in beating:
            beats[runner] += 1
            last[runner] = clock.now
        if luck == 0:
            reaper.forget()
            continue
        found = reaper.observe({runner: (NAMES[runner], beats[runner]) for runner in beats})
        assert all(clock.now - last[runner] > LOST_AFTER for runner, _, _ in found)


@given(pauses=st.lists(st.floats(0.1, LOST_AFTER / 4), min_size=12, max_size=200))
def test_who_is_silent_is_declared_gone_within_twice_the_time(pauses: list[float]) -> None:
    clock = Clock()
    reaper = Reaper(LOST_AFTER, clock)
    reaper.observe({1: (NAMES[0], 5)})
    begun = clock.now
    for pause in pauses:
        clock.now += pause
        silent = reaper.observe({1: (NAMES[0], 5)})
        assert silent or clock.now - begun <= 2 * LOST_AFTER


def test_an_outage_gives_everybody_his_full_time() -> None:
    clock = Clock()
    reaper = Reaper(LOST_AFTER, clock)
    reaper.observe({1: (NAMES[0], 5)})
    clock.now += 10 * LOST_AFTER
    reaper.forget()  # the database could not be asked
    assert reaper.observe({1: (NAMES[0], 5)}) == []
    clock.now += LOST_AFTER / 4
    assert reaper.observe({1: (NAMES[0], 5)}) == []


@pytest.mark.parametrize("gap", [0.8 * LOST_AFTER, 2 * LOST_AFTER, 1000 * LOST_AFTER])
def test_time_without_a_look_is_held_against_nobody(gap: float) -> None:
    # As when the database hung, or this process was stopped: the runners could not beat, or nobody would have noticed.
    clock = Clock()
    reaper = Reaper(LOST_AFTER, clock)
    reaper.observe({1: (NAMES[0], 5)})
    clock.now += LOST_AFTER / 4
    reaper.observe({1: (NAMES[0], 5)})
    clock.now += gap
    assert reaper.observe({1: (NAMES[0], 5)}) == []
    clock.now += LOST_AFTER / 4
    assert reaper.observe({1: (NAMES[0], 5)}) == []


def test_a_successor_starts_anew() -> None:
    clock = Clock()
    reaper = Reaper(LOST_AFTER, clock)
    reaper.observe({1: (NAMES[0], 5)})
    for _ in range(5):
        clock.now += LOST_AFTER / 4
        incarnation = NAMES[0] if clock.now - 1000 < LOST_AFTER / 2 else NAMES[1]
        assert reaper.observe({1: (incarnation, 5)}) == []
