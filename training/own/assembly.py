"""Assembly: two torch modules that were made elsewhere → an artifact like any other, or a refusal that says why.

What the modules must be is found out, not believed: they are traced, run twice, run alone and among others, and held
to float64; the likelihood is held to a sum or an integral of one, and the encoder to a posterior that can be meant.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from service.artifact import Feature
from training import calibrate as calibrating
from training import config, exporting, likelihoods
from training.composed import Composed
from training.config import Unusable
from training.data import DataSet
from training.likelihoods import Likelihood
from training.own import given as stated
from training.own import measures, tracing
from training.own import prior as priors
from training.own.given import DecoderGives, EncoderGives, Given
from training.own.parts import LOCATED, MEANS, SCALED, DecoderPart, EncoderPart, Pair, check_loaded
from training.own.rows import Sample, dataset

__all__ = ["export"]

LOOKED_AT = 8  # rows that a module is traced and held to itself with


@dataclass(frozen=True, slots=True)
class Own:
    """An own model as exporting takes it."""

    run: Given
    data: DataSet
    vae: Pair
    figures: list[dict[str, float]]


def export(
    *,
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: str | Mapping[str, Any] | config.Family | Likelihood,
    sample: Sample,
    name: str,
    encoder_gives: EncoderGives | None = None,
    decoder_gives: DecoderGives = "parameters",
    scale: float | Sequence[float] | np.ndarray[Any, Any] | Literal["shared", "feature"] | None = None,
    prior: priors.Said = "standard_normal",
    preprocessing: Mapping[str, Any] | None = None,
    to: Path | str = "exported_models",
    version: int | None = None,
    replace: bool = False,
    description: str = "",
    features: Sequence[str | Feature] | None = None,
    calibrate: bool = True,
    shared_weights: bool = False,
    say: exporting.Say | None = None,
) -> Path:
    """Export two modules as an artifact into to/<name>/<version>, calibrated; the folder.

    encoder: u (n, *event) → mean and a second output, (n, d) each; encoder_gives says what the second is, a log
    variance unless it looks like no such thing.
    decoder: z (n, d) → the family's parameters, as a tensor, a tuple in the family's order or a dict; or, with
    decoder_gives, logits, probabilities, or a mean with a scale: a number, one a feature, or estimated on the
    validation rows by maximum likelihood ("shared" by all features, or one a "feature"; shared for pictures unless
    said otherwise). preprocessing: {"shift": …, "scale": …}, u = (x − shift)/scale; the density is one of x all the
    same. prior: a standard normal; {"kind": "mixture", "mean": …, "scale": …, "weight": …}; or {"kind": "vamp",
    "rows": …}, pseudo-inputs as the encoder is given them. sample: rows, (n, *event), that the model was *not*
    trained on, or a dict of the four splits.
    shared_weights: large matrices lie on disk and in memory once, at some cost in time (docs/large-models.md).

    Unusable says what can be mended, and how; ArtifactRefused, which promise the model doesn't keep.
    """
    tell = say or (lambda _: None)
    said = stated.encoder_gives(encoder_gives)
    decoder_gives = stated.decoder_gives(decoder_gives)
    stated.place(to, name, version)
    exporting.destination(Path(to) / name, version, replace)
    rows = dataset(sample, features)
    family = _likelihood(likelihood, rows)
    _goes_with(family, decoder_gives)
    units = _units(preprocessing, rows, family)
    if decoder_gives == "mean" and family.family == "bernoulli" and units is None:
        decoder_gives = "probabilities"
    tell("looking at the encoder and the decoder")
    pair = assembled(encoder, decoder, family, rows, units, said or "log_variance", decoder_gives)
    pair.prior = priors.made(prior, pair)
    tell("the posterior on held-out rows and on strangers")
    measures.posterior(pair, rows)
    if said is None:
        measures.looks_like_a_log(pair, rows)
    origin = stated.check(
        name=name,
        description=description,
        latent_size=pair.latent_size,
        likelihood=_plain(likelihood, family),
        encoder_gives=pair.encoder_gives,
        decoder_gives=decoder_gives,
        prior=priors.words(pair.prior, prior),
        preprocessing=_listed(preprocessing),
        made_of="; ".join(m.origin for m in (encoder, decoder) if isinstance(m, Composed)) or "torch modules",
        **_scale(pair, rows, scale, tell),
    )
    tell("sums and integrals of p(x|z)")
    measures.parameters(pair, rows)
    origin = origin.model_copy(update={"normalisation": measures.normalisation(pair, rows)})
    own = Own(origin, rows, pair.eval().requires_grad_(False), [])
    folder = exporting.export(own, Path(to), version=version, replace=replace, shared_weights=shared_weights, say=tell)
    if calibrate:
        tell("calibrating")
        calibrating.calibrate(folder, given=rows.splits)
    return folder


def _likelihood(wanted: object, rows: DataSet) -> Likelihood:
    """The likelihood for rows that it gives mass or density to."""
    if isinstance(wanted, Likelihood):
        for some in rows.splits.values():
            wanted.check(some)
        return wanted
    family = stated.family(wanted)
    if isinstance(family, config.Bernoulli):
        _black_and_white(rows)
    return likelihoods.build(family, rows)


def _goes_with(family: Likelihood, gives: DecoderGives) -> None:
    """Refuse a word for the decoder's outputs that doesn't go with the family."""
    names = ", ".join(family.parameter_names)
    if gives == "mean" and family.family not in MEANS:
        raise Unusable(f"decoder_gives='mean': a mean doesn't make a {family.family}; give its parameters, {names}")
    if gives in ("logits", "probabilities") and family.parameter_names != ("logits",):
        raise Unusable(f"decoder_gives={gives!r}: {family.family} has no logits; its parameters are {names}")


def _black_and_white(rows: DataSet) -> None:
    """Refuse grey values to a Bernoulli, with what to say instead."""
    values = np.concatenate([some.reshape(-1) for some in rows.splits.values()])
    grey = values[(values != 0) & (values != 1)]
    if not grey.size:
        return
    instead = "continuous_bernoulli (a density on [0, 1], with the same logits)"
    if values.dtype == np.uint8:
        instead = "discretised_logistic (its levels; decoder_gives='mean' with preprocessing={'scale': …} takes a mean)"
    raise Unusable(
        f"likelihood bernoulli: {grey.size / values.size:.1%} of the sample's values are neither 0 nor 1, such as "
        f"{grey[0]:.4g}: binary cross-entropy on grey values sums to no mass. Say {instead}, or binarise the rows"
    )


def _units(preprocessing: Mapping[str, Any] | None, rows: DataSet, family: Likelihood) -> tuple[Tensor, Tensor] | None:
    """Shift and width of u = (x − shift)/width, of the event's shape."""
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, Mapping):
        raise Unusable("preprocessing: {'shift': …, 'scale': …} is needed, a number or one a feature each")
    if extra := preprocessing.keys() - {"shift", "scale"}:
        raise Unusable(f"preprocessing: u = (x − shift)/scale; there is no {', '.join(sorted(extra))}")
    both = []
    for name, usual in (("shift", 0.0), ("scale", 1.0)):
        value = stated.numbers(preprocessing.get(name, usual), f"preprocessing: {name}")
        try:
            both.append(np.array(np.broadcast_to(value, rows.event_shape)))
        except ValueError as error:
            shapes = f"{list(value.shape)} for rows of {list(rows.event_shape)}"
            raise Unusable(f"preprocessing: a {name} of shape {shapes}") from error
    shift, width = both
    if not (np.isfinite(shift).all() and np.isfinite(width).all() and (width > 0).all()):
        raise Unusable("preprocessing: shift is finite, and scale is finite and above 0; u = (x − shift)/scale")
    dense = family.base_measure != "counting" and family.family not in LOCATED
    if dense and not (np.all(shift == 0) and np.all(width == 1)):
        raise Unusable(
            f"preprocessing: the parameters of {family.family} can't be undone; preprocess the rows before you "
            "send them, or move it into the encoder, if the decoder's parameters are of x as it is sent"
        )
    return torch.from_numpy(shift), torch.from_numpy(width)


def assembled(
    encoder: nn.Module,
    decoder: nn.Module,
    family: Likelihood,
    rows: DataSet,
    units: tuple[Tensor, Tensor] | None,
    encoder_gives: EncoderGives,
    decoder_gives: DecoderGives,
) -> Pair:
    """The two, traced, as one VAE."""
    raw_encoder, raw_decoder = _copied("encoder", encoder), _copied("decoder", decoder)
    pair = Pair(
        raw_encoder,
        raw_decoder,
        family,
        rows.event_shape,
        encoder_gives=encoder_gives,
        decoder_gives=decoder_gives,
        units=units,
    )
    some, others = (pair.converted(torch.from_numpy(rows.splits[name][:LOOKED_AT])) for name in ("fit", "test"))
    shape = tuple(_latent_shape(raw_encoder, some))
    posterior = tracing.traced("encoder", EncoderPart(raw_encoder), some, others)
    with torch.no_grad():
        z, other = (posterior(x)[0] for x in (some, others))
    names = ("mean",) if decoder_gives == "mean" else family.parameter_names
    shapes = {
        name: rows.event_shape if name == "mean" else family.parameter_shape(name, rows.event_shape) for name in names
    }
    graph = tracing.traced("decoder", DecoderPart(raw_decoder, shape, shapes), z, other)
    pair.take(posterior, graph, _as_logits(graph, family, decoder_gives), z.shape[1])
    return pair


def _as_logits(graph: nn.Module, family: Likelihood, gives: DecoderGives) -> DecoderGives:
    """What a decoder gives once a last sigmoid or softmax is taken off, where logits are what the family needs."""
    if tuple(family.parameter_names) != ("logits",) or gives == "mean":
        return "parameters" if gives == "logits" else gives
    several = family.family == "categorical"
    last = "softmax" if several else "sigmoid"
    taken = tracing.without_last(graph, (last,), last_axis=several)
    if gives == "probabilities":
        return "parameters" if taken else gives
    if taken:
        raise Unusable(
            f"decoder: ends in a {last}, so it gives probabilities where logits are taken: say "
            "decoder_gives='probabilities' (--decoder-gives probabilities), and the logits before it are used"
        )
    return "parameters"


def _copied(role: str, module: object) -> nn.Module:
    """The module in float32 on the CPU; the caller's own is left as it is."""
    if not isinstance(module, nn.Module):
        also = "; load the weights into the module that they are of" if isinstance(module, Mapping) else ""
        also = also or ("; call it to make one" if isinstance(module, type) else "; wrap functions in one")
        raise Unusable(f"{role}: a torch.nn.Module is needed, not {type(module).__name__}{also}")
    if isinstance(module, torch.jit.ScriptModule):
        raise Unusable(
            f"{role}: is TorchScript, which isn't traced again; give the torch.nn.Module that it was made of"
        )
    check_loaded(role, module)
    try:
        return copy.deepcopy(module).float().cpu().requires_grad_(False)
    except (TypeError, RuntimeError) as error:
        raise Unusable(f"{role}: can't be copied: {error}") from error


def _latent_shape(encoder: nn.Module, some: Tensor) -> torch.Size:
    """The shape of a row's latents as the encoder has them, which the decoder is given again."""
    tracing.settled("encoder", encoder)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            given = encoder(some)
        except Exception:  # tracing says it, with the reason
            return torch.Size()
    first = given[0] if isinstance(given, tuple | list) and given else given
    return first.shape[1:] if isinstance(first, Tensor) else torch.Size()


def _scale(pair: Pair, rows: DataSet, wanted: Any, tell: exporting.Say) -> dict[str, Any]:
    """Set the scale of a decoder that gives a mean, and say where it is from."""
    if pair.decoder_gives != "mean" or pair.likelihood.family not in SCALED:
        if wanted is not None:
            raise Unusable("scale: goes with decoder_gives='mean' and a normal or discretised_logistic")
        return {}
    if wanted is None or isinstance(wanted, str):
        if wanted not in (None, "shared", "feature"):
            raise Unusable(f"scale {wanted!r}: a number, one a feature, 'shared' or 'feature'")
        shared = wanted == "shared" or (wanted is None and len(rows.event_shape) > 1)
        tell("the likeliest scale on the validation rows")
        found = measures.scale(pair, rows.splits["validation"], shared=shared)
        how = f"maximum likelihood on validation rows, {'shared' if shared else 'one a feature'}"
    else:
        found, how = _stated_scale(pair, stated.numbers(wanted, "scale"), rows.event_shape), "stated"
    pair.scale.copy_(torch.from_numpy(found))
    return {"scale": _short(found), "scale_from": how}


def _stated_scale(pair: Pair, wanted: np.ndarray[Any, Any], event_shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A scale in the units of u, which the decoder's mean is in → of x."""
    try:
        whole = np.broadcast_to(wanted, event_shape)
    except ValueError as error:
        raise Unusable(f"scale: of shape {list(wanted.shape)} for rows of {list(event_shape)}") from error
    if not (np.isfinite(whole).all() and (whole > 0).all()):
        raise Unusable("scale: is finite and above 0")
    return np.asarray(whole.reshape(-1) * pair.width.numpy().reshape(-1))


def _plain(wanted: object, family: Likelihood) -> dict[str, Any]:
    """The family as the manifest keeps it."""
    return (
        {"family": family.family} if isinstance(wanted, Likelihood) else stated.family(wanted).model_dump(mode="json")
    )


def _listed(preprocessing: Mapping[str, Any] | None) -> dict[str, list[float]] | None:
    if preprocessing is None:
        return None
    return {name: _short(np.asarray(value, np.float64).reshape(-1)) for name, value in preprocessing.items()}


def _short(values: np.ndarray[Any, Any]) -> list[float]:
    """One number where all are the same."""
    plain = [float(value) for value in values]
    return plain[:1] if len(set(plain)) == 1 else plain
