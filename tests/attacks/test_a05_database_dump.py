"""A5: a dump of the database, a copy of the data folder or a look at processes gives no token away."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

from baselayer import postgres
from baselayer import token as tokens
from tests.client import Api, Person
from tests.stack import Stack
from tests.waiting import eventually


def test_a_dump_holds_only_hashes(stack: Stack, alice: Person, admin: Api) -> None:
    url = stack.settings.database_url.replace("postgresql+psycopg2", "postgresql")
    dump = subprocess.run(
        [postgres.binaries() / "pg_dump", "--data-only", "--inserts", url],
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    for token in (alice.token, admin.token):
        assert tokens.digest(token).hex() in dump
        assert token[: tokens.SHOWN] in dump
        for start in range(tokens.SHOWN, len(token) - 8):
            assert token[start : start + 8] not in dump


def test_no_file_holds_a_token(stack: Stack, alice: Person) -> None:
    """A token that has been used, nor its secret part: not in the database's files and journal, nor in a log."""
    marker = f"/api/{uuid.uuid4().hex}"
    alice.api.get(marker)
    eventually(lambda: any(marker in stack.log(f"app_0{number}") for number in (0, 1)))
    secret = alice.token[tokens.SHOWN :].encode()
    seen = 0
    for path in (path for path in stack.folder.rglob("*") if path.is_file() and not path.is_symlink()):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue  # removed meanwhile
        seen += len(content)
        assert secret not in content, path
    assert seen > 16 * 2**20  # the database's journal alone is as long


def test_the_first_administrator_s_is_in_its_file_alone(stack: Stack) -> None:
    holders = [
        path
        for path in stack.folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20
        and stack.admin_token.encode() in path.read_bytes()
    ]  # fmt: skip
    assert holders == [stack.settings.tokens_file]
    assert stack.settings.tokens_file.stat().st_mode & 0o777 == 0o600


def test_no_process_shows_a_secret(stack: Stack, alice: Person) -> None:
    """What `ps` shows to everybody, and what /proc shows to the same account."""
    secrets = [stack.admin_token, alice.token, stack.settings.cluster.password_file.read_text().strip()]
    for name, pid in stack.pids().items():
        for file in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")
            assert not [secret for secret in secrets if secret in text], f"{name}: {file}"
