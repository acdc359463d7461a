"""J10: the network: clouds' metadata, the host's own addresses, names, raw and odd sockets, and its settings."""

from __future__ import annotations

import socket

from tests.attacks.jobs import findings
from tests.client import Person

CODE = """
import fcntl, socket, struct
for address in GIVEN["addresses"]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family)
    made.settimeout(5)
    tell(f"connect {address}", made.connect, (address, 80))
    sender = socket.socket(family, socket.SOCK_DGRAM)
    tell(f"send {address}", sender.sendto, b"x", (address, 53))
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
tell("send 255.255.255.255", made.sendto, b"x", ("255.255.255.255", 67))
def look_up(name):
    try:
        socket.getaddrinfo(name, 80)
    except socket.gaierror:
        return "unknown"
for name in ("example.com", "metadata.google.internal", GIVEN["host"]):
    tell(f"name {name}", look_up, name)
for name, family, kind, protocol in GIVEN["sockets"]:
    tell(f"socket {name}", socket.socket, family, kind, protocol)
tell("interfaces", lambda: sorted(name for _, name in socket.if_nameindex()))
tell("routes", lambda: [line.split()[0] for line in open("/proc/net/route")][1:])
def request(number, data):
    fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), number, data)
route = struct.pack("16s24s", b"", b"\\0" * 24).ljust(120, b"\\0")
tell("add a route", request, 0x890B, route)
tell("set an address", request, 0x8916, struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, b"\\x0a\\0\\0\\1"))
tell("set flags", request, 0x8914, struct.pack("16sH14x", b"lo", 0))
tell("rename an interface", request, 0x8923, struct.pack("16s16s", b"lo", b"eth0"))
def netlink(kind, body):
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    made.bind((0, 0))
    made.send(struct.pack("=IHHII", 16 + len(body), kind, 0x605, 1, 0) + body)
    answer = made.recv(65536)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code < 0:
        raise OSError(-code, "")
a_route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 253, 1, 0) + struct.pack("=HHI", 8, 4, 1)
a_link = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HH8s", 12, 3, b"dummy0")
tell("netlink: a route", netlink, 24, a_route)
tell("netlink: a link", netlink, 16, a_link)
made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
tell("bind to a device", made.setsockopt, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
tell("mark", made.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, 1)
tell("transparent", made.setsockopt, socket.SOL_IP, 19, 1)
tell("firewall", made.getsockopt, socket.SOL_IP, 64, 84)
mine = socket.create_server(("127.0.0.1", 0))
tell("its own", socket.create_connection, mine.getsockname())
"""

STREAM, DATAGRAM, RAW, SEQUENCED = 1, 2, 3, 5
# name, family, kind, protocol, and what refuses it
SOCKETS = [
    ("packet", 17, RAW, 0, "EAFNOSUPPORT"), ("vsock", 40, STREAM, 0, "EAFNOSUPPORT"),
    ("alg", 38, SEQUENCED, 0, "EAFNOSUPPORT"), ("bluetooth", 31, RAW, 1, "EAFNOSUPPORT"),
    ("can", 29, RAW, 1, "EAFNOSUPPORT"), ("tipc", 30, SEQUENCED, 0, "EAFNOSUPPORT"),
    ("rds", 21, SEQUENCED, 0, "EAFNOSUPPORT"), ("xdp", 44, RAW, 0, "EAFNOSUPPORT"),
    ("key", 15, RAW, 2, "EAFNOSUPPORT"), ("smc", 43, STREAM, 0, "EAFNOSUPPORT"),
    ("nfc", 39, SEQUENCED, 0, "EAFNOSUPPORT"), ("qipcrtr", 42, DATAGRAM, 0, "EAFNOSUPPORT"),
    ("raw", 2, RAW, 1, "EPERM"), ("raw IPv6", 10, RAW, 1, "EPERM"),
    ("raw UDP", 2, RAW, 17, "EPERM"), ("ICMPv6", 10, RAW, 58, "EPERM"),
    ("SCTP", 2, STREAM, 132, "EPROTONOSUPPORT"), ("DCCP", 2, 6, 33, "EPROTONOSUPPORT"),
    ("MPTCP", 2, STREAM, 262, "EPROTONOSUPPORT"), ("UDP-Lite", 2, DATAGRAM, 136, "EPROTONOSUPPORT"),
    ("netlink audit", 16, RAW, 9, "EPROTONOSUPPORT"), ("netlink uevents", 16, RAW, 15, "EPROTONOSUPPORT"),
    ("netfilter", 16, RAW, 12, "EPROTONOSUPPORT"), ("netlink generic", 16, RAW, 16, "EPROTONOSUPPORT"),
    ("xfrm", 16, RAW, 6, "EPROTONOSUPPORT"), ("sock_diag", 16, RAW, 4, "EPROTONOSUPPORT"),
]  # fmt: skip


def own_address() -> str:
    """An address of this host that is not the loopback's, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "192.0.2.1"
        address: str = probe.getsockname()[0]
        return address


def test_there_is_none_but_its_own(alice: Person) -> None:
    addresses = ["169.254.169.254", own_address(), "10.0.2.2", "10.0.2.3", "172.17.0.1", "192.168.0.1",
                 "100.100.100.200", "1.1.1.1", "224.0.0.1", "fd00:ec2::254", "2001:db8::1", "fe80::1"]  # fmt: skip
    given = {"addresses": addresses, "host": socket.gethostname(), "sockets": [row[:4] for row in SOCKETS]}
    found = findings(alice, CODE, given)
    assert found.pop("its own") == "worked"
    assert set(found.pop("interfaces")) & {"eth0", "ens3", "enp1s0", "docker0", "wlan0", "tap0"} == set()
    assert found.pop("routes") == []
    ways = [what for what in found if what.startswith(("connect ", "send "))]
    assert len(ways) == 2 * len(addresses) + 1
    assert {found.pop(what) for what in ways} <= {"ENETUNREACH", "EINVAL"}  # EINVAL: of which link is not said
    assert {found.pop(what) for what in list(found) if what.startswith("name ")} == {"unknown"}
    refused = {f"socket {name}": answer for name, _, _, _, answer in SOCKETS}
    assert {what: found.pop(what) for what in refused} == refused
    expected = {
        **dict.fromkeys(
            ("add a route", "set an address", "set flags", "rename an interface", "netlink: a route"), "EPERM"
        ),
        **dict.fromkeys(("netlink: a link", "mark", "transparent"), "EPERM"),
    }
    assert {what: found.pop(what) for what in expected} == expected
    assert set(found) == {"bind to a device", "firewall"}
    assert set(found.values()) <= {"EPERM", "ENODEV", "ENOPROTOOPT"}
