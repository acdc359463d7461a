"""Relief: which job is ended where the machine's memory stays short.

Each job may be within its limits, and all of them together need more than there is. While that lasts no other job is
taken, so it must not last for as long as they like to run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Holder(Protocol):
    """A running job."""

    @property
    def user_id(self) -> int:
        """Whose it is."""

    @property
    def memory(self) -> int:
        """Bytes that it uses now."""


AnyHolder = TypeVar("AnyHolder", bound=Holder)


def choose(jobs: Iterable[AnyHolder], lacking: int) -> AnyHolder | None:
    """Of the user whose jobs use most memory the one that uses most; None where the end of all of his would not free
    the `lacking` bytes, as then something else has taken them."""
    jobs, of_user = list(jobs), Counter[int]()
    for job in jobs:
        of_user[job.user_id] += job.memory
    user, most = of_user.most_common(1)[0] if of_user else (0, 0)
    if not lacking or most < lacking:
        return None
    return max((job for job in jobs if job.user_id == user), key=lambda job: job.memory)
