"""J3: secrets of the service and of others in the environment, in /proc, in memory of other processes."""

from __future__ import annotations

import json
import os

from tests.attacks.jobs import findings, running
from tests.client import Person
from tests.stack import Stack

CODE = """
tell("names", lambda: sorted(os.environ))
pids = lambda: sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
tell("mine", os.getpid)
tell("pids", pids)
for name in ("environ", "cmdline", "maps", "mem", "fd", "cwd", "root", "exe", "status", "stat", "comm"):
    for pid in ["1", *GIVEN]:
        tell(f"{pid} {name}", os.stat, f"/proc/{pid}/{name}")
shown = []
for folder, _, names in os.walk("/proc/self"):
    if folder.count("/") < 4:
        for name in names:
            try:
                fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK)
                shown.append(os.read(fd, 1 << 20).decode(errors="replace"))
            except OSError:
                pass
tell("shown", "".join, shown)
"""


def test_there_are_none(stack: Stack, alice: Person, bob: Person) -> None:
    with running(bob, env={"HIDDEN": "neighbour's"}):
        hosts = [str(pid) for pid in (os.getpid(), *stack.pids().values())]
        found = findings(alice, CODE, hosts, env={"MINE": "of her own"})
    assert set(found.pop("names")) - {"PWD", "OLDPWD", "_", "LC_CTYPE"} == {
        "PATH", "HOME", "TMPDIR", "LANG", "USER", "LOGNAME", "SHELL", "MINE"}  # fmt: skip
    mine = found.pop("mine")
    assert mine in found["pids"]
    assert set(found.pop("pids")) <= {2, 3, 4}
    shown = found.pop("shown")
    assert "of her own" in shown
    secrets = [stack.admin_token, alice.token, bob.token, "neighbour's", str(stack.folder)]
    secrets += [path.read_text().strip() for path in stack.settings.secrets_dir.iterdir() if path.is_file()]
    assert len(secrets) > 5
    assert [secret for secret in secrets if secret in shown] == []
    unseen = {what: answer for what, answer in found.items() if answer != "ENOENT" and what.split()[0] != str(mine)}
    assert unseen == {}, json.dumps(unseen)
