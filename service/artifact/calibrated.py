"""Calibrated: the facts of a calibration; the arrays that it is about lie in calibration.npz. Knows no score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.artifact.parts import Digest, Part, Positive


class Calibration(Part):
    """What the reference scores are of. It holds for this estimator and no other.

    The stored bank is bound by the SHA-256 of calibration.npz; that its seed makes it is checked when it is written.
    """

    n: Positive
    draws: Positive
    seed: Annotated[int, Field(ge=0)]
    score: Literal["elbo"] = "elbo"
    estimator: Literal["frames_4", "sobol_scrambles_4", "plain"] = Field(
        description="how the bank's draws were made; Sobol scrambles were, until 0.1"
    )
    smallest_p: float
    split: Digest = Field(description="digest of the rows that were scored")
    graphs: dict[str, Digest] = Field(description="digests of the graphs that scored them")
