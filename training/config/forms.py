"""Forms: what q(z|x) and p(z) are, as a run's config names them. Knows no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from training.part import Part, Size


class DiagonalPosterior(Part):
    """q(z|x) is a normal whose latents are independent."""

    kind: Literal["diagonal_normal"] = "diagonal_normal"


class FullPosterior(Part):
    """q(z|x) is a normal with all covariances; the encoder's last layer grows with the square of the latents."""

    kind: Literal["full_normal"] = "full_normal"


class FlowPosterior(Part):
    """q(z|x) is a diagonal normal whose draws go through so many couplings, with `hidden` numbers within each."""

    kind: Literal["flow"]
    layers: Annotated[int, Field(ge=1, le=32)] = 4
    hidden: Size = 64


class StandardNormalPrior(Part):
    """p(z) = N(0, I)."""

    kind: Literal["standard_normal"] = "standard_normal"


class MixturePrior(Part):
    """p(z) is a mixture of normals whose means, scales and weights are learned."""

    kind: Literal["mixture"]
    components: Annotated[int, Field(ge=2, le=4096)] = 64


class VampPrior(Part):
    """p(z) is the mixture of the posteriors of so many rows, which are learned and begin at fitted ones."""

    kind: Literal["vamp"]
    components: Annotated[int, Field(ge=2, le=4096)] = 64


class FlowPrior(Part):
    """p(z) is a standard normal whose draws go through so many couplings, with `hidden` numbers within each."""

    kind: Literal["flow"]
    layers: Annotated[int, Field(ge=1, le=32)] = 4
    hidden: Size = 64


Posterior = Annotated[DiagonalPosterior | FullPosterior | FlowPosterior, Field(discriminator="kind")]
Prior = Annotated[StandardNormalPrior | MixturePrior | VampPrior | FlowPrior, Field(discriminator="kind")]
DIAGONAL = DiagonalPosterior()
