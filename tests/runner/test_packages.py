"""Packages: installed once from the index that is allowed, seen read-only by the jobs that name them, told when not."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import fcntl
import hashlib
import io
import os
import signal
import stat
import tarfile
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shell_service import packages, queue, uploads
from shell_service.packages import Layer, Packages
from shell_service.settings import load
from shell_service.uploads import UploadStore
from tests.database import Server
from tests.sandbox.test_files import MAKERS
from tests.services import Site
from tests.waiting import eventually

GREET = {"greet/__init__.py": b"WORD = 'hello'", "greet-1.0.data/scripts/greeter": b"#!/bin/sh\necho greeted"}


def wheel(name: str, version: str, files: dict[str, bytes], requires: str = "") -> bytes:
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {requires}\n" * bool(requires)
    )
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {**files, f"{about}/METADATA": metadata.encode(), f"{about}/WHEEL": tags.encode()}
    sums = {path: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for path, data in content.items()}
    content[f"{about}/RECORD"] = "".join(
        f"{path},sha256={value.decode().rstrip('=')},\n" for path, value in sums.items()
    ).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in content.items():
            info = zipfile.ZipInfo(path)
            info.external_attr = (stat.S_IFREG | (0o755 if data.startswith(b"#!") else 0o644)) << 16
            archive.writestr(info, data)
    return made.getvalue()


def source(told: str) -> bytes:
    """What is no wheel, and whose build asks for the address `told`."""
    lines = f"import urllib.request\nurllib.request.urlopen({told!r})\n"
    files = {"setup.py": lines, "backend.py": lines}
    files["pyproject.toml"] = "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"source-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return made.getvalue()


class Index(SimpleHTTPRequestHandler):
    """A package index; counts what it was asked for."""

    asked: list[str] = []
    open = threading.Event()  # whether /slow/ answers

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/slow/":
            self.open.wait(60)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("index")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    made = {
        "greet": wheel("greet", "1.0", GREET, requires="words"),
        "words": wheel("words", "2.5", {"words.py": b"ALL = ['a']"}),
        "huge": wheel("huge", "1.0", {"huge/data": bytes(3 << 20)}),
        "half": wheel("half", "1.0", {"half/data": bytes(3 << 19)}),
        "whole": wheel("whole", "1.0", {"whole/data": bytes(3 << 19)}, requires="half"),
        "lure": wheel("lure", "1.0", {"lure.py": b""}, requires=f"source @ {address}source/source-1.0.tar.gz"),
    }
    for name, data in made.items():
        (folder / name).mkdir()
        version = "2.5" if name == "words" else "1.0"
        file = f"{name}-{version}-py3-none-any.whl"
        (folder / name / file).write_bytes(data)
        (folder / name / "index.html").write_text(f'<!DOCTYPE html><a href="{file}">{file}</a>')
    (folder / "source").mkdir()
    (folder / "source" / "source-1.0.tar.gz").write_bytes(source(f"{address}built"))
    (folder / "source" / "index.html").write_text('<!DOCTYPE html><a href="source-1.0.tar.gz">source-1.0.tar.gz</a>')
    yield address
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def site(server: Server, index: str) -> Iterator[Site]:
    options = {"index": index, "max_size": "2MiB", "timeout": 60, "keep_days": 1}
    with server.database() as url, Site(url, packages=options) as site:
        site.start_runner()
        yield site


def given(site: Site, files: dict[str, str], archive: str = "", **fields: Any) -> uuid.UUID:
    """A job that is given these files; in an archive of this kind, or one by one."""
    store = UploadStore(site.settings.upload_dir, site.settings.uploads, 0)
    incoming = store.receive()
    contents = {name: text.encode() for name, text in files.items()}
    for name, data in {"all": MAKERS[archive](contents)}.items() if archive else contents.items():
        incoming.begin("archive" if archive else "files", name)
        incoming.write(data)
        incoming.end()
    upload = incoming.finish()
    site.transact(uploads.keep, store, incoming, upload, site.user, 0)
    incoming.close()
    return site.submit("", upload=upload.digest, entrypoint=next(iter(files)), shell="auto", **fields)


@contextmanager
def building(site: Site, archive: str) -> Iterator[uuid.UUID]:
    """A job whose packages are being made; until this ends the index does not answer."""
    Index.open.clear()
    Index.asked.clear()
    try:
        job_id = given(site, {"main.py": "print(1)", "requirements.txt": "slow"}, archive)
        eventually(lambda: "/slow/" in Index.asked, 30)
        yield job_id
    finally:
        Index.open.set()


def setup(site: Site, job_id: uuid.UUID) -> str:
    path = Path(site.outputs.path(job_id, 1, "setup"))
    return path.read_text() if path.exists() else ""


def ended(site: Site, job_id: uuid.UUID) -> Any:
    return eventually(lambda: (job := site.job(job_id)).status and job, 60)


USES = "import greet, words\nprint(greet.WORD, words.ALL, greet.__file__)"


def test_they_are_installed_once_and_seen_by_all(site: Site) -> None:
    first = given(site, {"main.py": USES, "requirements.txt": "# what it needs\ngreet >= 1  # the newest\n"})
    job = ended(site, first)
    assert (job.status, job.reason) == ("COMPLETED", "exit code 0"), setup(site, first) + site.services[0].log()[-1000:]
    assert site.output(job) == b"hello ['a'] /run/packages/greet/__init__.py\n"
    assert "Successfully installed greet-1.0 words-2.5" in setup(site, first)
    before = len(Index.asked)
    again = given(site, {"main.py": USES + "\n", "requirements.txt": "greet>=1"})
    assert ended(site, again).status == "COMPLETED"
    assert (len(Index.asked), setup(site, again)) == (before, "")
    layers = [path for path in site.settings.layer_dir.iterdir() if path.is_dir() and len(path.name) == 64]
    assert len(layers) == 1


def test_what_an_archive_brings_is_no_artifact_of_a_job_that_did_not_begin(site: Site) -> None:
    files = {"x.sh": "rm -r artifacts", "artifacts/y": "y" * 100_000, "requirements.txt": "nothing-like-that"}
    job_id = given(site, files, "zip")
    assert ended(site, job_id).status == "FAILED"
    assert not Path(site.outputs.path(job_id, 1, "artifacts")).exists()
    job_id = given(site, files | {"requirements.txt": "greet==1.0"}, "zip")
    job = ended(site, job_id)
    assert (job.status, job.artifacts) == ("COMPLETED", 0)
    assert not Path(site.outputs.path(job_id, 1, "artifacts")).exists()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_what_an_archive_names_is_known_when_it_is_unpacked(site: Site, kind: str) -> None:
    script = "mkdir artifacts; touch artifacts/left; echo $PYTHONPATH; python3 -c 'import greet; print(greet.WORD)'; ls"
    job_id = given(site, {"x.sh": script, "requirements.txt": "greet==1.0"}, kind, timeout=50)
    job = ended(site, job_id)
    assert (job.status, job.reason) == ("COMPLETED", "exit code 0"), setup(site, job_id)
    assert site.output(job) == b"/run/packages\nhello\nartifacts\nrequirements.txt\nx.sh\n"
    assert (job.attempt, job.artifacts) == (1, 1)
    none = ended(site, given(site, {"x.sh": "echo $PYTHONPATH.", "requirements.txt": "# none"}, kind))
    assert site.output(none) == b".\n"


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        ("--index-url http://elsewhere", "requirements.txt must name packages only, and line 1 is an option."),
        ("#" * 70_000, "requirements.txt must be at most 65536 bytes."),
        (
            "nothing-like-that",
            "The packages of requirements.txt could not be installed; the job's stream setup says why.",
        ),
    ],
    ids=["option", "large", "unknown"],
)
def test_what_cannot_be_installed_for_an_archive_is_told(site: Site, requirements: str, reason: str) -> None:
    files = {"x.sh": "echo ran", "requirements.txt": requirements}
    job = ended(site, given(site, files, "tar.gz", retries=3, retry_delay=0))
    assert (job.status, job.reason, job.attempt, site.output(job)) == ("FAILED", reason, 1, b"")


def test_without_an_index_an_archive_s_are_refused_with_the_reason(server: Server) -> None:
    with server.database() as url, Site(url) as site:
        site.start_runner()
        job = ended(site, given(site, {"x.sh": "echo ran", "requirements.txt": "greet"}, "zip"))
        assert (job.status, site.output(job)) == ("FAILED", b"")
        assert job.reason == "requirements.txt cannot be installed: the service's operator has allowed no index."


def test_one_that_is_cancelled_while_its_packages_are_made_ends_at_once(site: Site) -> None:
    with building(site, "zip") as job_id:
        site.transact(queue.cancel, [job_id], "alice")
        job = ended(site, job_id)
        assert (job.status, site.output(job)) == ("CANCELLED", b"")


def test_they_are_read_only_and_alone(site: Site) -> None:
    script = """
(: > /run/packages/x) 2>&1; (: > /run/packages/greet/__init__.py) 2>&1; rm -rf /run/packages/greet 2>&1 | head -1
ls /run/packages | head -3; greeter 2>&1; echo $PYTHONPATH; ls /layers 2>&1
findmnt -no OPTIONS /run/packages | cut -d, -f1-3
"""
    job = ended(site, given(site, {"x.sh": script, "requirements.txt": "greet>=1"}))
    lines = site.output(job).decode().splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:3]] == ["Read-only file system"] * 3
    assert lines[3:] == [
        "bin", "greet", "greet-1.0.dist-info", "greeted", "/run/packages",
        "ls: cannot access '/layers': No such file or directory", "ro,nosuid,nodev",
    ]  # fmt: skip
    plain = ended(site, given(site, {"y.sh": "ls -A /run/packages; echo $PYTHONPATH."}))
    assert site.output(plain) == b".\n"


@pytest.mark.parametrize(
    ("requirements", "said"),
    [
        ("nothing-like-that", "No matching distribution"),
        ("source", "No matching distribution"),
        ("greet==2", "greet==2"),
    ],
)
def test_what_cannot_be_installed_is_told(site: Site, requirements: str, said: str) -> None:
    job_id = given(site, {"main.py": "print(1)", "requirements.txt": requirements}, retries=3, retry_delay=0)
    job = ended(site, job_id)
    assert (job.status, job.attempt, site.output(job)) == ("FAILED", 1, b"")
    assert "the job's stream setup says why" in job.reason
    assert said in setup(site, job_id)


def test_nothing_is_built_whatever_a_wheel_asks_for(site: Site) -> None:
    job_id = given(site, {"main.py": "print(1)", "requirements.txt": "lure"})
    assert ended(site, job_id).status == "FAILED"
    assert "/source/source-1.0.tar.gz" in Index.asked and "/built" not in Index.asked
    assert "Resource temporarily unavailable" in setup(site, job_id)


def test_a_layer_that_is_too_large(site: Site) -> None:
    job = ended(site, given(site, {"main.py": "print(1)", "requirements.txt": "whole"}))
    assert (job.status, "are the most" in job.reason) == ("FAILED", True)
    job_id = given(site, {"main.py": "print(1)", "requirements.txt": "huge"})
    assert (ended(site, job_id).status, "File too large" in setup(site, job_id)) == ("FAILED", True)
    assert [path for path in site.settings.layer_dir.iterdir() if path.is_dir() and len(path.name) != 64] == []


@pytest.mark.parametrize(
    "content",
    [
        "--index-url http://127.0.0.1/", "-r other.txt", "-e .", "greet @ http://127.0.0.1/greet.whl", "./greet.whl",
        "/etc/passwd", "greet===x/../data/a.tar", "greet.zip", "greet; os_name == '\0'",
        "greet; " + "(" * 900, "git+https://example.org/x", "greet==", "two names", "x" * 70_000, b"\xff",
        "greet; os_name",
    ],
)  # fmt: skip
def test_what_leads_elsewhere_is_refused(content: str | bytes) -> None:
    with pytest.raises(packages.Refused):
        packages.parse(content.encode() if isinstance(content, str) else content)


# Begins, and ends when it may; with a folder alone it removes that.
BUILD = '[ $# -gt 1 ] || exec rm -rf "$1"; mkdir "$1"; echo "$4 $$" >> begun; until [ -e "may-$4" ]; do :; done'


@pytest.fixture
def making(tmp_path: Path) -> Packages:
    options = dataclasses.replace(load().packages, index="http://127.0.0.1/", max_size=1 << 20)
    install = ["/bin/sh", "-c", f"cd {tmp_path}; {BUILD}", "sh"]
    (tmp_path / "layers").mkdir()
    return Packages(tmp_path / "layers", options, 0, "/bin/sh", install)


def begun(tmp_path: Path, *names: str) -> list[str]:
    """Wait until these are made; returns the pids of those who make them."""
    path = tmp_path / "begun"
    lines = eventually(lambda: path.exists() and len(found := path.read_text().split()) == 2 * len(names) and found)
    assert sorted(lines[::2]) == sorted(names)
    return list(lines[1::2])


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


def folders(path: Path) -> list[str]:
    return [item.name for item in path.iterdir() if item.is_dir()]


def make(making: Packages, tmp_path: Path, user: int, name: str) -> asyncio.Task[Layer]:
    def log() -> int:
        return os.open(tmp_path / f"log-{name}", os.O_WRONLY | os.O_CREAT)

    return asyncio.create_task(making.layer(user, [name], log, 1000))


def test_what_nobody_waits_for_any_more_is_not_made(making: Packages, tmp_path: Path) -> None:
    async def act() -> None:
        first, second = (make(making, tmp_path, user, "a") for user in (1, 2))
        (pid,) = await asyncio.to_thread(begun, tmp_path, "a")
        first.cancel()
        await asyncio.wait([first])
        assert alive(pid)
        second.cancel()
        await asyncio.wait([second])
        await asyncio.to_thread(eventually, lambda: not alive(pid))
        await asyncio.to_thread(eventually, lambda: folders(tmp_path / "layers") == [])

    asyncio.run(act())


def test_who_comes_while_a_build_is_given_up_gets_another(making: Packages, tmp_path: Path) -> None:
    slowly = BUILD.replace('|| exec rm -rf "$1"', '|| { until [ -e may-remove ]; do :; done; exec rm -rf "$1"; }')
    install = ["/bin/sh", "-c", f"cd {tmp_path}; {slowly}", "sh"]
    making = Packages(tmp_path / "layers", making._options, 0, "/bin/sh", install)

    async def act() -> None:
        first = make(making, tmp_path, 1, "a")
        await asyncio.to_thread(begun, tmp_path, "a")
        first.cancel()
        await asyncio.wait([first])
        second = make(making, tmp_path, 2, "a")
        done, _ = await asyncio.wait([second], timeout=0.5)  # what was begun is still being removed
        assert not done
        for name in ("may-remove", "may-a"):
            (tmp_path / name).touch()
        assert (await second).path.is_dir()

    asyncio.run(act())


def test_one_user_s_builds_keep_no_other_waiting(making: Packages, tmp_path: Path) -> None:
    async def act() -> None:
        mine = [make(making, tmp_path, 1, "a")]
        await asyncio.to_thread(begun, tmp_path, "a")
        mine += [make(making, tmp_path, 1, name) for name in "bc"]
        his = make(making, tmp_path, 2, "d")
        await asyncio.to_thread(begun, tmp_path, "a", "d")
        for name in "abcd":
            (tmp_path / f"may-{name}").touch()
        layers = await asyncio.gather(*mine, his)
        assert len({layer.path for layer in layers}) == 4 and all(layer.path.is_dir() for layer in layers)

    asyncio.run(act())


def test_whoever_waited_for_another_s_is_told_so(making: Packages, tmp_path: Path) -> None:
    making = Packages(tmp_path / "layers", making._options, 0, "/bin/sh", ["/bin/sh", "-c", "[ $# = 1 ]", "sh"])

    async def act() -> None:
        tasks = [make(making, tmp_path, user, "a") for user in (1, 2)]
        other, one = sorted(map(str, await asyncio.gather(*tasks, return_exceptions=True)))
        assert "the job's stream setup says why" in one and "for another job at the same time" in other

    asyncio.run(act())


def test_a_full_disk_is_told_before(making: Packages, tmp_path: Path) -> None:
    making = Packages(tmp_path / "layers", making._options, 1e18, "/bin/sh", ["/bin/false"])
    with pytest.raises(packages.NotInstalled, match="no room"):
        asyncio.run(making.layer(1, ["a"], lambda: -1, 1000))


@pytest.mark.parametrize("archive", ["", "zip"])
def test_a_stopped_runner_gives_back_what_had_not_begun(server: Server, index: str, archive: str) -> None:
    runner = {"drain_seconds": 0.1, "heartbeat_seconds": 1}
    with server.database() as url, Site(url, packages={"index": index}, runner=runner) as site:
        service = site.start_runner()
        with building(site, archive) as job_id:
            service.send(signal.SIGTERM)
            assert service.wait() == 0, service.log()
        assert site.job(job_id).status is None
        assert site.transact.sql("SELECT job_id FROM ready_job") == [(job_id,)]


@pytest.mark.parametrize("archive", ["", "zip"])
def test_what_had_not_begun_when_the_runner_was_killed_is_not_lost(server: Server, index: str, archive: str) -> None:
    with server.database() as url, Site(url, packages={"index": index}, runner={"heartbeat_seconds": 1}) as site:
        service = site.start_runner()
        with building(site, archive) as job_id:
            service.kill()
        site.start_runner()
        job = ended(site, job_id)
        assert (job.status, job.reason.partition(";")[0]) == (
            "FAILED", "The packages of requirements.txt could not be installed",
        )  # fmt: skip


def test_a_layer_is_not_there_when_only_a_part_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tmp_path / ("a" * 64)
    (layer / "x").mkdir(parents=True)
    marker = tmp_path / f"{layer.name}.used"
    marker.touch()
    os.utime(marker, (0, 0))

    def cut_short(path: Path, ignore_errors: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packages.shutil, "rmtree", cut_short)
    with pytest.raises(KeyboardInterrupt):
        packages.remove_old(tmp_path, 1, 1000)
    assert not layer.exists() and not marker.exists()


def test_old_layers_go(tmp_path: Path) -> None:
    for name, days in (("a" * 64, 2), ("b" * 64, 0.5), ("c" * 64 + ".unfinished", 2), ("tmp-x", 0.5)):
        (tmp_path / name / "x").mkdir(parents=True)
        marker = tmp_path / (f"{name}.used" if len(name) == 64 else name)
        marker.touch()
        os.utime(marker, (time.time() - days * 86_400,) * 2)
    packages.remove_old(tmp_path, 1, 1000)
    packages.remove_old(tmp_path, 1, 1000)
    assert {path.name for path in tmp_path.iterdir()} == {"b" * 64, "b" * 64 + ".used", "tmp-x"}


def test_what_is_too_much_goes_but_what_is_used(tmp_path: Path) -> None:
    names = [letter * 64 for letter in "abcd"]
    for name, hours in zip(names, (4, 3, 2, 1), strict=True):
        (tmp_path / name).mkdir()
        marker = tmp_path / f"{name}.used"
        marker.write_text("400")
        os.utime(marker, (time.time() - hours * 3600,) * 2)
    used = packages._use(tmp_path / names[1])  # it is the one used last now
    os.utime(tmp_path / f"{names[1]}.used", (0, 0))
    assert used
    packages.remove_old(tmp_path, 1, 1000)
    assert sorted(folders(tmp_path)) == names[1:]
    used.close()
    packages.remove_old(tmp_path, 1, 1000)
    assert sorted(folders(tmp_path)) == names[2:]


def test_no_more_is_made_where_there_is_too_much(making: Packages, tmp_path: Path) -> None:
    making = Packages(
        tmp_path / "layers", dataclasses.replace(making._options, total_size=1000), 0, "/bin/sh", ["/bin/false"]
    )
    (tmp_path / "layers" / f"{'a' * 64}.used").write_text(str(1001 + (1 << 20)))
    with pytest.raises(packages.NotInstalled, match="beside those of others"):
        asyncio.run(making.layer(1, ["a"], lambda: -1, 1000))


def test_a_job_keeps_its_layer(site: Site) -> None:
    def used() -> bool:
        notes = site.settings.layer_dir.glob("*.used")
        locks = [packages._lock(note, os.O_RDONLY, fcntl.LOCK_EX) for note in notes]
        for lock in filter(None, locks):
            os.close(lock)
        return None in locks

    job_id = given(site, {"x.sh": "echo runs; sleep 600", "requirements.txt": "greet"}, timeout=3.0)
    eventually(lambda: site.output_path(job_id, 1, "stdout").exists(), 30)
    assert used()
    assert ended(site, job_id).status == "TIMEOUT"
    eventually(lambda: not used())


def test_two_runners_make_it_once_and_wait_for_no_job(making: Packages, tmp_path: Path) -> None:
    install = ["/bin/sh", "-c", f"cd {tmp_path}; {BUILD}", "sh"]
    other = Packages(tmp_path / "layers", making._options, 0, "/bin/sh", install)

    async def act() -> None:
        first = make(making, tmp_path, 1, "a")
        await asyncio.to_thread(begun, tmp_path, "a")
        second = make(other, tmp_path, 2, "a")
        (tmp_path / "may-a").touch()
        async with asyncio.timeout(20):
            layers = await first, await second  # the first is held, as by a job that goes on
        assert layers[0].path == layers[1].path
        begun(tmp_path, "a")
        for layer in layers:
            layer.close()

    asyncio.run(act())


def test_the_size_of_a_layer_is_known_before_it_is_there(making: Packages, tmp_path: Path) -> None:
    slowly = BUILD.replace('|| exec rm -rf "$1"', '|| { until [ -e may-remove ]; do :; done; exec rm -rf "$1"; }')
    slowly = slowly.replace('mkdir "$1";', 'mkdir "$1"; echo 1234 > "$1/x";')
    making = Packages(
        tmp_path / "layers", making._options, 0, "/bin/sh", ["/bin/sh", "-c", f"cd {tmp_path}; {slowly}", "sh"]
    )

    def there() -> list[Path]:
        return [path for path in (tmp_path / "layers").iterdir() if path.is_dir() and len(path.name) == 64]

    async def act() -> None:
        task = make(making, tmp_path, 1, "a")
        (tmp_path / "may-a").touch()
        (layer,) = await asyncio.to_thread(eventually, there)
        task.cancel()  # while what is left of the build is being removed
        await asyncio.wait([task])
        assert packages._noted_size(packages._note(layer)) == 5
        (tmp_path / "may-remove").touch()
        await asyncio.to_thread(eventually, lambda: packages._use(layer))

    asyncio.run(act())


def test_what_there_was_no_room_for_is_tried_again(site: Site) -> None:
    note = site.settings.layer_dir / f"{'f' * 64}.used"
    note.write_text(str(1 << 40))
    try:
        job_id = given(site, {"x.sh": "echo", "requirements.txt": "words"}, retries=1, retry_delay=3600)
        eventually(lambda: site.transact.sql("SELECT FROM deferred_job WHERE job_id = :id AND attempt = 1", id=job_id))
    finally:
        note.unlink()
    job = ended(site, given(site, {"x.sh": "echo", "requirements.txt": "nothing"}, retries=1, retry_delay=3600))
    assert (job.status, job.attempt) == ("FAILED", 1)
