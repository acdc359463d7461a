"""What a process imports it holds as long as it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shell_service.settings import ROOT


@pytest.mark.parametrize(
    ("module", "not_needed"),
    [
        ("services.manage", {"alembic", "psycopg2", "sphinx", "sqlalchemy", "tornado"}),
        ("services.status.__main__", {"asyncio", "click", "tornado", "xmlrpc", "yaml"}),  # its fork stays that small
        ("services.status.server", {"alembic", "cryptography", "sphinx", "sqlalchemy"}),
        ("services.scheduler.__main__", {"alembic", "tornado"}),
        ("services.runner.__main__", {"alembic", "tornado"}),
        ("services.app.__main__", {"alembic", "sphinx"}),
    ],
)
def test_nobody_holds_memory_for_what_he_does_not_do(module: str, not_needed: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True)
    assert not not_needed & set(done.stdout.split())
