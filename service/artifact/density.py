"""Density: what log p(x) is a mass or a density of: families, their supports, and the columns of a table."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from service.artifact.parts import Part

# Of each family: the measure of log p(x), the kind of support, and the decoder's outputs besides `mean`.
FAMILIES = {
    "bernoulli": ("counting", "levels", ["logits"]),
    "discretised_logistic": ("counting", "levels", ["loc", "scale"]),
    "normal": ("lebesgue", "real", ["loc", "scale"]),
}


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
