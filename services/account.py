"""Leaving root behind, in those services that can do without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from baselayer import postgres, privilege
from shell_service.settings import ROOT, Settings


def enter(settings: Settings, database_url: str, paths: Iterable[Path] = ()) -> None:
    """Become the service's account, with access to the code, to the database, and to `paths`; if root started us.

    Secrets have to be read and sockets to be bound before. For a process of one thread; ends it with a sentence where
    the account cannot get to what it needs.
    """
    account = settings.account
    if account is None:
        return
    code = [ROOT, Path(sys.prefix), Path(sys.base_prefix)]  # modules are imported at any time
    try:
        needed = [*code, settings.socket_dir, *postgres.paths_in(database_url), *paths]
        privilege.expose([path.resolve() for path in needed], account)
        privilege.drop(account)
    except OSError as error:
        sys.exit(f"cannot run as uid {account.uid}: {error}")
    for path in code:
        if not os.access(path, os.R_OK | os.X_OK):
            sys.exit(f"uid {account.uid}, which the service runs with, cannot read {path}: chmod -R go+rX {path}")
