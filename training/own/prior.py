"""Prior: what is said of p(z) of an own model → a prior that its graphs can hold. Knows no likelihood and no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import Unusable
from training.own.parts import Pair
from training.priors import Prior, StandardNormal, Stated

Said = str | Mapping[str, Any]
MOST = 4096  # components, as the trainer's own may have
FARTHEST = 1e5  # of a component's mean from 0, in its scales: squares are multiplied out, and more would cancel
OFF = 1e-3  # of the sum of the weights
# How wide a component is may be said in any of an encoder's words.
LOG_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "scale": torch.log,
    "log_scale": lambda given: given,
    "variance": lambda given: 0.5 * torch.log(given),
    "log_variance": lambda given: 0.5 * given,
}
FORMS = (
    "say 'standard_normal', {'kind': 'mixture', 'mean': …, 'scale': …, 'weight': …} or {'kind': 'vamp', 'rows': …}, "
    "whose rows are pseudo-inputs as the encoder is given them"
)


def made(said: Said, pair: Pair) -> Prior:
    """p(z) of a pair that has been looked at; Unusable says what is wrong with what is said of it.

    mixture: mean (components, d), the scale (or log_scale, variance, log_variance) of each, and weights (components,)
    unless all are alike. vamp: pseudo-inputs (components, *event), encoded here and now.
    """
    if not isinstance(said, str | Mapping):
        raise Unusable(f"prior: {type(said).__name__}; {FORMS}")
    given = {"kind": said} if isinstance(said, str) else {str(name): value for name, value in said.items()}
    match kind := given.pop("kind", None):
        case "standard_normal":
            _nothing_else(given)
            return StandardNormal()
        case "mixture":
            mean, log_scale = _stated(given, pair)
        case "vamp":
            mean, log_scale = _encoded(given, pair)
        case _:
            raise Unusable(f"prior {kind!r}: the prior of an own model is a standard normal or a mixture; {FORMS}")
    weight = _weights(given, len(mean))
    _nothing_else(given)
    _sane(mean, log_scale)
    return Stated(mean, log_scale, weight)


def words(prior: Prior, said: Said) -> dict[str, Any]:
    """The prior as a run's config would have it, for the manifest."""
    kind = said if isinstance(said, str) else str(said["kind"])
    return {"kind": kind, "components": len(prior.mean)} if isinstance(prior, Stated) else {"kind": kind}


def _stated(given: dict[str, Any], pair: Pair) -> tuple[Tensor, Tensor]:
    """Means and log scales as they are given, (components, d) each, float64."""
    mean = _doubles("mean", given)
    named = [name for name in LOG_SCALES if name in given]
    if len(named) != 1:
        raise Unusable(f"prior: one of {', '.join(LOG_SCALES)} is needed beside the mean, and there is {named or None}")
    spread = _doubles(named[0], given)
    if mean.dim() < 2 or mean[0].numel() != pair.latent_size:
        raise Unusable(
            f"prior: mean is {list(mean.shape)}, and (components, latents) with {pair.latent_size} latents is needed"
        )
    try:
        log_scale = LOG_SCALES[named[0]](spread.expand(mean.shape))
    except RuntimeError as error:
        raise Unusable(f"prior: {named[0]} is {list(spread.shape)} beside a mean of {list(mean.shape)}") from error
    return mean.flatten(1), log_scale.flatten(1)


def _encoded(given: dict[str, Any], pair: Pair) -> tuple[Tensor, Tensor]:
    """The posteriors of pseudo-inputs, (components, d) each, float64."""
    rows = _doubles("rows", given)
    if rows.dim() < 2 or rows[0].numel() != torch.Size(pair.event_shape).numel():
        raise Unusable(f"prior: rows are {list(rows.shape)}, and pseudo-inputs {['n', *pair.event_shape]} are needed")
    with torch.no_grad():
        mean, log_scale = pair.posterior_of(rows.reshape(-1, *pair.event_shape).to(pair.dtype)).moments()
    return mean.double(), log_scale.double()


def _weights(given: dict[str, Any], components: int) -> Tensor:
    """Of each component, adding up to 1, (components,), float64; all alike where none are given."""
    if given.get("weight") is None:
        given.pop("weight", None)
        return torch.full((components,), 1.0 / components, dtype=torch.float64)
    weight = _doubles("weight", given)
    if weight.shape != (components,):
        raise Unusable(f"prior: weight is {list(weight.shape)}, and one for each of {components} components is needed")
    if not bool((weight > 0).all()) or abs(float(weight.sum()) - 1.0) > OFF:
        raise Unusable(
            f"prior: weights are above 0 and add up to 1, and these are {float(weight.min()):.3g} or more and add up "
            f"to {float(weight.sum()):.4g}; give a softmax of logits, and leave out a component without weight"
        )
    return weight / weight.sum()


def _doubles(name: str, given: dict[str, Any]) -> Tensor:
    """One of the arrays that a prior is made of, taken out of what is given."""
    if name not in given:
        raise Unusable(f"prior: has no {name}; {FORMS}")
    value = given.pop(name)
    try:
        if value.is_complex() if isinstance(value, Tensor) else np.iscomplexobj(value):
            raise TypeError("its numbers are complex")
        held = value.detach().cpu().double() if isinstance(value, Tensor) else torch.from_numpy(_numbers(value))
    except (TypeError, ValueError, NotImplementedError) as error:  # the last: a tensor without values
        raise Unusable(f"prior: {name} isn't an array of numbers ({' '.join(str(error).split())[:200]})") from error
    if held.numel() == 0 or not bool(torch.isfinite(held).all()):
        raise Unusable(f"prior: {name} holds nothing, or what is no finite number")
    return held


def _numbers(value: object) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(value, np.float64)


def _nothing_else(given: Mapping[str, Any]) -> None:
    if given:
        raise Unusable(f"prior: there is no {', '.join(sorted(given))}; {FORMS}")


def _sane(mean: Tensor, log_scale: Tensor) -> None:
    """Refuse components that no float can tell apart, and more of them than are held."""
    if len(mean) > MOST:
        raise Unusable(f"prior: {len(mean)} components, and at most {MOST} are held")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(log_scale).all()):
        raise Unusable("prior: a component's mean or scale is no finite number above 0")
    far = (mean.abs() * torch.exp(-log_scale)).amax()
    if not float(far) <= FARTHEST:
        raise Unusable(
            f"prior: a component lies {float(far):.2g} of its own scales from 0, and at most {FARTHEST:g} can be told; "
            "a wider component, or latents in other units"
        )
