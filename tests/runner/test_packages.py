"""Packages: installed once from the index that is allowed, seen read-only by the jobs that name them, told when not."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shell_service import packages, uploads
from shell_service.uploads import UploadStore
from tests.database import Server
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


class Index(SimpleHTTPRequestHandler):
    """A package index; counts what it was asked for."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("index")
    made = {
        "greet": wheel("greet", "1.0", GREET, requires="words"),
        "words": wheel("words", "2.5", {"words.py": b"ALL = ['a']"}),
        "huge": wheel("huge", "1.0", {"huge/data": bytes(3 << 20)}),
    }
    for name, data in made.items():
        (folder / name).mkdir()
        version = "2.5" if name == "words" else "1.0"
        file = f"{name}-{version}-py3-none-any.whl"
        (folder / name / file).write_bytes(data)
        (folder / name / "index.html").write_text(f'<!DOCTYPE html><a href="{file}">{file}</a>')
    (folder / "source").mkdir()
    (folder / "source" / "source-1.0.tar.gz").write_bytes(b"no wheel")
    (folder / "source" / "index.html").write_text('<!DOCTYPE html><a href="source-1.0.tar.gz">source-1.0.tar.gz</a>')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def site(server: Server, index: str) -> Iterator[Site]:
    options = {"index": index, "max_size": "2MiB", "timeout": 60, "keep_days": 1}
    with server.database() as url, Site(url, packages=options) as site:
        site.start_runner()
        yield site


def given(site: Site, files: dict[str, str], **fields: Any) -> uuid.UUID:
    """A job that is given these files."""
    store = UploadStore(site.settings.upload_dir, site.settings.uploads, 0)
    incoming = store.receive()
    for name, text in files.items():
        incoming.begin("files", name)
        incoming.write(text.encode())
        incoming.end()
    upload = incoming.finish()
    site.transact(uploads.keep, store, incoming, upload, site.user, 0)
    incoming.close()
    return site.submit("", upload=upload.digest, entrypoint=next(iter(files)), shell="auto", **fields)


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


def test_a_layer_that_is_too_large(site: Site) -> None:
    job = ended(site, given(site, {"main.py": "print(1)", "requirements.txt": "huge"}))
    assert (job.status, "are the most" in job.reason) == ("FAILED", True)


@pytest.mark.parametrize(
    "content",
    [
        "--index-url http://127.0.0.1/", "-r other.txt", "-e .", "greet @ http://127.0.0.1/greet.whl", "./greet.whl",
        "/etc/passwd", "git+https://example.org/x", "greet==", "two names", "x" * 70_000, b"\xff", "greet; os_name",
    ],
)  # fmt: skip
def test_what_leads_elsewhere_is_refused(content: str | bytes) -> None:
    with pytest.raises(packages.Refused):
        packages.parse(content.encode() if isinstance(content, str) else content)


def test_old_layers_go(tmp_path: Path) -> None:
    for name, days in (("a" * 64, 2), ("b" * 64, 0.5), ("c" * 64 + ".unfinished", 2), ("tmp-x", 0.5)):
        (tmp_path / name / "x").mkdir(parents=True)
        marker = tmp_path / (f"{name}.used" if len(name) == 64 else name)
        marker.touch()
        os.utime(marker, (time.time() - days * 86_400,) * 2)
    packages.remove_old(tmp_path, 1)
    packages.remove_old(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"b" * 64, "b" * 64 + ".used", "tmp-x"}
