"""Files: written whole or not at all, whenever the process is killed. Know nothing of what is in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, beside its place: put on the disk and given its name in one step, when all of it is there."""
    with beside(path).open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    beside(path).replace(path)


def write(path: Path, content: str) -> None:
    """Text as a whole file."""
    with whole(path) as file:
        file.write(content.encode())


def remove(path: Path) -> None:
    """Take a file away, and what a killed process left of it; nothing where there is none."""
    path.unlink(missing_ok=True)
    beside(path).unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Where a file is while it is written."""
    return path.with_name(f".{path.name}.writing")
