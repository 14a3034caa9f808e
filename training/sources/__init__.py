"""Sources: your own files → rows, with what is known of them. Know no split, no model and no torch."""

from __future__ import annotations

from training.sources.arrays import read as numbers
from training.sources.found import Found
from training.sources.pictures import read as pictures
from training.sources.tables import read as table
from training.wanted import File, Folder, Table

__all__ = ["Found", "read"]


def read(wanted: File | Table | Folder) -> Found:
    """The rows that a config names; Unusable says in one line what is wrong with them."""
    match wanted:
        case File():
            return numbers(wanted)
        case Table():
            return table(wanted)
        case Folder():
            return pictures(wanted)
