"""J1: the files of the host, of the service and of another user's job, by every name that they might have."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from shell_service.settings import ROOT
from tests.attacks.jobs import findings, pid_of, running
from tests.client import Person
from tests.stack import Stack

CODE = """
for path in GIVEN:
    for way in ("", "/proc/self/root", "/proc/self/cwd/../..", "/job/../../..", "/dev/../..", "/proc/1/root"):
        tell(way + path, os.listdir if os.path.isdir(way + path) else open, way + path)
tell("above", lambda: os.stat("/..").st_ino == os.stat("/").st_ino == os.stat("/job/..").st_ino)
tell("names", lambda: sorted(os.listdir("/job/..")))
tell("job", os.listdir, "/job")
"""


def test_they_are_not_there(stack: Stack, alice: Person, bob: Person) -> None:
    settings, mark = stack.settings, str(900_000 + uuid.uuid4().int % 100_000)
    code = f"echo > /job/secret; echo > /tmp/secret; echo > /dev/shm/secret; echo up; exec sleep {mark}"
    with running(bob, code) as other:
        other_pid, runner = pid_of(mark), stack.pids()["runner_00"]
        ours = [stack.config, settings.tokens_file, settings.data_dir, settings.output_dir, settings.secrets_dir,
                settings.socket_dir, settings.log_dir, ROOT / "config.yaml.defaults", Path(__file__)]  # fmt: skip
        hosts = ["/etc/shadow", "/etc/ssh", "/root", "/home", "/sys", "/boot", "/opt", "/srv", "/var/log", "/var/lib",
                 "/run/systemd", "/usr/../root", f"/proc/{runner}/environ", f"/proc/{other_pid}/root/job/secret",
                 f"/proc/{other_pid}/cwd/secret", "/job/secret", "/tmp/secret", "/dev/shm/secret",
                 f"/job/../{other['id']}"]  # fmt: skip
        assert all(os.path.exists(path) for path in ours)
        found = findings(alice, CODE, [*map(str, ours), *hosts])
    assert found.pop("above")
    linked = {name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32") if Path("/", name).exists()}
    assert set(found.pop("names")) == {"dev", "etc", "job", "proc", "run", "tmp", "usr", "var"} | linked
    assert found.pop("job") == []
    assert len(found) == 6 * (len(ours) + len(hosts))
    assert {path: answer for path, answer in found.items() if answer != "ENOENT"} == {}
