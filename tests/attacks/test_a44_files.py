"""A44: files that are not the site: by dots, doubled slashes, aliases, hidden names; and doors beside the router's."""

from __future__ import annotations

import pytest

from tests.attacks.tools import Wire
from tests.stack import Stack

PATHS = [
    *("/static../tokens.yaml", "/static..%2ftokens.yaml", "/logs../.tokens.yaml", "/api../tokens.yaml", "/status../x"),
    *("/../secrets/postgres_password", "/%2e%2e/secrets/postgres_password", "/..%2fsecrets/postgres_password"),
    *("/..%252fsecrets/postgres_password", "/%252e%252e/secrets/postgres_password", "/..%c0%afsecrets"),
    *("/..%5csecrets", "/static/../../tokens.yaml", "//..//..//etc/passwd", "//etc/passwd", "/./.././tokens.yaml"),
    *("/.hidden", "/a/.hidden", "/%2ehidden", "//.hidden", "/.git/config", "/.git/HEAD", "/.env", "/.tokens.yaml"),
    *("/tokens.yaml", "/config.yaml", "/run/nginx.conf", "/log/app_00.log", "/data/secrets", "/site/index.html"),
    *("/index.html.bak", "/index.html~", "/index.html/", "/index.html/x", "/index.html%00.png", "/nothing"),
    *("/-/too_large", "/-/unavailable", "/link/passwd", "/server-status", "/nginx_status", "/phpinfo.php", "/RPC2"),
]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_but_the_site_is_served(wire: Wire, stack: Stack, path: str) -> None:
    site = stack.settings.site_dir
    (site / ".hidden").write_text("hidden")
    (site / "a").mkdir(exist_ok=True)
    (site / "a" / ".hidden").write_text("hidden")
    for method in ("GET", "HEAD", "POST"):
        reply = wire.ask(method, path)
        assert reply.status in (400, 404, 405), reply
        for text in (b"root:", b"INITIAL_ADMIN", b"hidden", b"worker_processes", b"[core]"):
            assert text not in reply.body


def test_folders_are_not_listed(wire: Wire, stack: Stack) -> None:
    (stack.settings.site_dir / "folder").mkdir(exist_ok=True)
    (stack.settings.site_dir / "folder" / "unlinked.html").write_text("x")
    reply = wire.ask("GET", "/folder/")
    assert reply.status in (403, 404)
    assert b"unlinked" not in reply.body
