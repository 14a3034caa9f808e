"""Holdings: the artifacts in a folder, and what the service would say of each. Changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service import models, state
from service.artifact import MANIFEST, Manifest
from service.errors import Problem, Unknown
from service.lanes import Lanes
from service.models import Key, Opener, Workshop

SHOWN = 12  # digits of a digest that a person compares


@dataclass(frozen=True, slots=True)
class Holding:
    """An artifact as a glance at its manifest shows it; refused says why it can't be read."""

    folder: Path
    key: Key
    manifest: Manifest | None
    digest: str
    size: int
    refused: str | None = None


def holdings(folder: Path) -> list[Holding]:
    """What lies below a folder, by name and version; Unknown where nothing does."""
    keys = sorted(models.find(folder))
    if not keys:
        raise Unknown(f"no artifacts lie in {folder}; they are NAME/VERSION/{MANIFEST}")
    return [glance(folder / name / str(version), (name, version)) for name, version in keys]


def glance(folder: Path, key: Key = ("", 0)) -> Holding:
    """One artifact, by what it is called there, else by what its manifest says; its files are counted, and not read."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        return Holding(folder, key, None, "", size, f"{MANIFEST} can't be read: {error.strerror}")
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, found["loc"]))
        return Holding(folder, key, None, "", size, f"{MANIFEST}: {where or 'it'}: {found['msg']}")
    says = manifest.name, manifest.version
    if key[0] and says != key:
        return Holding(folder, key, None, "", size, f"{MANIFEST} says that this is {says[0]}/{says[1]}")
    return Holding(folder, says, manifest, hashlib.sha256(content).hexdigest(), size)


def defaults(held: list[Holding], pinned: Mapping[str, int]) -> set[Key]:
    """The versions that answer where none is named, as far as a glance can tell: the pinned, else the highest."""
    highest: dict[str, int] = {}
    for one in held:
        if one.manifest is not None:
            highest[one.key[0]] = max(one.key[1], highest.get(one.key[0], 0))
    return {(name, pinned.get(name, version)) for name, version in highest.items()}


def table(held: list[Holding], pinned: Mapping[str, int], kept: Path | None) -> Iterator[str]:
    """A line an artifact, its columns aligned; kept is the folder of calibrations that were made while serving."""
    first = defaults(held, pinned)
    rows = [("name", "version", "family", "digest", "size", "calibrated", "default")]
    for one in held:
        name, version = one.key
        family, digest = (one.manifest.family, one.digest[:SHOWN]) if one.manifest else ("—", "—")
        calibrated = calibration(one, kept) if one.manifest else f"refused: {one.refused}"
        rows.append(
            (name, str(version), family, digest, measure(one.size), calibrated, "default" if one.key in first else "")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    widths.append(max(len(row[5]) for row in rows if not row[5].startswith("refused")))
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip()


def calibration(one: Holding, kept: Path | None) -> str:
    """What a version's p-values would rest on."""
    assert one.manifest is not None
    try:
        stored = state.read(kept, one.digest, one.manifest) if kept else None
    except Problem:
        stored = None  # which the service would refuse, and use the artifact's own
    if stored:
        return f"by {stored.facts.calibration.n} rows, in the state"
    return f"by {one.manifest.calibration.n} rows" if one.manifest.calibration else "no"


def measure(size: int) -> str:
    """Bytes as people write them.

    >>> measure(950), measure(40_518), measure(12_345_678)
    ('950 B', '40.5 kB', '12.3 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


# ---------------------------------------------------------------- verified


def artifacts(folder: Path) -> list[Path]:
    """A folder that is an artifact, or those that lie below it; Unknown where there is none."""
    if (folder / MANIFEST).exists():
        return [folder]
    return [one.folder for one in holdings(folder)]


def verify(folder: Path, opener: Opener, kept: Path | None) -> str:
    """Do all that the service does before it serves an artifact, and say what was found; a Problem says what is wrong.

    Its files are held to their digests, its graphs opened and held to their golden rows, its calibration read.
    """
    model = asyncio.run(models.load(folder, Workshop(opener, Lanes(1), state=kept)))
    lies = folder.resolve()
    if (lies.parent.name, lies.name) != (model.key[0], str(model.key[1])):
        raise Unknown(f"it lies in {lies.parent.name}/{lies.name}, and its manifest says {model.key[0]}/{model.key[1]}")
    manifest, stands = model.manifest, model.footing
    calibrated = f"calibrated by {stands.references.n} rows ({stands.source})" if stands else "not calibrated"
    files = f"{len(manifest.files)} files, {len(manifest.graphs)} graphs answer {manifest.golden.rows} golden rows"
    return f"{files} on {model.engine.device}, {calibrated}"
