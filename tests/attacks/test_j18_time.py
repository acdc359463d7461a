"""J18: scripts that will not end."""

from __future__ import annotations

import time

from tests.attacks.jobs import ended, output
from tests.client import Person

TIMEOUT, GRACE = 0.7, 1.0  # the latter as the attacks' service is configured
SCRIPTS = {
    "sleeps": "sleep infinity",
    "minds nothing": "trap '' TERM INT HUP QUIT USR1 ALRM CHLD; while :; do sleep 1000; done",
    "restarts": "trap 'exec /bin/sh /run/job/script' TERM; sleep 1000; sleep 1000",
    "multiplies": "trap 'sleep 1000 & sleep 1000 &' TERM; sleep 1000; while :; do sleep 1000; done",
    "stands still": "kill -STOP $$",
    "all stand still": "sleep 1000 & sleep 1000 & kill -STOP $! $$; kill -STOP -1",
    "has left": "sh -mc '(trap \"\" TERM; sleep 1000) &'\nexec sh -mc '(trap \"\" TERM; sleep 100; sleep 100)'",
    "spins": "trap '' TERM; while :; do :; done",
    "reads": "exec 3<>/tmp/none; mkfifo /tmp/f; trap '' TERM; read line < /tmp/f",
    "has closed": "exec 0<&- 1>&- 2>&-; trap '' TERM; sleep 1000; sleep 1000",
    "floods": "trap '' TERM; yes & yes",
    "blocks all": None,
}
BLOCKING = """
import os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
pid = os.fork()
if pid:  # as vfork would: waiting where no signal wakes
    os.kill(os.getpid(), signal.SIGSTOP)
while True:
    time.sleep(1000)
"""


def test_they_are_ended(alice: Person) -> None:
    begun = time.monotonic()
    jobs = {
        name: alice.api.submit(code or BLOCKING, shell="sh" if code else "python", timeout=TIMEOUT)
        for name, code in SCRIPTS.items()
    }
    for name, job in jobs.items():
        record = ended(alice, job, 10)
        assert (record["status"], record["reason"]) == ("TIMEOUT", "stopped after its timeout of 0.7 s"), name
        assert TIMEOUT <= record["wall_seconds"] < TIMEOUT + GRACE + 1, name
    assert time.monotonic() - begun < 10


def test_one_that_cleans_up_has_the_time_to(alice: Person) -> None:
    code = "trap 'echo cleaned; exit 3' TERM; sleep 1000 & wait"
    job = ended(alice, alice.api.submit(code, timeout=0.3))
    assert (job["status"], output(alice, job)) == ("TIMEOUT", b"cleaned\n")
    assert job["wall_seconds"] < 0.3 + GRACE
