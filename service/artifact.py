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
# Of each family: the measure of log p(x), the kind of support, and the decoder's outputs besides `mean`.
FAMILIES = {
    "bernoulli": ("counting", "levels", ["logits"]),
    "discretised_logistic": ("counting", "levels", ["loc", "scale"]),
    "normal": ("lebesgue", "real", ["loc", "scale"]),
}


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
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
        given = [edge for edge in (self.lowest, self.highest, self.step) if edge is not None]
        if self.kind == "real" and given:
            raise ValueError("a support of real numbers has no lowest, highest or step")
        if self.kind == "levels" and not (len(given) == 3 and given[0] < given[1] and given[2] > 0):
            raise ValueError("a support of levels states lowest, a highest above it, and a step above 0")
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
    splits: Annotated[dict[Literal["fit", "validation", "calibration", "test"], Split], Field(min_length=4)]
    held_out: dict[str, float] = Field(description="on the test split: elbo, log_likelihood, kl; nats a row")
    config: dict[str, Any] = Field(description="the checked config of the run, whole")
    versions: dict[str, str]


class Parity(Part):
    """One output's largest difference between ONNX Runtime and torch in float64, on held-out rows."""

    error: Size
    tolerance: Size


class Golden(Part):
    """What the engine must answer before it is ready: golden.npz holds `graph.input` and `graph.output` arrays."""

    rows: Positive
    tolerance: dict[str, Size] = Field(description="largest absolute difference allowed, by `graph.output`")


class Calibration(Part):
    """What the reference scores are of. It holds for this estimator and no other.

    The stored bank is bound by the SHA-256 of calibration.npz; that its seed makes it is checked when it is written.
    """

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
        needed = {graph.file for graph in self.graphs.values()} | {GOLDEN}
        if missing := (needed | {CALIBRATION} if self.calibration else needed) - self.files.keys():
            raise ValueError(f"files lists no {', '.join(sorted(missing))}")
        if self.features is not None and len(self.features) != self.dimensions:
            raise ValueError(f"features names {len(self.features)} columns of {self.dimensions}")
        if len({split.sha256 for split in self.training.splits.values()}) < 4:
            raise ValueError("two splits are the same rows")
        if (self.base_measure, self.support.kind, self.parameters) != (wanted := FAMILIES[self.family]):
            raise ValueError(f"the family {self.family} has {wanted} for base measure, support and parameters")
        if self.family == "bernoulli" and (self.support.lowest, self.support.highest, self.support.step) != (0, 1, 1):
            raise ValueError("the family bernoulli has the levels 0 and 1")
        return self

    @model_validator(mode="after")
    def _figures_cover_every_output(self) -> Self:
        outputs = {f"{graph.name}.{output}" for graph in self.graphs.values() for output in graph.outputs}
        for name, named in (("golden.tolerance", self.golden.tolerance.keys()), ("parity", self.parity.keys())):
            if named != outputs:
                raise ValueError(f"{name} lacks or adds to the graphs' outputs: {', '.join(sorted(named ^ outputs))}")
        if over := [name for name, parity in self.parity.items() if parity.error > parity.tolerance]:
            raise ValueError(f"parity: {', '.join(over)} is past its own tolerance")
        return self

    @model_validator(mode="after")
    def _calibration_is_of_this_model(self) -> Self:
        facts, elbo = self.calibration, self.graphs["elbo"].file
        if facts is None:
            return self
        for name in {elbo, *facts.graphs}:
            if name not in self.files or facts.graphs.get(name) != self.files[name].sha256:
                raise ValueError(f"the calibration was made with another {name}; calibrate again")
        if facts.split != self.training.splits["calibration"].sha256:
            raise ValueError("the calibration is of other rows than the split set aside for it")
        if not abs(facts.smallest_p - 1 / (facts.n + 1)) <= 1e-12:
            raise ValueError(f"calibration.smallest_p is not 1/(n+1) of {facts.n} rows")
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

    def graph(self, name: str) -> bytes:
        """A graph's bytes, checked: what is opened is what was hashed, whatever becomes of the file."""
        path = self.path(name)
        return verify(path, self.manifest.files[path.name])


def read(folder: Path) -> Artifact:
    """Read an artifact and hold it to its manifest; ArtifactRefused says what is wrong with it."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ArtifactRefused(f"{MANIFEST} can't be read: {error.strerror}") from error
    except ValidationError as error:
        raise ArtifactRefused(f"{MANIFEST}: {_first(error)}") from error
    contents = {name: verify(folder / name, file) for name, file in manifest.files.items()}
    golden = _arrays(GOLDEN, contents[GOLDEN])
    calibration = _arrays(CALIBRATION, contents[CALIBRATION]) if manifest.calibration else None
    artifact = Artifact(folder, manifest, golden, calibration)
    _check_arrays(artifact)
    return artifact


def verify(path: Path, file: File) -> bytes:
    """A file's bytes; refused when it is missing, a link, or not the bytes that the manifest lists."""
    if path.is_symlink() or not path.is_file():
        raise ArtifactRefused(f"{path.name} is listed in the manifest and is not a file in the folder")
    content = path.read_bytes()
    found = File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    if found != file:
        difference = f"sha256 {found.sha256[:12]}… of {found.bytes} bytes, not {file.sha256[:12]}… of {file.bytes}"
        raise ArtifactRefused(f"{path.name} is not the file that the manifest lists: {difference}")
    return content


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


def _arrays(name: str, content: bytes) -> Arrays:
    """The arrays of an npz file; nothing in it is ever unpickled, and nothing but numbers is let in."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, BadZipFile, zlib.error) as error:
        raise ArtifactRefused(f"{name} can't be read as arrays") from error
    if any(array.dtype.kind not in "fiub" or not np.isfinite(array).all() for array in arrays.values()):
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
    shapes = {name: array.shape for name, array in artifact.calibration.items()}
    wanted = {
        "scores": (manifest.calibration.n,),
        "noise": (manifest.calibration.draws, manifest.latent_size),
    }
    if shapes != wanted:
        raise ArtifactRefused(f"{CALIBRATION} holds {shapes}, not {wanted}")


def _check_shape(name: str, array: Array, manifest: Manifest) -> None:
    """Refuse a golden input whose rows, latents or noise aren't of the manifest's shape."""
    is_event = name.endswith(".x")
    wanted = tuple(manifest.event_shape) if is_event else (manifest.latent_size,)
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
