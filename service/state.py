"""State: calibrations made while serving, on disk, by the digest of the manifest they are for. Knows no model.

<state>/<SHA-256 of manifest.json>/
    calibration.json          what it is of, when it was made, and the name, size and SHA-256 of
    calibration-<…>.npz       the arrays, as calibration.npz of an artifact has them

calibration.json is renamed into place last, so that at every moment there is the old calibration or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from service import artifact
from service.artifact import Array, Arrays, Calibration, File, Manifest
from service.artifact.parts import Digest, Part
from service.errors import ArtifactRefused, Unkept

FACTS = "calibration.json"
ARRAYS = re.compile(r"calibration-[0-9a-f]{16}\.npz")


class Facts(Part):
    """What calibration.json says."""

    format: Literal[1] = 1
    name: str
    version: int
    manifest: Digest
    made: datetime
    file: str
    content: File
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Stored:
    """A calibration from the state: its facts, and its arrays, which are what the facts say."""

    facts: Facts
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Prepared:
    """A calibration that is on disk in full, and that nothing points to yet."""

    folder: Path
    facts: Facts
    written: Path
    before: str | None

    def commit(self) -> None:
        """Make it the one that counts: one rename; Unkept where that fails, and then the old one still counts."""
        try:
            self.written.replace(self.folder / FACTS)
        except OSError as error:
            raise _unkept(error) from error

    def settle(self) -> None:
        """Make the rename last, and put away the arrays that counted before; what fails here costs nothing."""
        with contextlib.suppress(OSError):
            _sync(self.folder)
            # another process may have made the one before count again
            if self.before and self.before not in (self.facts.file, _named(self.folder)):
                (self.folder / self.before).unlink(missing_ok=True)

    def discard(self) -> None:
        """Put it away; the arrays only where what counts doesn't name them."""
        with contextlib.suppress(OSError):
            self.written.unlink(missing_ok=True)
            if self.facts.file != _named(self.folder):
                (self.folder / self.facts.file).unlink(missing_ok=True)


def read(state: Path, digest: str, manifest: Manifest) -> Stored | None:
    """The calibration that is kept for a manifest, if any; ArtifactRefused where it isn't what it must be."""
    folder = state / digest
    try:
        content = (folder / FACTS).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactRefused(f"{FACTS} can't be read: {error.strerror}") from error
    try:
        facts = Facts.model_validate_json(content)
    except ValidationError as error:
        raise ArtifactRefused(f"{FACTS}: {error.errors(include_url=False)[0]['msg']}") from error
    if facts.manifest != digest:
        raise ArtifactRefused(f"{FACTS} is of another manifest")
    if not ARRAYS.fullmatch(facts.file):
        raise ArtifactRefused(f"{FACTS} names no file of arrays")
    for file, sha256 in facts.calibration.graphs.items():
        if file not in manifest.files or manifest.files[file].sha256 != sha256:
            raise ArtifactRefused(f"the calibration was made with another {file}")
    arrays = artifact.unpack(artifact.verify(folder / facts.file, facts.content), manifest, facts.calibration)
    return Stored(facts, arrays)


def prepare(
    state: Path, digest: str, manifest: Manifest, calibration: Calibration, arrays: Mapping[str, Array], made: datetime
) -> Prepared:
    """Write a calibration beside the one that counts, all of it, to the disk; Unkept where that can't be done."""
    content = artifact.pack(arrays)
    sha256 = hashlib.sha256(content).hexdigest()
    facts = Facts(
        name=manifest.name,
        version=manifest.version,
        manifest=digest,
        made=made,
        file=f"calibration-{sha256[:16]}.npz",
        content=File(sha256=sha256, bytes=len(content)),
        calibration=calibration,
    )
    folder = state / digest
    prepared = Prepared(folder, facts, folder / f".writing-{secrets.token_hex(8)}", _named(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(prepared.written, content)
        prepared.written.replace(folder / facts.file)
        _write(prepared.written, facts.model_dump_json(indent=2).encode() + b"\n")
        _sync(folder)
    except OSError as error:
        prepared.discard()
        raise _unkept(error) from error
    return prepared


def _write(path: Path, content: bytes) -> None:
    """Write a file to the disk itself."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Make a folder's names last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _named(folder: Path) -> str | None:
    """The arrays that calibration.json names, whatever else is the matter with it."""
    with contextlib.suppress(OSError):
        found = ARRAYS.search((folder / FACTS).read_text(errors="replace"))
        return found.group() if found else None
    return None


def _unkept(error: OSError) -> Unkept:
    return Unkept(f"the calibration can't be kept: {error.strerror}; the one before still counts")
