"""Which addresses users may let the service reach."""

from __future__ import annotations

import pytest

from baselayer.guard import Guard

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8",
          "64:ff9b::808:808"]  # fmt: skip
NOT_PUBLIC = [
    "127.0.0.1", "127.8.8.8", "0.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.7", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1",
    "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::1", "2002:808:808::1", "2002:a00:1::1", "2001:0:7f00:1::1",
    "::127.0.0.1", "fec0::1", "example.org", "", "0x7f.1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_s(address: str) -> None:
    assert Guard().permits(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_others(address: str) -> None:
    assert not Guard().permits(address)
    assert not Guard(["8.8.8.8/32", "2001:db8:1::/48"]).permits(address)


def test_what_is_allowed_beside() -> None:
    guard = Guard(["10.1.0.0/16", "fd00:1::/32"])
    assert [guard.permits(address) for address in ("10.1.2.3", "10.2.0.1", "fd00:1::5", "fd00:2::5", "8.8.8.8")] == [
        True, False, True, False, True,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="does not appear"):
        Guard(["example.org"])
