"""J28: crashes, one and many: no core is written anywhere, and nobody else notices."""

from __future__ import annotations

import resource
from pathlib import Path

from tests.attacks.jobs import ended, findings, numbers, output, submit
from tests.client import Person
from tests.stack import Stack

CODE = """
import resource, signal
tell("limit", lambda: list(resource.getrlimit(resource.RLIMIT_CORE)))
tell("more", call, GIVEN["prlimit64"], 0, resource.RLIMIT_CORE, (ctypes.c_uint64 * 2)(1 << 30, 1 << 30), 0)
dumped = []
for number in [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGQUIT, signal.SIGILL, signal.SIGSYS] * 50:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), number)
    status = os.waitpid(child, 0)[1]
    if os.WTERMSIG(status) != number or os.WCOREDUMP(status):
        dumped.append(status)
tell("dumped", lambda: dumped)
tell("left", lambda: [os.listdir(path) for path in ("/job", "/tmp", "/dev/shm")])
"""


def test_no_core_is_written(stack: Stack, alice: Person, bob: Person) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    where = {Path("/"), Path.cwd(), stack.folder, stack.settings.data_dir, Path(pattern).parent}
    before = {path: sorted(path.glob("*core*")) for path in where if path.is_dir()}
    given = numbers("prlimit64")
    storm = submit(alice, CODE, given)
    assert bob.api.submit("echo fine", wait=5)["status"] == "COMPLETED"
    assert ended(alice, storm)["status"] == "COMPLETED"
    found = findings(alice, CODE, given)
    # Less than a page is no core. With 1 no program of the host is run for it either, which 0 does not keep it from.
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert found.pop("limit") == ([1, 1] if most else [0, 0])
    # The kernel says that it dumped also where a limit of 1 let nothing be written.
    assert found.pop("left") == [[], [], []]
    assert found.pop("more") == "EPERM"
    assert found == {"dumped": []}
    crash = ended(alice, alice.api.submit("kill -SEGV $$"))
    assert (crash["status"], crash["signal"], output(alice, crash)) == ("FAILED", "SIGSEGV", b"")
    assert {path: sorted(path.glob("*core*")) for path in before} == before
