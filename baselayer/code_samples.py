"""How a request is made with curl and in Python, as text for people to copy. The token is in the variable TOKEN."""

from __future__ import annotations

import json
import pprint
import shlex
import textwrap
from typing import Any


def samples(
    method: str,
    url: str,
    *,
    authorized: bool,
    body: Any = None,
    media: str = "application/json",
    enveloped: bool = True,
) -> list[dict[str, str]]:
    """Samples as the ``x-codeSamples`` of an OpenAPI operation. `media` is the type of the answer."""
    return [
        {"lang": "Shell", "label": "curl", "source": _curl(method, url, authorized, body, media)},
        {"lang": "Python", "label": "Python", "source": _python(method, url, authorized, body, media, enveloped)},
    ]


def _curl(method: str, url: str, authorized: bool, body: Any, media: str) -> str:
    first = ["curl"]
    if media == "text/event-stream":
        first.append("-N")
    if method != ("GET" if body is None else "POST"):
        first += ["-X", method]
    lines = [" ".join([*first, shlex.quote(url)])]
    if authorized:
        lines.append('-H "Authorization: token $TOKEN"')
    if body is not None:
        lines += ['-H "Content-Type: application/json"', f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
    return " \\\n  ".join(lines)


def _python(method: str, url: str, authorized: bool, body: Any, media: str, enveloped: bool) -> str:
    streamed = media == "text/event-stream"
    arguments = [json.dumps(url)]
    if authorized:
        arguments.append("""headers={"Authorization": f"token {os.environ['TOKEN']}"}""")
    if body is not None:
        text = pprint.pformat(body, width=80, sort_dicts=False).replace("'", '"') if _plain(body) else repr(body)
        arguments.append("json=" + text.replace("\n", "\n" + " " * 5))
    if streamed:
        arguments.append("stream=True")
    arguments.append("timeout=60")
    call = textwrap.indent(",\n".join(arguments), "    ")
    if streamed:
        ending = "for line in answer.iter_lines(decode_unicode=True):\n    print(line)"
    elif enveloped:
        ending = 'print(answer.json()["data"])'
    else:
        ending = {"application/json": "print(answer.json())", "text/plain": "print(answer.text)"}.get(
            media, "print(answer.content)"
        )
    imports = ("import os\n\n" if authorized else "") + "import requests\n\n"
    return f"{imports}answer = requests.{method.lower()}(\n{call},\n)\nanswer.raise_for_status()\n{ending}\n"


def _plain(body: Any) -> bool:
    """Whether Python's notation of `body` holds no quote but those around its strings."""
    text = json.dumps(body)
    return "'" not in text and "\\" not in text
