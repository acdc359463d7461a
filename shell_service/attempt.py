"""One attempt at running a job, from its claim to its result."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial

from baselayer.failpoint import FailPoints
from shell_service.capture import Capture
from shell_service.journal import Journal
from shell_service.models import MAX_RETRY_DELAY
from shell_service.output import OutputStore
from shell_service.queue import Claim, Fenced, Result
from shell_service.sandbox import Command, Exit, Process, Sandbox, SandboxError
from shell_service.settings import Jobs

logger = logging.getLogger(__name__)

_DRAIN_OUTPUT = 2.0  # seconds that output may still come after the last process has gone


class NotBegun(Exception):
    """The script never began. `result` is what to say where that proves to be the job's own fault; None: it cannot."""

    def __init__(self, reason: str, result: Result | None = None) -> None:
        super().__init__(reason)
        self.result = result


class Attempt:
    """One attempt.

    The sandbox is made and held while the start is being recorded; only when both are done the script begins. So a
    script begins only if the database says that it may have.
    """

    def __init__(
        self,
        claim: Claim,
        interpreter: str | None,
        limits: Jobs,
        sandbox: Sandbox,
        outputs: OutputStore,
        journal: Journal,
        failpoints: FailPoints,
        runner: str,
    ) -> None:
        self.claim = claim
        self.fenced = Fenced(claim.job_id, claim.fence)
        self._interpreter = interpreter
        self._limits = limits
        self._sandbox = sandbox
        self._outputs = outputs
        self._journal = journal
        self._failpoints = failpoints
        self._runner = runner
        self._process: Process | None = None
        self._began: float | None = None
        self._ending: tuple[str, str] | None = None  # the status and reason that a signal of ours stands for
        self._timers: list[asyncio.TimerHandle] = []

    async def run(self, mark_started: Callable[[Fenced], Awaitable[bool]]) -> Result | None:
        """Run the job; return how it ended, or None when its script never began and may be given back.

        `mark_started` records the start and tells whether the script may begin.
        """
        marking = asyncio.ensure_future(mark_started(self.fenced))
        try:
            process = await self._start()
        except ValueError as error:
            await marking
            return self._result("FAILED", str(error))
        except (SandboxError, OSError) as error:
            logger.error("job %s: %s", self.claim.job_id.hex, getattr(error, "detail", error))
            await marking
            raise NotBegun(str(error), self._result("FAILED", str(error))) from error
        try:
            if not await marking:
                return None
            self._failpoints.reach("runner.started")
            return await self._let_run(process)
        finally:
            self._close(process)

    async def _start(self) -> Process:
        if self._interpreter is None:
            raise ValueError(f"This runner does not have the interpreter {self.claim.shell}.")
        claim = self.claim
        command = Command(
            self._interpreter,
            claim.code.encode(),
            tuple(claim.args),
            claim.env,
            claim.stdin.encode(),
            limits=claim.limits,
        )
        launcher = await self._sandbox.prepare(claim.user_id)
        process = self._process = await launcher.start(command)
        self._failpoints.reach("runner.held")
        create = partial(self._outputs.create, claim.job_id, claim.attempt)
        most = claim.limits.output
        self._captures = (
            Capture(process.stdout, partial(create, "stdout"), most),
            Capture(process.stderr, partial(create, "stderr"), most),
        )
        return process

    async def _let_run(self, process: Process) -> Result:
        try:
            self._journal.begin(self.claim.job_id, self.claim.fence, process.pid, process.start_time)
        except OSError as error:
            raise NotBegun(f"the start could not be noted: {error.strerror}") from error
        self._failpoints.reach("runner.journaled")
        self._began = time.monotonic()
        process.go()
        self._failpoints.reach("runner.running")
        self._later(self.claim.timeout, self.end, "TIMEOUT", f"stopped after its timeout of {self.claim.timeout:g} s")
        if self._ending:  # asked for while it was held
            self._signal(process)
        exit_ = await process.wait()
        wall = time.monotonic() - self._began
        self._stop_timers()  # what comes late changes nothing
        ending = self._ending
        for capture in self._captures:
            await capture.finish(_DRAIN_OUTPUT)
        self._failpoints.reach("runner.exited")
        result = self._result_of(exit_, wall, ending)
        self._journal.end(result)
        self._failpoints.reach("runner.result")
        return result

    def end(self, status: str, reason: str) -> None:
        """Ask the job to end, and after the grace time end it; that will be how it ended. The first asker counts."""
        if self._ending is None:
            self._ending = status, reason
            if self._process and self._began is not None:
                self._signal(self._process)

    def kill(self, status: str, reason: str) -> None:
        """End the job at once."""
        self._ending = self._ending or (status, reason)
        if self._process:
            self._process.kill()

    def _signal(self, process: Process) -> None:
        process.terminate()
        self._failpoints.reach("runner.terminated")
        self._later(self._limits.kill_grace, process.kill)

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call, *args))

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _close(self, process: Process) -> None:
        self._stop_timers()
        process.kill()  # nothing is left when it has ended by itself
        for capture in self._captures:
            capture.close()

    def _result_of(self, exit_: Exit, wall: float, ending: tuple[str, str] | None) -> Result:
        name = signal.Signals(exit_.signal).name if exit_.signal else None
        if ending:
            status, reason = ending
        elif exit_.lost:
            status, reason = "NODE_FAIL", "the process that held its sandbox died"
        elif name:
            status, reason = "FAILED", f"killed by {name} from inside"
        else:
            status, reason = ("FAILED" if exit_.return_code else "COMPLETED"), f"exit code {exit_.return_code}"
        stdout, stderr = self._captures
        return self._result(
            status,
            reason,
            return_code=exit_.return_code,
            signal=name,
            wall_seconds=round(wall, 6),
            cpu_seconds=round(exit_.cpu_seconds, 6),
            peak_memory_bytes=exit_.peak_memory_bytes,
            stdout_bytes=stdout.size,
            stderr_bytes=stderr.size,
            output_truncated=stdout.truncated or stderr.truncated,
        )

    def _result(self, status: str, reason: str, **figures: object) -> Result:
        claim, retry_in = self.claim, None
        if status in ("FAILED", "TIMEOUT") and claim.attempt <= claim.retries:
            retry_in = min(MAX_RETRY_DELAY, claim.retry_delay * 2.0 ** (claim.attempt - 1))
        return Result(claim.job_id, claim.fence, status, reason, self._runner, retry_in=retry_in, **figures)  # type: ignore[arg-type]
