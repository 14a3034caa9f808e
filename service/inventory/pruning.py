"""Pruning: old versions removed from a folder, and which ones never are. Knows no service that may run on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service import artifact
from service.errors import Problem
from service.inventory.holdings import Holding, defaults, holdings
from service.models import Key


@dataclass(frozen=True, slots=True)
class Pruning:
    """What would be removed, and what is left though it is neither new nor a default, with the reason."""

    removed: tuple[Holding, ...]
    left: Mapping[Key, str]


def plan(folder: Path, keep: int, pinned: Mapping[str, int]) -> Pruning:
    """All but the newest versions of each name that are whole, so many of them, and never the default.

    One that isn't what its manifest says counts for none of them, and is left for a person to look at: were it the
    newest, whoever removed the others would be left with nothing.
    """
    left: dict[Key, str] = {}
    whole: dict[str, list[Holding]] = {}
    held = holdings(folder)
    for one in held:
        if reason := _reason(one, folder):
            left[one.key] = reason
        else:
            whole.setdefault(one.key[0], []).append(one)
    first = defaults([one for versions in whole.values() for one in versions], pinned)
    old = [one for versions in whole.values() for one in versions[:-keep] if one.key not in first]
    return Pruning(tuple(old), left)


def _reason(one: Holding, folder: Path) -> str | None:
    """Why a version is none of our business, if so: it isn't whole, or isn't really there."""
    if one.folder.resolve() != folder.resolve() / one.key[0] / str(one.key[1]):
        return "it is reached by a link"
    if one.refused is not None:
        return one.refused
    try:
        artifact.read(one.folder)
    except Problem as error:
        return str(error)
    return None


def remove(one: Holding) -> None:
    """Remove a version: out of sight first, so that nobody ever opens half of it."""
    away = one.folder.with_name(f".removing-{one.folder.name}")
    one.folder.rename(away)
    shutil.rmtree(away)
