"""Artifacts as they are kept: one tar without an end for each attempt that left any (see `sandbox.artifacts`)."""

from __future__ import annotations

import asyncio
import tarfile
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

_END = bytes(2 * tarfile.BLOCKSIZE)  # of a tar
_LEVEL = 1  # of compression: more takes much longer, and gains little
_GZIP = 16 + zlib.MAX_WBITS  # zlib's own way to ask for gzip's form


@dataclass(frozen=True)
class Artifact:
    """A file, and where its content stands in the tar: `start` and `size` in bytes."""

    path: str
    size: int
    start: int
    modified: datetime
    executable: bool

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.start + self.size + -self.size % tarfile.BLOCKSIZE


def index(path: str) -> list[Artifact]:
    """The artifacts in the tar at `path`, as far as they are whole; none where it is not there."""
    found: list[Artifact] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = file.seek(0, 2)
            for member in tar:
                modified = datetime.fromtimestamp(member.mtime, UTC)
                item = Artifact(member.name, member.size, member.offset_data, modified, bool(member.mode & 0o100))
                if item.end > size:
                    break
                found.append(item)
    except (FileNotFoundError, tarfile.ReadError):
        pass  # nothing was left, or what follows is cut off
    return found


async def archive(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A tar.gz of the bytes of a tar without an end, in pieces, none of them ahead of whoever takes them."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    async for chunk in chunks:
        if packed := await asyncio.to_thread(packer.compress, chunk):
            yield packed
    yield packer.compress(_END) + packer.flush()
