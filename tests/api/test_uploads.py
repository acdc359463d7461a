"""Uploads: files as forms, as archives and in JSON; stored once; and nothing is left of what was cut off or refused."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client import Answer, Api, Person
from tests.stack import Stack
from tests.waiting import eventually

PROJECT = {
    "main.py": b"import sys\nfrom lib.words import WORD\n"
    b"open('artifacts/said', 'w').write(WORD)\nprint(WORD, *sys.argv[1:])",
    "lib/words.py": b"WORD = 'fine'",
    "artifacts/.keep": b"",
}


def parts(files: dict[str, bytes], field: str = "files[]") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (name, content)) for name, content in files.items()]


def send(api: Api, given: dict[str, bytes], path: str = "/api/jobs", method: str = "POST", **fields: Any) -> Answer:
    return api(method, path, files=parts(given), data=fields)


def archive(files: dict[str, bytes], kind: str = "tar.gz") -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def stored(stack: Stack) -> set[str]:
    """All files in the folder of uploads."""
    folder = stack.settings.upload_dir
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@contextmanager
def nothing_kept(stack: Stack) -> Iterator[None]:
    before = stored(stack)
    yield
    eventually(lambda: stored(stack) == before)


def refused(stack: Stack, answer: Answer, field: str, status: int = 400) -> str:
    assert (answer.status, list(answer.errors)) == (status, [field]), answer.body
    (problem,) = answer.errors[field]
    return str(problem)


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_a_small_project(alice: Api) -> None:
    job = send(alice, PROJECT, "/api/jobs?wait=30", entrypoint="main.py", name="project", args='["a", "b c"]').data
    assert (job["status"], job["stdout"]) == ("COMPLETED", "fine a b c\n"), job
    assert (job["code"], job["entrypoint"], job["shell"], job["name"]) == (None, "main.py", "auto", "project")
    assert len(job["upload"]) == 64
    listed = [item["path"] for item in alice.get(f"/api/jobs/{job['id']}/artifacts").data]
    assert listed == [".keep", "said"]
    assert alice.get(f"/api/jobs/{job['id']}/artifacts/said").body == b"fine"
    again = alice.post(f"/api/jobs/{job['id']}/rerun", {}).data
    ended = eventually(lambda: (seen := alice.job(again["id"]))["finished_at"] and seen)
    assert (ended["stdout"], ended["upload"]) == ("fine a b c\n", job["upload"])
    assert alice.get("/api/jobs?limit=1").data[0]["upload"] == job["upload"]


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_an_archive(alice: Api, kind: str) -> None:
    content = archive(PROJECT, kind)
    answer = alice(
        "POST", "/api/jobs?wait=30", files={"archive": (f"p.{kind}", content)}, data={"entrypoint": "main.py"}
    )
    assert (answer.data["status"], answer.data["stdout"]) == ("COMPLETED", "fine\n"), answer.body
    assert answer.data["upload"] == hashlib.sha256(content).hexdigest()


def test_an_archive_that_cannot_be_used_is_told(alice: Api) -> None:
    for files, entrypoint, words in (
        ({"x.sh": b""}, "main.sh", "no file main.sh"),
        ({"../x.sh": b""}, "x.sh", "names must be relative"),
        ({"x": b"echo"}, "x", "cannot be run"),
    ):
        sent = {"archive": ("a.zip", archive(files, "zip"))}
        job = alice("POST", "/api/jobs?wait=30", files=sent, data={"entrypoint": entrypoint}).data
        assert job["status"] == "FAILED"
        assert words in job["reason"]


def test_an_archive_that_cannot_be_used_is_not_tried_again(alice: Api) -> None:
    sent = {"archive": ("a.zip", archive({"x.sh": b""}, "zip"))}
    fields = {"entrypoint": "y.sh", "retries": "3", "retry_delay": "0"}
    job = alice("POST", "/api/jobs?wait=30", files=sent, data=fields).data
    assert (job["status"], job["attempt"]) == ("FAILED", 1)


def test_files_in_json(alice: Api) -> None:
    files = {"run.sh": "sh lib/other.sh", "lib/other.sh": "echo $0 $GREETING"}
    job = alice.post("/api/jobs?wait=30", {"files": files, "entrypoint": "run.sh", "env": {"GREETING": "hi"}}).data
    assert (job["status"], job["stdout"]) == ("COMPLETED", "lib/other.sh hi\n")
    sent = send(alice, {name: text.encode() for name, text in reversed(files.items())}, entrypoint="run.sh").data
    assert sent["upload"] == job["upload"]


def test_how_an_entrypoint_is_run(alice: Api) -> None:
    def said(name: str, content: bytes, **fields: Any) -> str:
        job = send(alice, {name: content}, "/api/jobs?wait=30", entrypoint=name, **fields).data
        assert job["status"] == "COMPLETED", job
        return str(job["stdout"])

    assert said("x.py", b"print(1)") == "1\n"
    assert said("x.sh", b"echo $0") == "/job/x.sh\n"
    assert said("x.sh", b"#!/usr/bin/python3\nprint(2)") == "2\n"
    assert said("x", b"#!/bin/sh\necho 3") == "3\n"
    assert said("x.py", b"#!/usr/bin/python3\necho", shell="sh").strip() == ""
    assert said("x", b"echo 4", shell="bash") == "4\n"


def test_the_same_is_stored_once(stack: Stack, alice: Api, bob: Api) -> None:
    mark = uuid.uuid4().hex.encode()
    files = {"a.sh": mark, "b": b"b"}
    first = send(alice, files, entrypoint="a.sh").data
    before = stored(stack)
    second = send(bob, dict(reversed(files.items())), entrypoint="a.sh").data
    assert first["upload"] == second["upload"]
    assert stored(stack) == before
    assert f"{first['upload'][:2]}/{first['upload']}.tar" in before


def test_the_same_request_again(alice: Api) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}

    def ask(files: dict[str, bytes], **fields: Any) -> Answer:
        return alice("POST", "/api/jobs", files=parts(files), data={"entrypoint": "a.sh", **fields}, headers=headers)

    first = ask({"a.sh": b"echo 1"})
    assert ask({"a.sh": b"echo 1"}).data["id"] == first.data["id"]
    assert ask({"a.sh": b"echo 2"}).status == 422
    assert ask({"a.sh": b"echo 1"}, name="other").status == 422


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x.sh",
        "../x.sh",
        "a/../x.sh",
        "a//x.sh",
        "./x.sh",
        "x\n.sh",
        "x\x1b.sh",
        "y" * 253 + ".sh",
        "d/" * 16 + "x.sh",
    ],
)
def test_names_that_lead_elsewhere(stack: Stack, alice: Api, name: str) -> None:
    with nothing_kept(stack):
        assert "must" in refused(stack, send(alice, {name: b"", "run.sh": b""}, entrypoint="run.sh"), "files")
        if len(name) <= 255:
            body = {"files": {name: "", "run.sh": ""}, "entrypoint": "run.sh"}
            assert "must" in refused(stack, alice.post("/api/jobs", body), "files")


def test_names_that_cannot_be_together(stack: Stack, alice: Api) -> None:
    with nothing_kept(stack):
        for names in (["a", "a"], ["a", "a/b"], ["a/b", "a"], ["a/b/c", "a/b"]):
            answer = alice(
                "POST", "/api/jobs", files=[("files[]", (name, b"")) for name in names], data={"entrypoint": "a"}
            )
            assert "must not" in refused(stack, answer, "files")


def test_what_does_not_belong_together(stack: Stack, alice: Api) -> None:
    script = {"x.sh": b"echo"}
    with nothing_kept(stack):
        refused(stack, send(alice, script), "entrypoint")
        refused(stack, send(alice, script, entrypoint="y.sh"), "entrypoint")
        refused(stack, send(alice, script, entrypoint="x.sh", code="true"), "code")
        refused(stack, send(alice, {"x": b"echo"}, entrypoint="x"), "shell")
        refused(stack, send(alice, script, entrypoint="x.sh", shell="cobol"), "shell")
        refused(stack, send(alice, script, entrypoint="x.sh", colour="red"), "colour")
        refused(stack, send(alice, script, entrypoint="x.sh", timeout="soon"), "timeout")
        refused(stack, send(alice, script, entrypoint="x.sh", args="not json"), "args")
        refused(stack, send(alice, script, entrypoint="x.sh", files='{"y.sh": ""}'), "files")
        fields = {"files": '{"x.sh": ""}', "entrypoint": "x.sh"}
        for _ in range(stack.settings.uploads.at_once * stack.settings.server.processes + 1):
            answer = alice("POST", "/api/jobs", files=[("name", (None, b"n"))], data=fields)
            refused(stack, answer, "files")
        both = send(alice, script, entrypoint="x.sh", args="not json", env="{", timeout="soon")
        assert sorted(both.errors) == ["args", "env", "timeout"]
        many = "[" + "[]," * 300_000 + "[]]"
        assert "200,000 values" in refused(stack, send(alice, script, entrypoint="x.sh", args=many), "args")
        refused(stack, alice("POST", "/api/jobs", files=parts(script, "other"), data={"entrypoint": "x.sh"}), "other")
        both = [*parts(script), ("archive", ("a.zip", archive(script, "zip")))]
        refused(stack, alice("POST", "/api/jobs", files=both, data={"entrypoint": "x.sh"}), "archive")
        refused(stack, alice("POST", "/api/jobs", files=both[::-1], data={"entrypoint": "x.sh"}), "archive")
        nonsense = {"archive": ("a.zip", b"nonsense")}
        refused(stack, alice("POST", "/api/jobs", files=nonsense, data={"entrypoint": "x.sh"}), "archive")
        assert "no index" in refused(
            stack, send(alice, {**script, "requirements.txt": b"x"}, entrypoint="x.sh"), "files"
        )
    refused(stack, alice.post("/api/jobs", {"code": "true", "entrypoint": "x"}), "entrypoint")
    refused(stack, alice.post("/api/jobs", {}), "code")
    for path in ("/api/jobs", "/api/scripts"):
        name = {} if path == "/api/jobs" else {"name": "x"}
        refused(stack, alice.post(path, {"files": {}, "entrypoint": "x", **name}), "files")


def test_forms_that_make_no_sense(stack: Stack, alice: Api) -> None:
    form = "multipart/form-data; boundary=x"
    good = b'--x\r\nContent-Disposition: form-data; name="files[]"; filename="a.sh"\r\n\r\necho\r\n'
    with nothing_kept(stack):
        for kind, body, status in (
            ("multipart/form-data", good, 400),
            (form, b"", 400),
            (form, b"nonsense", 400),
            (form, good, 400),  # without an end
            (form, good + b"--x--\r\nmore", 400),
            (form, b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--\r\n', 400),
            (form, b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 5000 + b"\r\n\r\n1\r\n--x--\r\n", 413),
        ):
            answer = alice("POST", "/api/jobs", content=body, headers={"Content-Type": kind})
            assert answer.status == status, (kind, body, answer.body)


@pytest.mark.parametrize("token", ["", "nonsense"])
def test_nobody_stores_anything(stack: Stack, alice: Api, token: str) -> None:
    with nothing_kept(stack):
        answer = alice("POST", "/api/jobs", files=parts({"x.sh": os.urandom(3_000_000)}), data={}, token=token)
        assert answer.status == 401


def test_a_token_without_the_scope_stores_nothing(stack: Stack, person: Callable[..., Person]) -> None:
    reader = person(scopes=["jobs:read"]).api
    with nothing_kept(stack):
        assert send(reader, {"x.sh": os.urandom(3_000_000)}, entrypoint="x.sh").status == 403
        assert send(reader, {"x.sh": b""}, "/api/scripts", entrypoint="x.sh", name="x").status == 403


def test_other_addresses_take_no_forms(alice: Api) -> None:
    for path in ("/api/jobs/batch", "/api/scripts/x/run", "/api/schedules", "/api/tokens"):
        assert send(alice, {"x.sh": b""}, path).status == 415
        assert send(alice, {"x.sh": bytes(9_000_000)}, path).status == 413


def test_a_body_that_is_no_form_is_as_small_as_ever(alice: Api) -> None:
    most = 8 * 2**20
    answer = alice("POST", "/api/jobs", content=b" " * (most + 1), headers={"Content-Type": "application/json"})
    assert (answer.status, answer.code) == (413, "too_large")


def test_more_than_may_be(stack: Stack, alice: Api, tmp_path: Path) -> None:
    most = stack.settings.uploads.max_size
    with nothing_kept(stack), (tmp_path / "x.sh").open("wb+") as large:
        large.truncate(most + 1)
        answer = alice("POST", "/api/jobs", files=[("files[]", ("x.sh", large))], data={"entrypoint": "x.sh"})
        assert (answer.status, answer.code) == (413, "too_large")
        text = "x" * (9 * 2**20)
        assert send(alice, {"x.sh": b""}, entrypoint="x.sh", stdin=text).status == 413
    many = {f"{number}.sh": b"" for number in range(10_001)}
    with nothing_kept(stack):
        assert "10,000" in refused(stack, send(alice, many, entrypoint="1.sh"), "files")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.999])
def test_one_that_is_cut_off_leaves_nothing(stack: Stack, alice: Api, fraction: float) -> None:
    content = os.urandom(5_000_000)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="entrypoint"\r\n\r\na.sh\r\n'
        b'--x\r\nContent-Disposition: form-data; name="files[]"; filename="a.sh"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    head = (
        f"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {alice.token}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    before = alice.get("/api/jobs").data
    with nothing_kept(stack), socket.create_connection(("127.0.0.1", stack.settings.server.port)) as connection:
        connection.sendall(head.encode() + body[: int(len(body) * fraction)])
        eventually(lambda: any(name.startswith("incoming/") for name in stored(stack)))
    assert alice.get("/api/jobs").data == before


def test_no_more_than_some_at_once(stack: Stack, alice: Api, bob: Api) -> None:
    """Of one user, on each worker; they count no longer when they are cut off."""
    head = (
        f"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {alice.token}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n--x\r\n"
    )
    settings, script = stack.settings, {"x.sh": b"echo"}
    assert send(bob, script, entrypoint="x.sh", delay="3600").status == 200  # so that it is there
    with nothing_kept(stack), ExitStack() as open_ones:
        for number in range(settings.server.processes):
            for _ in range(settings.uploads.at_once):
                connection = open_ones.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(settings.socket_dir / f"app_{number}.sock"))
                connection.sendall(head.encode())
        refusal = eventually(lambda: (seen := send(alice, script, entrypoint="x.sh")).status == 429 and seen)
        assert (refusal.code, refusal.headers["Retry-After"]) == ("limit_reached", "5")
        assert send(bob, script, entrypoint="x.sh", delay="3600").status == 200
    eventually(lambda: send(alice, script, entrypoint="x.sh").status == 200)


def test_what_a_killed_worker_received_is_swept(stack: Stack) -> None:
    """Not while somebody writes it."""
    from shell_service.uploads import UploadStore

    store = UploadStore(stack.settings.upload_dir, stack.settings.uploads, 0)
    written = store.receive()
    left = written.path.with_name("left")
    left.write_bytes(b"half of it")
    store.sweep()
    assert (written.path.exists(), left.exists()) == (True, False)
    written.close()
    assert not written.path.exists()


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_of_files(alice: Api) -> None:
    name = f"s{uuid.uuid4().hex}"
    saved = send(alice, PROJECT, "/api/scripts", name=name, entrypoint="main.py", message="first").data
    assert (saved["code"], saved["shell"], saved["entrypoint"], saved["version"]) == (None, "auto", "main.py", 1)
    assert [file["path"] for file in saved["files"]] == ["artifacts/.keep", "lib/words.py", "main.py"]
    assert saved["files"][1]["sha256"] == hashlib.sha256(PROJECT["lib/words.py"]).hexdigest()
    assert alice.get(f"/api/scripts/{name}/code").body == PROJECT["main.py"]
    run = alice.post(f"/api/scripts/{name}/run?wait=30", {}).data
    assert (run["status"], run["stdout"], run["upload"]) == ("COMPLETED", "fine\n", saved["upload"])
    same = send(alice, PROJECT, f"/api/scripts/{name}", "PUT", entrypoint="main.py").data
    assert same["version"] == 1
    other = {**PROJECT, "lib/words.py": b"WORD = 'better'\n", "more": b"\xff"}
    changed = send(alice, other, f"/api/scripts/{name}", "PUT", entrypoint="main.py").data
    assert (changed["version"], changed["shell"]) == (2, "auto")
    diff = alice.get(f"/api/scripts/{name}/diff").body.decode()
    assert "-WORD = 'fine'" in diff and "+WORD = 'better'" in diff and '"path": "more"' in diff
    assert alice.post(f"/api/scripts/{name}/run?wait=30", {"version": 1}).data["stdout"] == "fine\n"
    assert alice.post(f"/api/scripts/{name}/run?wait=30", {}).data["stdout"] == "better\n"
    got = alice.get(f"/api/scripts/{name}/files?version=1")
    with tarfile.open(fileobj=io.BytesIO(got.body)) as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == PROJECT  # type: ignore[union-attr]
    assert got.headers["Content-Disposition"] == f'attachment; filename="{name}.tar"'
    back = alice.post(f"/api/scripts/{name}/revert", {"version": 1}).data
    assert (back["version"], back["upload"]) == (3, saved["upload"])


def test_what_is_not_named_stays(alice: Api) -> None:
    name = f"s{uuid.uuid4().hex}"
    fields = {"name": name, "entrypoint": "run", "shell": "bash"}
    assert send(alice, {"run": b"echo 1"}, "/api/scripts", **fields).status == 200
    changed = send(alice, {"run": b"echo 2"}, f"/api/scripts/{name}", "PUT").data
    assert (changed["version"], changed["entrypoint"], changed["shell"]) == (2, "run", "bash")
    assert alice.put(f"/api/scripts/{name}", {"code": "true", "entrypoint": "run"}).status == 400
    assert send(alice, {"other": b"echo"}, f"/api/scripts/{name}", "PUT").status == 400


def test_from_code_to_files_and_back(alice: Api) -> None:
    name = f"s{uuid.uuid4().hex}"
    path = f"/api/scripts/{name}"
    alice.post("/api/scripts", {"name": name, "code": "echo code"}).data  # noqa: B018
    assert alice.get(f"{path}/files").status == 404
    assert alice.put(path, {"entrypoint": "x.py"}).status == 400
    files = alice.put(path, {"files": {"x.py": "print('files')", "y.sh": "echo y"}, "entrypoint": "x.py"}).data
    assert (files["shell"], files["code"], files["version"]) == ("auto", None, 2)
    other = alice.put(path, {"entrypoint": "y.sh"}).data
    assert (other["entrypoint"], other["upload"], other["version"]) == ("y.sh", files["upload"], 3)
    assert alice.put(path, {"entrypoint": "z.sh"}).status == 400
    assert alice.post(f"{path}/run?wait=30", {}).data["stdout"] == "y\n"
    code = alice.put(path, {"code": "echo code"}).data
    assert (code["shell"], code["upload"], code["entrypoint"]) == ("sh", None, None)
    assert code["digest"] == alice.get(f"{path}/versions/1").data["digest"]
    assert alice.post(f"{path}/run?wait=30", {}).data["stdout"] == "code\n"


def test_a_script_of_an_archive(alice: Api) -> None:
    name = f"s{uuid.uuid4().hex}"
    content = archive(PROJECT)
    sent = {"archive": ("p.tgz", content)}
    fields = {
        "name": name,
        "entrypoint": "main.py",
        "parameters": '[{"name": "word", "type": "string", "position": 1}]',
    }
    saved = alice("POST", "/api/scripts", files=sent, data=fields).data
    assert (saved["files"], saved["upload"]) == (None, hashlib.sha256(content).hexdigest())
    assert alice.get(f"/api/scripts/{name}/code").status == 409
    assert alice.get(f"/api/scripts/{name}/files").body == content
    assert alice.post(f"/api/scripts/{name}/run?wait=30", {"parameters": {"word": "up"}}).data["stdout"] == "fine up\n"


def test_a_schedule_of_a_script_of_files(alice: Api) -> None:
    name = f"s{uuid.uuid4().hex}"
    alice.post("/api/scripts", {"name": name, "files": {"x.sh": "echo fired"}, "entrypoint": "x.sh"}).data  # noqa: B018
    schedule = alice.post("/api/schedules", {"script": name, "every": 3600}).data
    job = alice.post(f"/api/schedules/{schedule['id']}/run").data
    ended = eventually(lambda: (seen := alice.job(job["id"]))["finished_at"] and seen)
    assert ended["stdout"] == "fired\n"
