"""Density: what log p(x) is a mass or a density of: families, their supports, and the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.artifact.parts import Part

Kind = Literal["levels", "real", "positive", "counts", "unit", "mixed"]
Measure = Literal["counting", "lebesgue", "mixed"]
OneFamily = Literal[
    "bernoulli",
    "discretised_logistic",
    "categorical",
    "ordinal",
    "normal",
    "student_t",
    "lognormal",
    "quantile_normal",
    "poisson",
    "negative_binomial",
    "zero_inflated_negative_binomial",
    "continuous_bernoulli",
]
FURTHEST_KNOT = (
    2.5  # a quantile_normal's knots go to evenly spaced normal quantiles, the first to −2.5, the last to 2.5
)
MOST = 2.0**53  # the greatest count: past it float64 can't tell whole numbers apart


class Family(NamedTuple):
    """Of a family: the measure of log p(x), the kind of its support, and the decoder's outputs besides `mean`."""

    base_measure: Measure
    support: Kind
    parameters: list[str]


FAMILIES: Mapping[OneFamily, Family] = {
    "bernoulli": Family("counting", "levels", ["logits"]),
    "discretised_logistic": Family("counting", "levels", ["loc", "scale"]),
    "categorical": Family("counting", "levels", ["logits"]),
    "ordinal": Family("counting", "levels", ["loc", "cutpoints"]),
    "normal": Family("lebesgue", "real", ["loc", "scale"]),
    "student_t": Family("lebesgue", "real", ["loc", "scale", "df"]),
    "lognormal": Family("lebesgue", "positive", ["loc", "scale"]),
    "quantile_normal": Family("lebesgue", "real", ["loc", "scale", "knots"]),
    "poisson": Family("counting", "counts", ["rate"]),
    "negative_binomial": Family("counting", "counts", ["rate", "concentration"]),
    "zero_inflated_negative_binomial": Family("counting", "counts", ["rate", "concentration", "inflation_logits"]),
    "continuous_bernoulli": Family("lebesgue", "unit", ["logits"]),
}


class Support(Part):
    """The values that the likelihood gives any mass or density to.

    levels: lowest, lowest + step, …, highest. real: every number. positive: above 0. counts: 0, 1, 2, … up to 2⁵³,
    with no highest that is stated. unit: from 0 to 1. mixed: that of each block, for its columns.
    """

    kind: Kind
    lowest: float | None = Field(None, description="the least level; null unless the support is levels")
    highest: float | None = Field(None, description="the greatest level")
    step: float | None = Field(None, description="the distance between neighbouring levels")

    @model_validator(mode="after")
    def _levels_are_whole(self) -> Self:
        given = [edge for edge in (self.lowest, self.highest, self.step) if edge is not None]
        if self.kind != "levels" and given:
            what = "real numbers" if self.kind == "real" else self.kind
            raise ValueError(f"a support of {what} has no lowest, highest or step")
        if self.kind == "levels" and not (len(given) == 3 and given[0] < given[1] and given[2] > 0):
            raise ValueError("a support of levels states lowest, a highest above it, and a step above 0")
        return self

    @property
    def levels(self) -> tuple[float, float, float]:
        """(lowest, highest, step) of a support of levels."""
        return float(self.lowest or 0), float(self.highest or 0), float(self.step or 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value that it can have."""
        match self.kind:
            case "levels":
                return self.levels[0], self.levels[1]
            case "positive" | "counts":
                return 0.0, math.inf
            case "unit":
                return 0.0, 1.0
        return -math.inf, math.inf

    def off(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Where x is off the support; never at NaN, which is no value at all."""
        off = np.zeros(x.shape, np.bool_)
        match self.kind:
            case "levels":
                lowest, highest, step = self.levels
                off |= (x < lowest) | (x > highest)
                if step != 1 or x.dtype.kind == "f":
                    off |= (x - lowest) % step != 0
            case "positive":
                off |= x <= 0
            case "counts":
                off |= (x < 0) | (x > MOST)
                if x.dtype.kind == "f":
                    off |= x != np.floor(x)
            case "unit":
                off |= (x < 0) | (x > 1)
        return np.asarray(off & ~np.isnan(x))

    @property
    def words(self) -> str:
        """Which values it takes."""
        match self.kind:
            case "levels":
                lowest, highest, step = self.levels
                if highest - lowest == step:
                    return f"it takes {lowest:g} or {highest:g}"
                return f"levels from {lowest:g} to {highest:g} in steps of {step:g}"
            case "positive":
                return "it takes numbers above 0"
            case "counts":
                return "it takes whole numbers from 0 to 9007199254740992"
            case "unit":
                return "it takes numbers from 0 to 1"
            case _:
                return "it takes finite numbers"


class Feature(Part):
    """A column of a table."""

    name: str
    unit: str | None = Field(None, description="as the data's source gives it; null where it gives none")
    categories: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="what the codes 0, 1, … stand for, which is what is sent; null where x is a number"
    )


class Block(Part):
    """Columns of a mixed table that share a family. The decoder's outputs for them are named `name.parameter`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    columns: list[int] = Field(min_length=1, description="places in a row, from 0")
    family: OneFamily
    parameters: list[str] = Field(description="of the family; each has one entry a column, as the family has it")
    support: Support
    base_measure: Literal["counting", "lebesgue"]

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        hold(self.family, self.base_measure, self.support, self.parameters)
        return self


def hold(family: OneFamily, base_measure: str, support: Support, parameters: list[str]) -> None:
    """ValueError unless these go with the family."""
    if (base_measure, support.kind, parameters) != (wanted := tuple(FAMILIES[family])):
        raise ValueError(f"the family {family} has {wanted} for base measure, support and parameters")
    if family == "bernoulli" and support.levels != (0, 1, 1):
        raise ValueError("the family bernoulli has the levels 0 and 1")


def hold_blocks(blocks: list[Block], base_measure: str, support: Support, parameters: list[str], columns: int) -> None:
    """ValueError unless these blocks make a table of so many columns, and the rest is what they come to."""
    if sorted(column for block in blocks for column in block.columns) != list(range(columns)):
        raise ValueError(f"the blocks don't hold each of {columns} columns once")
    if len({block.name for block in blocks}) < len(blocks):
        raise ValueError("two blocks have one name")
    wanted = (joint_measure([block.base_measure for block in blocks]), "mixed", joint_parameters(blocks))
    if (base_measure, support.kind, parameters) != wanted:
        raise ValueError(f"these blocks have {wanted} for base measure, support and parameters")


def joint_measure(measures: list[Literal["counting", "lebesgue"]]) -> Measure:
    """The measure of a whole row: the product of its blocks' measures, named where they are all the same."""
    return measures[0] if len(set(measures)) == 1 else "mixed"


def joint_parameters(blocks: list[Block]) -> list[str]:
    """The decoder's outputs of a mixed table, block after block."""
    return [f"{block.name}.{parameter}" for block in blocks for parameter in block.parameters]
