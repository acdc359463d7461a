"""J26: variables by which loaders, shells and interpreters are led astray, and values that break out of quotes."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest

from tests.attacks.jobs import lines, output
from tests.client import Person

AWKWARD = ["", " ", "a=b", "a'b\"c$(id)`id`\\ ${IFS}; id #", "ä\n\t\r", "\x01\x7f\x1b[31m", "--", "-c", "*", "~",
           "\ufeff", "%s%n", "!!", "x" * 50_000]  # fmt: skip
CODE = (
    "import json, os; print(json.dumps([os.environ[f'V{n}'] for n in range(len(os.environ)) if f'V{n}' in os.environ]))"
)


def test_values_arrive_as_they_are(alice: Person) -> None:
    env = {f"V{n}": value for n, value in enumerate(AWKWARD)}
    job = alice.api.submit(CODE, shell="python", env=env, wait=20)
    assert json.loads(output(alice, job)) == AWKWARD
    assert lines(alice, 'printf %s "$V3"', env=env) == [AWKWARD[3]]


def test_they_act_inside_only(alice: Person) -> None:
    """A loader that heeds them outside would leave files there, or fail to start the job."""
    name = f"attack-{uuid.uuid4().hex}"
    env = {"LD_DEBUG": "all", "LD_DEBUG_OUTPUT": f"/tmp/{name}", "LD_PRELOAD": f"/job/{name}.so",
           "LD_AUDIT": f"/{name}.so", "LD_LIBRARY_PATH": "/job", "GCONV_PATH": "/job", "LD_PROFILE": "libc.so.6",
           "PYTHONPATH": "/job", "PYTHONHOME": "/nosuch", "PYTHONSTARTUP": "/job/x", "PERL5OPT": "-d",
           "BASH_ENV": "/job/x", "ENV": "/job/x",
           "SHELLOPTS": "xtrace", "PS4": "$(echo attacked)", "PROMPT_COMMAND": "echo attacked", "IFS": "/",
           "TMPDIR": f"/{name}", "HOME": f"/{name}", "MALLOC_TRACE": f"/tmp/{name}", "TZ": "../../etc/shadow",
           "LANG": "../../x", "NLSPATH": f"/{name}", "RES_OPTIONS": "debug", "SHELL": f"/{name}"}  # fmt: skip
    job = alice.api.submit("echo fine; ls /tmp", env=env, wait=20)
    assert job["status"] == "COMPLETED", job
    printed = output(alice, job).decode().splitlines()
    assert printed[0] == "fine"
    assert name in printed[1]  # so the loader did heed them
    assert list(Path("/tmp").glob(f"*{name}*")) == []
    # Without a path of programs, or with a wrong one, the interpreter is found all the same.
    for path in ("", "/job", "/nosuch:.", "a\nb"):
        assert lines(alice, 'echo "$PATH"', env={"PATH": path}) == path.split("\n")


NO_NAMES = [
    "BASH_FUNC_ls%%",
    "BASH_FUNC_ls()",
    "A=B",
    "A B",
    "A\nB",
    "",
    "1A",
    "ä",
    "A-B",
    "A.B",
    " A",
    "A" * 65,
    "A\0",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_refused(alice: Person, name: str) -> None:
    answer = alice.api.post("/api/jobs", {"code": "env", "env": {name: "x"}})
    assert (answer.status, list(answer.errors)) == (400, ["env"])


def test_so_is_a_nul(alice: Person) -> None:
    """It would end a text early, and begin another argument for whoever passes them on so."""
    bad = "x\0--ro-bind\0/etc\0/host"
    for fields in ({"env": {"A": bad}}, {"args": [bad]}, {"stdin": bad}, {"code": bad}, {"name": bad}, {"shell": bad}):
        answer = alice.api.post("/api/jobs", {"code": "env", **fields})
        assert (answer.status, list(answer.errors)) == (400, list(fields))
    assert not os.path.exists("/host")
