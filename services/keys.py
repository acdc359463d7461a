"""The keys that secrets are sealed with, as services read them at their start."""

from __future__ import annotations

import sys

from baselayer.config import ConfigError
from shell_service.secrets import Keyring
from shell_service.settings import Settings


def keyring(settings: Settings) -> Keyring:
    """The keys of this service, made at its first start. Ends the process with a sentence where there can be none.

    Before it leaves root behind: nobody else may read them.
    """
    try:
        return Keyring.of(settings.secrets_key)
    except ConfigError as error:
        sys.exit(str(error))
