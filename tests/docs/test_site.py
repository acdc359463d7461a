"""The documentation site: complete, without anything foreign, and built anew when its sources change."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from baselayer.errors import ApiError
from docs import configuration, generated, operations
from docs.generated import EXAMPLE_URL
from services import docs, layout
from shell_service import document
from shell_service.scopes import MEANINGS
from shell_service.settings import ROOT, Settings
from tests.stack import write_config


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings with a data folder of their own, and the site built into it."""
    folder = tmp_path_factory.mktemp("site")
    settings = write_config(folder / "config.yaml", folder / "data")
    layout.prepare_folders(settings)
    said: list[str] = []
    docs.build(settings, folder / "config.yaml", said.append)
    assert said
    yield settings


@pytest.fixture(scope="module")
def site(settings: Settings) -> dict[str, str]:
    """The HTML pages by name."""
    folder = settings.site_dir
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.html")}


def words(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_every_page_is_there(site: dict[str, str]) -> None:
    names = {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in (ROOT / "docs").rglob("*.md")}
    assert names <= set(site)
    assert not any("<!-- generated" in page or "&lt;!-- generated" in page for page in site.values())


def test_no_page_is_where_the_router_sends_requests_to_the_api(site: dict[str, str]) -> None:
    assert not [name for name in site if name.startswith(("api/", "metrics", "status"))]


def test_every_link_leads_somewhere(site: dict[str, str], settings: Settings) -> None:
    broken = []
    for name, page in site.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', page):
            parts = urlsplit(html.unescape(link))
            if parts.scheme or parts.netloc or link.startswith(("data:", "/api/openapi.json")):
                continue
            target = (settings.site_dir / name).parent / unquote(parts.path) if parts.path else settings.site_dir / name
            if not target.exists():
                broken.append((name, link))
            elif parts.fragment and target.suffix == ".html":
                wanted = re.escape(html.escape(unquote(parts.fragment)))
                if not re.search(rf'(?:id|name)="{wanted}"', target.read_text()):
                    broken.append((name, link))
    assert not broken


def test_nothing_comes_from_elsewhere(site: dict[str, str], settings: Settings) -> None:
    for name, page in site.items():
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//', page), name
        assert not re.findall(r'<link(?![^>]*rel="canonical")[^>]*href="(?:https?:)?//', page), name
    for path in settings.site_dir.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", path.read_text()), path


def test_scripts_are_those_that_the_router_allows(site: dict[str, str], settings: Settings) -> None:
    policy = layout.site_policy(settings.site_dir)
    assert 1 <= policy.count("'sha256-") < 10
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    handlers = r"<[^>]*\son(?:click|load|error|input|change|submit)="
    assert not [name for name, page in site.items() if re.search(handlers, page) or "javascript:" in page]


def test_pages_show_the_address_of_the_service(site: dict[str, str], settings: Settings) -> None:
    assert settings.base_url != EXAMPLE_URL
    assert settings.base_url in words(site["quickstart.html"])
    assert not [name for name, page in site.items() if EXAMPLE_URL in words(page)]


def test_the_reference_has_every_operation(site: dict[str, str], settings: Settings) -> None:
    pages = [page for name, page in site.items() if name.startswith("reference/")]
    for path, methods in document.build(settings.base_url, settings.jobs, settings.limits)["paths"].items():
        for method, operation in methods.items():
            shown = f'<span class="method {method}">{method.upper()}</span> <code>{path}</code>'
            (page,) = [page for page in pages if shown in page]
            text = words(page)
            assert operation["summary"].replace("`", "") in text
            for sample in operation["x-codeSamples"]:
                assert all(line in text for line in sample["source"].strip().splitlines())


def test_references_have_every_key_error_scope_and_verb(site: dict[str, str]) -> None:
    def keys(values: dict[str, object], path: str = "") -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from keys(value, f"{path}{name}.")
            else:
                yield f"{path}{name}"

    shown = words(site["reference/configuration.html"])
    for key in keys(yaml.safe_load((ROOT / "config.yaml.defaults").read_text())):
        assert f"\n{key}\n" in shown, key
    for kind in generated._subclasses(ApiError):
        assert kind.code in site["limits.html"]
        assert kind.__doc__ and kind.__doc__.strip() in words(site["limits.html"])
    for scope in MEANINGS:
        assert f">{scope}</span>" in site["reference/scopes.html"]
    verbs = re.findall(r"^([a-z_]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(verbs) > 15
    for verb in verbs:
        assert f"make {verb}\n" in words(site["guides/operate.html"])


def test_every_key_of_the_configuration_is_explained() -> None:
    def leaves(knobs: list[configuration.Knob]) -> Iterator[configuration.Knob]:
        for knob in knobs:
            yield from leaves(knob.below) if knob.below else (knob,)

    for knob in leaves(configuration.parse((ROOT / "config.yaml.defaults").read_text())):
        assert knob.comment or knob.path[0] == "shells", knob.path


def test_pages_name_the_defaults_that_hold() -> None:
    """Where a page writes "`users.max_running`, 50", or "(50)" behind it, that is the default."""
    defaults = load_yaml(ROOT / "config.yaml.defaults")
    count = 0
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for key, shown in re.findall(r"`([a-z]+\.[a-z_.]+)`(?:, | \()([\d,]+(?: [sMG]i?B?)?)", path.read_text()):
            value = functools.reduce(lambda values, name: values[name], key.split("."), defaults)
            plain = shown.replace(",", "").removesuffix(" s").replace(" ", "")
            assert plain == str(value), f"{path.name}: {key} is {value}, not {shown}"
            count += 1
    assert count > 10


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_it_is_current_until_a_source_changes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert docs.is_current(settings)
    page = tmp_path / "page.md"
    monkeypatch.setattr(docs, "SOURCE", tmp_path)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "_CODE", ())
    page.write_text("one")
    docs.mark_current(settings)
    assert docs.is_current(settings)
    page.write_text("two")
    assert not docs.is_current(settings)


def test_a_build_that_fails_leaves_the_site(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = (settings.site_dir / "index.html").read_text()
    (tmp_path / "conf.py").write_text("raise RuntimeError('no')")
    monkeypatch.setattr(docs, "SOURCE", tmp_path)
    with pytest.raises(docs.DocsError, match="no"):
        docs.build(settings, None, lambda line: None)
    assert (settings.site_dir / "index.html").read_text() == before


def test_what_is_not_built_any_more_is_removed(tmp_path: Path) -> None:
    new, place = tmp_path / "new", tmp_path / "place"
    (new / "kept").mkdir(parents=True)
    (new / "kept" / "page.html").write_text("new")
    (place / "gone").mkdir(parents=True)
    (place / "gone" / "page.html").write_text("old")
    (place / "kept").mkdir()
    (place / "kept" / "page.html").write_text("old")
    docs._replace(new, place)
    assert [str(path.relative_to(place)) for path in sorted(place.rglob("*"))] == ["kept", "kept/page.html"]
    assert (place / "kept" / "page.html").read_text() == "new"


def test_types_are_told_in_words() -> None:
    assert operations._kind({"type": ["number", "null"], "exclusiveMinimum": 0.0, "maximum": 86400.0}) == (
        "number, above 0 to 86,400 or null"
    )
    assert operations._kind({"type": "integer", "minimum": 1, "maximum": 2.0**53}) == (
        "whole number, 1 to 9,007,199,254,740,992"
    )
    assert operations._kind({"type": "number", "minimum": 0.1, "maximum": 2}) == "number, 0.1 to 2"
    assert operations._kind({"type": "array", "items": {"type": "string"}}) == "list of text"
    assert operations._kind({"type": "object", "additionalProperties": {"type": "integer"}}) == "map to whole number"
    assert operations._kind({"type": "string", "enum": ["a", None]}) == "`a`"
