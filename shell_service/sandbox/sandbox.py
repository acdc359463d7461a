"""The runner's sandbox: one launcher a user, kept while in use."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from shell_service import settings

from . import seccomp
from .command import Command, SandboxError
from .process import UNAVAILABLE, Launcher, _file
from .protocol import Setup


class Sandbox:
    """Makes sandboxes for the jobs of one runner process."""

    def __init__(self, options: settings.Sandbox, run_dir: Path) -> None:
        self._options = options
        self._launchers: OrderedDict[int, Launcher] = OrderedDict()
        self._filter: int | None = None

    async def prepare(self, user_id: int) -> Launcher:
        """The launcher of a user, ready. Raises SandboxError."""
        launcher = self._launchers.get(user_id)
        if launcher is None:
            launcher = self._new(user_id)
        await launcher.connect()
        return launcher

    async def close(self) -> None:
        """Ends all launchers, and with them what they run."""
        for launcher in self._launchers.values():
            launcher.close()
        self._launchers.clear()
        if self._filter is not None:
            os.close(self._filter)
            self._filter = None

    async def self_test(self) -> str | None:
        """None if sandboxes can be made here, else a sentence for the operator."""
        try:
            launcher = await self.prepare(0)
            process = await launcher.start(Command("/bin/sh", b"exit 7"))
        except SandboxError as error:
            return error.detail
        process.go()
        exit = await process.wait()
        os.close(process.stdout)
        os.close(process.stderr)
        return None if exit.return_code == 7 else f"the test script ended with {exit}"

    def _new(self, user_id: int) -> Launcher:
        if self._filter is None:
            try:
                self._filter = _file(seccomp.program())
            except (ImportError, OSError, RuntimeError) as error:
                raise SandboxError(UNAVAILABLE, f"no system call filter, install libseccomp2: {error}") from error
        o = self._options
        uid = o.uid_base + user_id if os.geteuid() == 0 else os.geteuid()
        setup = Setup(uid, int(o.job_size), int(o.tmp_size), int(o.shm_size), int(o.max_file), o.max_open_files)

        def used(launcher: Launcher) -> None:
            self._launchers[user_id] = launcher
            self._launchers.move_to_end(user_id)
            self._evict()

        return Launcher(setup, self._filter, used, o.launcher_idle_seconds)

    def _evict(self) -> None:
        for user_id, launcher in list(self._launchers.items())[:-1]:
            if len(self._launchers) <= self._options.max_launchers:
                return
            if not launcher.busy:
                del self._launchers[user_id]
                launcher.close()
