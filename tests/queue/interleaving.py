"""Two transactions in every order: one stops before each of its statements in turn, and the other runs there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from tests.waiting import eventually

Act = Callable[[Session], Any]


class Transaction(threading.Thread):
    """A transaction in a thread of its own, that stops before its statement number `stop_at`; the commit is one too."""

    def __init__(self, engine: Engine, act: Act, stop_at: int | None = None) -> None:
        super().__init__(daemon=True)
        self._engine, self._act, self._left = engine, act, stop_at
        self._go = threading.Event()
        self.stopped = threading.Event()
        self.pid = 0
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._engine.connect() as connection:
                self.pid = connection.scalar(text("SELECT pg_backend_pid()"))
                connection.commit()
                event.listen(connection, "before_cursor_execute", lambda *_: self._step())
                with Session(connection) as session:
                    self.result = self._act(session)
                    self._step()
                    session.commit()
        except BaseException as error:
            self.error = error

    def _step(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._left = None
                self.stopped.set()
                assert self._go.wait(20)

    def proceed(self) -> Any:
        """Let it run to its end; returns its result."""
        self._go.set()
        self.join(20)
        assert not self.is_alive()
        if self.error:
            raise self.error
        return self.result


def run_within(engine: Engine, outer: Act, inner: Act, stop_at: int) -> tuple[Any, Any] | None:
    """Both results, when `inner` runs while `outer` stands before its statement `stop_at`; None when it has fewer.

    Where `inner` has to wait for `outer`, it waits, and comes to its end after it.
    """
    first, second = Transaction(engine, outer, stop_at), Transaction(engine, inner)
    first.start()
    eventually(lambda: first.stopped.is_set() or not first.is_alive())
    if not first.stopped.is_set():
        first.proceed()
        return None
    second.start()
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        eventually(lambda: not second.is_alive() or _waits_for_lock(connection, second.pid))
    result = first.proceed()
    return result, second.proceed()


def _waits_for_lock(connection: sqlalchemy.Connection, pid: int) -> bool:
    query = text("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = :pid")
    return bool(connection.scalar(query, {"pid": pid}))


def every_order(engine: Engine, prepare: Callable[[], tuple[Act, Act]]) -> Iterator[tuple[Any, Any]]:
    """Results of the two acts that `prepare` gives, anew for each order in which they can meet."""
    for swapped in (False, True):
        for stop_at in range(100):
            acts = prepare()
            outer, inner = reversed(acts) if swapped else acts
            results = run_within(engine, outer, inner, stop_at)
            if results is None:
                break
            yield (results[1], results[0]) if swapped else results
