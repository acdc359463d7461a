"""The tokens file: whole, private, and alone, whatever became of whoever wrote it before."""

from __future__ import annotations

import stat
from pathlib import Path

import yaml

from shell_service import provision


def test_a_writer_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / ".tokens.yaml"
    provision.write_tokens(path, {"INITIAL_ADMIN": "first"})
    left = provision.unfinished(path)
    left.write_text("INITIAL_ADMIN: fir")
    left.chmod(0o644)
    provision.write_tokens(path, {"DEMO_ALICE": "second"})
    assert yaml.safe_load(path.read_text()) == {"INITIAL_ADMIN": "first", "DEMO_ALICE": "second"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
