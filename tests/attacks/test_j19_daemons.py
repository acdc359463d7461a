"""J19: what tries to stay when its job has ended, by every way that there is to let go of it."""

from __future__ import annotations

import itertools
import shutil
import uuid

import pytest

from tests.attacks.jobs import ended, output
from tests.client import Person
from tests.services import processes
from tests.waiting import eventually

STAYERS = """
sleep {mark} &
nohup sleep {mark} >/dev/null 2>&1 &
# Sessions, or process groups where it may not have sessions.
(setsid sleep {mark} || exec sh -mc 'sleep {mark} &') &
(away='trap "" TERM HUP INT; sleep {mark} & sleep {mark}'; (setsid sh -c "$away" || sh -mc "($away) &") &) &
sh -c 'trap "" TERM HUP INT QUIT; sleep {mark}' &
(sleep {mark} & kill -STOP $!)
(exec >/dev/null 2>&1 </dev/null; cd /; umask 0; (setsid sleep {mark} || sh -mc 'sleep {mark} &') &)
/usr/bin/python3 -c 'import os, signal, time
if os.fork(): os._exit(0)
try: os.setsid()
except OSError: os.setpgid(0, 0)
if os.fork(): os._exit(0)
os.closerange(0, 1000)
for number in range(1, 32):
    if number not in (9, 19): signal.signal(number, signal.SIG_IGN)
os.execlp("sleep", "sleep", "{mark}")' &
tmux -L away new -d 'exec sleep {mark}' 2>/dev/null
screen -dm sleep {mark} 2>/dev/null
start-stop-daemon --start --background --exec /usr/bin/sleep -- {mark} 2>/dev/null
# Services that would start it for us, and files that make them do it.
systemd-run --user sleep {mark} && echo systemd-run
systemd-run sleep {mark} && echo systemd-run
echo 'sleep {mark}' | at now && echo at
echo '* * * * * sleep {mark}' | crontab - && echo crontab
mkdir -p ~/.config/systemd/user ~/.config/autostart
echo 'sleep {mark}' | tee ~/.profile ~/.bashrc ~/.config/autostart/x.desktop >/dev/null
(echo > /var/spool/cron/crontabs/job) 2>/dev/null && echo spool
(echo > /etc/cron.d/job) 2>/dev/null && echo cron.d
"""
_numbers = itertools.count(uuid.uuid4().int % 1_000_000 + 10_000_000)


@pytest.mark.parametrize("end", ["exit", "failure", "cancel", "timeout"])
def test_nothing_stays(alice: Person, end: str) -> None:
    mark = f"10{next(_numbers)}.5"
    rest = {"exit": "exit 0", "failure": "kill -9 $$"}.get(end, f"while :; do sleep {mark}; done")
    up = "for n in 1 2 3 4 5 6 7 8 9 10; do [ $(pgrep -fc 'sleep {mark}') -ge 9 ] || sleep 0.05; done; echo up\n"
    code = STAYERS.format(mark=mark) + up.format(mark=mark) + rest
    job = alice.api.submit(code, **({"timeout": 2} if end == "timeout" else {}))
    if end == "cancel":
        eventually(lambda: b"up\n" in output(alice, job))
        assert len(processes(mark)) >= 9 + bool(shutil.which("tmux"))
        alice.api.post(f"/api/jobs/{job['id']}/cancel")
    record = ended(alice, job)
    assert processes(mark) == []
    wanted = {"exit": "COMPLETED", "failure": "FAILED", "cancel": "CANCELLED", "timeout": "TIMEOUT"}
    assert record["status"] == wanted[end]
    assert output(alice, job) in (b"up\n", b"" if end == "timeout" else b"up\n")  # as far as it got in that time
