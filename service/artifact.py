"""The artifact: the contract on disk between whoever trained a model and whoever serves it. Knows no torch, no HTTP.

<models>/<name>/<version>/
    manifest.json                        what the numbers mean, and the SHA-256 of every other file
    encoder.onnx … terms.onnx            the five graphs of `GRAPHS`
    golden.npz                           rows and the answers that the graphs must give for them
    calibration.npz                      scores of held-out rows and the noise bank they were made with; optional
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ArtifactRefused

Array = NDArray[Any]
Arrays = dict[str, Array]

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
FILE = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
MANIFEST, GOLDEN, CALIBRATION, CONFIG = "manifest.json", "golden.npz", "calibration.npz", "config.yaml"


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX graph's shape. `rows`: inputs with one entry a row; `bank`: the input that all rows share, (draws, d).

    `outputs` says of each output which axes lead it: "n" (rows) or "nk" (rows, draws). `drawn` are the inputs of
    `rows` whose second axis is the draws.
    """

    name: str
    rows: tuple[str, ...]
    outputs: Mapping[str, Literal["n", "nk"]]
    bank: str | None = None
    drawn: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The graph's file in the artifact's folder."""
        return f"{self.name}.onnx"


def graphs(parameters: tuple[str, ...]) -> dict[str, Graph]:
    """The five graphs of an artifact whose decoder gives these parameters; all leading axes are dynamic."""
    bounds: Mapping[str, Literal["n", "nk"]] = {"log_likelihood": "nk", "log_weight": "nk", "kl": "n"}
    each = (
        Graph("encoder", ("x",), {"mean": "n", "log_scale": "n"}),
        Graph("decoder", ("z",), {"mean": "n", **dict.fromkeys(parameters, "n")}),
        Graph("elbo", ("x",), bounds, bank="noise"),
        Graph("joint", ("x", "z"), {"log_likelihood": "nk", "log_prior": "nk"}, drawn=("z",)),
        Graph("terms", ("x",), {"feature_log_likelihood": "nk", "latent_kl": "n"}, bank="noise"),
    )
    return {graph.name: graph for graph in each}


class Part(BaseModel):
    """A part of the manifest: immutable, and nothing in it that this version does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(ge=1)]


class File(Part):
    """A file of the artifact, checked before it is opened."""

    sha256: Digest
    bytes: Annotated[int, Field(ge=0)]


class Support(Part):
    """The values that the likelihood gives any mass or density to."""

    kind: Literal["levels", "real"]
    lowest: float | None = Field(None, description="the least level; null where the support is the real line")
    highest: float | None = Field(None, description="the greatest level")
    step: float | None = Field(None, description="the distance between neighbouring levels")

    @model_validator(mode="after")
    def _levels_are_whole(self) -> Self:
        if self.kind == "levels" and (self.lowest is None or self.highest is None or not self.step):
            raise ValueError("a support of levels states lowest, highest and a step above 0")
        return self


class Feature(Part):
    """A column of a table."""

    name: str
    unit: str | None = Field(None, description="as the data's source gives it; null where it gives none")


class Prior(Part):
    """p(z), and the form of q(z|x)."""

    family: Literal["standard_normal"] = "standard_normal"
    posterior: Literal["diagonal_normal"] = "diagonal_normal"


class Split(Part):
    """One of four disjoint parts of the data; the digest is of its rows' bytes, in order."""

    rows: Positive
    sha256: Digest


class Training(Part):
    """How the model came to be. The score never uses any of it."""

    objective: str = Field(description="what was maximised, as a formula")
    beta: float = Field(ge=0, description="the weight of the KL term in training; never in a score")
    epochs: int = Field(ge=0)
    seed: int
    data: str = Field(description="the data set and its source")
    splits: dict[Literal["fit", "validation", "calibration", "test"], Split]
    held_out: dict[str, float] = Field(description="on the test split: elbo, log_likelihood, kl; nats a row")
    config: dict[str, Any] = Field(description="the checked config of the run, whole")
    versions: dict[str, str]


class Parity(Part):
    """One output's largest difference between ONNX Runtime and torch in float64, on held-out rows."""

    error: float
    tolerance: float


class Golden(Part):
    """What the engine must answer before it is ready: golden.npz holds `graph.input` and `graph.output` arrays."""

    rows: Positive
    tolerance: dict[str, float] = Field(description="largest absolute difference allowed, by `graph.output`")


class Calibration(Part):
    """What the reference scores are of. It holds for this estimator and no other."""

    n: Positive
    draws: Positive
    seed: Annotated[int, Field(ge=0)]
    score: Literal["elbo"] = "elbo"
    estimator: Literal["sobol_scrambles_4", "plain"]
    smallest_p: float
    split: Digest = Field(description="digest of the rows that were scored")
    graphs: dict[str, Digest] = Field(description="digests of the graphs that scored them")


class Manifest(Part):
    """What an artifact is, what its numbers mean, and what its files must be."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME)]
    version: Positive
    description: str = ""
    event_shape: Annotated[list[Positive], Field(min_length=1)]
    event_dtype: Literal["uint8", "int32", "int64", "float32", "float64"]
    latent_size: Positive
    family: Literal["bernoulli", "discretised_logistic", "normal"]
    parameters: list[str] = Field(description="the decoder's outputs besides `mean`, each of the event's shape")
    mean: Literal["expectation", "location"] = Field(description="what the decoder's `mean` is of p(x|z)")
    support: Support
    base_measure: Literal["counting", "lebesgue"] = Field(description="what log p(x) is a mass or a density against")
    units: str = Field(description="of the score: nats, of which mass or density, in which units of x")
    features: list[Feature] | None = None
    prior: Prior = Prior()
    training: Training
    parity: dict[str, Parity] = Field(description="by `graph.output`")
    row_independence: str = Field(description="how it was checked that a row's numbers don't depend on its batch")
    golden: Golden
    calibration: Calibration | None = None
    files: dict[Annotated[str, Field(pattern=FILE)], File]

    @property
    def dimensions(self) -> int:
        """How many numbers an event is made of."""
        return int(np.prod(self.event_shape))

    @property
    def discrete(self) -> bool:
        """Whether p(x) is a mass."""
        return self.base_measure == "counting"

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs of this artifact, by name."""
        return graphs(tuple(self.parameters))

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        missing = {graph.file for graph in self.graphs.values()} | {GOLDEN}
        if self.calibration is not None:
            missing |= {CALIBRATION}
            for name, digest in self.calibration.graphs.items():
                if name not in self.files or self.files[name].sha256 != digest:
                    raise ValueError(f"the calibration was made with another {name}; calibrate again")
        if missing := missing - self.files.keys():
            raise ValueError(f"files lists no {', '.join(sorted(missing))}")
        if self.features is not None and len(self.features) != self.dimensions:
            raise ValueError(f"features names {len(self.features)} columns of {self.dimensions}")
        return self


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact whose every file is what its manifest says. Golden and calibration arrays are loaded; graphs are not.

    calibration holds `scores` (n,) float64 and `noise` (draws, latent_size) float32.
    """

    folder: Path
    manifest: Manifest
    golden: Arrays
    calibration: Arrays | None

    def path(self, graph: str) -> Path:
        """Where a graph's file lies."""
        return self.folder / self.manifest.graphs[graph].file


def read(folder: Path) -> Artifact:
    """Read an artifact and hold it to its manifest; ArtifactRefused says what is wrong with it."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ArtifactRefused(f"{MANIFEST} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise ArtifactRefused(f"{MANIFEST}: {_first(error)}") from error
    for name, file in manifest.files.items():
        verify(folder / name, file)
    golden = _arrays(folder / GOLDEN)
    calibration = _arrays(folder / CALIBRATION) if manifest.calibration else None
    artifact = Artifact(folder, manifest, golden, calibration)
    _check_arrays(artifact)
    return artifact


def verify(path: Path, file: File) -> None:
    """Refuse a file that is missing, a link, or not the bytes that the manifest lists."""
    if path.is_symlink() or not path.is_file():
        raise ArtifactRefused(f"{path.name} is listed in the manifest and is not a file in the folder")
    found = describe(path)
    if found != file:
        raise ArtifactRefused(
            f"{path.name} is not the file that the manifest lists: "
            f"sha256 {found.sha256[:12]}… of {found.bytes} bytes, not {file.sha256[:12]}… of {file.bytes}"
        )


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


def remove(folder: Path) -> None:
    """Delete an artifact's folder."""
    shutil.rmtree(folder)


def dump(manifest: Manifest) -> bytes:
    """A manifest as the bytes of manifest.json."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]  # the stub has allow_pickle among them
    return buffer.getvalue()


def _arrays(path: Path) -> Arrays:
    """The arrays of an npz file; nothing in it is ever unpickled."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise ArtifactRefused(f"{path.name} can't be read as arrays") from error


def _check_arrays(artifact: Artifact) -> None:
    """Refuse golden or calibration arrays that don't fit the manifest."""
    manifest = artifact.manifest
    for graph in manifest.graphs.values():
        names = [f"{graph.name}.{key}" for key in (*graph.rows, *([graph.bank] if graph.bank else []), *graph.outputs)]
        if missing := [name for name in names if name not in artifact.golden]:
            raise ArtifactRefused(f"{GOLDEN} lacks {', '.join(missing)}")
        for name in names[: -len(graph.outputs)]:
            _check_shape(name, artifact.golden[name], manifest)
        if missing := [
            f"{graph.name}.{o}" for o in graph.outputs if f"{graph.name}.{o}" not in manifest.golden.tolerance
        ]:
            raise ArtifactRefused(f"golden.tolerance lacks {', '.join(missing)}")
    if manifest.calibration is None or artifact.calibration is None:
        return
    shapes = {name: array.shape for name, array in artifact.calibration.items()}
    wanted = {
        "scores": (manifest.calibration.n,),
        "noise": (manifest.calibration.draws, manifest.latent_size),
    }
    if shapes != wanted:
        raise ArtifactRefused(f"{CALIBRATION} holds {shapes}, not {wanted}")
    if not all(np.isfinite(array).all() for array in artifact.calibration.values()):
        raise ArtifactRefused(f"{CALIBRATION} holds a value that isn't a finite number")


def _check_shape(name: str, array: Array, manifest: Manifest) -> None:
    """Refuse a golden input whose rows, latents or noise aren't of the manifest's shape."""
    is_event = name.endswith(".x")
    wanted = tuple(manifest.event_shape) if is_event else (manifest.latent_size,)
    leading = array.ndim - len(wanted)
    if leading < 1 or array.shape[leading:] != wanted or (is_event and array.dtype != manifest.event_dtype):
        raise ArtifactRefused(
            f"{GOLDEN}: {name} holds {array.dtype} {list(array.shape)}, which is not what the manifest says"
        )


def _first(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, on one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in found["loc"])
    return f"{where}: {found['msg']}" if where else found["msg"]
