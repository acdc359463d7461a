"""What a job asks of its sandbox, and how it ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shell_service.limits import JobLimits

#: What a job's owner is told whatever went wrong.
UNAVAILABLE = "The sandbox for this job could not be made."

#: Where jobs see their layer of packages, if they have one.
LAYER = "/run/packages"

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SandboxError(Exception):
    """The sandbox could not be made; the script has not begun.

    ``str(error)`` is a sentence for the job's owner; `detail` is for the operator's log and may name host paths.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail or message


class NoNetwork(SandboxError):
    """This host cannot give a job a network with a way out, now or later."""


@dataclass(frozen=True)
class Files:
    """Files that a job is given: they are unpacked into its home, and one of them is its script."""

    #: On the host.
    path: str
    kind: str  # of `protocol.KINDS`
    #: Which of them, relative to the home.
    entrypoint: str
    #: Whether a ``#!`` line that it begins with decides how it is run. Without one the interpreter does.
    own_line: bool
    #: A layer on the host that it sees at `LAYER`; None: none.
    layer: str | None = None
    #: Whether packages that they name are told, and nothing is run then; see `Exit.named`.
    asks: bool = False


@dataclass(frozen=True)
class Command:
    """What to run: one attempt of a job.

    Raises ValueError for what no process can be given: a NUL byte, or a name that is none of a variable or secret.
    """

    #: Path inside the sandbox, such as ``/bin/sh``; empty for an entrypoint that can only be run by its own line.
    interpreter: str
    #: Bound read-only at ``/run/job/script``.
    script: bytes
    #: Given to the script after its own path.
    args: tuple[str, ...] = ()
    #: The job's own variables, laid over the defaults (PATH, HOME, TMPDIR, LANG, ...).
    env: Mapping[str, str] = field(default_factory=dict)
    #: What the job reads on its standard input, then end of file.
    stdin: bytes = b""
    #: Shown to it as files, by their names: ``/run/job/secrets/NAME``.
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    #: In place of the script.
    files: Files | None = None
    #: What it may use.
    limits: JobLimits = field(kw_only=True)

    def __post_init__(self) -> None:
        if not (self.interpreter.startswith("/") or (self.files and self.files.own_line and not self.interpreter)):
            raise ValueError("the interpreter must be an absolute path")
        if any("\0" in text for text in (self.interpreter, *self.args, *self.env.values())):
            raise ValueError("a NUL character cannot be passed to a process")
        for name in self.env:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a variable")
        for name in self.secrets:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a secret")


@dataclass(frozen=True)
class Exit:
    """How a job ended: exactly one of `return_code` and `signal` is set."""

    return_code: int | None
    signal: int | None
    #: Of all the job's processes, user and system time.
    cpu_seconds: float
    #: Of the largest of them. Never below the launcher's own size, some 8 MiB: the kernel counts from before exec.
    peak_memory_bytes: int
    #: Of all of them, to files and pipes alike; what they change in mapped files does not count. None where their init
    #: was killed and could not tell.
    written_bytes: int | None
    #: When the script itself ended, by the monotonic clock; None where its init was killed and could not tell.
    ended_at: float | None = None
    #: Those of its own file systems that had no room left: the size of each in bytes, by its path.
    full: Mapping[str, int] = field(default_factory=dict)
    #: Whether the launcher died and took the job with it: then nobody knows how the script would have ended.
    lost: bool = False
    #: Files in its folder of artifacts that were kept, and that were left out: None where its init could not tell.
    artifacts: int = 0
    left_out: int | None = None
    #: Why the script did not begin: the files that it was given could not be used.
    refused: str | None = None
    #: Or that they name packages, which had been asked for: the start of their `protocol.REQUIREMENTS`.
    named: bytes | None = None
