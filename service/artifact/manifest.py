"""The manifest: what an artifact is, what its numbers mean, and what its files must be. Knows no folder."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from service.artifact.calibrated import Calibration
from service.artifact.density import Block, Feature, Measure, OneFamily, Support, hold, hold_blocks
from service.artifact.graphs import Array, Form, Graph, PosteriorFamily, PriorFamily, graphs
from service.artifact.parts import File, Part, Positive
from service.artifact.provenance import Golden, Parity, Training

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
CARD = "README.md"  # for people: what the model is; no other name has capitals
PICTURE = r"^card-[a-z0-9-]{1,40}\.png$"  # that the card shows
FILE = r"^(README\.md|[a-z0-9][a-z0-9_.-]{0,63})$"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MANIFEST, GOLDEN, CALIBRATION, CONFIG = "manifest.json", "golden.npz", "calibration.npz", "config.yaml"
WEIGHTS = "weights.bin"  # what large graphs share, if the artifact has it


class Prior(Part):
    """p(z), and the form of q(z|x)."""

    family: PriorFamily = "standard_normal"
    posterior: PosteriorFamily = "diagonal_normal"
    mean: list[Finite] | None = Field(None, description="of each latent; null where p(z) is a standard normal")
    scale: list[Above] | None = Field(None, description="the standard deviation of each latent; null likewise")

    @property
    def form(self) -> Form:
        """What the artifact's graphs depend on."""
        return Form(self.family, self.posterior)

    @property
    def moments(self) -> tuple[float | Array, float | Array]:
        """The mean and the standard deviation of each latent: numbers, or (d,)."""
        if self.mean is None or self.scale is None:
            return 0.0, 1.0
        return np.array(self.mean, np.float64), np.array(self.scale, np.float64)

    @model_validator(mode="after")
    def _says_where_it_lies(self) -> Self:
        if {self.mean is None, self.scale is None} != {self.family == "standard_normal"}:
            raise ValueError("mean and scale are those of a prior that is no standard normal, and of no other")
        return self


class Manifest(Part):
    """What an artifact is, what its numbers mean, and what its files must be."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME)]
    version: Positive
    description: str = ""
    event_shape: Annotated[list[Positive], Field(min_length=1)]
    event_dtype: Literal["uint8", "int32", "int64", "float32", "float64"]
    latent_size: Positive
    family: OneFamily | Literal["mixed"]
    parameters: list[str] = Field(
        description="the decoder's outputs besides `mean`: [n, *event] each, logits of categories, cutpoints of "
        "levels and knots of quantiles with one more axis for these; in a mixed table [n, columns of its block] "
        "instead of [n, *event]"
    )
    mean: Literal["expectation", "location"] = Field(description="what the decoder's `mean` is of p(x|z)")
    support: Support
    base_measure: Measure = Field(
        description="what log p(x) is a mass or a density against; mixed: counting for some blocks, Lebesgue for others"
    )
    blocks: list[Block] | None = Field(None, description="of a mixed table: which columns have which family")
    units: str = Field(description="of the score: nats, of which mass or density, in which units of x")
    missing: bool = Field(False, description="whether values of x may be missing (NaN): the model was trained for it")
    features: list[Feature] | None = None
    prior: Prior = Prior()
    kl: Literal["exact", "sampled"] = Field(
        "exact",
        description="sampled: KL(q(z|x) ‖ p(z)) has no closed form, and is the mean of log_likelihood − log_weight",
    )
    training: Training
    parity: dict[str, Parity] = Field(description="by `graph.output`")
    row_independence: str = Field(description="how it was checked that a row's numbers don't depend on its batch")
    golden: Golden
    calibration: Calibration | None = None
    files: dict[Annotated[str, Field(pattern=FILE)], File]

    @property
    def dimensions(self) -> int:
        """How many numbers an event is made of."""
        return math.prod(self.event_shape)

    @property
    def discrete(self) -> bool:
        """Whether p(x) is a mass."""
        return self.base_measure == "counting"

    def support_of(self, column: int) -> Support:
        """Of one number of an event, flat: its block's in a mixed table."""
        return next((block.support for block in self.blocks or [] if column in block.columns), self.support)

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs of this artifact, by name."""
        return graphs(tuple(self.parameters), self.prior.form)

    def computed_by(self, *graphs: str) -> list[str]:
        """The files that the answers of some graphs come from: theirs, and the weights that they may share."""
        return [*(self.graphs[name].file for name in graphs), *({WEIGHTS} & self.files.keys())]

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        needed = {graph.file for graph in self.graphs.values()} | {GOLDEN}
        if lacking := (needed | {CALIBRATION} if self.calibration else needed) - self.files.keys():
            raise ValueError(f"files lists no {', '.join(sorted(lacking))}")
        if self.missing and not self.event_dtype.startswith("float"):
            raise ValueError(f"missing: {self.event_dtype} can't say that a value is absent; float32 and float64 can")
        if self.kl != self.prior.form.kl:
            raise ValueError(f"kl is {self.prior.form.kl} with this prior and posterior")
        if {len(each) for each in (self.prior.mean, self.prior.scale) if each is not None} - {self.latent_size}:
            raise ValueError(f"prior: mean and scale have one number for each of {self.latent_size} latents")
        if self.features is not None and len(self.features) != self.dimensions:
            raise ValueError(f"features names {len(self.features)} columns of {self.dimensions}")
        for column, feature in enumerate(self.features or []):
            support = self.support_of(column)
            if feature.categories and (support.kind, *support.levels) != ("levels", 0, len(feature.categories) - 1, 1):
                raise ValueError(f"features.{column}: the categories are not those of its support, {support.words}")
        if len({split.sha256 for split in self.training.splits.values()}) < 4:
            raise ValueError("two splits are the same rows")
        return self

    @model_validator(mode="after")
    def _has_its_familys_density(self) -> Self:
        if (self.family == "mixed") != (self.blocks is not None):
            raise ValueError("blocks are those of the family mixed, and of no other")
        if self.family != "mixed":
            hold(self.family, self.base_measure, self.support, self.parameters)
        elif len(self.event_shape) != 1 or self.event_dtype != "float64":
            raise ValueError("the family mixed has rows of one axis, in float64")
        else:
            hold_blocks(self.blocks or [], self.base_measure, self.support, self.parameters, self.dimensions)
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
        facts = self.calibration
        if facts is None:
            return self
        for name in self.computed_by("elbo"):  # the other graphs' once it is known that the files are these
            if facts.graphs.get(name) != self.files[name].sha256:
                raise ValueError(f"the calibration was made with another {name}; calibrate again")
        if facts.split != self.training.splits["calibration"].sha256:
            raise ValueError("the calibration is of other rows than the split set aside for it")
        if facts.validation not in (None, self.training.splits["validation"].sha256):
            raise ValueError("the calibration's scores were fitted on other rows than the validation split")
        if not abs(facts.smallest_p - 1 / (facts.n + 1)) <= 1e-12:
            raise ValueError(f"calibration.smallest_p is not 1/(n+1) of {facts.n} rows")
        return self
