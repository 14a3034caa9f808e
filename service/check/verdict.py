"""Verdict: what a trial's numbers mean: what holds, what is broken, and what to do. Knows no model and no picture.

A failure is an identity that can't fail in a model that is what it says. That an encoder is far from the posterior, or
that what a model draws isn't what it was trained on, is advice: every score is still a bound, of a worse model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.artifact import Manifest
from service.check.trial import Trial

Doubles = NDArray[np.float64]

RARE = 1e-3  # a p-value, after correction for how many are looked at, below which chance is no explanation
UNLIKE = 0.01  # p-value of its own rows scoring as held-out ones do, below which that is worth advice
ERRORS = 4.0  # standard errors by which a mean may be on the wrong side
COLLAPSED = 0.01  # nats of KL below which a latent says nothing of its row
WIDE_GAP = 1.0  # nats between the ELBO and log p(x) from which an encoder could be much better
FEWEST = 10  # rows of which anything can be said
RELIABLE = 0.9  # the share of rows from which the evidence of rows like these can be relied on


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that holds, is broken, or could be better; remedy says what to do."""

    kind: Literal["holds", "advice", "failure"]
    what: str
    detail: str
    remedy: str = ""


def judge(manifest: Manifest, trial: Trial) -> tuple[Finding, ...]:
    """All findings, what can break first."""
    missing = int((~trial.numbers).sum())
    trial = trial.kept(trial.numbers)
    first: tuple[Finding, ...] = (_golden(manifest), _graphs(trial), _company(trial))
    if missing:
        detail = f"{missing} of {missing + len(trial.elbo)} rows that it drew itself"
        first += (Finding("failure", "rows have no score", detail, "its densities overflow; export it again"),)
    if len(trial.elbo) < FEWEST:
        return first
    return (
        *first,
        _bounded(trial),
        _sandwich(trial),
        _posterior(trial),
        _gap(trial),
        _encoder(trial),
        _reliable(trial),
        _latents(trial),
        _likeness(manifest, trial),
    )


def mean_error(values: Doubles) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def gap_error(trial: Trial) -> tuple[float, float]:
    """The mean gap and its standard error; rows share a bank of noise, whose error no number of rows averages out."""
    mean, error = mean_error(trial.gap)
    return mean, float(np.hypot(error, np.nanmean(trial.elbo_error)))


def uniformity(ranks: Doubles) -> Doubles:
    """The p-value of each column's ranks being uniform, corrected for how many columns there are; (d,)."""
    from scipy.stats import kstest

    p = np.array([kstest(column, "uniform").pvalue for column in ranks.T], np.float64)
    return np.asarray(np.minimum(1.0, len(p) * p), np.float64)


def shape(ranks: Doubles) -> str:
    """What ranks that aren't uniform look like, in words.

    >>> shape(np.array([0.0, 0.02, 0.5, 0.98, 1.0])), shape(np.array([0.7, 0.8, 0.9]))
    ('too narrow', 'shifted')
    """
    off = abs(ranks.mean() - 0.5) * np.sqrt(12 * len(ranks))  # in standard errors, were it uniform
    spread = (ranks.var() * 12 - 1) * np.sqrt(len(ranks) / 0.8)
    if off > abs(spread):
        return "shifted"
    return "too narrow" if spread > 0 else "too wide"


# ---------------------------------------------------------------- what can't fail


def _golden(manifest: Manifest) -> Finding:
    shares = [parity.error / parity.tolerance for parity in manifest.parity.values() if parity.tolerance]
    worst = max(shares, default=0.0)
    detail = f"answered as the manifest says; in float32 the graphs use {worst:.0%} of the error it allows"
    return Finding("holds", "golden rows", detail)


def _graphs(trial: Trial) -> Finding:
    over = [
        f"{pair} differ by {worst:.3g} times what rounding allows"
        for pair, worst in trial.disagreement.items()
        if not worst <= 1
    ]
    if over:
        return Finding("failure", "the graphs contradict one another", "; ".join(over), "export the model again")
    worst = max(trial.disagreement.values())
    return Finding("holds", "the graphs agree", f"where they say the same, to {worst:.1g} of what rounding allows")


def _company(trial: Trial) -> Finding:
    if trial.alone:
        detail = f"{trial.alone} rows score otherwise alone than among others"
        return Finding("failure", "a row's score depends on its company", detail, "export the model again")
    return Finding("holds", "rows are independent", "they score the same alone and among others")


def _bounded(trial: Trial) -> Finding:
    mean, error = gap_error(trial)
    above, shared = mean_error(trial.upper - trial.elbo)  # log p̂ itself is low on average, and proves nothing
    if above < -ERRORS * np.hypot(shared, np.nanmean(trial.elbo_error)):
        detail = f"above the upper bound too, on average by {-above:.3g} nats, which can't be"
        return Finding(
            "failure", "the ELBO lies above log p(x)", detail, "joint.onnx and elbo.onnx are of other models"
        )
    return Finding("holds", "the ELBO is a bound", f"log p̂ − ELBO is {mean:.3g} ± {error:.2g} nats on average")


def _sandwich(trial: Trial) -> Finding:
    mean, error = mean_error(trial.upper - trial.lower)
    if mean < -ERRORS * error:
        detail = f"upper − lower is {mean:.3g} ± {error:.2g} nats on average, and can't be below 0"
        return Finding("failure", "the sandwich is upside down", detail, "what draws rows isn't what scores them")
    return Finding("holds", "log p(x) is held", f"between bounds {mean:.3g} ± {error:.2g} nats apart on average")


def _posterior(trial: Trial) -> Finding:
    p = uniformity(trial.posterior_ranks)
    if p.min() < RARE:
        shapes = ", ".join(f"z{i} ({shape(trial.posterior_ranks[:, i])})" for i in np.flatnonzero(p < RARE)[:4])
        detail = f"corrected by their weights, posterior draws don't rank z* uniformly: {shapes}; p = {p.min():.1g}"
        return Finding("failure", "the posterior is another model's", detail, "what draws rows isn't what scores them")
    return Finding(
        "holds", "the weighed posterior is right", f"z* ranks uniformly in every latent; least p = {p.min():.2g}"
    )


# ---------------------------------------------------------------- what could be better


def _gap(trial: Trial) -> Finding:
    mean, error = gap_error(trial)
    detail = (
        f"q(z|x) is {mean:.3g} ± {error:.2g} nats from the posterior on average, {np.max(trial.gap):.3g} at the most"
    )
    if mean > WIDE_GAP:
        remedy = "a larger or longer-trained encoder would raise every score; use `evidence` where it matters"
        return Finding("advice", "the encoder leaves a gap", detail, remedy)
    return Finding("holds", "the gap is small", detail)


def _encoder(trial: Trial) -> Finding:
    p = uniformity(trial.encoder_ranks)
    bad = np.flatnonzero(p < RARE)
    if len(bad):
        shapes = ", ".join(f"z{i} {shape(trial.encoder_ranks[:, i])}" for i in bad[:6])
        more = f" and {len(bad) - 6} more" if len(bad) > 6 else ""
        detail = f"its posterior is off in {len(bad)} of {len(p)} latents: {shapes}{more}"
        return Finding("advice", "the encoder is miscalibrated", detail, "don't read its scales as uncertainty")
    return Finding("holds", "the encoder is calibrated", f"z* ranks uniformly in q(z|x); least p = {p.min():.2g}")


def _reliable(trial: Trial) -> Finding:
    share = trial.reliable.mean()
    detail = f"{share:.0%} of rows at {trial.draws} draws"
    if share < RELIABLE:
        return Finding("advice", "the evidence is often unreliable", detail, "ask for more draws")
    return Finding("holds", "the evidence is reliable", detail)


def _latents(trial: Trial) -> Finding:
    if trial.latent_kl is None:
        return Finding("holds", "latents aren't told apart", "with this prior and posterior the KL is no sum over them")
    used = trial.latent_kl.mean(0)
    idle = np.flatnonzero(used < COLLAPSED)
    if len(idle):
        named = ", ".join(f"z{i}" for i in idle[:6]) + (", …" if len(idle) > 6 else "")
        detail = f"{len(idle)} of {len(used)} carry less than {COLLAPSED} nats: {named}"
        return Finding("advice", "latents are idle", detail, "fewer would do, or a warm-up of the KL in training")
    return Finding("holds", "every latent is used", f"from {used.min():.2g} to {used.max():.2g} nats a row")


def _likeness(manifest: Manifest, trial: Trial) -> Finding:
    """Whether what the model draws scores as what it was trained on; two-sample Kolmogorov–Smirnov."""
    from scipy.stats import ks_2samp

    name = f"{manifest.name}/{manifest.version}"
    if trial.reference is None:
        remedy = f"python -m training calibrate …/{name}"
        return Finding("advice", "not calibrated", "there are no scores of held-out rows to compare with", remedy)
    p = float(ks_2samp(trial.own, trial.reference).pvalue)
    own, held_out = np.median(trial.own), np.median(trial.reference)
    detail = f"median ELBO {own:.4g} of its own rows, {held_out:.4g} of held-out ones; p = {p:.1g}"
    if p < UNLIKE:
        how = "higher" if own > held_out else "lower"
        remedy = "look at samples: the model isn't the data's; p-values are honest all the same"
        return Finding("advice", f"what it draws scores {how} than real rows", detail, remedy)
    return Finding("holds", "its own rows score as real ones do", detail)
