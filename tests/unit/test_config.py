"""Configuration files: laid over one another, checked, and refused with a sentence that names what is wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from baselayer.config import Bytes, ConfigError, load, parse_bytes
from shell_service import settings
from shell_service.settings import ROOT, Settings


@dataclass(frozen=True)
class Inner:
    port: int
    wait: float


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool
    size: Bytes
    folder: Path
    level: Literal["LOW", "HIGH"]
    inner: Inner
    tools: dict[str, str]


DEFAULTS = """\
name: service
flag: true
size: 2MiB
folder: data
level: LOW
inner: {port: 5000, wait: 1.5}
tools: {sh: /bin/sh}
"""


@pytest.fixture
def read(tmp_path: Path):
    (tmp_path / "defaults").write_text(DEFAULTS)

    def read(*overlays: str) -> Outer:
        paths = []
        for number, text in enumerate(overlays):
            paths.append(tmp_path / f"overlay{number}.yaml")
            paths[-1].write_text(text)
        return load(Outer, tmp_path / "defaults", *paths)

    return read


def test_the_defaults_are_enough(read) -> None:
    expected = Outer("service", True, Bytes(2 * 2**20), Path("data"), "LOW", Inner(5000, 1.5), {"sh": "/bin/sh"})
    assert read() == expected


def test_overlays_change_only_what_they_name(read) -> None:
    config = read("inner: {port: 1}\ntools: {bash: /bin/bash}", "inner: {wait: 3}\nsize: 7")
    assert config.inner == Inner(1, 3.0)
    assert config.tools == {"sh": "/bin/sh", "bash": "/bin/bash"}
    assert (config.size, config.name) == (7, "service")


@pytest.mark.parametrize("text", ["", "# nothing here\n", "---\n", "inner:\n", "inner: ~\ntools:\n"])
def test_what_says_nothing_changes_nothing(read, text: str) -> None:
    assert read(text) == read()


def test_nobody_can_change_it_afterwards(read) -> None:
    with pytest.raises(FrozenInstanceError):
        read().inner.port = 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nmae: x", ["unknown key nmae", "did you mean name?"]),
        ("inner: {prot: 1}", ["unknown key inner.prot", "did you mean inner.port?"]),
        ("inner: {zzzzzz: 1}", ["unknown key inner.zzzzzz", "known here: port, wait"]),
        ("1: x", ["unknown key 1"]),
        ("name: 5", ["name is 5", "expected text"]),
        ("flag: 1", ["flag is 1", "expected true or false"]),
        ("flag: 'yes'", ["flag is 'yes'", "expected true or false"]),
        ("inner: {port: '5000'}", ["inner.port is '5000'", "expected a whole number"]),
        ("inner: {port: true}", ["inner.port is True", "expected a whole number"]),
        ("inner: {port: 1.5}", ["inner.port is 1.5", "expected a whole number"]),
        ("inner: {port: ~}", ["inner.port is None", "expected a whole number"]),
        ("inner: {wait: soon}", ["inner.wait is 'soon'", "expected a number"]),
        ("inner: {wait: false}", ["inner.wait is False", "expected a number"]),
        ("inner: 5", ["inner is 5", "expected a section"]),
        ("inner: [1]", ["inner is [1]", "expected a section"]),
        ("tools: x", ["tools is 'x'", "expected a mapping"]),
        ("tools: {sh: 3}", ["tools.sh is 3", "expected text"]),
        ("folder: 3", ["folder is 3", "expected a path"]),
        ("level: MIDDLE", ["level is 'MIDDLE'", "'LOW', 'HIGH'"]),
        ("size: 5 parsecs", ["size", "'5 parsecs' is not a size"]),
        ("size: -1", ["size", "-1 is not a size"]),
        ("- a\n- b", ["expected a mapping", "list"]),
        ("just text", ["expected a mapping", "str"]),
        ("a: [", ["not valid YAML"]),
        ("name: !!python/object/apply:os.system ['true']", ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named(read, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    for part in parts:
        assert part in str(caught.value)


def test_an_error_in_a_file_names_the_file(read, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"overlay1\.yaml: unknown key nmae"):
        read("name: x", "nmae: x")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml: No such file"):
        load(Outer, tmp_path / "nowhere.yaml")


def test_a_missing_default_is_named(tmp_path: Path) -> None:
    (tmp_path / "defaults").write_text("name: x\n")
    with pytest.raises(ConfigError, match="missing key flag"):
        load(Outer, tmp_path / "defaults")


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), (17, 17), ("17", 17), ("17B", 17), ("1KiB", 1024), ("1.5MiB", 3 * 2**19), (" 2 GiB ", 2**31),
     ("1TiB", 2**40)],
)  # fmt: skip
def test_sizes(value: object, size: int) -> None:
    assert parse_bytes(value) == size


@pytest.mark.parametrize("value", [True, None, -1, 1.5, "", "MiB", "1MB", "1mib", "-1MiB", "1e3", "١", [1], "inf"])
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(value)


# -- the service's own ----------------------------------------------------------------------------------------------


def test_another_service_has_a_tokens_file_of_its_own(tmp_path: Path) -> None:
    """It is enough to choose another port and another data folder."""
    assert overlay(tmp_path, {"server": {"port": 5001}}).tokens_file == ROOT / ".tokens.yaml"
    second = overlay(tmp_path, {"server": {"port": 5001}, "data_dir": "data-second"})
    assert second.tokens_file == ROOT / "data-second" / ".tokens.yaml"
    elsewhere = overlay(tmp_path, {"server": {"port": 5001}, "data_dir": str(tmp_path / "data")})
    assert elsewhere.tokens_file == tmp_path / "data" / ".tokens.yaml"


def overlay(tmp_path: Path, values: dict) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return settings.load(path)


def test_every_default_is_explained() -> None:
    """A comment stands before each key of the defaults, or before the group of keys that it is in."""
    explained = False
    for line in (ROOT / "config.yaml.defaults").read_text().splitlines():
        if line.strip().startswith("#"):
            explained = True
        elif not line.strip():
            explained = False
        elif not line.strip().endswith(":"):
            assert explained, line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server": {"port": 0}}, r"server\.port is 0"),
        ({"server": {"port": 65536}}, r"server\.port is 65536"),
        ({"server": {"processes": 0}}, r"server\.processes is 0"),
        ({"runner": {"slots": 0}}, r"runner\.slots is 0"),
        ({"database": {"pool_size": -1}}, r"database\.pool_size is -1"),
        ({"server": {"tls": {"certificate": "a.pem"}}}, r"server\.tls needs both"),
        ({"runner": {"lost_after": 6}}, r"runner\.lost_after must be at least three times"),
        ({"limits": {"timeout": {"max": 60}}}, r"limits\.timeout\.default is .*; expected 0\.001 to 60"),
        ({"database": {"statement_timeout": 0}}, r"database\.statement_timeout is 0"),
        ({"users": {"max_running": -1}}, r"users\.max_running is -1"),
        ({"access": {"failures_per_minute": 0}}, r"access\.failures_per_minute is 0"),
        ({"log": {"level": "LOUD"}}, r"log\.level is 'LOUD'"),
    ],
)
def test_values_that_cannot_work_are_refused(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overlay(tmp_path, values)


def test_no_secret_is_in_the_defaults() -> None:
    text = (ROOT / "config.yaml.defaults").read_text()
    assert "shs_" not in text
    assert not any(line.strip().startswith(("password", "secret", "token:")) for line in text.splitlines())


def test_relative_paths_start_at_the_checkout(tmp_path: Path) -> None:
    loaded = overlay(tmp_path, {"data_dir": "elsewhere", "tokens_file": "/tmp/tokens.yaml"})
    assert loaded.data_dir == ROOT / "elsewhere"
    assert loaded.tokens_file == Path("/tmp/tokens.yaml")
