"""J27: scripts and arguments that are options, other interpreters, or hardly text."""

from __future__ import annotations

from typing import Any

import pytest

from tests.attacks.jobs import ended, output
from tests.client import Person

SCRIPTS: dict[str, tuple[Any, str, str]] = {
    "another interpreter": ("#!/usr/bin/python3\necho $0", "COMPLETED", "/run/job/script\n"),
    "an option": ("-c 'echo attacked' 2>/dev/null; echo fine", "COMPLETED", "fine\n"),
    "carriage returns": ("echo a\r\nprintf b\r\n", "COMPLETED", "a\r\nb\r"),
    "a byte order mark": ("\ufeffecho a\necho b", "COMPLETED", "b\n"),
    "the gate's words": ("R\ngo\n{\"exit-code\": 0}\necho fine", "COMPLETED", "fine\n"),
    "a comment": ("#", "COMPLETED", ""),
    "lines": (["for n in 1 2", "do echo $n", "done"], "COMPLETED", "1\n2\n"),
    "an open quote": ("echo 'a", "FAILED", ""),
    "the end of a document": ("cat <<'EOF'\n'; }; ) # EOF\nEOF\n", "COMPLETED", "'; }; ) # EOF\n"),
    "long": ("#" + "x" * 1_000_000 + "\necho end", "COMPLETED", "end\n"),
    "a long line": ("echo " + "x" * 500_000, "COMPLETED", "x" * 500_000 + "\n"),
    "odd characters": ("printf '%s' '\U0001f4a9\u202e\x7f\x1b'", "COMPLETED", "\U0001f4a9\u202e\x7f\x1b"),
}  # fmt: skip
ARGUMENTS = ["--", "-c", "--bind / /", "--bind", "/", "/", "-", "", "$(id)", "`id`", "'", '"', "\n", "*", "--seccomp",
             "3", "--cap-add", "ALL", "-i", "+x", "%s", "\\", "\ufeff"]  # fmt: skip


def test_they_are_taken_as_they_are(alice: Person) -> None:
    jobs = {kind: alice.api.submit(code) for kind, (code, _, _) in SCRIPTS.items()}
    for kind, (_, status, printed) in SCRIPTS.items():
        record = ended(alice, jobs[kind])
        assert (record["status"], output(alice, record).decode()) == (status, printed), kind


def test_arguments_are_the_script_s(alice: Person) -> None:
    for shell, code in (
        ("sh", "printf '%s\\0' \"$@\""),
        ("python", "import sys; print(*sys.argv[1:], sep='\\0', end='\\0')"),
    ):
        job = alice.api.submit(code, shell=shell, args=ARGUMENTS, wait=20)
        assert output(alice, job).decode().split("\0")[:-1] == ARGUMENTS


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"code": ""}, 400, "code"),
        ({"code": []}, 400, "code"),
        ({"code": "echo \0"}, 400, "code"),
        ({"code": ["echo", "\0"]}, 400, "code"),
        ({"code": "#" * (10 << 20)}, 413, None),
        ({"code": "#" * ((1 << 20) + 1)}, 400, "code"),
        ({"args": ["x" * 131_072]}, 400, "args"),
        ({"args": ["x"] * 1001}, 400, "args"),
        ({"shell": "/bin/sh"}, 400, "shell"),
        ({"shell": "sh -c id"}, 400, "shell"),
        ({"shell": "../../bin/sh"}, 400, "shell"),
        ({"shell": "--"}, 400, "shell"),
    ],
)
def test_what_cannot_be_is_refused(alice: Person, fields: dict[str, Any], status: int, named: str | None) -> None:
    answer = alice.api.post("/api/jobs", {"code": "true", **fields})
    assert answer.status == status, answer
    if named:
        assert named in answer.errors
