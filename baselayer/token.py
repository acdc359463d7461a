"""API tokens: ``shs_`` + 32 random characters + 6 characters of checksum.

The random part holds 32 × log2(62) ≈ 190 bits, so a fast hash is enough to store it: nobody can search that space.
The checksum (CRC-32 in base 62, as in GitHub's tokens) lets scanners, and us, tell a token from a typo without
asking the database.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "shs_"
SHOWN = len(PREFIX) + 6  # characters of a token that lists may show
_ALPHABET = string.digits + string.ascii_letters
_RANDOM = 32
_CHECK = 6


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), []
    for _ in range(_CHECK):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def mint() -> str:
    """A new token."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return body + _checksum(body)


def well_formed(token: str) -> bool:
    """Whether `token` has the right form and checksum."""
    body, check = token[:-_CHECK], token[-_CHECK:]
    return (
        token.isascii()
        and token.startswith(PREFIX)
        and len(token) == len(PREFIX) + _RANDOM + _CHECK
        and token[len(PREFIX) :].isalnum()
        and _checksum(body) == check
    )


def digest(token: str) -> bytes:
    """What is stored of `token`: its SHA-256."""
    return hashlib.sha256(token.encode()).digest()


def masked(text: str) -> str:
    """`text` without anything that may be a token, or most of one: for logs of what strangers have sent."""
    return re.sub(rf"{PREFIX}\w{{20,}}", f"{PREFIX}***", text, flags=re.ASCII)
