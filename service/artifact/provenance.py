"""Provenance: how a model came to be, and what was measured of it before it was written. No score uses any of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from service.artifact.parts import Digest, Part, Positive, Size


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
