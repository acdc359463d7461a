"""What the entry points' command lines have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from baselayer.config import ConfigError
from shell_service import settings


class _ConfigFile(click.ParamType):
    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> settings.Settings:
        if isinstance(value, settings.Settings):
            return value
        try:
            return settings.load(Path(value).absolute() if value else None)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def config_option(function: Callable[..., None]) -> Callable[..., None]:
    """Give a click command ``--config FILE`` and pass it the loaded ``settings``; a mistake in them ends it with 2."""
    option = click.option(
        "--config",
        "settings",
        type=_ConfigFile(),
        default="",
        help="A configuration file laid over config.yaml.defaults and config.yaml.",
    )
    return option(function)
