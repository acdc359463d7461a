"""J25, J40, J45: leaving something for the next job of the same user, or for the next attempt of the same job."""

from __future__ import annotations

from tests.attacks.jobs import ended, lines, output
from tests.client import Person

LEAVE = """
echo 'echo sourced' | tee ~/.bashrc ~/.profile ~/.bash_profile ~/.bash_logout ~/.zshenv ~/.zshrc /job/script /tmp/env \
    /dev/shm/env > /dev/null
mkdir -p ~/bin ~/.local/bin ~/.local/lib/python3.11/site-packages
printf '#!/bin/sh\\necho sourced' | tee ~/bin/ls ~/.local/bin/ls > /dev/null; chmod +x ~/bin/ls ~/.local/bin/ls
echo 'print("sourced")' | tee ~/sitecustomize.py ~/usercustomize.py \
    ~/.local/lib/python3.11/site-packages/usercustomize.py ~/json.py > /dev/null
for target in /run/job/script /etc/profile /etc/bash.bashrc /etc/environment /etc/hosts /etc/resolv.conf /etc/passwd \
    /etc/nsswitch.conf /etc/ld.so.preload /etc/ld.so.cache /usr/bin/ls /usr/local/bin/ls; do
    (echo 'echo sourced' > $target) 2>/dev/null && echo "wrote $target"
    (echo > /job/x; mv /job/x $target; ln -sf /job/x $target) 2>/dev/null && echo "replaced $target"
done
mkdir -p /job/deep/a /tmp/deep; chmod 000 /job/deep /tmp/deep
/usr/bin/python3 -I -c 'import ctypes; print(ctypes.CDLL(None).shmget(0x77, 4096, 0o1666) >= 0)'
(sh -mc 'sleep 1000 &' &)
"""
LOOK = """
ls -A /job /tmp /dev/shm | grep -v :$ | grep .
ls /nosuch 2>/dev/null
cat /etc/hosts /etc/passwd /etc/nsswitch.conf | grep sourced
ls /etc/resolv.conf /etc/ld.so.preload /etc/profile 2>/dev/null
/usr/bin/python3 -c 'import ctypes, json; print(ctypes.CDLL(None).shmget(0x77, 4096, 0) >= 0)'
ls /proc | grep -c '^[0-9]'
"""


def test_nothing_is_found_by_the_next(alice: Person) -> None:
    """Not even by one that says where to look."""
    before = lines(alice, "cat /etc/* 2>/dev/null | cksum")
    assert lines(alice, LEAVE) == ["True"]
    env = {"BASH_ENV": "/job/.bashrc", "ENV": "/job/.profile", "PYTHONSTARTUP": "/job/sitecustomize.py"}
    for fields in ({}, {"env": env}, {"env": {"BASH_ENV": "/tmp/env", "ENV": "/dev/shm/env"}}):
        for shell in ("sh", "bash"):
            found = lines(alice, LOOK, shell=shell, **fields)
            assert found[0] == "False", found
            assert (len(found), int(found[1])) <= (2, 4)
    assert lines(alice, "cat /etc/* 2>/dev/null | cksum") == before


def test_nothing_is_found_by_the_next_attempt(alice: Person) -> None:
    job = ended(alice, alice.api.submit(LOOK + LEAVE + "exit 7", retries=1, retry_delay=0))
    assert (job["status"], job["attempt"], job["return_code"]) == ("FAILED", 2, 7)
    found = output(alice, job).decode().splitlines()
    assert (found[0], len(found), found[2]) == ("False", 3, "True")
    again = alice.api.post(f"/api/jobs/{job['id']}/rerun").data
    assert output(alice, ended(alice, again)).decode().splitlines() == found
