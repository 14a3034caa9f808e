"""Files: an artifact read from its folder and held to its manifest, and written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from pydantic import ValidationError

from service.artifact.calibrated import Calibration
from service.artifact.graphs import Array, Arrays
from service.artifact.manifest import CALIBRATION, CARD, GOLDEN, MANIFEST, PICTURE, WEIGHTS, Manifest
from service.artifact.parts import File
from service.errors import ArtifactRefused

LARGEST = 2**31 - 1  # bytes of a file, and of the arrays in one; what protobuf, and so one ONNX file, can have
LARGEST_WEIGHTS = 2**36
LARGEST_CARD = 2**22


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact whose every file is what its manifest says. Golden and calibration arrays are loaded; graphs are not.

    digest is the SHA-256 of manifest.json as it was read. card holds README.md and its pictures, where there are any.
    weights are the bytes of weights.bin, checked, where the artifact has that file: they are read once, and every graph
    that is opened borrows them.

    calibration holds `scores` (n,) float64, the elbo's, and `noise` (draws, latent_size) float32. As far as the
    manifest lists them: `scores.<name>` (n,) of further scores, `fitted.<name>.<parameter>` of what was fitted for
    them, and `terms.feature.centre`, `terms.feature.scale` (*event), `terms.latent.centre`, `terms.latent.scale` (d,).
    """

    folder: Path
    manifest: Manifest
    golden: Arrays
    calibration: Arrays | None
    digest: str
    card: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    weights: bytes | None = field(default=None, repr=False)

    def path(self, graph: str) -> Path:
        """Where a graph's file lies."""
        return self.folder / self.manifest.graphs[graph].file

    def graph(self, name: str) -> bytes:
        """A graph's bytes, checked: what is opened is what was hashed, whatever becomes of the file."""
        path = self.path(name)
        return verify(path, self.manifest.files[path.name])


def _inside(folder: Path) -> str:
    """Where a folder has manifests one step further in, as a model's has for each version; for the end of a reason."""
    versions = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
    return f"; there is one in {', '.join(f'{folder.name}/{version}' for version in versions)}" if versions else ""


def read(folder: Path) -> Artifact:
    """Read an artifact and hold it to its manifest; ArtifactRefused says what is wrong with it."""
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise ArtifactRefused(f"{MANIFEST} can't be read: {error.strerror}{_inside(folder)}") from error
    except ValidationError as error:
        raise ArtifactRefused(f"{MANIFEST}: {_first(error)}") from error
    for name, file in manifest.files.items():
        # Others are read below, and held to their digests there.
        if name not in (GOLDEN, CALIBRATION, WEIGHTS, *_of_card(manifest)):
            hold(folder / name, file)
    golden = _arrays(GOLDEN, verify(folder / GOLDEN, manifest.files[GOLDEN]), manifest.missing)
    calibration = None
    if CALIBRATION in manifest.files:
        arrays = verify(folder / CALIBRATION, manifest.files[CALIBRATION])
        calibration = _arrays(CALIBRATION, arrays) if manifest.calibration else None
    card = {name: verify(folder / name, file) for name, file in _of_card(manifest).items()}
    weights = verify(folder / WEIGHTS, manifest.files[WEIGHTS]) if WEIGHTS in manifest.files else None
    digest = hashlib.sha256(content).hexdigest()
    artifact = Artifact(folder, manifest, golden, calibration, digest, card, weights)
    _check_arrays(artifact)
    return artifact


def _of_card(manifest: Manifest) -> dict[str, File]:
    """The card and its pictures, which are held in memory; ArtifactRefused where they are too large for that."""
    files = manifest.files if CARD in manifest.files else {}
    found = {name: file for name, file in files.items() if name == CARD or re.match(PICTURE, name)}
    if (size := sum(file.bytes for file in found.values())) > LARGEST_CARD:
        raise ArtifactRefused(f"{CARD} and its pictures have {size:,} bytes; at most {LARGEST_CARD:,} are taken")
    return found


def verify(path: Path, file: File) -> bytes:
    """A file's bytes; refused when it is missing, a link, too large, or not the bytes that the manifest lists."""
    _check_size(path, file)
    content = path.read_bytes()
    _check_digest(path, File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)), file)
    return content


def hold(path: Path, file: File) -> None:
    """Refuse a file as `verify` does, without keeping its bytes."""
    _check_size(path, file)
    _check_digest(path, describe(path), file)


def _check_size(path: Path, file: File) -> None:
    """Before a byte of it is read: it lies in the folder itself, and is as large as it should be and may be."""
    if path.is_symlink() or not path.is_file():
        raise ArtifactRefused(f"{path.name} is listed in the manifest and is not a file in the folder")
    size, most = path.stat().st_size, LARGEST_WEIGHTS if path.name == WEIGHTS else LARGEST
    if size != file.bytes:
        raise ArtifactRefused(f"{path.name} is not the file that the manifest lists: {size} bytes, not {file.bytes}")
    if size > most:
        raise ArtifactRefused(f"{path.name} has {size:,} bytes; at most {most:,} are taken")


def _check_digest(path: Path, found: File, file: File) -> None:
    if found != file:
        difference = f"sha256 {found.sha256[:12]}… of {found.bytes} bytes, not {file.sha256[:12]}… of {file.bytes}"
        raise ArtifactRefused(f"{path.name} is not the file that the manifest lists: {difference}")


def describe(path: Path) -> File:
    """A file's size and SHA-256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(sha256=digest, bytes=path.stat().st_size)


def digest_rows(rows: Array) -> str:
    """The SHA-256 of rows' shape, dtype and bytes; what a split is known by."""
    rows = np.ascontiguousarray(rows)
    head = f"{rows.dtype.str}{list(rows.shape)}".encode()
    return hashlib.sha256(head + rows.tobytes()).hexdigest()


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    replace: bool = False,
) -> Manifest:
    """Write a whole artifact, or nothing: into a folder beside it, which then takes its name.

    manifest lacks `files`, which is made here. An existing folder is kept unless `replace`.
    """
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder} exists; versions are not overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        new = Path(scratch) / "artifact"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        listed = {name: describe(new / name).model_dump() for name in sorted(files)}
        checked = Manifest.model_validate({**manifest, "files": listed})
        (new / MANIFEST).write_bytes(dump(checked))
        read(new)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    return checked


def rewrite(artifact: Artifact, changes: Mapping[str, Any], files: Mapping[str, bytes]) -> Manifest:
    """Write an artifact again with some of its manifest's fields and files changed, all or nothing."""
    kept = {name: (artifact.folder / name).read_bytes() for name in artifact.manifest.files}
    fields = artifact.manifest.model_dump(exclude={"files"})
    return write(artifact.folder, {**fields, **changes}, {**kept, **files}, replace=True)


def dump(manifest: Manifest) -> bytes:
    """A manifest as the bytes of manifest.json."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]  # the stub has allow_pickle among them
    return buffer.getvalue()


def unpack(content: bytes, manifest: Manifest, facts: Calibration) -> Arrays:
    """The arrays of a calibration for a manifest; ArtifactRefused where they aren't those that its facts list."""
    arrays = _arrays(CALIBRATION, content)
    _check_calibration(arrays, manifest, facts)
    return arrays


def _arrays(name: str, content: bytes, holes: bool = False) -> Arrays:
    """The arrays of an npz file; nothing in it is ever unpickled, and nothing but numbers is let in.

    With holes, rows of x may have missing values: NaN.
    """
    try:
        with ZipFile(io.BytesIO(content)) as packed:
            if (size := sum(entry.file_size for entry in packed.infolist())) > LARGEST:
                raise ArtifactRefused(f"{name} unpacks to {size:,} bytes; at most {LARGEST:,} are taken")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        MemoryError,
        BadZipFile,
        zlib.error,
    ) as error:
        raise ArtifactRefused(f"{name} can't be read as arrays") from error
    for key, array in arrays.items():
        absent = np.isnan(array) if holes and key.endswith(".x") and array.dtype.kind == "f" else False
        if array.dtype.kind not in "fiub" or not (np.isfinite(array) | absent).all():
            raise ArtifactRefused(f"{name} holds a value that isn't a finite number")
    return arrays


def _check_arrays(artifact: Artifact) -> None:
    """Refuse golden or calibration arrays that don't fit the manifest."""
    manifest = artifact.manifest
    for graph in manifest.graphs.values():
        names = [f"{graph.name}.{key}" for key in (*graph.rows, *([graph.bank] if graph.bank else []), *graph.outputs)]
        if missing := [name for name in names if name not in artifact.golden]:
            raise ArtifactRefused(f"{GOLDEN} lacks {', '.join(missing)}")
        for name in names[: -len(graph.outputs)]:
            _check_shape(name, artifact.golden[name], manifest)
    if manifest.calibration is None or artifact.calibration is None:
        return
    _check_calibration(artifact.calibration, manifest, manifest.calibration)


def _check_calibration(arrays: Arrays, manifest: Manifest, facts: Calibration) -> None:
    """Refuse calibration arrays that aren't those that the manifest lists, or that can't be what they are."""
    for name, digest in facts.graphs.items():
        if name not in manifest.files or manifest.files[name].sha256 != digest:
            raise ArtifactRefused(f"the calibration was made with another {name}; calibrate again")
    wanted: dict[str, tuple[int, ...]] = {"scores": (facts.n,), "noise": (facts.draws, manifest.latent_size)}
    for name, score in facts.named.items():
        wanted |= {} if name == "elbo" else {f"scores.{name}": (facts.n,)}
        wanted |= {f"fitted.{name}.{key}": tuple(shape) for key, shape in score.fitted.items()}
    if facts.terms is not None:
        spans = {"feature": tuple(manifest.event_shape)}
        spans |= {"latent": (manifest.latent_size,)} if manifest.kl == "exact" else {}
        wanted |= {f"terms.{of}.{key}": shape for of, shape in spans.items() for key in ("centre", "scale")}
    shapes = {name: array.shape for name, array in arrays.items()}
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            said = [str(list(each[name])) if name in each else "nothing" for each in (shapes, wanted)]
            raise ArtifactRefused(f"{CALIBRATION} holds {said[0]} for {name} where the manifest says {said[1]}")
    for name, array in arrays.items():
        if array.dtype != (np.float32 if name == "noise" else np.float64):
            raise ArtifactRefused(f"{CALIBRATION}: {name} is {array.dtype}")
        if name.partition(".")[0] == "scores" and (np.diff(array) < 0).any():
            raise ArtifactRefused(f"{CALIBRATION}: {name} is not in ascending order")
        if name.startswith("terms.") and name.endswith(".scale") and not (array > 0).all():
            raise ArtifactRefused(f"{CALIBRATION}: {name} is not above 0 everywhere")


def _check_shape(name: str, array: Array, manifest: Manifest) -> None:
    """Refuse a golden input whose rows, latents or noise aren't of the manifest's shape."""
    is_event = name.endswith(".x")
    wanted = tuple(manifest.event_shape) if is_event else (manifest.latent_size,)
    if name.endswith(".uniform"):
        wanted = ()
    leading = array.ndim - len(wanted)
    of_rows = name.endswith(".noise") or array.shape[:1] == (manifest.golden.rows,)
    if (
        leading < 1
        or not of_rows
        or array.shape[leading:] != wanted
        or (is_event and array.dtype != manifest.event_dtype)
    ):
        raise ArtifactRefused(f"{GOLDEN}: {name} is {array.dtype} {list(array.shape)}, not what the manifest says")


def _first(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, on one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in found["loc"])
    return f"{where}: {found['msg']}" if where else found["msg"]
