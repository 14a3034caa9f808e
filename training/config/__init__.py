"""The run: one checked config, read from YAML, stored whole in the checkpoint and in the manifest. Knows no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from service.artifact import NAME
from training.config.data import BreastCancer as BreastCancer
from training.config.data import Data as Data
from training.config.data import Diabetes as Diabetes
from training.config.data import Digits as Digits
from training.config.data import Mnist as Mnist
from training.config.families import Bernoulli as Bernoulli
from training.config.families import Block as Block
from training.config.families import Categorical as Categorical
from training.config.families import ContinuousBernoulli as ContinuousBernoulli
from training.config.families import DiscretisedLogistic as DiscretisedLogistic
from training.config.families import Family as Family
from training.config.families import Levelled as Levelled
from training.config.families import Located as Located
from training.config.families import LogNormal as LogNormal
from training.config.families import Mixed as Mixed
from training.config.families import NegativeBinomial as NegativeBinomial
from training.config.families import Normal as Normal
from training.config.families import OneFamily as OneFamily
from training.config.families import Ordinal as Ordinal
from training.config.families import Poisson as Poisson
from training.config.families import QuantileNormal as QuantileNormal
from training.config.families import StudentT as StudentT
from training.config.families import ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomial
from training.config.fitting import Missing as Missing
from training.config.fitting import Objective as Objective
from training.config.fitting import Optimiser as Optimiser
from training.config.fitting import Trainer as Trainer
from training.config.forms import DIAGONAL as DIAGONAL
from training.config.forms import DiagonalPosterior as DiagonalPosterior
from training.config.forms import FlowPosterior as FlowPosterior
from training.config.forms import FlowPrior as FlowPrior
from training.config.forms import FullPosterior as FullPosterior
from training.config.forms import MixturePrior as MixturePrior
from training.config.forms import Posterior as Posterior
from training.config.forms import Prior as Prior
from training.config.forms import StandardNormalPrior as StandardNormalPrior
from training.config.forms import VampPrior as VampPrior
from training.config.networks import Conv as Conv
from training.config.networks import DecoderNetwork as DecoderNetwork
from training.config.networks import EncoderNetwork as EncoderNetwork
from training.config.networks import Mlp as Mlp
from training.config.networks import MlpEncoder as MlpEncoder
from training.config.networks import Network as Network
from training.config.networks import Residual as Residual
from training.part import Part
from training.part import Unusable as Unusable  # what all the trainer raises, under the name that all know
from training.wanted import Column as Column
from training.wanted import File as File
from training.wanted import Folder as Folder
from training.wanted import Table as Table


class Run(Part):
    """Everything that makes a model what it is, but the data's bytes."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str = ""
    data: Data
    encoder: EncoderNetwork
    decoder: DecoderNetwork
    latent_size: Annotated[int, Field(ge=1, le=1024)]
    likelihood: Family
    missing: Missing | None = None
    posterior: Posterior = DIAGONAL
    prior: Prior = StandardNormalPrior()
    objective: Objective = Objective()
    optimiser: Optimiser = Optimiser()
    trainer: Trainer = Trainer()
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


def elsewhere(run: Run, **given: object) -> Run:
    """The run with other devices, strategy or precision; those that are None stay. Unusable where one can't be."""
    said = {name: value for name, value in given.items() if value is not None}
    plain = run.plain()
    return check({**plain, "trainer": {**plain["trainer"], **said}}, "the command line") if said else run


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
    said = _said(step)
    return " ".join(f"{place}: {said}{hint}{more}".split()) if place else said


def _said(step: ErrorDetails) -> str:
    """What pydantic says of one thing, in our words where it speaks of itself."""
    match step["type"]:
        case "extra_forbidden":
            return "there is nothing of that name here; look at its spelling, and at what it stands under"
        case "union_tag_not_found":
            return f"say its {step['ctx']['discriminator'].strip(chr(39))}"
        case "value_error":
            return step["msg"].removeprefix("Value error, ")
    return step["msg"]


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
