"""What pages take from the code: a line ``<!-- generated: NAME ... -->`` is replaced while Sphinx reads a page.

So reference pages cannot drift from what they are about, and nothing generated is ever a file of the checkout.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from baselayer.errors import ApiError
from docs import configuration, operations
from shell_service import document
from shell_service.limits import NAMES, shown
from shell_service.scopes import MEANINGS, SCOPES
from shell_service.settings import ROOT, Settings, load

EXAMPLE_URL = "http://localhost:5000"  # what pages write where the service's own address is meant
_MARK = re.compile(r"<!-- generated: ([a-z]+) ?([\w. -]*?) -->")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx. ``service_config`` names a file that is laid over config.yaml."""
    app.add_config_value("service_config", "", "env")
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _settings(app: Sphinx) -> Settings:
    return _load(app.config.service_config)


@functools.cache
def _load(path: str) -> Settings:
    return load(Path(path) if path else None)


@functools.cache
def _document(path: str) -> dict[str, Any]:
    settings = _load(path)
    return document.build(settings.base_url, settings.jobs, settings.limits)


def _fill(app: Sphinx, name: str, source: list[str]) -> None:
    settings = _settings(app)

    def replace(match: re.Match[str]) -> str:
        return GENERATORS[match[1]](app, *match[2].split())

    # What is generated knows the address already.
    text = source[0].replace(EXAMPLE_URL, settings.base_url)
    source[0] = _MARK.sub(replace, text)


def _operations(app: Sphinx, *tags: str) -> str:
    return operations.page(_document(app.config.service_config), set(tags))


def _configuration(app: Sphinx) -> str:
    return configuration.page((ROOT / "config.yaml.defaults").read_text())


def _errors(app: Sphinx) -> str:
    """All errors that answers can carry, by status."""
    document.routes()  # brings in every module that has errors of its own
    rows = ["| status | code | meaning |", "|---|---|---|"]
    for kind in sorted([ApiError, *_subclasses(ApiError)], key=lambda kind: (kind.status, kind.code)):
        rows.append(f"| {kind.status} | `{kind.code}` | {operations.cell(inspect.cleandoc(kind.__doc__ or ''))} |")
    return "\n".join(rows)


def _subclasses(kind: type[ApiError]) -> list[type[ApiError]]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]


def _limits(app: Sphinx) -> str:
    """The rows of a table: each limit of jobs, what is counted, its default, and its maximum."""
    settings, rows = _settings(app), []
    properties = _document(app.config.service_config)["components"]["schemas"]["JobLimitsRequest"]["properties"]
    about = {"timeout": "Seconds of running.", **{name: properties[name]["description"] for name in NAMES}}
    for name, meaning in about.items():
        limit = getattr(settings.limits, name)
        text = meaning.partition(".")[0]
        rows.append(f"| `{name}` | {text} | {shown(name, limit.default)} | {shown(name, limit.max)} |")
    return "\n".join(rows)


def _scopes(app: Sphinx) -> str:
    """All scopes, and which role may have them."""
    rows = ["| scope | a token with it may | users | administrators |", "|---|---|---|---|"]
    for name, meaning in MEANINGS.items():
        yes = ["✓" if name == "*" or name in SCOPES.of_role(role) else "" for role in ("user", "admin")]
        rows.append(f"| `{name}` | {meaning} | {yes[0]} | {yes[1]} |")
    return "\n".join(rows)


def _verbs(app: Sphinx) -> str:
    """The verbs of the Makefile with their help."""
    found = re.findall(r"^([a-z_]+):.*?## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return "\n".join(["| verb | does |", "|---|---|", *(f"| `make {verb}` | {text} |" for verb, text in found)])


def _image(app: Sphinx, name: str) -> str:
    """A drawing, as part of the page so that it has the page's colours."""
    text = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
    lines = [line for line in text.splitlines() if line.strip()]  # an empty line would end the HTML block
    return "\n".join(['<div class="drawing">', *lines, "</div>"])


def _changes(app: Sphinx) -> str:
    return (ROOT / "CHANGELOG.md").read_text().partition("\n")[2]


GENERATORS: dict[str, Callable[..., str]] = {
    "operations": _operations,
    "configuration": _configuration,
    "errors": _errors,
    "limits": _limits,
    "scopes": _scopes,
    "verbs": _verbs,
    "image": _image,
    "changes": _changes,
}
