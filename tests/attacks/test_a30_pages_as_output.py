"""A30: output that is a page or a picture with a script, opened in a browser: it is a file to save, and never runs."""

from __future__ import annotations

import pytest

from tests.attacks.tools import Wire
from tests.client import Person

PAGES = {
    "html": "<!doctype html><html><body><script>alert(document.domain)</script>",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(document.domain)"/>',
    "xml": '<?xml version="1.0"?><x:script xmlns:x="http://www.w3.org/1999/xhtml">alert(1)</x:script>',
    "pdf": "%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>",
}


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("query", ["", "?follow=true"])
def test_output_is_a_file_to_save(wire: Wire, alice: Person, kind: str, query: str) -> None:
    """Whatever it looks like, what its job is called, and what the browser would like best."""
    code = 'printf "%s" "$PAGE"; printf "%s" "$PAGE" >&2'
    job = alice.api.submit(code, env={"PAGE": PAGES[kind]}, name=f"index.{kind}", wait=30)
    for stream in ("stdout", "stderr"):
        reply = wire.ask("GET", f"/api/jobs/{job['id']}/{stream}{query}", "Accept: text/html", token=alice.token)
        assert PAGES[kind].encode() in reply.body
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["content-disposition"] == f'attachment; filename="{job["id"]}.{stream}"'
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in reply.headers["content-security-policy"].split("; ")
        assert reply.headers["cache-control"] == "no-store"
    for query in ("?type=text/html", "?content_type=text/html", "?disposition=inline", "?download=0"):
        assert wire.ask("GET", f"/api/jobs/{job['id']}/stdout{query}", token=alice.token).status == 400
