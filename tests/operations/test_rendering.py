"""Rendered configuration: complete, repeatable, and refused rather than guessed."""

from __future__ import annotations

import configparser
from pathlib import Path

import jinja2
import pytest

from baselayer import rendering
from baselayer.config import ConfigError
from services import layout
from shell_service.settings import Settings
from tests.stack import write_config


@pytest.fixture
def settings(folder: Path) -> Settings:
    found = write_config(folder / "config.yaml", folder / "data", server={"processes": 3}, runner={"processes": 2})
    layout.prepare_folders(found)
    return found


def rendered(settings: Settings) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(layout.write_configuration(settings, None).read_text())
    return parser


def test_every_service_has_a_program(settings: Settings) -> None:
    programs = {name.removeprefix("program:") for name in rendered(settings).sections() if name.startswith("program:")}
    assert programs == {"postgres", "migrate", "status", "scheduler", "runner", "app", "nginx"}


def test_an_external_database_needs_no_server_of_ours(folder: Path) -> None:
    url = "postgresql://u:p@db.example/x"
    settings = write_config(folder / "config.yaml", folder / "data", database={"url": url})
    layout.prepare_folders(settings)
    assert "program:postgres" not in rendered(settings).sections()
    assert "u:p@" not in (settings.run_dir / "supervisord.conf").read_text()


def test_rendering_again_changes_nothing(settings: Settings) -> None:
    first = layout.write_configuration(settings, None).read_text()
    assert layout.write_configuration(settings, None).read_text() == first
    assert not [path for path in settings.run_dir.iterdir() if path.name.startswith(".")]


def test_the_runner_has_time_to_drain_before_it_is_killed(settings: Settings) -> None:
    runner = rendered(settings)["program:runner"]
    assert int(runner["stopwaitsecs"]) > settings.runner.drain_seconds + settings.jobs.kill_grace
    assert (runner["stopasgroup"], runner["killasgroup"]) == ("false", "false")


def test_the_database_starts_first_and_stops_last(settings: Settings) -> None:
    parser = rendered(settings)
    priorities = {name: int(parser[name]["priority"]) for name in parser.sections() if name.startswith("program:")}
    assert min(priorities, key=priorities.__getitem__) == "program:postgres"
    assert len(set(priorities.values())) == len(priorities)


def test_two_services_of_one_name_are_refused(folder: Path) -> None:
    for place in ("one", "two"):
        (folder / place / "app").mkdir(parents=True)
        (folder / place / "app" / "supervisor.conf.j2").write_text("[program:app]\n")
    with pytest.raises(ConfigError, match="two services are called app"):
        rendering.stanzas([folder / "one", folder / "two"])


def test_two_programs_of_one_name_are_refused(folder: Path) -> None:
    (folder / "supervisord.conf.j2").write_text("[supervisord]\n")
    for service in ("one", "two"):
        (folder / service).mkdir()
        (folder / service / "supervisor.conf.j2").write_text("[program:same]\ncommand=true\n")
    with pytest.raises(ConfigError, match=r"\[program:same\] is defined by both one and two"):
        rendering.supervisor_config([folder], {})


def test_an_unknown_name_in_a_stanza_is_an_error(folder: Path) -> None:
    (folder / "supervisord.conf.j2").write_text("[supervisord]\n")
    (folder / "one").mkdir()
    (folder / "one" / "supervisor.conf.j2").write_text("[program:one]\ncommand={{ comand }}\n")
    with pytest.raises(ConfigError, match="'comand' is undefined"):
        rendering.supervisor_config([folder], {"command": "x"})


def test_an_unknown_name_in_a_template_is_an_error(folder: Path) -> None:
    (folder / "x.j2").write_text("{{ nothing }}")
    with pytest.raises(jinja2.UndefinedError):
        rendering.environment(folder).get_template("x.j2").render()


@pytest.mark.parametrize("bad", ['a"b', "a;b", "a%(x)s", "a\nb", "a$b", "a{b"])
def test_a_path_that_would_be_read_as_syntax_is_refused(folder: Path, bad: str) -> None:
    settings = write_config(folder / "config.yaml", folder / bad / "data")
    with pytest.raises(ConfigError, match="cannot be used here"):
        layout.prepare_folders(settings)


def test_a_path_with_blanks_is_fine(folder: Path) -> None:
    settings = write_config(folder / "config.yaml", folder / "my data")
    layout.prepare_folders(settings)
    overlay = folder / "my config.yaml"
    overlay.touch()
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(layout.write_configuration(settings, overlay).read_text())
    assert f"--config '{overlay}'" in parser["program:app"]["command"]


def test_services_get_a_clean_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    environment = layout.clean_environment(settings)
    of_ours = {"PATH", "LANG", "HOME", "PYTHONPATH", "PYTHONUNBUFFERED", layout.MARK}
    assert environment.keys() == {*of_ours, "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"}


def test_the_site_policy_names_exactly_the_inline_scripts(folder: Path) -> None:
    (folder / "index.html").write_text('<script>alert(1)</script><script src="a.js"></script>')
    policy = layout.site_policy(folder)
    assert policy.count("'sha256-") == 1
    assert "script-src 'self' 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='" in policy
    assert "frame-ancestors 'none'" in policy


def test_folders_of_somebody_else_are_refused(folder: Path) -> None:
    settings = write_config(folder / "config.yaml", folder / "data")
    layout.prepare_folders(settings)
    settings.socket_dir.rmdir()
    (folder / "elsewhere").mkdir()
    settings.socket_dir.symlink_to(folder / "elsewhere")
    with pytest.raises(ConfigError, match="is not a folder but a link"):
        layout.prepare_folders(settings)
