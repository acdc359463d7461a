"""The whole service for tests: a data folder, a port and a configuration of its own, beside whatever else runs.

with Stack(runner={"slots": 4}) as stack:
    stack.client().get("/api/sysinfo")
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from baselayer.supervision import RUNNING, Program, Supervisor
from services import docs
from services.run import end_leftovers
from shell_service.settings import ROOT, Settings, load
from tests.waiting import eventually

START_SECONDS = 75.0


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_config(path: Path, data_dir: Path, **overrides: Any) -> Settings:
    """Write a configuration that leaves nothing to a ``config.yaml`` of the checkout; returns its settings."""
    values = yaml.safe_load((ROOT / "config.yaml.defaults").read_text())
    values["data_dir"], values["tokens_file"] = str(data_dir), str(data_dir / "tokens.yaml")
    values["server"]["port"] = free_port()
    for key, value in overrides.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(values))
    return load(path)


class Stack:
    """One service, started by the verb that people use. Keyword arguments override sections of the configuration.

    Its folder is `closed` to others or, where root starts it, lets the services' own accounts pass, as tests may.
    """

    def __init__(self, python: str = sys.executable, closed: bool = False, **overrides: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shs-")).resolve()
        self.folder.chmod(0o711 if os.geteuid() == 0 and not closed else 0o700)
        self.config = self.folder / "config.yaml"
        self.settings = write_config(self.config, self.folder / "data", **overrides)
        self.printed = self.folder / "printed"
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def base_url(self) -> str:
        """Where nginx listens, without a slash at the end."""
        scheme = "https" if self.settings.server.tls.certificate else "http"
        return f"{scheme}://127.0.0.1:{self.settings.server.port}"

    @property
    def admin_token(self) -> str:
        """The first administrator's token."""
        token: str = yaml.safe_load(self.settings.tokens_file.read_text())["INITIAL_ADMIN"]
        return token

    @property
    def supervisor(self) -> Supervisor:
        """A client of this service's supervisord."""
        return Supervisor(self.settings.socket_dir / "supervisor.sock")

    @property
    def pid(self) -> int:
        """The process that ``make run`` is."""
        assert self._process is not None
        return self._process.pid

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        """An HTTP client with the given token, the first administrator's by default, none for an empty string."""
        chosen = self.admin_token if token is None else token
        headers = {"Authorization": f"token {chosen}"} if chosen else {}
        settings = {"base_url": self.base_url, "headers": headers, "timeout": 30, "verify": False, "trust_env": False}
        return httpx.Client(**{**settings, **options})

    def programs(self) -> dict[str, Program]:
        """All supervised programs by name, such as ``app_00``."""
        return {program.name: program for program in self.supervisor.programs()}

    def pids(self) -> dict[str, int]:
        """The process of each program that runs."""
        return {name: program.pid for name, program in self.programs().items() if program.pid}

    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a program's process; returns the process's number."""
        pid = self.pids()[program]
        os.kill(pid, number)
        return pid

    def stop_group(self, *groups: str) -> None:
        """Stop all programs of the groups, such as ``app``, the orderly way, and wait for it."""
        for group in groups:
            self.supervisor.call("supervisor.stopProcessGroup", group, False)
            eventually(lambda group=group: not any(program.pid for program in self._of(group)), 60)

    def start_group(self, *groups: str) -> None:
        """Start all programs of the groups, and wait until they have stayed up for a second."""
        for group in groups:
            self.supervisor.call("supervisor.startProcessGroup", group, False)
        eventually(lambda: all(program.state == RUNNING for group in groups for program in self._of(group)), 60)

    def _of(self, group: str) -> list[Program]:
        return [program for program in self.supervisor.programs() if program.group == group]

    def wait_for(self, program: str, other_than: int = 0, seconds: float = 30.0) -> int:
        """Wait until a program runs, in another process than `other_than`; returns the process's number."""

        def running() -> int:
            found = self.programs().get(program)
            return found.pid if found and found.state == RUNNING and found.pid != other_than else 0

        pid: int = eventually(running, seconds)
        return pid

    def log(self, name: str) -> str:
        """What a program has logged since the last rotation."""
        return (self.settings.log_dir / f"{name}.log").read_text(errors="replace")

    def start(self, wait: bool = True) -> None:
        """Start the service, and wait until it says that it is up. Raises `AssertionError` with what it printed."""
        self.settings.site_dir.mkdir(parents=True, exist_ok=True)
        if not docs.is_current(self.settings):  # building the real site is a test of its own
            (self.settings.site_dir / "index.html").write_text("<!doctype html><title>Shell Service</title>")
            docs.mark_current(self.settings)
        with self.printed.open("wb") as output:
            self._process = subprocess.Popen(
                [self._python, "-m", "services.manage", "--config", str(self.config), "run"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_stop_with_parent,
            )
        if wait:
            eventually(lambda: self._is_up() or self._process.poll() is not None, START_SECONDS)
            assert self._is_up(), self.printed.read_text()

    def _is_up(self) -> bool:
        return "\n  stop    " in self.printed.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 120.0) -> int:
        """Stop the service as Ctrl-C does; returns its exit status."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(number)
        return process.wait(seconds)

    def remove(self) -> None:
        """Stop the service, and delete everything that it made."""
        try:
            self.stop()
        finally:
            end_leftovers(self.settings)  # whatever the test has killed
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.settings.socket_dir.is_relative_to(self.folder):
                shutil.rmtree(self.settings.socket_dir, ignore_errors=True)


def _stop_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
