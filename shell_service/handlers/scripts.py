"""Scripts: save, version, compare, share, run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import orjson
from sqlalchemy.orm import Session
from tornado.iostream import StreamClosedError

from baselayer.access import Caller
from baselayer.errors import (
    Conflict,
    InvalidRequest,
    LimitReached,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from baselayer.handler import STREAMED, Call, Route, endpoint
from shell_service import schemas, script_schemas, scripts, shares, uploads
from shell_service.audit import Entry
from shell_service.diff import TooDifferent
from shell_service.handlers.base import AppHandler, number_of
from shell_service.handlers.files import FilesHandler
from shell_service.output import CHUNK
from shell_service.scripts import Level, Name
from shell_service.uploads import Upload, UploadStore

_MOST_FILES = 20  # that are compared as text


class ScriptHandler(AppHandler):
    """What handlers of one script have in common."""

    def name_of(self, call: Call, script: str, owner: str | None) -> Name:
        """The script's name; without an owner it is the caller's own."""
        return Name(owner or call.caller.username, script)

    def object_asked_for(self) -> str | None:
        if (script := self.path_kwargs.get("script")) is None:
            return None
        owner = self.path_kwargs.get("owner") or (self.caller.username if self.caller else "")
        return f"{owner}/{script}"

    def tagged(self, record: dict[str, Any]) -> dict[str, Any]:
        """The same record, with its ETag in the answer."""
        self.set_header("ETag", f'"{record["revision"]}"')
        return record

    def said(self, record: dict[str, Any]) -> Entry:
        """The audit entry about a script that now is as in this record."""
        name = f"{record['owner']}/{record['name']}"
        return self.entry(name, {"version": record["version"], "digest": record["digest"]})

    def send_text(self, text: bytes, name: str) -> Any:
        """Send text that is somebody's: no browser takes it for a page of ours."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(text)
        return STREAMED


class Scripts(ScriptHandler, FilesHandler):
    @endpoint(
        "scripts:write",
        body=script_schemas.ScriptRequest,
        answer=script_schemas.ScriptRecord(),
        errors=[Conflict, LimitReached, Unavailable],
        action="script.create",
        etag=True,
        form=True,
    )
    async def post(self, call: Call) -> Any:
        """Save a script.

        It is code, or files of which one is run. It is at version 1 then. `GET /api/scripts/{script}` shows it, `PUT`
        makes the next version.
        """
        what = call.caller, await self.keep_files(call), self.app.settings.scripts
        return self.tagged(await self.change(self.said, _create, *what))

    @endpoint("scripts:read", query=script_schemas.ScriptsQuery, answer=script_schemas.ScriptSummary(many=True))
    async def get(self, call: Call) -> Any:
        """List scripts, newest first.

        One's own, and those that are shared with one; administrators see all.
        """
        limit, before = self.page_wanted(call)
        which = call.query["owner"], call.query["archived"]
        found = await self.app.database.ask(scripts.page, call.caller, limit + 1, before, *which)
        return [scripts.summary(item) for item in self.page_of(found, limit, attrgetter("id"))]


class Script(ScriptHandler, FilesHandler):
    @endpoint("scripts:read", answer=script_schemas.ScriptRecord(), errors=[NotFound], etag=True)
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """See a script, with its newest version."""
        return self.tagged(await self.app.database.ask(_see, call.caller, self.name_of(call, script, owner)))

    @endpoint(
        "scripts:write",
        body=script_schemas.ScriptChange,
        answer=script_schemas.ScriptRecord(),
        errors=[NotFound, NotAllowed, Conflict, PreconditionFailed, LimitReached, Unavailable],
        headers=["If-Match"],
        action="script.edit",
        etag=True,
        form=True,
    )
    async def put(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Change a script.

        What is not named stays as it is. Another code, other files, interpreter, parameters or defaults make the next
        version; the same as before makes none. With `If-Match` nothing is changed that somebody else has changed
        meanwhile.
        """
        name = self.name_of(call, script, owner)
        what = (
            call.caller,
            name,
            await self.keep_files(call, whole=False),
            self.revisions(call),
            self.app.settings.scripts,
        )
        return self.tagged(await self.change(self.said, _change, *what))

    @endpoint(
        "scripts:write",
        answer=script_schemas.ScriptRecord(),
        errors=[NotFound, NotAllowed, Conflict, PreconditionFailed],
        headers=["If-Match"],
        action="script.delete",
        etag=True,
    )
    async def delete(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Delete a script: archive it.

        It can be read, and so can its history and jobs, but not run or changed, and its schedules pause. `restore`
        brings it back; its name is free when an administrator has purged it.
        """
        what = call.caller, self.name_of(call, script, owner), self.revisions(call)
        return self.tagged(await self.change(self.said, _archive, *what))


class ScriptCode(ScriptHandler):
    @endpoint("scripts:read", query=script_schemas.VersionQuery, errors=[NotFound, Conflict], media="text/plain")
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Get a script's code, as plain text.

        Of one that consists of files that of its entrypoint, unless they came as an archive.
        """
        name = self.name_of(call, script, owner)
        version = await self.app.database.ask(_version, call.caller, name, call.query["version"])
        if version["code"] is not None:
            return self.send_text(version["code"].encode(), script)
        upload = await self.app.database.ask(uploads.find, version["upload"])
        most = self.app.settings.jobs.max_code
        content = await asyncio.to_thread(self.app.uploads.content, upload, version["entrypoint"], most)
        if content is None:
            raise Conflict("The script consists of an archive, or its code is too large; GET …/files has all of it.")
        return self.send_text(content, script)


class ScriptFiles(ScriptHandler):
    @endpoint(
        "scripts:read",
        query=script_schemas.VersionQuery,
        errors=[NotFound],
        media="application/octet-stream",
    )
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Get the files of a script.

        As a tar, or as the archive that they came as.
        """
        name = self.name_of(call, script, owner)
        version = await self.app.database.ask(_version, call.caller, name, call.query["version"])
        if version["upload"] is None:
            raise NotFound(f"The script {name} consists of code alone: GET …/code has it.")
        upload = await self.app.database.ask(uploads.find, version["upload"])
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", f'attachment; filename="{script}.{upload.kind}"')
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Length", str(upload.size))
        if self.request.method != "HEAD":
            with await asyncio.to_thread(self.app.uploads.path(upload.digest, upload.kind).open, "rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK):
                    self.write(chunk)
                    try:
                        await self.flush()
                    except StreamClosedError:
                        return STREAMED
        self.finish()
        return STREAMED


class Versions(ScriptHandler):
    @endpoint(
        "scripts:read",
        query=schemas.PageQuery,
        answer=script_schemas.VersionSummary(many=True),
        errors=[NotFound],
    )
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """List a script's versions, newest first."""
        limit, before = self.page_wanted(call)
        rows = await self.app.database.ask(_versions, call.caller, self.name_of(call, script, owner), limit + 1, before)
        return [scripts.version_summary(row) for row in self.page_of(rows, limit, attrgetter("number"))]


class Version(ScriptHandler):
    @endpoint("scripts:read", answer=script_schemas.VersionRecord(), errors=[NotFound])
    async def get(self, call: Call, script: str, version: str, owner: str | None = None) -> Any:
        """See a version of a script.

        Versions never change.
        """
        name = self.name_of(call, script, owner)
        return await self.app.database.ask(_version, call.caller, name, number_of(version))


class Diff(ScriptHandler):
    @endpoint("scripts:read", query=script_schemas.DiffQuery, errors=[NotFound, TooDifferent], media="text/plain")
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Compare two versions of a script.

        The answer is a unified diff: of the code, and of all else that the versions say, as JSON. It is empty where
        they say the same.
        """
        name = self.name_of(call, script, owner)
        old, new = await self.app.database.ask(_two_versions, call.caller, name, call.query["from"], call.query["to"])
        found = b""
        for part, texts in (await self._texts(old, new)).items():
            labels = [f"{script}{part} version {item['version']}" for item in (old, new)]
            found += await self.app.differ.unified(*texts, *labels)
        return self.send_text(found, f"{script}.diff")

    async def _texts(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """What is to be compared: pairs of texts by the end of their names."""
        files = {f"/{path}": texts for path, texts in (await self._files(old, new)).items()}
        code = {"": (old["code"] or "", new["code"] or "")}
        return {**code, **files, ".json": (_settings(old), _settings(new))}

    async def _files(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """Texts of files that are not the same in both, up to some number; of others only digests are compared."""
        sums = [{file["path"]: file["sha256"] for file in item["files"] or ()} for item in (old, new)]
        paths = sorted(path for path in sums[0] | sums[1] if sums[0].get(path) != sums[1].get(path))[:_MOST_FILES]
        sides = [await self._read(item["upload"], paths) for item in (old, new)]
        texts = {path: (sides[0].get(path, ""), sides[1].get(path, "")) for path in paths}
        return {
            path: (older, newer) for path, (older, newer) in texts.items() if older is not None and newer is not None
        }

    async def _read(self, digest: str | None, paths: Sequence[str]) -> dict[str, str | None]:
        """The texts of those of these files that there are; None where one is no text, or too large."""
        if digest is None or not paths:
            return {}
        upload = await self.app.database.ask(uploads.find, digest)
        most = self.app.settings.jobs.max_code
        return await asyncio.to_thread(_contents, self.app.uploads, upload, paths, most)


class Revert(ScriptHandler):
    @endpoint(
        "scripts:write",
        body=script_schemas.RevertRequest,
        answer=script_schemas.ScriptRecord(),
        errors=[NotFound, NotAllowed, Conflict, PreconditionFailed],
        headers=["If-Match"],
        action="script.revert",
        etag=True,
    )
    async def post(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Go back to an older version.

        Makes a new one that says the same; nothing of the history is lost.
        """
        name, body = self.name_of(call, script, owner), call.body
        what = call.caller, name, body["version"], body["message"], self.revisions(call), self.app.settings.scripts
        return self.tagged(await self.change(self.said, _revert, *what))


class Restore(ScriptHandler):
    @endpoint(
        "scripts:write",
        answer=script_schemas.ScriptRecord(),
        errors=[NotFound, NotAllowed],
        action="script.restore",
        etag=True,
    )
    async def post(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Bring back a deleted script.

        Its schedules stay paused until they are resumed.
        """
        name = self.name_of(call, script, owner)
        return self.tagged(await self.change(self.said, _restore, call.caller, name))


class Purge(ScriptHandler):
    @endpoint("users:admin", answer=schemas.Nothing(), errors=[NotFound, Conflict], action="script.purge")
    async def post(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Remove a deleted script for ever.

        Its versions are gone then, and its name is free. Jobs that it made stay, with the code that they ran.
        """
        name = self.name_of(call, script, owner)
        await self.change(lambda _: self.entry(name), scripts.purge, call.caller, name)
        return {}


class Shares(ScriptHandler):
    @endpoint("scripts:read", answer=script_schemas.ShareRecord(many=True), errors=[NotFound, NotAllowed])
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """List whom a script is shared with.

        For its owner and administrators.
        """
        return await self.app.database.ask(_shares, call.caller, self.name_of(call, script, owner))

    @endpoint(
        "scripts:write",
        body=script_schemas.ShareRequest,
        answer=script_schemas.ShareRecord(),
        errors=[NotFound, NotAllowed, Conflict],
        action="script.share",
    )
    async def post(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Share a script with a user or a group.

        Who runs it runs a job of his own, with his own limits, secrets and output. Sharing it again with the same
        changes what they may do.
        """
        name = self.name_of(call, script, owner)
        detail = {key: value for key, value in call.body.items() if value}
        return await self.change(lambda _: self.entry(name, detail), shares.share, call.caller, name, call.body)


class Share(ScriptHandler):
    @endpoint(
        "scripts:write",
        answer=schemas.Nothing(),
        errors=[NotFound, NotAllowed, Conflict],
        action="script.unshare",
    )
    async def delete(self, call: Call, script: str, share_id: str, owner: str | None = None) -> Any:
        """Share a script no longer."""
        name, number = self.name_of(call, script, owner), number_of(share_id)

        def said(share: dict[str, Any]) -> Entry:
            return self.entry(name, {key: share[key] for key in ("user", "group", "level") if share[key]})

        await self.change(said, shares.unshare, call.caller, name, number)
        return {}


def _contents(store: UploadStore, upload: Upload, paths: Sequence[str], most: int) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for path in paths:
        if path in (upload.files or ()):
            content = store.content(upload, path, most)
            try:
                found[path] = None if content is None else content.decode()
            except UnicodeDecodeError:
                found[path] = None
    return found


def _settings(version: dict[str, Any]) -> str:
    said = {name: version[name] for name in ("files", "entrypoint", "shell", "parameters", "defaults")}
    return orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n"


# -- in a transaction --------------------------------------------------------------------------------------------------


def _create(session: Session, *what: Any) -> dict[str, Any]:
    return scripts.record(session, scripts.create(session, *what))


def _see(session: Session, caller: Caller, name: Name) -> dict[str, Any]:
    return scripts.record(session, scripts.find(session, caller, name))


def _change(session: Session, *what: Any) -> dict[str, Any]:
    return scripts.record(session, scripts.change(session, *what))


def _archive(session: Session, *what: Any) -> dict[str, Any]:
    return scripts.record(session, scripts.archive(session, *what))


def _revert(session: Session, *what: Any) -> dict[str, Any]:
    return scripts.record(session, scripts.revert(session, *what))


def _restore(session: Session, *what: Any) -> dict[str, Any]:
    return scripts.record(session, scripts.restore(session, *what))


def _version(session: Session, caller: Caller, name: Name, number: int | None) -> dict[str, Any]:
    return scripts.version_record(session, scripts.said(session, scripts.find(session, caller, name), number))


def _versions(session: Session, caller: Caller, name: Name, limit: int, before: int | None) -> Any:
    return scripts.versions(session, scripts.find(session, caller, name), limit, before)


def _two_versions(
    session: Session, caller: Caller, name: Name, old: int | None, new: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    found = scripts.find(session, caller, name)
    new = new or found.row.version
    if old is None and new == 1:
        raise InvalidRequest.of({"from": ["There is no version before the first."]})
    older, newer = (scripts.said(session, found, number) for number in (old or new - 1, new))
    return scripts.version_record(session, older), scripts.version_record(session, newer)


def _shares(session: Session, caller: Caller, name: Name) -> list[dict[str, Any]]:
    found = scripts.find(session, caller, name)
    if found.level < Level.OWN:
        raise NotAllowed("Only its owner sees whom a script is shared with.")
    return shares.listed(session, found)


_ONE, _OWN = "/api/scripts/{owner}/{script}", "/api/scripts/{script}"
ROUTES = [
    Route("/api/scripts", Scripts),
    *(
        Route(f"{_ONE}/{rest}", handler, f"{_OWN}/{rest}")
        for rest, handler in {
            "code": ScriptCode,
            "files": ScriptFiles,
            "versions": Versions,
            "versions/{version}": Version,
            "diff": Diff,
            "revert": Revert,
            "restore": Restore,
            "purge": Purge,
            "shares": Shares,
            "shares/{share_id}": Share,
        }.items()
    ),
]
#: To be matched after all others, as any word can be the name of a user or a script.
LAST_ROUTES = [Route(_ONE, Script, _OWN)]
