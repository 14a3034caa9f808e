"""The run: one checked config, read from YAML, stored whole in the checkpoint and in the manifest. Knows no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import yaml
from pydantic import Field, ValidationError, model_serializer, model_validator

from service.artifact import NAME
from training.part import Part, Size, Sizes
from training.part import Unusable as Unusable  # what all the trainer raises, under the name that all know
from training.wanted import Column as Column
from training.wanted import File as File
from training.wanted import Folder as Folder
from training.wanted import Table as Table


class Mnist(Part):
    """5,000 handwritten digits, 28×28 grey levels 0–255; or black and white, by chance.

    binarise: drawn makes a pixel 1 with the probability level/255, drawn once for held-out rows and anew in every epoch
    for fitted ones (as Burda et al. 2016 do).
    """

    name: Literal["mnist"]
    binarise: Literal["drawn"] | None = None
    split_seed: Annotated[int, Field(ge=0)] = 0


class Digits(Part):
    """1,797 handwritten digits, 8×8 with 17 levels; with `binarise`, 1 where the level is above it and 0 elsewhere.

    Digits that are the same in black and white are taken once.
    """

    name: Literal["digits"]
    binarise: Annotated[int | None, Field(ge=0, le=15)] = None
    split_seed: Annotated[int, Field(ge=0)] = 0


class BreastCancer(Part):
    """569 rows of 30 measurements; the model is fitted to the rows of the `normal` class alone."""

    name: Literal["breast-cancer"]
    normal: Literal["benign", "malignant"] = "benign"
    split_seed: Annotated[int, Field(ge=0)] = 0


class Diabetes(Part):
    """442 patients, 11 columns: sex, age and measurements of blood, and how the disease went on for a year."""

    name: Literal["diabetes"]
    split_seed: Annotated[int, Field(ge=0)] = 0


class Mlp(Part):
    """Dense layers; `sizes` are the hidden ones, in the order that the data goes through them."""

    kind: Literal["mlp"]
    sizes: Sizes


class Conv(Part):
    """Convolutions that halve (encoder) or double (decoder) the picture at each of `sizes` channels, and a dense layer.

    A picture is (height, width), or (channels, height, width).
    Sizes are written from the picture inwards in the encoder and outwards in the decoder.
    """

    kind: Literal["conv"]
    sizes: Sizes
    dense: Size


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


class Objective(Part):
    """What is maximised, with so many `draws` of each row in a step.

    elbo: E_q[log p(x|z)] − β·KL, β rising linearly over the first `warm_up` epochs, and `free_bits` nats of each
    latent's KL costing nothing. importance_weighted: E_q[log mean w], the encoder's gradient doubly reparameterised.
    """

    kind: Literal["elbo", "importance_weighted"] = "elbo"
    draws: Annotated[int, Field(ge=1, le=4096)] = 1
    beta: Annotated[float, Field(ge=0)] = 1.0
    warm_up: Annotated[int, Field(ge=0)] = 0
    free_bits: Annotated[float, Field(ge=0, description="nats")] = 0.0

    @model_validator(mode="after")
    def _weights_are_whole(self) -> Self:
        if self.kind == "elbo":
            return self
        if self.beta != 1 or self.warm_up or self.free_bits:
            raise ValueError("importance_weighted has no KL of its own to weigh: leave out beta, warm_up and free_bits")
        if self.draws < 2:
            raise ValueError("importance_weighted with one draw is the elbo: set draws to 2 or more")
        return self


class Optimiser(Part):
    """Adam, stopped when the held-out bound has not risen for `patience` epochs."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Size = 64
    epochs: Size = 100
    patience: Size = 10


class Missing(Part):
    """Train for missing values: each row of each batch loses a share of them, uniform between `least` and `most`."""

    least: Annotated[float, Field(ge=0, le=1)] = 0.0
    most: Annotated[float, Field(gt=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError("least is above most")
        return self


Posterior = Annotated[DiagonalPosterior | FullPosterior | FlowPosterior, Field(discriminator="kind")]
Prior = Annotated[StandardNormalPrior | MixturePrior | VampPrior | FlowPrior, Field(discriminator="kind")]
DIAGONAL = DiagonalPosterior()
Data = Annotated[Mnist | Digits | BreastCancer | Diabetes | File | Table | Folder, Field(discriminator="name")]
Network = Annotated[Mlp | Conv, Field(discriminator="kind")]
Family = Annotated[OneFamily | Mixed, Field(discriminator="family")]


class Run(Part):
    """Everything that makes a model what it is, but the data's bytes."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str = ""
    data: Data
    encoder: Network
    decoder: Network
    latent_size: Annotated[int, Field(ge=1, le=1024)]
    likelihood: Family
    missing: Missing | None = None
    posterior: Posterior = DIAGONAL
    prior: Prior = StandardNormalPrior()
    objective: Objective = Objective()
    optimiser: Optimiser = Optimiser()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def exact_kl(self) -> bool:
        """Whether KL(q(z|x) ‖ p(z)) has a closed form."""
        return self.prior.kind == "standard_normal" and self.posterior.kind in ("diagonal_normal", "full_normal")

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.objective.free_bits and not self.exact_kl:
            raise ValueError("objective.free_bits: each latent's KL has no closed form with this prior and posterior")
        if self.prior.kind == "vamp" and self.posterior.kind != "diagonal_normal":
            raise ValueError("prior vamp is made of diagonal normals: write posterior: {kind: diagonal_normal}")
        if self.latent_size < 2 and "flow" in (self.prior.kind, self.posterior.kind):
            raise ValueError("a flow's couplings have two halves, each with a latent: set latent_size to 2 or more")
        return self

    def plain(self) -> dict[str, Any]:
        """The run as plain dicts, lists, numbers and text."""
        return self.model_dump(mode="json")


def read(path: Path) -> Run:
    """The run in a YAML file; Unusable says in one line what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Unusable(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return check(content, str(path))


def check(content: object, where: str) -> Run:
    """A run from plain values; Unusable names the first thing that is wrong, and where."""
    try:
        return Run.model_validate(content)
    except ValidationError as error:
        raise Unusable(f"{where}: {first(error)}") from error


class Plain(Protocol):
    """What has a form of plain values."""

    def plain(self) -> dict[str, Any]: ...  # noqa: D102


def write(run: Plain) -> str:
    """The run as YAML, every default spelt out."""
    return yaml.safe_dump(run.plain(), sort_keys=False, allow_unicode=True)


def first(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, on one line."""
    found = error.errors(include_url=False)
    step, others = found[0], len(found) - 1
    place = ".".join(str(part) for part in step["loc"])
    more = f" (and {others} more)" if others else ""
    hint = _hint(step.get("input"))
    return " ".join(f"{place}: {step['msg']}{hint}{more}".split()) if place else step["msg"]


def _hint(given: object) -> str:
    """How to write a number that YAML 1.1 takes for text, having no point before its e.

    >>> _hint("3e-3")
    '; to YAML, 3e-3 is text: write 3.0e-3 or 0.003'
    """
    if not isinstance(given, str) or not re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,2}", given):
        return ""
    digits, _, power = given.lower().partition("e")
    point = digits if "." in digits else f"{digits}.0"
    sign = "" if power.startswith(("-", "+")) else "+"  # without one it is text too
    return f"; to YAML, {given} is text: write {point}e{sign}{power} or {float(given)}"
