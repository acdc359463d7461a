"""Every example of the documentation does what it says, on the real service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from baselayer.postgres import binaries
from docs.generated import EXAMPLE_URL
from services import run
from shell_service import document
from shell_service.settings import ROOT, load
from tests.database import Server
from tests.docs import pages
from tests.docs.pages import Example
from tests.stack import Stack
from tests.waiting import eventually

SECONDS = 60  # for a block
DISRUPTIVE = {"backup.md"}  # stop the service: they get one of their own

# `make` as the pages use it: on the service of the test, in the background where it would stay in front.
BEFORE = """
set -eo pipefail
make() {
    if [ "$1" = run ]; then
        (cd "$ROOT" && exec "$PYTHON" -m services.manage --config "$CONFIG" run >"$PRINTED" 2>&1 </dev/null) &
        for _ in $(seq 600); do ! grep -q "^  stop " "$PRINTED" || return 0; sleep 0.1; done
        cat "$PRINTED"; return 1
    else
        (cd "$ROOT" && exec "$PYTHON" -m services.manage --config "$CONFIG" "$1" ${2#ARGS=})
    fi
}
[ ! -e state.sh ] || . ./state.sh
"""
# What later blocks of the page may use.
AFTER = "{ declare -f; declare -p ID JOB PGBIN TOKEN 2>/dev/null || true; } > state.sh"


class Reader:
    """Somebody who tries a page's examples one after the other, in a folder that looks like the checkout."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        (folder / "data").symlink_to(stack.settings.data_dir)
        if stack.settings.tokens_file.parent != folder:
            (folder / ".tokens.yaml").symlink_to(stack.settings.tokens_file)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / ".venv" / "bin" / "python").chmod(0o755)

    def run(self, example: Example) -> str:
        """Run a block; what it printed. Functions and variables of shell blocks before it are there."""
        code = example.code.replace(EXAMPLE_URL, self._stack.base_url)
        if example.language == "python":
            return self._execute([sys.executable, "-c", code])
        return self._execute(["bash", "-c", f"{BEFORE}\n{code}\n{AFTER}"])

    def _execute(self, command: list[str]) -> str:
        environment = {
            **os.environ,
            "TOKEN": self._stack.admin_token,
            "PYTHONPATH": str(ROOT),
            "ROOT": str(ROOT),
            "PYTHON": sys.executable,
            "CONFIG": str(self._stack.config),
            "PRINTED": str(self._folder / "printed"),
            "NO_PROXY": "*",
        }
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=self._folder,
            text=True,
            errors="replace",  # an archive is no text
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(runner={"drain_seconds": 1}) as stack, stack.client() as client:
        eventually(
            lambda: client.get("/status", headers={"Accept": "application/json"}).json()["data"]["status"] == "ok"
        )
        yield stack


def check(reader: Reader, path: Path) -> None:
    for example in pages.examples(path):
        printed = reader.run(example)
        if example.prints is not None:
            shown = f"{path.name}:{example.line} printed\n{printed}\nand not\n{example.prints}"
            assert pages.matches(example.prints, printed), shown


@pytest.mark.parametrize(
    "path", [path for path in pages.pages() if path.name not in DISRUPTIVE], ids=lambda path: path.name
)
def test_examples_of_a_page(path: Path, stack: Stack, tmp_path: Path) -> None:
    check(Reader(stack, tmp_path), path)


BACKUP = next(path for path in pages.pages() if path.name in DISRUPTIVE)


@contextmanager
def restored(stack: Stack) -> Iterator[None]:
    """Around a backup and its restore: jobs are there before, and are what they were afterwards."""
    with stack.client() as client:
        waiting = client.post("/api/jobs", json={"code": "date", "delay": 3600}).json()["data"]
        running = client.post("/api/jobs", json={"code": "sleep 1000"}).json()["data"]
        eventually(lambda: client.get(f"/api/jobs/{running['id']}").json()["data"]["status"] == "RUNNING")
        saved = client.post("/api/jobs?wait=20", json={"code": "echo saved"}).json()["data"]
        assert saved["status"] == "COMPLETED"
        client.put("/api/secrets/KEPT", json={"value": "eight ch"}).raise_for_status()
    try:
        yield
        with stack.client() as client:

            def status(job: dict[str, Any]) -> str:
                found: str = client.get(f"/api/jobs/{job['id']}").raise_for_status().json()["data"]["status"]
                return found

            assert client.get(f"/api/jobs/{saved['id']}").json()["data"] == saved
            assert client.get(f"/api/jobs/{saved['id']}/stdout").content == b"saved\n"
            assert status(waiting) == "PENDING"
            reads = {"code": "wc -c < /run/job/secrets/KEPT", "secrets": ["KEPT"]}
            assert client.post("/api/jobs?wait=20", json=reads).json()["data"]["stdout"] == "8\n"
            eventually(lambda: status(running) == "NODE_FAIL")
    finally:
        run.stop(stack.settings, print)


@pytest.mark.timeout(300)
def test_back_up_and_restore(tmp_path: Path) -> None:
    with Stack(runner={"drain_seconds": 1}, tokens_file=str(tmp_path / ".tokens.yaml")) as stack, restored(stack):
        check(Reader(stack, tmp_path), BACKUP)


@pytest.mark.timeout(300)
def test_back_up_and_restore_with_a_database_of_ones_own(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{binaries()}:{os.environ['PATH']}")
    url = server.url_of("postgres").replace("postgresql+psycopg2", "postgresql")
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE restored")
    url = url.replace("/postgres?", "/restored?")
    shown = BACKUP.read_text()
    (dump,) = re.findall(r"^pg_dump [^`]*db\.example\.org[^`]*", shown, re.MULTILINE)
    with (
        Stack(runner={"drain_seconds": 1}, tokens_file=str(tmp_path / ".tokens.yaml"), database={"url": url}) as stack,
        restored(stack),
    ):
        reader = Reader(stack, tmp_path)
        for example in pages.examples(BACKUP):
            if "postgres_password" in example.code:
                before, _, rest = example.code.partition("PGBIN=")
                theirs = re.sub(r'"postgresql://[^"]*"', f'"{url}"', dump)
                example.code = before + theirs + rest[rest.index("tar ") :]
            printed = reader.run(example)
            assert example.prints is None or pages.matches(example.prints, printed), printed


# -- the samples of the API reference --------------------------------------------------------------------------------

_SETTINGS = load()
DOCUMENT = document.build(EXAMPLE_URL, _SETTINGS.jobs, _SETTINGS.limits)
SAMPLES = [
    pytest.param(path, method, sample, id=f"{method.upper()} {path} {sample['label']}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    for sample in operation["x-codeSamples"]
]


class Things:
    """What the samples are about, made anew for each."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = self._client.post(path, json=body).raise_for_status().json()["data"]
        return data

    def put_into(self, source: str) -> str:
        """`source` about things that are there, and names that are not taken."""
        if document.JOB_ID in source:
            leave = "mkdir -p artifacts/report; echo three > artifacts/report/index.html"
            job = self._post("/api/jobs?wait=20", {"code": f"echo one; echo two >&2; {leave}"})
            source = source.replace(document.JOB_ID, job["id"])
        if "/api/tokens/7" in source:
            token = self._post("/api/tokens", {"name": "sample"})
            source = source.replace("/api/tokens/7", f"/api/tokens/{token['id']}")
        if "/api/secrets/API_KEY" in source:
            self._client.put("/api/secrets/API_KEY", json={"value": "a sample"}).raise_for_status()
        source = self._with_a_script(source)
        name = f"carol-{uuid.uuid4().hex[:8]}"
        if "/api/users/carol" in source or "/members/carol" in source:
            self._post("/api/users", {"username": name})
        if member := re.search(r"/api/groups/[\w-]+/members/carol", source):
            self._client.put(member[0].replace("carol", name), json={}).raise_for_status()
        return source.replace("carol", name)

    def _with_a_script(self, source: str) -> str:
        """`source` about a script of the administrator's, a group that he has made, and a user bob."""
        script, group, user = (f"{noun}-{uuid.uuid4().hex[:8]}" for noun in ("tool", "team", "eve"))
        if "alice" in source or '"script": "backup"' in source or "/api/schedules/7" in source:
            parameters = [{"name": "days", "type": "integer", "default": 7}]
            self._post("/api/scripts", {"name": script, "code": "echo one", "parameters": parameters})
            self._client.put(f"/api/scripts/{script}", json={"code": "echo two"}).raise_for_status()
            self._post("/api/users", {"username": user})
            share = self._post(f"/api/scripts/{script}/shares", {"user": user, "level": "view"})
            source = source.replace("/shares/7", f"/shares/{share['id']}")
        if "/backup/files" in source:
            given = {"files": {"main.sh": "echo"}, "entrypoint": "main.sh"}
            self._client.put(f"/api/scripts/{script}", json=given).raise_for_status()
        if "/restore" in source or "/purge" in source:
            self._client.delete(f"/api/scripts/{script}").raise_for_status()
        if "/api/schedules/7" in source:
            schedule = self._post("/api/schedules", {"script": script, "every": 3600, "parameters": {"days": 1}})
            source = source.replace("/api/schedules/7", f"/api/schedules/{schedule['id']}")
        if "/api/groups/ops" in source:
            self._post("/api/groups", {"name": group})
        for old, new in (("alice/backup", f"admin/{script}"), ("backup", script), ("ops", group), ("bob", user)):
            source = source.replace(old, new)
        return source


@pytest.mark.parametrize(("path", "method", "sample"), SAMPLES)
def test_samples_of_the_reference(path: str, method: str, sample: dict[str, str], stack: Stack, tmp_path: Path) -> None:
    with stack.client() as client:
        source = Things(client).put_into(sample["source"])
    language = {"curl": "sh", "Python": "python"}[sample["label"]]
    if language == "sh":
        source = source.replace("curl ", "curl -sS --fail-with-body ", 1)
    printed = Reader(stack, tmp_path).run(Example(0, language, source))
    deleted = (method == "delete" or path.endswith("/purge")) and language == "python"
    silent = path.endswith("/setup")  # of a job without packages there is none
    assert silent or (printed.strip() and (deleted or printed.strip() != "{}"))
