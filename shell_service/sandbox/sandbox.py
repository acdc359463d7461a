"""The runner's sandbox: one launcher a user, and one more if jobs of his want the network, kept while in use."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from shell_service import settings
from shell_service.limits import JobLimits

from . import seccomp, selftest, uids
from .command import UNAVAILABLE, NoNetwork, SandboxError
from .network import Network
from .process import Launcher, Spawner, memory_file
from .protocol import AUTOGROUP, Setup
from .remains import Remains
from .slirp import NO_PROGRAM

logger = logging.getLogger(__name__)

#: Why jobs have no network, for those who may not know more of the host; `NO_PROGRAM` is the other reason.
NOT_ALLOWED = "its host does not let slirp4netns work, and its log says more"
NETWORK_HINT = (
    "needed are slirp4netns, a /dev/net/tun that the runner may open (all may, or it is root), and, where Yama is in "
    "the kernel, sysctl kernel.yama.ptrace_scope of 0 or 1"
)

Held = Literal["hard", "watched", "none"]
#: Which limits the kernel holds by itself, without control groups; for the others the runner looks at what jobs use.
LIMITS: dict[str, Held] = {
    "memory": "watched",
    "processes": "watched",
    "cpu": "hard",
    "cpu_seconds": "watched",
    "open_files": "hard",
    "file_size": "hard",
    "disk": "hard",
    "output": "hard",
    "artifacts": "hard",
}


class Facts(TypedDict):
    """What holds for the jobs of a runner."""

    sandbox: Literal["walls", "none"]
    #: Whether each user's jobs have a uid of their own: as root, from an ordinary user's subordinate ones, or not.
    uids: Literal["own", "subordinate", "shared"]
    limits: dict[str, Held]
    #: Why jobs cannot have a network; None: they can.
    network: str | None
    #: What has to be installed or allowed before jobs can be run at all; None: nothing.
    missing: str | None


class _Kind(NamedTuple):
    """Which jobs a launcher starts: whose, whether their network has a way out, and whether they are given files."""

    user_id: int
    network: bool = False
    files: bool = False


class Sandbox:
    """Makes sandboxes for the jobs of one runner process, and in the thread of its event loop."""

    def __init__(self, options: settings.Sandbox, groups: bool = False, layers: Path | None = None) -> None:
        """`groups`: whether control groups share the processors between jobs; `layers`: the folder of those."""
        self._options, self._layers = options, layers
        self._walls = options.mode == "walls"
        self._uids = uids.choose(options.uid_base) if self._walls else uids.Shared()
        self._tested = False
        self._missing: str | None = None
        self._spawner, self._remains = Spawner(), Remains()
        # Else the kernel gives each session as much of them as all of this service, and a user could make hundreds.
        self._sessions = groups or not os.path.exists(AUTOGROUP)
        self._launchers: dict[_Kind, Launcher] = {}
        self._filters: list[int] = []
        self._network: Network | None = None
        self._no_network: str | None = None  # why, by the last test

    async def prepare(self, user_id: int, network: bool = False, files: bool = False) -> Launcher:
        """The launcher of a user, ready; with `network` for jobs whose network has a way out, with `files` for those
        that are given files.

        Raises SandboxError, which is NoNetwork if the last `test_network` said so.
        """
        if network and self._no_network:
            raise NoNetwork(f"The runner cannot give jobs the network: {self._no_network}.")
        return await self._ready(_Kind(user_id, network, files))

    async def _ready(self, kind: _Kind) -> Launcher:
        launcher = self._launchers.get(kind)
        if launcher is None:
            launcher = self._new(kind)
        await launcher.connect()
        return launcher

    async def close(self) -> None:
        """Ends all launchers, and with them what they run."""
        for launcher in self._launchers.values():
            launcher.close()
        self._launchers.clear()
        await self._spawner.close()
        if self._network is not None:
            self._network.close()
            self._network = None
        for descriptor in self._filters:
            os.close(descriptor)
        self._filters.clear()

    async def self_test(self, limits: JobLimits) -> str | None:
        """None if sandboxes can be made here and their walls stand, else a sentence for the operator.

        `limits` are what the test itself may use: those of a job that asks for none. Until it has succeeded once, it
        also decides whether users have uids of their own: nobody who had one loses it later.
        """
        if not self._tested:
            await self._test_uids()
        found = await self._test(limits)
        self._tested = self._tested or not found
        self._missing = found[1] if found else None
        return found[0] if found else None

    async def _test_uids(self) -> None:
        try:
            await self.prepare(0)
        except uids.NotMapped as error:
            logger.warning("jobs of all users share this uid: %s", error.detail)
            self._uids = uids.Shared()
            self._end(_Kind(0))
        except SandboxError:
            pass  # for another reason, which the test of all will tell

    async def _test(self, limits: JobLimits) -> tuple[str, str] | None:
        if taken := self._uids.problem():
            return taken, "a sandbox.uid_base from which on no uid is in use"
        options = self._options

        async def test() -> None:
            launcher = await self.prepare(0)
            if self._walls:
                await selftest.walls_stand(launcher, limits, options.tmp_size, options.shm_size)
            else:
                await selftest.jobs_run(launcher, limits)

        return await selftest.problem(test)

    def facts(self) -> Facts:
        """What holds here."""
        limits = LIMITS | ({} if self._walls else {"disk": "none"})
        return Facts(
            sandbox=self._options.mode,
            uids=self._uids.kind,
            limits=limits,
            network=self._no_network,
            missing=self._missing,
        )

    async def test_network(self) -> None:
        """Tries to make a network with a way out; `facts` and `prepare` say what came of it, and the log why not."""
        before = self._no_network
        if not self._walls:
            self._no_network = "there is no sandbox around them"
            return
        try:
            await self._ready(_Kind(0, network=True))
            self._no_network = None
        except SandboxError as error:
            self._no_network = NO_PROGRAM if NO_PROGRAM in error.detail else NOT_ALLOWED
            if self._no_network != before:
                detail = error.detail.strip().splitlines()[-1]
                logger.warning("jobs cannot be given the network: %s; %s", detail, NETWORK_HINT)

    def _new(self, kind: _Kind) -> Launcher:
        if self._walls and not self._filters:
            try:
                self._filters = [memory_file(seccomp.program(system_v, self._sessions)) for system_v in (True, False)]
            except (ImportError, OSError, RuntimeError) as error:
                raise SandboxError(UNAVAILABLE, f"no system call filter: {error}") from error
        o, ids = self._options, self._uids
        way = Setup.BARE if not self._walls else Setup.MAPPED if ids.kind == "subordinate" else Setup.WALLS
        layers = os.fsencode(self._layers) if kind.files and self._layers else b""
        setup = Setup(way, kind.files, *ids.of(kind.user_id), o.tmp_size, o.shm_size, layers)

        def used(launcher: Launcher) -> None:
            self._launchers[kind] = launcher
            self._evict(launcher)

        way_out = self._way_out() if kind.network else None
        return Launcher(
            self._spawner,
            setup,
            self._filters,
            way_out,
            lambda pid: ids.map(pid, kind.user_id),
            used,
            o.launcher_idle_seconds,
            self._remains,
        )

    def _way_out(self) -> Network:
        if self._network is None:
            try:
                self._network = Network(self._restrict)
            except OSError as error:
                raise SandboxError(UNAVAILABLE, f"no filter of frames: {error}") from error
        return self._network

    def _restrict(self) -> None:
        for kind, launcher in list(self._launchers.items()):
            if kind.network and self._network is not None:
                launcher.restrict(self._network.frames)

    def _evict(self, wanted: Launcher) -> None:
        """End idle launchers other than `wanted` while there are too many.

        By chance, as users take turns: of one more user than there is room for, the least recently used is always
        the very one that comes next.
        """
        idle = [key for key, other in self._launchers.items() if not other.busy and other is not wanted]
        random.shuffle(idle)
        for key in idle[: max(0, len(self._launchers) - self._options.max_launchers)]:
            self._end(key)

    def _end(self, kind: _Kind) -> None:
        launcher = self._launchers.pop(kind, None)
        if launcher:
            launcher.close()
