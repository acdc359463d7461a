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
def settings(tmp_path: Path) -> Settings:
    found = write_config(tmp_path / "config.yaml", tmp_path / "data", server={"processes": 3}, runner={"processes": 2})
    layout.prepare_folders(found)
    return found


def rendered(settings: Settings) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(layout.write_configuration(settings, None).read_text())
    return parser


def test_every_service_has_a_program(settings: Settings) -> None:
    programs = {name.removeprefix("program:") for name in rendered(settings).sections() if name.startswith("program:")}
    assert programs == {"postgres", "migrate", "status", "scheduler", "runner", "app", "nginx"}


def test_an_external_database_needs_no_server_of_ours(tmp_path: Path) -> None:
    url = "postgresql://u:p@db.example/x"
    settings = write_config(tmp_path / "config.yaml", tmp_path / "data", database={"url": url})
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


def test_two_services_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "app").mkdir(parents=True)
        (tmp_path / folder / "app" / "supervisor.conf.j2").write_text("[program:app]\n")
    with pytest.raises(ConfigError, match="two services are called app"):
        rendering.stanzas([tmp_path / "one", tmp_path / "two"])


def test_two_programs_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "supervisord.conf.j2").write_text("[supervisord]\n")
    for service in ("one", "two"):
        (tmp_path / service).mkdir()
        (tmp_path / service / "supervisor.conf.j2").write_text("[program:same]\ncommand=true\n")
    with pytest.raises(ConfigError, match=r"\[program:same\] is defined by both one and two"):
        rendering.supervisor_config([tmp_path], {})


def test_an_unknown_name_in_a_stanza_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "supervisord.conf.j2").write_text("[supervisord]\n")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "supervisor.conf.j2").write_text("[program:one]\ncommand={{ comand }}\n")
    with pytest.raises(ConfigError, match="'comand' is undefined"):
        rendering.supervisor_config([tmp_path], {"command": "x"})


def test_an_unknown_name_in_a_template_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.j2").write_text("{{ nothing }}")
    with pytest.raises(jinja2.UndefinedError):
        rendering.environment(tmp_path).get_template("x.j2").render()


@pytest.mark.parametrize("bad", ['a"b', "a;b", "a%(x)s", "a\nb", "a$b", "a{b"])
def test_a_path_that_would_be_read_as_syntax_is_refused(tmp_path: Path, bad: str) -> None:
    settings = write_config(tmp_path / "config.yaml", tmp_path / bad / "data")
    with pytest.raises(ConfigError, match="cannot be used here"):
        layout.prepare_folders(settings)


def test_a_path_with_blanks_is_fine(tmp_path: Path) -> None:
    settings = write_config(tmp_path / "config.yaml", tmp_path / "my data")
    layout.prepare_folders(settings)
    overlay = tmp_path / "my config.yaml"
    overlay.touch()
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(layout.write_configuration(settings, overlay).read_text())
    assert f"--config '{overlay}'" in parser["program:app"]["command"]


def test_services_get_a_clean_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    environment = layout.clean_environment(settings)
    assert environment.keys() == {"PATH", "LANG", "HOME", "PYTHONPATH", "PYTHONUNBUFFERED", layout.MARK}


def test_the_site_policy_names_exactly_the_inline_scripts(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script>alert(1)</script><script src="a.js"></script>')
    policy = layout.site_policy(tmp_path)
    assert policy.count("'sha256-") == 1
    assert "script-src 'self' 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='" in policy
    assert "frame-ancestors 'none'" in policy


def test_folders_of_somebody_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = write_config(tmp_path / "config.yaml", tmp_path / "data")
    layout.prepare_folders(settings)
    settings.socket_dir.rmdir()
    (tmp_path / "elsewhere").mkdir()
    settings.socket_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"sockets"):
        layout.prepare_folders(settings)
