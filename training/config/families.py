"""Families: p(x|z) as a run's config names it, with its options. Knows no torch and no data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from service.artifact import NAME
from training.part import Part


class Bernoulli(Part):
    """Binary data."""

    family: Literal["bernoulli"]


class Levelled(Part):
    """Data of whole levels, lowest, lowest + step, …, highest; where they are left out, as the data has them."""

    lowest: float | None = None
    highest: float | None = None
    step: Annotated[float, Field(gt=0)] = 1.0


class DiscretisedLogistic(Levelled):
    """Levels that are quantities; `smallest_scale` is in steps between levels."""

    family: Literal["discretised_logistic"]
    smallest_scale: Annotated[float, Field(gt=0, le=1)] = 0.1


class Categorical(Levelled):
    """Levels that are names, in no order."""

    family: Literal["categorical"]


class Ordinal(Levelled):
    """Levels that are in an order, and no more."""

    family: Literal["ordinal"]


class Located(Part):
    """A location and a scale; `smallest_scale` is in standard deviations of the fitted rows.

    scale: one for each `feature`; one `shared` by all, which then share their unit; or from the `decoder`.
    """

    smallest_scale: Annotated[float, Field(gt=0, le=1)] = 0.05
    scale: Literal["shared", "feature", "decoder"] = "feature"


class Normal(Located):
    """Real values."""

    family: Literal["normal"]


class StudentT(Located):
    """Real values with heavy tails; the degrees of freedom are learned, one for each feature."""

    family: Literal["student_t"]


class LogNormal(Located):
    """Positive values; the standard deviations are those of their logarithms."""

    family: Literal["lognormal"]


class QuantileNormal(Located):
    """Real values of any shape: made normal by their quantiles at `knots`, linear between them.

    The standard deviations are those of the transformed values.
    """

    family: Literal["quantile_normal"]
    knots: Annotated[int, Field(ge=4, le=64)] = 16


class Poisson(Part):
    """Counts without a highest, whose variance is their mean."""

    family: Literal["poisson"]


class NegativeBinomial(Part):
    """Counts without a highest, whose variance is above their mean."""

    family: Literal["negative_binomial"]


class ZeroInflatedNegativeBinomial(Part):
    """The same, with zeros besides."""

    family: Literal["zero_inflated_negative_binomial"]


class ContinuousBernoulli(Part):
    """Values from 0 to 1."""

    family: Literal["continuous_bernoulli"]


OneFamily = Annotated[
    Bernoulli
    | DiscretisedLogistic
    | Categorical
    | Ordinal
    | Normal
    | StudentT
    | LogNormal
    | QuantileNormal
    | Poisson
    | NegativeBinomial
    | ZeroInflatedNegativeBinomial
    | ContinuousBernoulli,
    Field(discriminator="family"),
]


class Block(Part):
    """Columns of a mixed table that share a family and its options, which are written beside them."""

    columns: Annotated[list[Annotated[int, Field(ge=0)] | str], Field(min_length=1)]
    name: Annotated[str | None, Field(pattern=NAME, description="in the manifest; the family's where left out")] = None
    likelihood: OneFamily

    @model_validator(mode="before")
    @classmethod
    def _family_beside_columns(cls, given: object) -> object:
        if not isinstance(given, dict) or "likelihood" in given:
            return given
        own = {key: value for key, value in given.items() if key in ("columns", "name")}
        return {**own, "likelihood": {key: value for key, value in given.items() if key not in own}}

    @model_serializer
    def _as_it_is_written(self) -> dict[str, Any]:
        name = {"name": self.name} if self.name else {}
        return {**name, "columns": list(self.columns), **self.likelihood.model_dump(mode="json")}


class Mixed(Part):
    """A table with a family for each block of columns, given by places from 0 or by names; each column in one.

    Without blocks, the roles of the columns of a `table` decide.
    """

    family: Literal["mixed"]
    blocks: Annotated[list[Block], Field(min_length=1)] | None = None


Family = Annotated[OneFamily | Mixed, Field(discriminator="family")]
