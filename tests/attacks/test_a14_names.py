"""A14: names that a file system, a shell or a terminal would read as something else. There are no uploads; what users
may name are jobs, tokens and users, and no file is ever called after any of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.client import Api, Person, events
from tests.stack import Stack

# What a name may be made of leaves these, which a file or a command would be in trouble with.
STRANGE = [".", "..", "...", "-rf", "--help", "-", "CON", "NUL", "com1.txt", "a" * 100, "_", "stdout", "0", "1.stdout"]
REFUSED = [
    *("../../x", "/etc/passwd", "a/b", "a\\b", "..\\x", "a b", " ", "\t", "", "a\n", "a\r\nb", "\u2028", "a" * 300),
    *("\u202egnp.exe", "\u00e9", "e\u0301", "\uff0e\uff0e", "a\0b", "a;b", "a`id`", "$(id)", "a|b", "a&b", "*", "~"),
    *("a:b", "<b>", "%2e", "{}", "'", '"'),
]


def test_names_of_jobs_are_no_names_of_files(alice: Person, stack: Stack) -> None:
    jobs = alice.api.post("/api/jobs/batch", {"jobs": [{"code": "echo $0", "name": name} for name in STRANGE]}).data
    for job, name in zip(jobs, STRANGE, strict=True):
        assert job["id"].startswith(f"{name}_")
        assert list(events(alice.api, job["id"]))[-1].data["status"] == "COMPLETED"
        answer = alice.api.get(f"/api/jobs/{job['id']}/stdout")
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}.stdout"'
    for path in stack.settings.output_dir.rglob("*"):
        form = r"[0-9a-f]{32}\.\d+\.(stdout|stderr|artifacts)" if path.is_file() else r"\d{4}-\d\d-\d\d|[0-9a-f]{2}"
        assert re.fullmatch(form, path.name), path


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_other_names_are_refused(alice: Person, admin: Api, name: str) -> None:
    for api, path, body, field in (
        (alice.api, "/api/jobs", {"code": "true", "name": name}, "name"),
        (admin, "/api/users", {"username": name}, "username"),
    ):
        answer = api.post(path, body)
        assert (answer.status, list(answer.errors)) == (400, [field])


def test_names_of_tokens_are_only_shown(person: Callable[..., Person]) -> None:
    """They may be any text but NUL: they come back as they were given, and nothing is looked up by them."""
    owner = person()
    for name in (name for name in [*STRANGE, *REFUSED] if 0 < len(name) <= 100 and "\0" not in name):
        made = owner.api.post("/api/tokens", {"name": name}).data
        assert made["name"] == name
        assert owner.api.delete(f"/api/tokens/{made['id']}").data == {}
