"""What cannot be asked for, and that what is asked arrives as it was."""

from __future__ import annotations

import os
import resource
from dataclasses import replace

import pytest

from shell_service.sandbox import Command, SandboxError
from shell_service.sandbox.order import order
from shell_service.sandbox.protocol import Order
from tests.sandbox.support import LIMITS, command


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
        {"secrets": {"../script": b"x"}},
        {"secrets": {"A\0": b"x"}},
        {"env": {"BASH_FUNC_x%%": "() { :; }"}},
    ],
)
def test_refuses_what_no_process_can_be_given(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Command(**{"interpreter": "/bin/sh", "script": b"", "limits": LIMITS, **wrong})  # type: ignore[arg-type]


def told(
    argv: list[bytes], env: list[bytes], script: bytes, processors: tuple[int, ...] = (), **secrets: bytes
) -> Order:
    named = {name.encode(): value for name, value in secrets.items()}
    limits = {7: (16, 17), 1: (2**63, 2**63)}
    return Order(argv, env, script, named, 1 << 40, processors, limits, 1 << 40, 9, 2, True, bool(named), b"layer")


@pytest.mark.parametrize(
    "sent",
    [
        told([b"/bin/sh"], [], b""),
        told([b"/bin/sh", b"/run/job/script", b"", b"-c", b"--"], [b"A=", b"B=x=y\n"], b"\0\xff\r\n", (3, 1)),
        told([b"/bin/sh"], [], b"x", KEY=b"\0\n", EMPTY=b"", LAST=b"y"),
    ],
)
def test_an_order_survives_the_journey(sent: Order) -> None:
    assert vars(Order.unpack(sent.pack())) == vars(sent)


def test_a_hidden_separator_is_noticed() -> None:
    with pytest.raises(ValueError):
        Order.unpack(told([b"/bin/sh"], [b"A=x\0B=y"], b"").pack())


def test_processors_are_whole_and_spread() -> None:
    available = os.sched_getaffinity(0)
    for cpu, count in ((0.1, 1), (1, 1), (1.2, 2), (256, 256)):
        chosen = {tuple(order(command("/bin/sh", b"", replace(LIMITS, cpu=cpu))).processors) for _ in range(50)}
        if count >= len(available):
            assert chosen == {()}  # no limit
        else:
            assert {len(processors) for processors in chosen} == {count}
            assert {number for processors in chosen for number in processors} == available


def test_what_the_machine_cannot_give_is_said() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with pytest.raises(SandboxError, match=f"{hard + 1} open files, but on this runner's machine {hard} are the most"):
        order(command("/bin/sh", b"", replace(LIMITS, open_files=hard + 1)))
