"""Whether there is room where outputs and journals are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def shortage(folders: Iterable[Path], least: int) -> str | None:
    """None if `least` bytes, and a file more, fit into each of these folders, else a sentence for the operator."""
    for folder in folders:
        try:
            room = os.statvfs(folder)
        except OSError as error:
            return f"{folder} cannot be used: {error.strerror}."
        if room.f_bavail * room.f_frsize < least:
            return f"The disk of {folder} is nearly full: fewer than {least} bytes are free (runner.min_free)."
        if room.f_files and not room.f_favail:  # some file systems do not count files
            return f"The disk of {folder} has no room for more files."
    return None
