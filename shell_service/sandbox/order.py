"""A job's command, as its init is told it."""

from __future__ import annotations

import math
import os
import random
import resource
from collections.abc import Mapping

from shell_service.limits import JobLimits

from .command import LAYER, Command, SandboxError
from .protocol import FOLDERS, KINDS, Order

#: Of linux/resource.h; Python has no name for it.
RLIMIT_SIGPENDING = 11
#: Timers, and signals that wait: each takes some hundred bytes of kernel memory that counts as no process's.
MAX_SIGNALS = 1024
#: Files that are kept of a job's artifacts.
MAX_ARTIFACTS = 1000

ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/job",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "USER": "job",
    "LOGNAME": "job",
    "SHELL": "/bin/sh",
}


def order(command: Command) -> Order:
    """Raises SandboxError where this machine cannot give what the job may use."""
    files = command.files
    script = f"{FOLDERS[0]}/{files.entrypoint}" if files else "/run/job/script"
    argv = (command.interpreter, script, *command.args)
    env = {**ENV, **(_with_layer(command.env) if files and files.layer else command.env)}
    return Order(
        [text.encode(errors="surrogateescape") for text in argv],
        [f"{name}={value}".encode(errors="surrogateescape") for name, value in env.items()],
        command.script,
        {name.encode(): value for name, value in command.secrets.items()},
        max(1, command.limits.disk),  # a size of 0 would be no limit
        _processors(command.limits.cpu),
        kernel_limits(command.limits),
        command.limits.artifacts,
        MAX_ARTIFACTS,
        KINDS.index(files.kind) + 1 if files else 0,
        files is not None and files.own_line,
        files is not None and files.asks,
        os.fsencode(os.path.basename(files.layer)) if files and files.layer else b"",
    )


def _with_layer(env: Mapping[str, str]) -> dict[str, str]:
    """Variables with which Python and shells find what is in a layer, after what the job's own ones name."""
    return {
        **env,
        "PYTHONPATH": ":".join(filter(None, (env.get("PYTHONPATH"), LAYER))),
        "PATH": f"{env.get('PATH', ENV['PATH'])}:{LAYER}/bin",
    }


def _processors(wanted: float) -> list[int]:
    """Those to run on; none: on all. By chance, as nobody knows which of them the other jobs of this machine use."""
    available = sorted(os.sched_getaffinity(0))
    count = math.ceil(wanted)
    return random.sample(available, count) if count < len(available) else []


def kernel_limits(limits: JobLimits) -> dict[int, tuple[int, int]]:
    """What the kernel is to refuse, soft and hard.

    Of processor time and memory it counts those of each process alone, so the first line is a watcher of all, and
    these hold what happens between two of its looks. Raises SandboxError where this machine cannot give an exact one.
    """
    seconds = math.ceil(limits.cpu_seconds) + 1
    watched = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        # Stacks of threads and reserved heaps count here, too, whether or not they are ever used.
        resource.RLIMIT_DATA: (2 * limits.memory + (512 << 20),) * 2,
        resource.RLIMIT_NPROC: (limits.processes + max(8, limits.processes // 4),) * 2,
        RLIMIT_SIGPENDING: (MAX_SIGNALS,) * 2,
    }
    exact = {
        resource.RLIMIT_FSIZE: (limits.file_size,) * 2,
        resource.RLIMIT_NOFILE: (limits.open_files,) * 2,
    }
    for number, what in ((resource.RLIMIT_NOFILE, "open files"), (resource.RLIMIT_FSIZE, "bytes in a file")):
        most, wanted = resource.getrlimit(number)[1], exact[number][1]
        if most != resource.RLIM_INFINITY and most < wanted:
            raise SandboxError(f"The job may have {wanted} {what}, but on this runner's machine {most} are the most.")
    return exact | {number: _at_most(resource.getrlimit(number)[1], pair) for number, pair in watched.items()}


def _at_most(hard: int, pair: tuple[int, int]) -> tuple[int, int]:
    return pair if hard == resource.RLIM_INFINITY else (min(hard, pair[0]), min(hard, pair[1]))
