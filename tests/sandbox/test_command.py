"""What cannot be asked for, and that what is asked arrives as it was."""

from __future__ import annotations

import pytest

from shell_service.sandbox import Command
from shell_service.sandbox.protocol import pack_order, unpack_order


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpreter": "sh"},
        {"args": ("a\0--bind",)},
        {"env": {"A": "x\0--ro-bind\0/etc\0/host_etc"}},
        {"env": {"A=B": "x"}},
        {"env": {"": "x"}},
        {"env": {"1A": "x"}},
        {"env": {"A\n": "x"}},
        {"env": {"BASH_FUNC_x%%": "() { :; }"}},
    ],
)
def test_refuses_what_no_process_can_be_given(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Command(**{"interpreter": "/bin/sh", "script": b"", **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "order",
    [
        ([b"/bin/sh"], [], b""),
        ([b"/bin/sh", b"/run/job/script", b"", b"-c", b"--"], [b"A=", b"B=x=y\n"], b"\0\xff\r\n"),
    ],
)
def test_an_order_survives_the_journey(order: tuple[list[bytes], list[bytes], bytes]) -> None:
    assert unpack_order(pack_order(*order)) == order


def test_a_hidden_separator_is_noticed() -> None:
    with pytest.raises(ValueError):
        unpack_order(pack_order([b"/bin/sh"], [b"A=x\0B=y"], b""))
