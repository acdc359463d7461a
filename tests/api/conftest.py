"""One running service for all tests of the API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.apis import admin as admin
from tests.apis import workers as workers
from tests.client import Api, Person, new_address, new_person
from tests.stack import Stack

MAX_OUTPUT = 2**20
MAX_STREAMS = 20
MAX_SECRETS = 99
MAX_TOKENS = 100
MAX_SCHEDULES = 99
HOOKS = "127.0.0.9"  # where tests listen, the only address of this machine that may be told


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Router, two workers, runner, scheduler and database. What they log is looked through at the end."""
    with Stack(
        runner={"slots": 16, "drain_seconds": 2},
        jobs={"kill_grace": 1},
        limits={"output": {"default": MAX_OUTPUT}},
        users={"max_streams": MAX_STREAMS, "max_secrets": MAX_SECRETS, "max_tokens": MAX_TOKENS},
        schedules={"max_schedules": MAX_SCHEDULES},
        webhooks={"allowed_networks": f"{HOOKS}/32", "timeout": 2},
    ) as running:
        yield running
        for name in ("app_00", "app_01", "runner_00", "scheduler"):
            unexpected = re.findall(r"^.* ERROR .*(?:\n    .*)*", running.log(name), re.MULTILINE)
            assert not unexpected, f"{name} logged errors:\n" + "\n".join(unexpected[:3])


@pytest.fixture
def person(admin: Api) -> Callable[..., Person]:
    """Makes a new user with a token: ``person(scopes=[...], max_queued=...)``."""
    return lambda **options: new_person(admin, **options)


@pytest.fixture
def alice(admin: Api) -> Api:
    """The API as a new user."""
    return new_person(admin).api


@pytest.fixture
def bob(admin: Api) -> Api:
    """The API as another new user."""
    return new_person(admin).api


@pytest.fixture
def stranger(stack: Stack) -> Iterator[Api]:
    """The API without a token, from an address that nobody has used before."""
    with Api(stack.base_url, address=new_address()) as api:
        yield api
