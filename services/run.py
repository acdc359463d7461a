"""The service in the foreground: supervisord as a child, from nothing to ready, and back to nothing."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from baselayer import processes, supervision
from baselayer.log import escape
from baselayer.supervision import Program, Supervisor, SupervisorError
from services import layout
from services.errors import OperatorError
from shell_service.settings import ROOT, Settings

READY_SECONDS = 60.0
# A program that keeps ending for this long while the rest waits for it will not come up.
PATIENCE_SECONDS = 8.0


class RunError(OperatorError):
    """The service cannot be started, or did not come up; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """What is written down about a start, so that others can find it: the process in front and its start time."""

    pid: int
    start: int

    def process(self) -> processes.Process | None:
        """That very process, if it is still there."""
        found = processes.look(self.pid)
        return found if found is not None and found.start == self.start else None


def record_path(settings: Settings) -> Path:
    """Where a start is written down."""
    return settings.run_dir / "running.json"


def read_record(settings: Settings) -> Running | None:
    """The start that was last written down, whether or not it still runs."""
    try:
        data = json.loads(record_path(settings).read_text())
        return Running(int(data["pid"]), int(data["start"]))
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Hold the data folder: one service at a time. Raises `RunError` when another holds it."""
    descriptor = os.open(settings.run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"a service already runs on {settings.data_dir}: `make stop` ends it, and another data_dir and "
                "server.port let a second one run beside it"
            ) from None
        yield
    finally:
        os.close(descriptor)


def end_leftovers(settings: Settings) -> int:
    """End what a start that was killed left behind, the database last; returns how many processes that were."""
    found = processes.marked(f"{layout.MARK}={settings.data_dir}")
    # These overwrite their environment; but no other program of that name works in a folder of ours.
    found += processes.in_folders({"nginx": settings.run_dir, "postgres": settings.postgres_dir})
    unique = {process.pid: process for process in found}.values()
    processes.end([process for process in unique if process.name != "postgres"], layout.runner_stop_seconds(settings))
    processes.end([process for process in unique if process.name == "postgres"], 60, {"postgres": signal.SIGINT})
    return len(unique)


def check_port(settings: Settings) -> None:
    """Raises `RunError` when something else listens where nginx is to listen."""
    host, port = settings.server.host, settings.server.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(f"cannot listen on {host}:{port} ({error.strerror}): set another server.port") from error


def start_supervisord(configuration: Path, settings: Settings) -> subprocess.Popen[bytes]:
    """supervisord in a session of its own, so that a terminal's Ctrl-C reaches it only through us, once.

    Should we be killed, the kernel tells it to stop.
    """
    descriptor = os.open(settings.log_dir / "supervisord.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(configuration)],
            env=layout.clean_environment(settings),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            umask=0o077,  # supervisord's own setting counts only when it is a daemon
            preexec_fn=_stop_with_parent,
        )


def _stop_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def is_ready(settings: Settings) -> bool:
    """Whether ``GET /api/sysinfo`` through the router is answered with 200."""
    scheme = "https" if settings.server.tls.certificate else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)  # noqa: S104
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.server.port}/api/sysinfo"
    trust = ssl._create_unverified_context() if scheme == "https" else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=trust)] if trust else [])
    )
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def wait_until_ready(
    settings: Settings, supervisord: subprocess.Popen[bytes], stopped: Callable[[], bool], seconds: float
) -> bool:
    """Wait for the first 200; false when told to stop meanwhile. Raises `RunError` with the reason when it fails."""
    supervisor = Supervisor(settings.socket_dir / "supervisor.sock")
    deadline = time.monotonic() + seconds
    failing: dict[str, float] = {}
    while not stopped():
        if supervisord.poll() is not None:
            raise RunError("supervisord ended" + _tail(settings.log_dir / "supervisord.out"))
        programs: list[Program] = []
        try:
            programs = supervisor.programs()
        except SupervisorError:
            pass  # still starting
        for program in programs:
            if program.state == supervision.RUNNING:
                failing.pop(program.name, None)
            elif program.state == supervision.BACKOFF:
                failing.setdefault(program.name, time.monotonic())
        hopeless = {name for name, since in failing.items() if time.monotonic() - since > PATIENCE_SECONDS}
        if broken := [p for p in programs if p.name in hopeless or p.state == supervision.FATAL or _gave_up(p)]:
            raise RunError("\n".join(_diagnosis(settings, program) for program in broken))
        # The schema first: until then an answer of the workers says nothing.
        migrated = any(program.group == "migrate" and program.state == supervision.EXITED for program in programs)
        if migrated and is_ready(settings):
            return True
        if time.monotonic() > deadline:
            late = [p for p in programs if p.state not in (supervision.RUNNING, supervision.EXITED)]
            late = late or [p for p in programs if p.group == "app"]
            raise RunError(
                f"not ready after {seconds:.0f} s\n" + "\n".join(_diagnosis(settings, program) for program in late)
            )
        time.sleep(0.05)
    return False


def _gave_up(program: Program) -> bool:
    return program.group == "migrate" and program.state == supervision.EXITED and program.exit_status != 0


def _diagnosis(settings: Settings, program: Program) -> str:
    return f"{program.name} did not start ({program.state_name.lower()}):" + _tail(
        settings.log_dir / f"{program.name}.log"
    )


def _tail(path: Path, lines: int = 20) -> str:
    try:
        with path.open(errors="replace") as file:
            last = deque(file, lines)
    except OSError:
        return f" it logged nothing to {path}"
    return f" the end of {path}:\n" + "".join(f"    {escape(line.rstrip())}\n" for line in last)


def banner(settings: Settings, overlay: Path | None) -> str:
    """The five lines that a person needs once it is up."""
    token_file = short(settings.tokens_file)
    configuration = f" CONFIG={shlex.quote(short(overlay))}" if overlay else ""
    return "\n".join(
        [
            f"Shell Service answers at {settings.base_url}",
            f"  token   the first administrator's is in {token_file}, as INITIAL_ADMIN",
            f"  docs    {settings.base_url}/",
            f"  logs    make log{configuration}",
            f"  stop    Ctrl-C, or make stop{configuration}",
        ]
    )


def short(path: Path) -> str:
    """The path as people in the checkout write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def run(settings: Settings, overlay: Path | None, say: Callable[[str], None]) -> None:
    """Run the service until SIGINT, SIGTERM or SIGHUP. `say` prints a line of progress.

    Returns when everything has stopped in order. Raises `RunError` when it did not come up or ended by itself; then
    nothing of it is left either.
    """
    layout.prepare_folders(settings)
    if settings.database.url == "embedded":
        settings.cluster.make_passwords()  # before anybody asks for it: all services start at once
    with alone(settings):
        if count := end_leftovers(settings):
            say(f"[check] ended {count} processes that an earlier start had left")
        check_port(settings)
        shutil.rmtree(settings.run_dir / "metrics", ignore_errors=True)  # counts of processes that are gone
        configuration = layout.write_configuration(settings, overlay)
        received: list[int] = []
        wakeup = _signals(received)
        supervisord = start_supervisord(configuration, settings)
        try:
            me = processes.look(os.getpid())
            layout.rendering.write(
                record_path(settings), json.dumps({"pid": os.getpid(), "start": me.start if me else 0})
            )
            if wait_until_ready(settings, supervisord, lambda: bool(received), READY_SECONDS):
                say(banner(settings, overlay))
            while not received and supervisord.poll() is None:
                select.select([wakeup], [], [])
                wakeup.recv(4096)
            if not received:
                raise RunError("supervisord ended by itself" + _tail(settings.log_dir / "supervisord.log"))
            say("stopping ...")
        finally:
            _stop(supervisord, settings)
            record_path(settings).unlink(missing_ok=True)


def _signals(received: list[int]) -> socket.socket:
    """Collect what asks us to stop in `received`; the socket can be read whenever a signal or a child's end came."""
    wakeup, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: received.append(number))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return wakeup


def _stop(supervisord: subprocess.Popen[bytes], settings: Settings) -> None:
    """Stop everything in order; what does not, within its limits, is ended."""
    if supervisord.poll() is None:
        supervisord.terminate()
        if not _has_ended(supervisord, settings):
            supervisord.kill()
            supervisord.wait()
    end_leftovers(settings)  # a program that had to be killed may have children


def _has_ended(supervisord: subprocess.Popen[bytes], settings: Settings) -> bool:
    """Wait for supervisord, which stops one program after the other, for as long as that may take."""
    client = Supervisor(settings.socket_dir / "supervisor.sock", 1)
    deadline = time.monotonic() + layout.stop_seconds(settings)
    while time.monotonic() < deadline:
        try:
            supervisord.wait(0.1)
        except subprocess.TimeoutExpired:
            # It looks at its children once a second, or when it is spoken to; what it answers is of no interest.
            with suppress(SupervisorError):
                client.call("supervisor.getState")
        else:
            return True
    return False


def hand_over(command: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Give the terminal to a program until it ends; returns its exit status.

    Ctrl-C is the program's: in psql it cancels a statement, in supervisor's prompt it ends a `tail -f`.
    """
    before = signal.signal(signal.SIGINT, lambda number, frame: None)  # unlike SIG_IGN it is not inherited
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def stop(settings: Settings, say: Callable[[str], None]) -> bool:
    """Stop the service that runs on this data folder, and wait for it; false when none runs.

    Raises `RunError` when it is still there after the time that its services may take.
    """
    record = read_record(settings)
    if record is None or record.process() is None:
        return False
    say("stopping ...")
    os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + layout.stop_seconds(settings) + 10
    while record.process() is not None:
        if time.monotonic() > deadline:
            raise RunError(f"process {record.pid} did not stop in time")
        time.sleep(0.05)
    return True
