"""Configuration files for other programs, rendered whole from templates into a folder of their own."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from baselayer.config import ConfigError
from baselayer.privilege import Account

# What would end a quoted string, start a comment or be expanded by nginx or supervisor.
_UNSAFE = re.compile(r"[\x00-\x1f\"'\\;%{}$#]")


def check_path(path: Path, what: str) -> Path:
    """`path`, when it can stand in a configuration file as it is. Raises `ConfigError` otherwise; `what` names it."""
    if match := _UNSAFE.search(str(path)):
        raise ConfigError(f"{what} is {str(path)!r}: a path with {match[0]!r} in it cannot be used here")
    return path


def environment(*folders: Path) -> jinja2.Environment:
    """Templates from `folders`; a name that is not defined is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(folder) for folder in folders]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def stanzas(services: Sequence[Path], name: str = "supervisor.conf.j2") -> dict[str, Path]:
    """The stanza template of each service: ``<folder>/<service>/supervisor.conf.j2`` for each of the folders.

    Raises `ConfigError` when two folders have a service of the same name.
    """
    found: dict[str, Path] = {}
    for folder in services:
        for path in sorted(folder.glob(f"*/{name}")):
            service = path.parent.name
            if service in found:
                raise ConfigError(f"two services are called {service}: {found[service]} and {path}")
            found[service] = path
    return found


def supervisor_config(services: Sequence[Path], context: Mapping[str, Any]) -> str:
    """The whole configuration for supervisord: ``supervisord.conf.j2`` of the first folder, then every stanza.

    Raises `ConfigError` when two stanzas define the same program, or when one cannot be rendered.
    """
    templates = environment(*services)
    parts = [templates.get_template("supervisord.conf.j2").render(context)]
    owners: dict[str, str] = {}
    for service, path in stanzas(services).items():
        try:
            text = templates.from_string(path.read_text()).render(context)
        except jinja2.TemplateError as error:
            raise ConfigError(f"{path}: {error}") from error
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
        try:
            parser.read_string(text, str(path))
        except configparser.Error as error:
            raise ConfigError(f"{path}: {error}") from error
        for section in parser.sections():
            if section in owners:
                raise ConfigError(f"[{section}] is defined by both {owners[section]} and {service}")
            owners[section] = service
        parts.append(text.strip() + "\n")
    return "\n".join(part for part in parts if part.strip())


def write(path: Path, text: str, mode: int = 0o600, owner: Account | None = None) -> None:
    """Put `text` at `path`, whole or not at all; `owner` is whose the file is to be, by default ours."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        if owner is not None:
            os.fchown(file.fileno(), owner.uid, owner.gid)
        file.write(text)
    scratch.replace(path)
