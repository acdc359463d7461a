"""The runner's side of a network with a way out: what the jobs' frames may be, kept up to date.

Allowed are ARP, questions to the virtual resolver, and IPv4 to public addresses that are not this host's own. Nothing
else leaves a job's network namespace: no IPv6, no broadcast, no groups, no fragment to the resolver.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from .slirp import BLOCKED, RESOLVER

logger = logging.getLogger(__name__)

# linux/rtnetlink.h
_RTMGRP_IPV4_IFADDR = 0x10
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_IFA_LOCAL = 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_IFADDRMSG = struct.Struct("=BBBBi")
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
#: linux/filter.h: A, X := frame; A := A & k; jumps relative to the next instruction; return k.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_HALF_X, _LOAD_HEADER_LENGTH = 0x20, 0x28, 0x30, 0x48, 0xB1
_AND, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x54, 0x15, 0x45, 0x06
_ALL, _NOTHING = 0xFFFFFFFF, 0
#: The program that lets nothing out.
CLOSED = _INSTRUCTION.pack(_RETURN, 0, 0, _NOTHING)
_RETRY = 1.0  # seconds after which the host's addresses are asked for again

# Offsets in a frame.
_ETHERTYPE, _IP, _FRAGMENT, _PROTOCOL, _DESTINATION = 12, 14, 20, 23, 30
_ETH_IP, _ETH_ARP, _TCP, _UDP, _DNS = 0x0800, 0x0806, 6, 17, 53


def filter_of(own: Iterable[ipaddress.IPv4Address]) -> bytes:
    """The program, an array of ``struct sock_filter``, for a host with these addresses."""
    blocked = [ipaddress.IPv4Network(range_) for range_ in BLOCKED]
    addresses = [ipaddress.IPv4Network(address) for address in own if not any(address in range_ for range_ in blocked)]
    lines = [
        (_LOAD_HALF, 0, 0, _ETHERTYPE),
        (_JUMP_EQUAL, 0, 1, _ETH_ARP),
        (_RETURN, 0, 0, _ALL),
        (_JUMP_EQUAL, 1, 0, _ETH_IP),
        (_RETURN, 0, 0, _NOTHING),
        (_LOAD_WORD, 0, 0, _DESTINATION),
        (_JUMP_EQUAL, 0, 10, int(ipaddress.IPv4Address(RESOLVER))),
        (_LOAD_HALF, 0, 0, _FRAGMENT),
        (_JUMP_SET, 7, 0, 0x3FFF),  # more fragments, or not the first
        (_LOAD_BYTE, 0, 0, _PROTOCOL),
        (_JUMP_EQUAL, 1, 0, _UDP),
        (_JUMP_EQUAL, 0, 4, _TCP),
        (_LOAD_HEADER_LENGTH, 0, 0, _IP),
        (_LOAD_HALF_X, 0, 0, _IP + 2),
        (_JUMP_EQUAL, 0, 1, _DNS),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, _NOTHING),
    ]
    for network in (*blocked, *ipaddress.collapse_addresses(addresses)):
        lines += [
            (_LOAD_WORD, 0, 0, _DESTINATION),
            (_AND, 0, 0, int(network.netmask)),
            (_JUMP_EQUAL, 0, 1, int(network.network_address)),
            (_RETURN, 0, 0, _NOTHING),
        ]
    lines.append((_RETURN, 0, 0, _ALL))
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def own_addresses() -> set[ipaddress.IPv4Address]:
    """All IPv4 addresses of this host's interfaces. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        body = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)
        sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        found: set[ipaddress.IPv4Address] = set()
        while True:
            for kind, content in _messages(sock.recv(1 << 16)):
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    raise OSError(code, f"asking for this host's addresses: {os.strerror(code)}")
                if kind == _RTM_NEWADDR:
                    found.update(
                        ipaddress.IPv4Address(value)
                        for name, value in _attributes(content[_IFADDRMSG.size :])
                        if name == _IFA_LOCAL
                    )


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, name = _ATTRIBUTE.unpack_from(data)
        yield name, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


class Network:
    """The filter of frames for this host as it is now; `changed` is called whenever it has become another."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Listens in the running event loop until closed. Raises OSError."""
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, _RTMGRP_IPV4_IFADDR))
            self.frames = filter_of(own_addresses())
        except BaseException:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._look)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _look_again(self) -> None:
        if self._socket.fileno() >= 0:  # it has not been closed
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # none left; or too many were, and some are lost
            while True:
                self._socket.recv(1 << 16)
        try:
            frames = filter_of(own_addresses())
        except OSError as error:
            logger.error("this host's addresses are not known, so jobs reach nothing: %s", error)
            frames = CLOSED
            asyncio.get_running_loop().call_later(_RETRY, self._look_again)
        if frames != self.frames:
            self.frames = frames
            self._changed()
