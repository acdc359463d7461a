"""One attempt at running a job, from its claim to its result."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from baselayer.failpoint import FailPoints
from baselayer.share import LoopShare
from shell_service import artifacts, ends, packages
from shell_service.capture import Capture, MaskedCapture
from shell_service.ends import Ending
from shell_service.journal import Journal
from shell_service.mask import Mask
from shell_service.models import MAX_RETRY_DELAY
from shell_service.output import Kept, OutputStore
from shell_service.packages import Layer, NoRoom, Packages
from shell_service.queue import Claim, Fenced, Result
from shell_service.room import Memory
from shell_service.sandbox import UNAVAILABLE, Command, Exit, Files, NoNetwork, Process, Sandbox, SandboxError
from shell_service.sandbox.cgroup import Group, Groups
from shell_service.sandbox.gauge import Gauge, Usage, Watch
from shell_service.sandbox.tree import Tree
from shell_service.shells import AUTO, of_ending
from shell_service.uploads import UploadStore

logger = logging.getLogger(__name__)

_DRAIN_OUTPUT = 2.0  # seconds that output may still come after the last process has gone


class NotBegun(Exception):
    """The script never began. `result` is what to say where that proves to be the job's own fault; None: it cannot."""

    def __init__(self, reason: str, result: Result | None = None) -> None:
        super().__init__(reason)
        self.result = result


@dataclass(frozen=True)
class Means:
    """What the attempts of one runner share."""

    #: The runner's name.
    runner: str
    #: Paths of interpreters by their names.
    shells: Mapping[str, str]
    #: Seconds between SIGTERM and SIGKILL.
    kill_grace: float
    sandbox: Sandbox
    outputs: OutputStore
    uploads: UploadStore
    journal: Journal
    gauge: Gauge
    #: None where the kernel cannot hold limits for a job as a whole.
    groups: Groups | None
    packages: Packages
    memory: Memory
    #: The values of the secrets that a job is given, by their names; of those that there are.
    read_secrets: Callable[[Claim], Awaitable[Mapping[str, bytes]]]
    #: What looking for secrets in outputs may take of the loop's time, by user.
    masking: LoopShare
    failpoints: FailPoints

    def close(self) -> None:
        """When the last attempt has ended."""
        self.gauge.close()
        self.memory.close()
        if self.groups:
            self.groups.close()


class Attempt:
    """One attempt.

    The sandbox is made and held while the start is being recorded; only when both are done the script begins. So a
    script begins only if the database says that it may have.
    """

    def __init__(self, claim: Claim, means: Means) -> None:
        self.claim = claim
        self.fenced = Fenced(claim.job_id, claim.fence)
        self._means = means
        self._secrets: Mapping[str, bytes] = {}
        self._mask: Mask | None = None
        self._process: Process | None = None
        self._group: Group | None = None
        self._watch: Watch | None = None
        self._captures: tuple[Capture, ...] = ()
        self._began: float | None = None
        self._asks = False  # whether its init is to tell what packages its files name
        self._named: bytes | None = None  # what it told
        self._preparing: asyncio.Future[Layer] | None = None
        self._packages: Layer | None = None
        self._ending: tuple[Ending, float] | None = None  # what a signal of ours stands for, and when it was sent
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def user_id(self) -> int:
        """Whose job it is."""
        return self.claim.user_id

    @property
    def memory(self) -> int:
        """Bytes that it used when it was last looked at."""
        return self._watch.now.memory if self._watch else 0

    async def run(self, mark_started: Callable[[Fenced], Awaitable[bool]]) -> Result | None:
        """Run the job; return how it ended, or None when its script never began and may be given back.

        `mark_started` records the start and tells whether the script may begin.
        """
        marking = asyncio.ensure_future(mark_started(self.fenced))
        try:
            while True:
                try:
                    process = await self._start()
                except (ValueError, NoNetwork) as error:
                    await marking
                    return self._unbegun(error)
                except (SandboxError, OSError) as error:
                    logger.error("job %s: %s", self.claim.job_id.hex, getattr(error, "detail", error))
                    await marking
                    reason = str(error) if isinstance(error, SandboxError) else UNAVAILABLE
                    raise NotBegun(reason, self._result(("FAILED", reason))) from error
                if not await marking:
                    return None
                if self._ending:  # it came while there was no script to hear of it
                    return self._unbegun()
                self._means.failpoints.reach("runner.started")
                ran = await self._let_run(process)
                if ran is not None:
                    return ran
        finally:
            self._close()

    def _unbegun(self, error: Exception | None = None) -> Result | None:
        """What becomes of it where the script is not let go: it was to end, or cannot begin."""
        if self._ending:  # None: we stop
            return None if self._ending[0][0] == "NODE_FAIL" else self._result(self._ending[0])
        result = self._result(("FAILED", str(error)))
        # But for room, it would be the same next time.
        return result if isinstance(error, NoRoom) else dataclasses.replace(result, retry_in=None)

    async def _start(self) -> Process:
        claim, means = self.claim, self._means
        command = await self._command()
        launcher = await means.sandbox.prepare(claim.user_id, claim.network, command.files is not None)
        process = self._process = await launcher.start(command)
        self._captures = (
            self._capture("stdout", process.stdout),
            self._capture("stderr", process.stderr),
            Capture(process.artifacts, self._file("artifacts"), claim.limits.artifacts),
        )
        means.failpoints.reach("runner.held")
        if means.groups:
            try:
                self._group = means.groups.make(claim.fence, claim.limits)
                means.failpoints.reach("runner.grouped")
                self._group.enter(process.pid)
            except OSError as error:
                raise SandboxError("The limits of this job could not be set.", f"its control group: {error}") from error
        return process

    async def _command(self) -> Command:
        """What is run. Raises ValueError where that cannot be."""
        claim = self.claim
        if claim.network and not claim.may_network:
            raise ValueError("You may not give jobs the network any more; an administrator can allow it.")
        files, interpreter = await self._files(), self._interpreter()
        if claim.all_secrets:
            self._secrets = await self._means.read_secrets(claim)
            self._mask = await asyncio.to_thread(Mask, self._secrets.values())
        for name in claim.all_secrets:
            if name not in self._secrets:
                raise ValueError(f"The secret {name} does not exist any more.")
        env = dict(claim.env)
        for variable, name in claim.secret_variables.items():
            if b"\0" in self._secrets[name]:
                raise ValueError(f"The secret {name} cannot be a variable: it holds a NUL character.")
            env[variable] = self._secrets[name].decode(errors="surrogateescape")
        return Command(
            interpreter,
            claim.code.encode(),
            tuple(claim.args),
            env,
            claim.stdin.encode(),
            {name: self._secrets[name] for name in claim.secrets},
            files,
            limits=claim.limits,
        )

    def _interpreter(self) -> str:
        claim, shells = self.claim, self._means.shells
        if claim.entrypoint is not None and claim.shell == AUTO:
            return of_ending(claim.entrypoint, shells) or ""
        if claim.shell not in shells:
            raise ValueError(f"This runner does not have the interpreter {claim.shell}.")
        return shells[claim.shell]

    async def _files(self) -> Files | None:
        claim = self.claim
        if claim.upload is None or claim.upload_kind is None or claim.entrypoint is None:
            return None
        path = self._means.uploads.path(claim.upload, claim.upload_kind)
        if not path.exists():
            raise ValueError("The files that this job was given are not there any more.")
        wanted = await self._requirements()
        layer = await self._layer(wanted) if wanted else None
        self._asks = claim.upload_kind != "tar" and wanted is None
        return Files(str(path), claim.upload_kind, claim.entrypoint, claim.shell == AUTO, layer, self._asks)

    async def _requirements(self) -> Sequence[str] | None:
        """The packages that its files name, as far as is known: what an archive holds is when it has been unpacked."""
        if self._named is None:
            return self.claim.requirements
        try:
            return await asyncio.to_thread(packages.parse, self._named)
        except packages.Refused as error:
            raise ValueError(f"{packages.FILE} {error}.") from None

    async def _layer(self, requirements: Sequence[str]) -> str:
        """The layer of the packages that the job's files name; nobody waits for one whose job is to end."""
        claim = self.claim
        making = self._means.packages.layer(claim.user_id, requirements, self._file("setup"), claim.limits.output)
        self._preparing = asyncio.ensure_future(making)
        if self._ending:
            self._preparing.cancel()
        try:
            self._packages = await self._preparing
            return str(self._packages.path)
        except asyncio.CancelledError:
            if not self._ending:
                raise
            raise ValueError("It was ended before its packages were there.") from None
        finally:
            self._preparing = None

    def _file(self, stream: Kept) -> Callable[[], int]:
        """What makes the file of a stream, when there is something for it."""
        return partial(self._means.outputs.create, self.claim.job_id, self.claim.attempt, stream)

    def _capture(self, stream: Kept, pipe: int) -> Capture:
        claim, create = self.claim, self._file(stream)
        if self._mask is None:
            return Capture(pipe, create, claim.limits.output)
        ask = partial(self._means.masking.ask, claim.user_id)
        return MaskedCapture(pipe, create, claim.limits.output, self._mask.stream(), ask)

    async def _let_run(self, process: Process) -> Result | None:
        """How it ended; None: it has not begun, but told which packages its files name, and is to start with these."""
        claim, means = self.claim, self._means
        try:
            means.journal.begin(claim.job_id, claim.fence, process.pid, process.start_time)
        except OSError as error:
            raise NotBegun(f"the start could not be noted: {error.strerror}") from error
        means.failpoints.reach("runner.journaled")
        watch = self._watch = self._watched(process)
        kills = means.memory.kills()
        self._began = time.monotonic()
        process.go()
        means.failpoints.reach("runner.running")
        self._later(claim.timeout, self._time_out, self._began + claim.timeout)
        exit_ = await process.wait()
        wall = (exit_.ended_at or time.monotonic()) - self._began  # its artifacts were written after that
        self._stop_timers()  # what comes late changes nothing
        watch.stop()
        used = watch.most.most(Usage(cpu_seconds=exit_.cpu_seconds))
        await asyncio.gather(*(capture.finish(_DRAIN_OUTPUT) for capture in self._captures))
        if exit_.named is not None and self._asks:
            means.journal.take_back(claim.fence)
            self._named = exit_.named
            self._let_go()
            return None
        kept = await self._artifacts(exit_)
        means.failpoints.reach("runner.exited")
        machine_out_of_memory = exit_.signal == signal.SIGKILL and means.memory.kills() > kills
        result = self._result_of(exit_, wall, used, machine_out_of_memory, kept)
        means.journal.end(result)
        means.failpoints.reach("runner.result")
        return result

    async def _artifacts(self, exit_: Exit) -> int:
        """How many are kept: as many as were packed, if all of that is there."""
        if exit_.left_out is not None and not self._captures[2].truncated:
            return exit_.artifacts
        path = self._means.outputs.path(self.claim.job_id, self.claim.attempt, "artifacts")
        return len(await asyncio.to_thread(artifacts.index, path))

    def _watched(self, process: Process) -> Watch:
        def on_passed(limit: str, used: Usage) -> None:
            ending = ends.passed(limit, used, self.claim.limits)
            if ending[0] == "TIMEOUT":  # as with its other limit of time it may clean up
                self.end(ending)
            else:
                self.kill(ending)

        source = self._group or Tree(process.pid, process.file_systems)
        return self._means.gauge.watch(source, self.claim.limits, on_passed)

    def _time_out(self, due: float) -> None:
        left = due - time.monotonic()
        if left > 0:  # the loop counts whole milliseconds, from when it last looked at the clock: it may be early
            self._later(left + 0.001, self._time_out, due)
        else:
            self.end(ends.timed_out(self.claim.timeout))

    def end(self, ending: Ending) -> None:
        """Ask the job to end, and after the grace time end it; that will be how it ended. The first asker counts."""
        if self._ending is None:
            self._ending = ending, time.monotonic()
            if self._preparing:
                self._preparing.cancel()
            if self._process and self._began is not None:
                self._signal(self._process)

    def kill(self, ending: Ending) -> None:
        """End the job at once."""
        self._ending = self._ending or (ending, time.monotonic())
        if self._preparing:
            self._preparing.cancel()
        if self._process:
            self._process.kill()

    def _signal(self, process: Process) -> None:
        process.terminate()
        self._means.failpoints.reach("runner.terminated")
        self._later(self._means.kill_grace, process.kill)

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call, *args))

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _let_go(self) -> None:
        """Of the process, and of all that belongs to it."""
        self._stop_timers()
        if self._process:
            self._process.kill()  # nothing is left when it has ended by itself
        for capture in self._captures:
            capture.close()
        if self._group:
            self._group.close()
        self._process, self._captures, self._group, self._watch, self._began = None, (), None, None, None

    def _close(self) -> None:
        self._let_go()
        if self._packages:
            self._packages.close()

    def _result_of(self, exit_: Exit, wall: float, used: Usage, machine_out_of_memory: bool, kept: int) -> Result:
        limits, over_memory, peak_memory = self.claim.limits, False, exit_.peak_memory_bytes
        if self._group:
            told = self._group.end()
            used, over_memory, peak_memory = used.most(told.used), told.over_memory, told.used.memory or peak_memory
            machine_out_of_memory = machine_out_of_memory and told.machine_out_of_memory
        ending = self._ending and self._ending[0]
        if self._ending and exit_.ended_at is not None and exit_.ended_at < self._ending[1]:
            ending = None  # it was faster
        if ending is None:
            ending = ends.by_itself(ends.Known(exit_, limits, used, over_memory, machine_out_of_memory))
        stdout, stderr, packed = self._captures
        result = self._result(
            ending,
            return_code=exit_.return_code,
            signal=ends.signal_name(exit_.signal) if exit_.signal else None,
            wall_seconds=round(wall, 6),
            cpu_seconds=round(used.cpu_seconds, 6),
            peak_memory_bytes=max(used.memory, peak_memory),
            written_bytes=exit_.written_bytes,
            stdout_bytes=stdout.size,
            stderr_bytes=stderr.size,
            output_truncated=stdout.truncated or stderr.truncated,
            artifacts=kept,
            artifacts_bytes=packed.size,
            artifacts_truncated=packed.truncated or exit_.left_out != 0,
        )
        # Files that cannot be unpacked cannot be the next time, either.
        return dataclasses.replace(result, retry_in=None) if exit_.refused else result

    def _result(self, ending: Ending, **figures: object) -> Result:
        claim, retry_in, (status, reason) = self.claim, None, ending
        if self._mask:
            reason = self._mask.text(reason)
        if status in ("FAILED", "TIMEOUT") and claim.attempt <= claim.retries:
            retry_in = min(MAX_RETRY_DELAY, claim.retry_delay * 2.0 ** (claim.attempt - 1))
        whose = (claim.job_id, claim.fence, status, reason, self._means.runner)
        return Result(*whose, retry_in=retry_in, **figures)  # type: ignore[arg-type]
