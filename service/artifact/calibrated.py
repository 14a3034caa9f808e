"""Calibrated: the facts of a calibration; the arrays that it is about lie in calibration.npz. Knows no score."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.artifact.parts import Digest, Part, Positive

ScoreName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class ScoreFacts(Part):
    """What a calibrated score is: which end is strange, in which unit, and what was fitted for it."""

    strange: Literal["low", "high"]
    unit: str
    fitted: dict[ScoreName, list[Positive]] = Field(
        {}, description="parameters fitted on validation rows: their shapes"
    )


class Choice(Part):
    """The score that `p_value` and `anomaly` are of, and why that one."""

    score: ScoreName
    why: str


class Calibration(Part):
    """What the reference scores are of. It holds for this estimator and no other.

    The stored bank is bound by the SHA-256 of calibration.npz; that its seed makes it is checked when it is written.
    What was calibrated before there were several scores has none of the last four fields, and its score is the elbo.
    """

    n: Positive
    complete: bool = Field(True, description="whether none of the rows that were scored has a missing value")
    draws: Positive
    seed: Annotated[int, Field(ge=0)]
    score: Literal["elbo"] = Field("elbo", description="of the array `scores`")
    estimator: Literal["frames_4", "sobol_scrambles_4", "plain"] = Field(
        description="how the bank's draws were made; Sobol scrambles were, until 0.1"
    )
    smallest_p: float
    split: Digest = Field(description="digest of the rows that were scored")
    graphs: dict[str, Digest] = Field(description="digests of the graphs that scored them")
    scores: dict[ScoreName, ScoreFacts] | None = Field(None, description="every score that has reference scores")
    anomaly: Choice | None = Field(None, description="the score that is answered as p_value and anomaly")
    validation: Digest | None = Field(None, description="digest of the rows that scores were fitted on and chosen by")
    terms: Literal["median_95"] | None = Field(
        None,
        description="how explanations' terms are centred and scaled: by their median, and by the way from there to "
        "their strangest twentieth over 1.645",
    )

    @property
    def named(self) -> dict[str, ScoreFacts]:
        """Every score that has reference scores; the elbo always does."""
        return self.scores if self.scores is not None else {"elbo": ScoreFacts(strange="low", unit="nats")}

    @property
    def chosen(self) -> str:
        """The score that p_value and anomaly are of."""
        return self.anomaly.score if self.anomaly else "elbo"

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if "elbo" not in self.named:
            raise ValueError("scores lacks elbo")
        if self.chosen not in self.named:
            raise ValueError(f"anomaly.score is {self.chosen}, which is none of scores")
        if any(facts.fitted for facts in self.named.values()) and self.validation is None:
            raise ValueError("scores were fitted, and validation doesn't say on which rows")
        return self
