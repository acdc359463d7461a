"""The network that a job may be given: what it reaches, what it does not, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shell_service.sandbox import NoNetwork, kernel, network
from tests.sandbox import play_network as world
from tests.sandbox.support import (
    LIMITS,
    PYTHON,
    SCOPED,
    alive,
    command,
    execute,
    finish,
    parent,
    read_line,
    run,
    sandbox,
)
from tests.sandbox.test_kills import Played, output
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What came of jobs on a machine with a network around it."""
    argv = [sys.executable, "-m", "tests.sandbox.play_network"]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_the_machine_of_the_test_reaches_everything(told: dict[str, Any]) -> None:
    both = [f"{kind} {address}" for kind in ("tcp", "udp") for address in (*world.OTHERS, world.PUBLIC, world.PUBLIC6)]
    assert told["from the machine"] == {
        "machine": sorted(f"{kind} {address}" for kind in ("tcp", "udp") for address in world.OWN),
        "others": sorted([*both, f"udp {world.GROUP}", f"udp {world.ALL}"]),
    }


def test_a_job_reaches_what_is_public_and_nothing_else(told: dict[str, Any]) -> None:
    assert (told["problem"], told["obstacle"]) == (None, None)
    job = told["from a job"]
    assert {f"plain {kind} {world.PUBLIC}" for kind in ("tcp", "udp")} <= set(job["reached"])
    assert {name.split()[-1] for name in job["reached"]} == {world.PUBLIC}
    assert (job["machine"], job["others"]) == ([], [f"tcp {world.PUBLIC}", f"udp {world.PUBLIC}"])


def test_a_job_is_told_at_once_that_there_is_no_way(told: dict[str, Any]) -> None:
    errors = told["from a job"]["errors"]
    for address in world.OTHERS:
        assert {errors[f"plain {kind} {address}"] for kind in ("tcp", "udp")} == {"No route to host"}


def test_a_job_without_network_reaches_nothing(told: dict[str, Any]) -> None:
    job = told["from a job without"]
    assert (job["reached"], job["machine"], job["others"]) == ([], [], [])


def test_names_are_resolved_by_the_hosts_own_resolver_which_cannot_be_reached_otherwise(told: dict[str, Any]) -> None:
    assert told["name"] == world.PUBLIC
    assert told["name without"] != 0


def test_an_address_that_the_host_gets_is_kept_from_jobs_that_already_have_the_network(told: dict[str, Any]) -> None:
    later = told["from a job later"]
    assert later["before"] == ["hello", "hello"]
    assert later["knocked before"]["others"] == [f"tcp {world.LATER_OWN}", f"udp {world.LATER_OWN}"]
    assert later["after"] == ["TimeoutError", "TimeoutError"]
    assert later["knocked after"] == {"machine": [], "others": []}


# -- the filter by itself ----------------------------------------------------------------------------------------------


class Tap:
    """A socket that hands out what a tap with the filter of a host with these addresses would."""

    def __init__(self, *own: str) -> None:
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

        instructions = network.filter_of({ipaddress.IPv4Address(address) for address in own})
        self._in, self._out = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        so_attach_filter = 26
        program = Program(len(instructions) // 8, instructions)
        self._out.setsockopt(socket.SOL_SOCKET, so_attach_filter, bytes(program))
        self._in.setblocking(False)
        self._out.setblocking(False)

    def lets(self, frame: bytes) -> bool:
        try:
            self._in.send(frame)
            return self._out.recv(2000) == frame
        except (BlockingIOError, PermissionError):
            return False


def ipv4(to: str, protocol: int = 17, port: int = 80, fragment: int = 0, options: bytes = b"") -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 28, 0, fragment, 64, protocol, 0,
        socket.inet_aton("198.18.0.100"), socket.inet_aton(to),
    )  # fmt: skip
    return bytes(12) + b"\x08\x00" + header + options + struct.pack(">HHHH", 40000, port, 8, 0)


@pytest.mark.parametrize(
    "range_",
    ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
     "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"],
)  # fmt: skip
def test_no_frame_to_what_is_not_public(range_: str) -> None:
    tap, blocked = Tap(), ipaddress.IPv4Network(range_)
    for address in (blocked[0], blocked[-1], blocked[blocked.num_addresses // 2]):
        for protocol in (1, 6, 17, 132):
            assert not tap.lets(ipv4(str(address), protocol)), address


def test_frames_to_what_is_public() -> None:
    tap = Tap("203.0.113.77", "10.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3")
    for address in (
        "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "168.63.129.15", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255",
        "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.113.76", "203.0.113.78",
        "192.0.2.0", "192.0.2.4", "223.255.255.255",
    ):  # fmt: skip
        assert tap.lets(ipv4(address)), address
    for own in ("203.0.113.77", "192.0.2.1", "192.0.2.2", "192.0.2.3"):
        assert not tap.lets(ipv4(own)), own


def test_the_resolver_is_only_asked() -> None:
    tap, resolver = Tap(), "198.18.0.3"
    for protocol in (6, 17):
        assert tap.lets(ipv4(resolver, protocol, 53))
        assert tap.lets(ipv4(resolver, protocol, 53, options=bytes([1] * 8)))
        assert not tap.lets(ipv4(resolver, protocol, 54))
        assert not tap.lets(ipv4(resolver, protocol, 53, fragment=0x2000))
        assert not tap.lets(ipv4(resolver, protocol, 53, fragment=1))
        assert not tap.lets(ipv4(resolver, protocol, 80, options=struct.pack(">HHHH", 0, 53, 0, 53)))
    assert not tap.lets(ipv4(resolver, 1, 53))


def test_no_other_kinds_of_frames() -> None:
    tap, public = Tap(), ipv4("203.0.113.1")
    assert tap.lets(bytes(12) + b"\x08\x06" + bytes(28))  # ARP
    for kind in (0x86DD, 0x8100, 0x88A8, 0x88F8, 0x8863, 0x0000):
        assert not tap.lets(public[:12] + struct.pack(">H", kind) + public[14:])
    for length in (0, 1, 13, 20, 33):
        assert not tap.lets(public[:length])


def test_a_host_with_many_addresses() -> None:
    own = [str(ipaddress.IPv4Address("203.0.0.0") + 2 * number) for number in range(250)]
    tap = Tap(*own)
    assert not any(tap.lets(ipv4(address)) for address in own)
    assert tap.lets(ipv4("203.0.0.1"))


def test_the_hosts_addresses_are_known() -> None:
    assert ipaddress.IPv4Address("127.0.0.1") in network.own_addresses()


def test_while_the_hosts_addresses_are_not_known_nothing_is_let_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        changed = asyncio.Event()
        watcher = network.Network(changed.set)
        before = watcher.frames

        def away() -> set[ipaddress.IPv4Address]:
            raise OSError("no buffer space available")

        try:
            with monkeypatch.context() as patch:
                patch.setattr(network, "own_addresses", away)
                watcher._look()
                assert (watcher.frames, changed.is_set()) == (network.CLOSED, True)
                changed.clear()
            async with asyncio.timeout(10):
                await changed.wait()
            assert watcher.frames == before
        finally:
            watcher.close()

    asyncio.run(main())


# -- apart -------------------------------------------------------------------------------------------------------------


def test_networks_are_apart() -> None:
    """Of two users, of a user's jobs with and without, and of the host."""
    serve = """
import socket, time
server = socket.create_server(("0.0.0.0", 7777))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0meet")
abstract.listen()
print("up", flush=True)
time.sleep(1000)
"""
    visit = """
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", 7777)), (socket.AF_INET, ("198.18.0.100", 7777)),
                        (socket.AF_UNIX, "\\0meet"), (socket.AF_UNIX, "\\0{host}")):
    try:
        socket.socket(family).connect(address)
        print("reached")
    except OSError as error:
        print(error.strerror)
"""
    host = f"shell-service-test-{os.getpid()}"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"\0{host}")
            unix.listen()
            async with sandbox() as made:
                mine, yours = await made.prepare(1, network=True), await made.prepare(2, network=True)
                server = await mine.start(command(PYTHON, serve.encode()))
                server.go()
                await read_line(server.stdout)
                code = visit.replace("{host}", host)
                refused = b"Connection refused\n"
                assert (await execute(yours, code, PYTHON)).stdout == refused * 4
                without = (await execute(await made.prepare(1), code, PYTHON)).stdout
                assert without.splitlines(True) == [refused, b"Network is unreachable\n", refused, refused]
                assert (await execute(mine, code, PYTHON)).stdout == b"reached\n" * 2 + SCOPED + refused
                server.kill()
                await finish(server)

    run(main())


def test_a_job_is_no_more_with_the_network_than_without() -> None:
    script = """
grep -E "^(Uid|Gid|Cap...|NoNewPrivs|Seccomp):" /proc/self/status
id -u; cat /proc/sys/user/max_user_namespaces; ls / /dev /run /proc | grep -v "^[0-9]"
unshare --user true; ip link set tap0 down; ls /dev/net; echo 0 > /proc/sys/net/ipv4/ip_forward
"""

    async def main() -> None:
        async with sandbox() as made:
            with_, without = [await execute(await made.prepare(1, network=wanted), script) for wanted in (True, False)]
            assert with_.stdout == without.stdout
            assert b"CapBnd:\t0000000000000000" in with_.stdout
            assert with_.stderr.count(b"denied") + with_.stderr.count(b"not permitted") >= 2

    run(main())


# -- the process behind it ---------------------------------------------------------------------------------------------


def slirp_of(launcher: int) -> int:
    """The slirp4netns that belongs to a launcher."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "slirp4netns\n" and parent(int(path.parent.name)) == launcher:
                return int(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            pass  # another process came and went
    raise AssertionError(f"launcher {launcher} has no slirp4netns")


def with_namespace(namespace: str) -> list[int]:
    """Processes that are in a network namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if os.readlink(path) == namespace:
                found.append(int(path.parent.parent.name))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            pass
    return found


@contextlib.contextmanager
def played(script: str) -> Iterator[Played]:
    """A runner in a process of its own, with one job, which has the network and waits for the word."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    argv = [sys.executable, "-m", "tests.sandbox.play_network", str(theirs.fileno()), script]
    runner = subprocess.Popen(argv, pass_fds=[theirs.fileno()], cwd=ROOT)
    theirs.close()
    try:
        body, (stdout,), _, _ = socket.recv_fds(ours, 100, 1)
        os.set_blocking(stdout, True)
        yield Played(runner, ours, stdout, *struct.unpack("<iQ", body))
        os.close(stdout)
    finally:
        runner.kill()
        runner.wait()
        ours.close()


@pytest.mark.parametrize(
    "victim", ["slirp4netns", "launcher", "launcher of a stopped slirp4netns", "runner", "runner of a stopped launcher"]
)
def test_nothing_is_left(victim: str) -> None:
    with played("echo up; exec sleep 1000") as play:
        launcher, slirp = play.launcher, slirp_of(play.launcher)
        namespace = os.readlink(f"/proc/{launcher}/ns/net")
        play.test.send(b"g")
        assert output(play.stdout, b"up\n") == b"up\n"
        if victim == "runner of a stopped launcher":
            os.kill(launcher, signal.SIGSTOP)
        if victim == "launcher of a stopped slirp4netns":
            os.kill(slirp, signal.SIGSTOP)
        victims = {"slirp4netns": slirp, "launcher": launcher, "runner": play.runner.pid}
        os.kill(victims[victim.split()[0]], signal.SIGKILL)
        eventually(lambda: not any(map(alive, (play.pid, launcher, slirp))) and not with_namespace(namespace))
        assert output(play.stdout) == b""
        if not victim.startswith("runner"):
            assert play.test.recv(10) == b"ended"


def test_closing_the_sandbox_ends_all() -> None:
    async def main() -> list[int]:
        async with sandbox() as made:
            process = await (await made.prepare(1, network=True)).start(command("/bin/sh", b"exec sleep 1000"))
            process.go()
            pids = [process.pid, parent(process.pid), slirp_of(parent(process.pid))]
        await finish(process)
        return pids

    pids = run(main())
    eventually(lambda: not any(map(alive, pids)))


def test_the_process_behind_it_may_do_little() -> None:
    def look(launcher: int) -> None:
        slirp, uid = slirp_of(launcher), os.stat(f"/proc/{launcher}").st_uid
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{slirp}/status").read_text().splitlines())
        assert set(status["Uid"].split() + status["Gid"].split()) == {str(uid)}
        only_net_bind_service = 1 << 10  # of its own user namespace, not of the host's
        assert not int(status["CapPrm"], 16) & ~only_net_bind_service
        assert os.readlink(f"/proc/{slirp}/ns/user") != os.readlink("/proc/self/ns/user")
        assert os.readlink(f"/proc/{slirp}/ns/net") == os.readlink("/proc/self/ns/net")
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert os.geteuid() != 0 or not status["Groups"].strip()
        assert sorted(os.listdir(f"/proc/{slirp}/root")) == ["etc", "run"]
        assert os.geteuid() != 0 or Path(f"/proc/{slirp}/environ").read_bytes() == b""
        limits = Path(f"/proc/{slirp}/limits").read_text().splitlines()
        assert ["1024", "1024"] in [line.split()[3:5] for line in limits if "open files" in line]

    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1, network=True)).start(command("/bin/sh", b""))
            look(parent(process.pid))
            process.kill()
            await finish(process)

    run(main())


# -- where it cannot be made -------------------------------------------------------------------------------------------


def obstacle_and_job(enter: Callable[[], None]) -> tuple[str | None, bytes]:
    """What the test of the network says, and what came of a job that wants it, where `enter` was called before."""

    async def main() -> tuple[str | None, bytes]:
        async with sandbox() as made:
            assert await made.self_test(LIMITS) is None
            await made.test_network()
            obstacle = made.facts()["network"]
            try:
                return obstacle, (await execute(await made.prepare(1, network=True), "echo with")).stdout
            except NoNetwork as error:
                assert (await execute(await made.prepare(1), "echo without")).stdout == b"without\n"
                return obstacle, str(error).encode()

    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            enter()
            os.write(write, pickle.dumps(run(main())))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said: tuple[str | None, bytes] = pickle.load(file)
    os.waitpid(pid, 0)
    return said


def test_without_the_program_there_is_no_network_and_jobs_without_run() -> None:
    obstacle, said = obstacle_and_job(world.without_slirp4netns)
    assert obstacle == "slirp4netns is not installed"
    assert said == b"The runner cannot give jobs the network: slirp4netns is not installed."


def test_a_device_that_only_root_may_use_is_enough_for_a_runner_that_is_root() -> None:
    def enter() -> None:
        uid = world.become_root()
        kernel.mount(b"tmpfs", b"/dev/net", b"tmpfs", 0)
        world.become_user(uid)

    obstacle, said = obstacle_and_job(enter)
    if os.geteuid() == 0:
        assert (obstacle, said) == (None, b"with\n")
    else:
        assert obstacle == "its host does not let slirp4netns work, and its log says more"
        assert b"its host does not let" in said
