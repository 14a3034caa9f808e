"""Found: rows as a source gives them, each as often as it occurs there, and what the source says of their values."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from service.artifact import Feature, Support
from training.part import Unusable
from training.wanted import Column

Rows = NDArray[Any]
REAL = Support(kind="real")


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of one kind, (n, *event). columns: of a table, what each column is, beside its name in features."""

    rows: Rows
    support: Support
    features: tuple[Feature, ...] | None = None
    columns: tuple[Column, ...] | None = None


def levels(highest: int) -> Support:
    """The levels 0, 1, …, highest."""
    return Support(kind="levels", lowest=0.0, highest=float(highest), step=1.0)


def content(path: str) -> bytes:
    """A file's bytes, unzipped where its name ends in .gz; Unusable where it can't be had or has nothing in it."""
    with readable(path):
        found = Path(path).read_bytes()
        unzipped = gzip.decompress(found) if path.endswith(".gz") else found
    if not unzipped:
        raise Unusable(f"{path}: is empty")
    return unzipped


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """One line that names the file where it can't be had."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable(f"{path}: broken gzip: it ends early or isn't gzip") from error
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror or 'can not be read'}") from error
