"""A machine with a network around it, both made of namespaces; jobs in sandboxes on it say whom they reach.

python -m tests.sandbox.play_network

prints what came of it as JSON. There are two hosts: the machine, and all others, which are one with many addresses.
Each keeps a record of who was knocked at. The machine itself reaches everything, so what a job does not reach is kept
from it by a wall.

python -m tests.sandbox.play_network SOCKET SCRIPT

plays a runner on this machine, to be killed by a test, as `play_runner` does, but its job has the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

from shell_service.sandbox import Launcher, Sandbox, kernel, root
from shell_service.sandbox.slirp import PROGRAMS
from tests.sandbox.support import LIMITS, PYTHON, command, execute, run, sandbox
from tests.waiting import eventually

PORT = 7000
PUBLIC, LATER_OWN = "203.0.113.1", "203.0.113.9"
RESOLVER = "10.1.2.3"
OTHERS = [
    "100.64.0.1", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.9.9", "192.0.0.192", "192.168.7.7",
    "198.19.0.9", "240.0.0.1", RESOLVER,
]  # fmt: skip
GROUP, PUBLIC6, ALL = "239.1.2.3", "2001:db8:1::1", "255.255.255.255"
OWN = ["127.0.0.1", "127.0.0.53", "198.51.100.1", "203.0.113.77"]
#: Of slirp4netns: its gateway, its resolver (which here is asked on another port), its broadcast.
VIRTUAL = ["198.18.0.2", "198.18.0.3", "198.18.0.255"]
KEPT_FROM_JOBS = [*OTHERS, GROUP, PUBLIC6, ALL, *OWN, *VIRTUAL]

#: Knocks at all addresses in all ways; prints at which there was an answer. Those of the first must come.
KNOCK = """
import json, select, socket, struct, sys
port, addresses = json.load(sys.stdin)
tap = socket.if_nametoindex("tap0") if "tap0" in [name for _, name in socket.if_nameindex()] else 0
def source_route(s):
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton("203.0.113.1") + bytes(1))
def group(s):
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), tap))
WAYS = {
    "plain": lambda s: None,
    "device": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0"),
    "interface": lambda s: s.setsockopt(socket.IPPROTO_IP, 50, struct.pack(">i", tap)),
    "message": lambda s: None,
    "group": group,
    "no-route": lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1),
    "source-route": source_route,
    "from-loopback": lambda s: s.bind(("127.0.0.1", 0)),
}
poll, waiting, found, errors = select.poll(), {}, set(), {}
def knock(way, kind, address):
    name = f"{way} {kind} {address}"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setblocking(False)
    try:
        WAYS[way](s)
        if kind == "udp":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            info = [(socket.IPPROTO_IP, 8, struct.pack("=i8x", tap))]  # IP_PKTINFO
            s.sendmsg([b"hello"], info if way == "message" else [], 0, (address, port))
        else:
            s.connect((address, port))
    except BlockingIOError:
        pass
    except OSError as error:
        errors[name] = error.strerror
        return
    waiting[s.fileno()] = s, name
    poll.register(s, select.POLLIN)
    return s.fileno()
def take(*wanted):
    while not all(fd not in waiting for fd in wanted):
        ready = poll.poll(10000)
        if not ready:
            sys.exit(f"no answer from {[waiting[fd][1] for fd in wanted if fd in waiting]}; errors: {errors}")
        for fd, _ in ready:
            s, name = waiting.pop(fd)
            poll.unregister(fd)
            try:
                if s.recv(10) == b"hello":
                    found.add(name)
            except OSError as error:
                errors[name] = error.strerror
            s.close()
every = [knock(way, kind, address) for address in addresses for way in WAYS for kind in ("tcp", "udp")]
if tap:
    for _ in range(2):  # once more, when all that was sent before has been dealt with
        take(*(knock("plain", kind, addresses[0]) for kind in ("tcp", "udp")))
else:
    take(*())
print(json.dumps([sorted(found), errors]))
"""

KNOCK_ONCE = """
import socket
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(0.3)
        try:
            s.connect(("{address}", {port}))
            s.send(b"hello")
            print(s.recv(10).decode())
        except OSError as error:
            print(type(error).__name__)
"""


class Host:
    """A process that answers in the network namespace that `enter` takes it to, and obeys."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            self._socket.close()
            try:
                kernel.prctl(kernel.PR_SET_PDEATHSIG, kernel.SIGKILL)
                enter()
                theirs.send(b"entered")
                self._serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        assert self._socket.recv(100) == b"entered"

    def configure(self, *commands: str) -> None:
        """Runs these commands of `ip`."""
        assert self._ask(["ip", *commands]) == "done"

    def listen(self, *addresses: str) -> None:
        """Answers there, on TCP and UDP alike, from now on."""
        assert self._ask(["listen", *addresses]) == "done"

    def knocked(self) -> list[str]:
        """Where somebody knocked since the last question."""
        return list(self._ask(["knocked"]))

    def _ask(self, words: list[str]) -> Any:
        self._socket.send(json.dumps(words).encode())
        return json.loads(self._socket.recv(1 << 16))

    def _serve(self, control: socket.socket) -> NoReturn:
        selector = selectors.DefaultSelector()
        seen: set[str] = set()
        selector.register(control, selectors.EVENT_READ)
        while True:
            # What is asked last is answered last, so that nothing is missing from an answer.
            for key, _ in sorted(selector.select(), key=lambda ready: ready[0].fileobj is control):
                if key.fileobj is not control:
                    key.data(seen)
                    continue
                verb, *words = json.loads(control.recv(1 << 16))
                if verb == "ip":
                    ip(*words)
                elif verb == "listen":
                    for address in words:
                        for server, answer in servers(address):
                            selector.register(server, selectors.EVENT_READ, answer)
                control.send(json.dumps(sorted(seen) if verb == "knocked" else "done").encode())
                if verb == "knocked":
                    seen.clear()


def ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL)


def servers(address: str) -> list[tuple[socket.socket, Callable[[set[str]], None]]]:
    """Sockets at an address, each with what to do when there is something to read."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    ip_freebind = 15
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IP, ip_freebind, 1)
    udp.bind((address, PORT))

    def answer_udp(seen: set[str]) -> None:
        data, whom = udp.recvfrom(100)
        seen.add(f"udp {address}")
        with contextlib.suppress(OSError):  # a group cannot answer
            udp.sendto(data, whom)

    if address == GROUP:
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + bytes([198, 51, 100, 2]))
    if address in (GROUP, ALL):
        return [(udp, answer_udp)]
    tcp = socket.socket(family)
    tcp.setsockopt(socket.IPPROTO_IP, ip_freebind, 1)
    tcp.bind((address, PORT))
    tcp.listen(100)

    def answer_tcp(seen: set[str]) -> None:
        connection, _ = tcp.accept()
        seen.add(f"tcp {address}")
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"hello")

    found = [(udp, answer_udp), (tcp, answer_tcp)]
    if address == RESOLVER:
        dns = socket.socket(family, socket.SOCK_DGRAM)
        dns.bind((address, 53))

        def answer_dns(_: set[str]) -> None:
            query, whom = dns.recvfrom(512)
            # To whatever is asked: PUBLIC.
            end = query.index(0, 12) + 5
            there = query[end - 3] == 1
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(PUBLIC) if there else b""
            dns.sendto(query[:2] + b"\x80\0\0\1" + bytes([0, there]) + bytes(4) + query[12:end] + answer, whom)

        found.append((dns, answer_dns))
    return found


def become_root() -> int:
    """Makes this process one that may mount and configure, in namespaces of its own. Who it was."""
    uid, gid = os.getuid(), os.getgid()
    if uid:
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        root.map_user(0, uid, gid)
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    return uid


def become_user(uid: int) -> None:
    """The opposite, within those namespaces."""
    if uid:
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        root.map_user(uid, 0, 0)
        kernel.limit_capabilities()


def without_slirp4netns() -> None:
    """Makes this process, and what it starts, see none."""
    uid = become_root()
    for path in PROGRAMS:
        if os.path.exists(path):
            kernel.mount(b"/dev/null", path.encode(), None, kernel.MS_BIND)
    become_user(uid)


def make_world() -> tuple[Host, Host]:
    """Makes this process stand on the machine, as the user that it is. The machine and the others."""
    uid = become_root()
    kernel.unshare(kernel.CLONE_NEWNET)
    with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
        file.write(f"nameserver {RESOLVER}\n")
    os.chmod(file.name, 0o644)
    kernel.mount(file.name.encode(), b"/etc/resolv.conf", None, kernel.MS_BIND)
    os.unlink(file.name)
    machine = Host(lambda: None)
    others = Host(lambda: kernel.unshare(kernel.CLONE_NEWNET))
    machine.configure(
        f"link add wan type veth peer name lan netns {others.pid}",
        "link set lo up",
        "link set wan up",
        "address add 198.51.100.1/24 dev wan",
        "address add 203.0.113.77/32 dev lo",
        "address add 2001:db8::1/64 dev wan nodad",
        "route add default via 198.51.100.2",
        "route add default via 2001:db8::2",
    )
    others.configure(
        "link set lo up",
        "link set lan up",
        "address add 198.51.100.2/24 dev lan",
        "address add 2001:db8::2/64 dev lan nodad",
        f"address add {PUBLIC6}/128 dev lo nodad",
        *(f"address add {address}/32 dev lo" for address in (PUBLIC, LATER_OWN, *OTHERS)),
    )
    machine.listen(*OWN, LATER_OWN)
    others.listen(PUBLIC, LATER_OWN, PUBLIC6, GROUP, ALL, *OTHERS)
    become_user(uid)
    return machine, others


class World:
    def __init__(self, machine: Host, others: Host, made: Sandbox) -> None:
        self.machine, self.others, self.made = machine, others, made

    def knocked(self) -> dict[str, list[str]]:
        return {"machine": self.machine.knocked(), "others": self.others.knocked()}

    async def from_job(self, launcher: Launcher) -> dict[str, Any]:
        """What a job says that it reached, and what those say that it knocked at."""
        addresses = json.dumps([PORT, [PUBLIC, *KEPT_FROM_JOBS]])
        ran = await execute(launcher, KNOCK, PYTHON, stdin=addresses.encode())
        assert ran.exit.return_code == 0, ran
        reached, errors = json.loads(ran.stdout)
        return {"reached": reached, "errors": errors, **self.knocked()}

    async def from_job_after_a_change(self) -> dict[str, Any]:
        """What a launcher's jobs reach that was there before an address became the machine's own, and after it had."""
        launcher = await self.made.prepare(1, network=True)
        script = KNOCK_ONCE.format(address=LATER_OWN, port=PORT)
        before = (await execute(launcher, script, PYTHON)).stdout.decode().split()
        knocked = self.knocked()
        network = self.made._network
        assert network is not None
        frames = network.frames
        self.machine.configure(f"address add {LATER_OWN}/32 dev lo")
        await asyncio.to_thread(eventually, lambda: network.frames != frames)  # the runner hears of it
        after = (await execute(launcher, script, PYTHON)).stdout.decode().split()
        return {"before": before, "knocked before": knocked, "after": after, "knocked after": self.knocked()}

    def from_machine(self) -> dict[str, list[str]]:
        """Whom the machine itself reaches."""
        for address in [PUBLIC, *KEPT_FROM_JOBS]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as udp:
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                with contextlib.suppress(OSError):
                    udp.sendto(b"hello", (address, PORT))
            if address not in (GROUP, ALL, *VIRTUAL):
                socket.create_connection((address, PORT), 10).close()
        return self.knocked()


async def main() -> dict[str, Any]:
    machine, others = make_world()
    told: dict[str, Any] = {}
    async with sandbox() as made:
        world = World(machine, others, made)
        told["from the machine"] = world.from_machine()
        told["problem"] = await made.self_test(LIMITS)
        await made.test_network()
        told["obstacle"] = made.facts()["network"]
        launcher = await made.prepare(1, network=True)
        told["from a job"] = await world.from_job(launcher)
        told["from a job without"] = await world.from_job(await made.prepare(1))
        told["from a job later"] = await world.from_job_after_a_change()
        name = "import socket; print(socket.gethostbyname('some.example'))"
        told["name"] = (await execute(launcher, name, PYTHON)).stdout.decode().strip()
        told["name without"] = (await execute(await made.prepare(1), name, PYTHON)).exit.return_code
    return told


async def hold(test: socket.socket, script: str) -> None:
    async with sandbox() as made:
        process = await (await made.prepare(1, network=True)).start(command("/bin/sh", script.encode()))
        socket.send_fds(test, [struct.pack("<iQ", process.pid, process.start_time)], [process.stdout])
        await asyncio.to_thread(test.recv, 1)
        process.go()
        await process.wait()
        test.send(b"ended")
        await asyncio.to_thread(test.recv, 1)


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(hold(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))
    else:
        print(json.dumps(run(main())))
