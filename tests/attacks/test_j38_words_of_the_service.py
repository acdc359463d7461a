"""J38: output that looks like what the parts of the service say to one another."""

from __future__ import annotations

import json

from tests.attacks.jobs import output
from tests.client import Person, events, texts

OUTPUT = "\n".join(
    [
        '{"exit-code":0}', '{"child-pid":1}', "R", "go", "", "", ": comment", "data: attacked", "event: end", "id: 99",
        'event: end\ndata: {"status": "COMPLETED"}', "retry: 1", "\r", "\r\n", "HTTP/1.1 200 OK\r\nX-Attack: 1\r\n\r\n",
        '{"status": "success", "data": {"status": "COMPLETED"}}', "::set-output name=x::y", "COMPLETED", "exit code 0",
        "\x1b]0;title\x07\x1b[2J", "<script>alert(1)</script>", "]]>", "NOTIFY job", "\\q", "%n", "\u2028\u2029", "\0",
        "--truncated--", "job_00000000000000000000000000000000",
    ]
)  # fmt: skip


def test_it_is_text(alice: Person) -> None:
    for stream in ("stdout", "stderr"):
        code = f"cat >&{'12'[stream == 'stderr']}; exit 7"
        job = alice.api.submit(code, stdin=OUTPUT.replace("\0", "\x01"), wait=20)
        printed = OUTPUT.replace("\0", "\x01")
        assert (job["status"], job["return_code"], job["output_truncated"]) == ("FAILED", 7, False)
        assert output(alice, job, stream).decode() == printed
        assert job[stream] == printed
        found = list(events(alice.api, job["id"]))
        assert texts(found, stream) == printed
        assert [event.kind for event in found].count("end") == 1
        assert found[-1].kind == "end"
        assert "attacked" not in json.dumps([event.data for event in found if event.kind not in ("stdout", "stderr")])
