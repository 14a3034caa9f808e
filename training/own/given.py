"""Given: what an own model was exported with, checked, as its manifest keeps it. Knows no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from service.artifact import NAME
from training import config
from training.config import Unusable
from training.part import Part

EncoderGives = Literal["log_variance", "log_scale", "variance", "scale"]
DecoderGives = Literal["parameters", "logits", "probabilities", "mean"]
KIND: Literal["own"] = "own"
ENCODER_GIVES: TypeAdapter[Any] = TypeAdapter(EncoderGives)
DECODER_GIVES: TypeAdapter[Any] = TypeAdapter(DecoderGives)
FAMILY: TypeAdapter[Any] = TypeAdapter(config.Family)
# What people call the loss that their model was trained with, and what it stands for.
LOSSES: Mapping[str, str] = {
    **dict.fromkeys(
        ("mse", "l2", "squared_error", "mean_squared_error"),
        "a squared error is a normal's density without its scale, so it has no normalisation; say likelihood='normal' "
        "with decoder_gives='mean', and the scale is estimated on held-out rows by maximum likelihood",
    ),
    **dict.fromkeys(
        ("bce", "bce_with_logits", "binary_cross_entropy", "binary_cross_entropy_with_logits"),
        "binary cross-entropy is a likelihood of 0 and 1 alone; say likelihood='bernoulli' for rows of 0 and 1, and "
        "'continuous_bernoulli' or 'discretised_logistic' for grey ones",
    ),
    **dict.fromkeys(
        ("cross_entropy", "ce"), "say likelihood='categorical', whose logits have a last axis for the levels"
    ),
    **dict.fromkeys(
        ("l1", "mae", "laplace", "huber", "smooth_l1"),
        "it has no scale, and its density is none of ours; 'student_t' has heavy tails too, and 'normal' with "
        "decoder_gives='mean' takes any decoder that gives a location",
    ),
}
# What families are called elsewhere.
KNOWN_AS: Mapping[str, str] = {
    **dict.fromkeys(("gauss", "gaussian", "gaussian_nll", "diagonal_normal"), "normal"),
    **dict.fromkeys(("binary", "binomial"), "bernoulli"),
    **dict.fromkeys(("multinomial", "softmax"), "categorical"),
    **dict.fromkeys(("logistic", "discretized_logistic", "logistic_mixture"), "discretised_logistic"),
    **dict.fromkeys(("nb", "negbin", "negative_binomial_nll"), "negative_binomial"),
    **dict.fromkeys(("zinb", "zero_inflated"), "zero_inflated_negative_binomial"),
    **dict.fromkeys(("t", "student", "studentt", "cauchy"), "student_t"),
    **dict.fromkeys(("log_normal",), "lognormal"),
    **dict.fromkeys(("poisson_nll", "count", "counts"), "poisson"),
    **dict.fromkeys(("cb", "continuous_bernouilli"), "continuous_bernoulli"),
}


class Given(Part):
    """An own model: where it says `measured`, export filled it in."""

    kind: Literal["own"] = KIND
    name: Annotated[str, Field(pattern=NAME)]
    description: str = ""
    latent_size: Annotated[int, Field(ge=1)]
    likelihood: dict[str, Any]
    encoder_gives: EncoderGives
    decoder_gives: DecoderGives
    prior: dict[str, Any] = Field(description="its kind, and how many components a mixture has")
    preprocessing: dict[str, list[float]] | None = Field(None, description="u = (x − shift)/scale, flat or one number")
    scale: list[float] | None = Field(None, description="of a decoder that gives a mean, in the units of x")
    scale_from: str | None = Field(None, description="where that scale is from")
    normalisation: str = Field("", description="measured: what p(x|z) sums or integrates to")
    made_of: str = Field("torch modules", description="what the graphs were made of")
    split_seed: int = 0
    seed: int = 0

    @property
    def missing(self) -> None:
        """No own model takes missing values."""
        return

    @property
    def objective(self) -> None:
        """Nobody told us what it was trained for."""
        return

    def plain(self) -> dict[str, Any]:
        """As plain dicts, lists, numbers and text."""
        return self.model_dump(mode="json")


def check(**fields: Any) -> Given:
    """What was given, or Unusable with the first thing that is wrong."""
    try:
        return Given.model_validate(fields)
    except ValidationError as error:
        raise Unusable(f"export: {config.first(error)}") from error


def encoder_gives(said: str | None) -> EncoderGives | None:
    """The word for an encoder's second output, if there is one."""
    return None if said is None else cast(EncoderGives, _word(ENCODER_GIVES, said, "encoder_gives"))


def decoder_gives(said: str) -> DecoderGives:
    """The word for what a decoder gives."""
    return cast(DecoderGives, _word(DECODER_GIVES, said, "decoder_gives"))


def _word(words: TypeAdapter[Any], said: str, what: str) -> Any:
    try:
        return words.validate_python(said)
    except ValidationError as error:
        raise Unusable(f"{what} {said!r}: {config.first(error)}") from error


def place(to: object, name: str, version: int | None) -> None:
    """Refuse a folder, a name or a version that an artifact can't have, before any work is done."""
    if not isinstance(to, str | Path):
        raise Unusable(f"to: the folder of the artifacts is needed, not {to!r}; leave it out for exported_models")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise Unusable(
            f"name {name!r}: up to 64 small letters, digits, hyphens and underscores are needed, beginning with a "
            "letter or digit"
        )
    if version is not None and not (type(version) is int and version >= 1):
        raise Unusable(f"version {version!r}: whole numbers from 1 on; leave it out for the next")


def numbers(value: object, what: str) -> NDArray[np.float64]:
    """A number, or an array of them."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise Unusable(f"{what}: a number is needed, or one a feature, not {value!r}"[:300]) from error


def family(wanted: object) -> config.Family:
    """The family that is meant: by its name, as a dict with options, or as a part of a run.

    >>> family("normal").family
    'normal'
    """
    if isinstance(wanted, str):
        wanted = {"family": wanted}
    if isinstance(wanted, Part):
        wanted = wanted.model_dump(mode="json")
    if not isinstance(wanted, Mapping):
        raise Unusable(f"likelihood: a family's name, options or class is needed, not {type(wanted).__name__}")
    options = {**wanted}
    if why := LOSSES.get(_plain(options.get("family"))):
        raise Unusable(f"likelihood {options['family']!r} is a loss: {why}")
    if options.get("family") in ("normal", "student_t", "lognormal"):
        options["scale"] = "shared"  # the scale is the decoder's or the export's, never a weight of the likelihood
    try:
        found: config.Family = FAMILY.validate_python(options)
    except ValidationError as error:
        raise Unusable(_unknown(options, error) or f"likelihood: {config.first(error)}") from error
    return found


def _plain(said: object) -> str:
    """A family's name without the ways in which it may be written."""
    return str(said).strip().lower().replace("-", "_").replace(" ", "_").removesuffix("_loss")


def _unknown(options: Mapping[str, Any], error: ValidationError) -> str | None:
    """What to say of a family's name that is none of ours: the one that may be meant, and all of them."""
    said, first = options.get("family"), error.errors()[0]
    if first["type"] != "union_tag_invalid" or first["ctx"]["tag"] != said:
        return None
    names = re.findall(r"\w+", first["ctx"]["expected_tags"])
    known = KNOWN_AS.get(_plain(said))
    meant = [known] if known else difflib.get_close_matches(_plain(said), names, 1)
    ask = f"; do you mean {meant[0]!r}?" if meant else "."
    return f"likelihood {said!r} is no family{ask} There are {', '.join(names)}"
