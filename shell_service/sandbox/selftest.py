"""A runner's test of its own sandbox: the real thing, with the limits of a job that asks for none."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
from collections.abc import Awaitable, Callable

from shell_service.limits import JobLimits

from .command import Command, Exit, SandboxError
from .order import kernel_limits
from .process import PATIENCE, Launcher, Process
from .walls import NICE

NAMESPACES = (
    "user namespaces for everybody (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, on Ubuntu"
    " kernel.apparmor_restrict_unprivileged_userns=0)"
)
EVERYTHING = f"Linux 5.12, libseccomp2, {NAMESPACES}, and in a container a /proc without masks"
#: What is probably missing, by a word of the error.
MISSING = {
    "seccomp": "libseccomp2",
    "unshare": NAMESPACES,
    "clone": NAMESPACES,
    "mount proc": "a /proc without masks: a container has to be run without them",
    "mount_setattr": "Linux 5.12 or newer",
    "newuidmap": "the package uidmap, installed as its distribution means it",
    "newgidmap": "the package uidmap, installed as its distribution means it",
}
#: Prints a word for each wall that is not there, then "end". Arguments: the limits, as the kernel shows them.
SCRIPT = rb"""
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status; }
limit() { sed -n "s/^Max $1  *[^ ]*  *\([^ ]*\).*/\1/p" /proc/self/limits; }
size() { echo $(($(stat -f -c '%b * %S' $1))); }
[ "$(id -u)" = 1000 ] || echo uid
case "$(status CapPrm)$(status CapEff)$(status CapBnd)" in *[!0]*) echo capabilities ;; esac
[ "$(status NoNewPrivs)" = 1 ] || echo no-new-privileges
case "$(status Seccomp) $(unshare --user true 2>&1)" in 2*"not permitted"* | 2*"not found"*) ;; *) echo filter ;; esac
[ "$(cat /proc/sys/user/max_user_namespaces)" = 0 ] || echo nested-namespaces
[ "$(hostname)" = job ] || echo host-name
[ ! -e /proc/1 ] && [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 9 ] || echo processes
for path in / /usr /etc /dev /run/job; do (: > $path/x) 2>/dev/null && echo read-only; done
(echo 0 > /proc/self/oom_score_adj) 2>/dev/null && echo read-only-proc
for path in /root /home /sys /etc/shadow /run/job/secrets; do [ ! -e $path ] || echo host-files; done
[ "$(grep -c . /proc/net/route)" -le 1 ] || echo network
[ "$(ls /proc/self/fd | tr '\n' ' ')" = "0 1 2 3 " ] || echo descriptors
known='^(PATH|HOME|TMPDIR|LANG|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_)='
[ -z "$(cat /proc/self/environ | tr '\0' '\n' | grep -vE "$known")" ] || echo environment
[ "$(limit 'open files')" = $1 ] || echo limit-of-open-files
[ "$(limit 'file size')" = $2 ] || echo limit-of-file-size
[ "$(limit processes)" -le $3 ] || echo limit-of-processes
[ "$(limit 'cpu time')" -le $4 ] || echo limit-of-cpu-seconds
[ "$(limit 'core file size')" -le 1 ] || echo limit-of-core-dumps
[ "$(size /job)" = $5 ] && [ "$(size /tmp)" = $6 ] && [ "$(size /dev/shm)" = $7 ] || echo limit-of-disk
[ "$(cat /proc/self/oom_score_adj) $(nice)" = "1000 $8" ] || echo priority
echo end
"""
SECRET_SCRIPT = b"cd /run/job/secrets && ls -l TEST | cut -c 1-10 && cat TEST"


class Fallen(Exception):
    """Walls that do not stand, by name."""


async def walls_stand(launcher: Launcher, limits: JobLimits, tmp_size: int, shm_size: int) -> None:
    """Raises `Fallen`, or `SandboxError` where no sandbox can be made."""
    secret = secrets.token_hex()
    command = Command("/bin/sh", SECRET_SCRIPT, secrets={"TEST": secret.encode()}, limits=limits)
    other = await launcher.start(command)  # is there while the first job looks around
    try:
        held = {number: hard for number, (_, hard) in kernel_limits(limits).items()}
        numbers = resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CPU
        expected = (
            *(held[number] for number in numbers),
            *map(_pages, (limits.disk, tmp_size, shm_size)),
            NICE,
        )
        ended, said = await _run(
            await launcher.start(Command("/bin/sh", SCRIPT, tuple(map(str, expected)), limits=limits))
        )
        if ended.return_code != 0 or said[-1:] != ["end"]:
            raise Fallen(*said, str(ended))
        if said[:-1]:
            raise Fallen(*said[:-1])
    finally:
        ended, said = await _run(other)
    if said != ["-r--------", secret]:
        raise Fallen("secrets")


async def jobs_run(launcher: Launcher, limits: JobLimits) -> None:
    """The same where there are no walls: a job ends as it should."""
    ended, said = await _run(await launcher.start(Command("/bin/sh", b"echo end", limits=limits)))
    if ended.return_code != 0 or said != ["end"]:
        raise Fallen(*said, str(ended))


async def problem(test: Callable[[], Awaitable[None]]) -> tuple[str, str] | None:
    """Runs a test: what is wrong, for the operator, and what is missing, for everybody, which tells nothing secret."""
    try:
        await test()
    except SandboxError as error:
        detail = error.detail.strip().splitlines()[-1]
        missing = next((what for word, what in MISSING.items() if word in detail), EVERYTHING)
        return f"The sandbox cannot be made: {detail}. Needed: {missing}.", missing
    except Fallen as fallen:
        names = ", ".join(fallen.args)
        return f"The sandbox's walls do not stand: {names}. Needed: {EVERYTHING}.", EVERYTHING
    except TimeoutError:
        return f"The sandbox's test did not end within {PATIENCE:g} s.", "a machine with less to do"
    return None


async def _run(process: Process) -> tuple[Exit, list[str]]:
    process.go()
    try:
        async with asyncio.timeout(PATIENCE):
            ended = await process.wait()
        return ended, os.read(process.stdout, 4096).decode(errors="replace").split()
    except BlockingIOError:
        raise Fallen("output") from None
    finally:
        process.kill()  # nothing is left when it has ended by itself
        os.close(process.stdout)
        os.close(process.stderr)
        os.close(process.artifacts)


def _pages(size: int) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    return -(-size // page) * page
