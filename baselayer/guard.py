"""Which addresses may be reached for users who name them: the public internet's, and what is allowed beside it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Not for everybody, though `ipaddress` says so: the host agent of Microsoft Azure, which hands out secrets.
_MACHINES = (ipaddress.ip_network("168.63.129.16/32"),)
_UNICAST = ipaddress.ip_network("2000::/3")  # of which all public IPv6 addresses are (RFC 4291)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class Refused(OSError):
    """The address is none of the public internet, and not allowed."""


class Guard:
    """Which addresses may be reached: the public internet's, and some networks beside it."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """`allowed` are networks such as ``10.1.0.0/16``. Raises ValueError for what is none."""
        self._allowed: list[_Network] = [ipaddress.ip_network(network) for network in allowed]

    def permits(self, text: str) -> bool:
        """Whether this address may be reached."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        if any(address.version == network.version and address in network for network in self._allowed):
            return True
        return all(map(_is_public, _meant(address)))


def _meant(address: _Address) -> list[_Address]:
    """The address, and those that it stands for in another way of writing or on another way there."""
    found: list[_Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        found += [item for item in inner if item is not None]
    return found


def _is_public(address: _Address) -> bool:
    named = any(address.version == network.version and address in network for network in _MACHINES)
    if isinstance(address, ipaddress.IPv6Address):
        # What stands for an IPv4 address is judged by that.
        if address.ipv4_mapped or address in _NAT64:
            return True
        # 6to4 is of the past (RFC 7526), and Python's versions think differently of it.
        return address in _UNICAST and address.is_global and not address.sixtofour
    return address.is_global and not address.is_multicast and not named
