"""The appraisal: what one pass makes of a batch of rows: their bound, their scores, and where these stand.

Many callers' rows are appraised together, so that what NumPy costs for each call is shared by them. A row's numbers
don't depend on its neighbours: nothing here is more than one row wide. Knows no engine, no queue and no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service import anomaly, calibration, noise, scoring
from service.anomaly import Statistics
from service.artifact import Array, Arrays, Manifest
from service.calibration import References
from service.errors import EngineFailed, EngineLost
from service.scoring import Doubles

Ask = Callable[[Array], Arrays]

NORMED = "density_of_states"  # the score that the posterior's norms are for
POSTERIOR = ("mean", "log_scale")  # what encoder.onnx gives
P = "p."  # what the p-value of a score is named by


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """What rows are measured by: a bank of noise, and the reference scores, comparable if they were made with it.

    complete says that no reference row had a missing value, so that rows which have aren't like them. notice is told of
    what was appraised, on the event loop.
    """

    bank: noise.Bank
    references: References | None = None
    comparable: bool = False
    complete: bool = False
    notice: Callable[[Arrays], None] | None = None

    def __len__(self) -> int:
        """Decoder rows that a row costs."""
        return self.bank.draws

    @property
    def error_df(self) -> int:
        """Degrees of freedom of the bound's error."""
        return len(self.bank.groups) - 1

    @property
    def normed(self) -> bool:
        """Whether a score wants the posterior's norms."""
        return self.references is not None and NORMED in self.references.fitted

    @property
    def hinges(self) -> bool:
        """Whether that score is the one that decides."""
        return self.references is not None and self.references.chosen == NORMED


def appraise(x: Array, outputs: Arrays, encode: Ask, manifest: Manifest, by: Yardstick) -> Arrays:
    """All that is said of rows by default, (rows,) float64 each.

    outputs are those of elbo.onnx; encode asks encoder.onnx for rows, if it is needed. The bound and its
    error, scores by their names, and the p-value of each as `p.NAME`, NaN for rows that no reference row is like.
    """
    bound, statistics = measure(outputs, _norms(x, encode, manifest, by), by.bank)
    found = {"elbo_error": bound.error}
    fitted = by.references.fitted if by.references else {}
    values = anomaly.values(statistics, fitted)
    found |= values
    if by.references is None or not by.comparable:
        return found
    odd = unlike(x, manifest) if by.complete and manifest.missing else None
    for name, value in values.items():
        if name in by.references.scores:
            p = calibration.p_values(by.references.scores[name], value)
            found[P + name] = p if odd is None else np.where(odd, np.nan, p)
    return found


def _norms(x: Array, encode: Ask, manifest: Manifest, by: Yardstick) -> Arrays | None:
    """The posterior, where a score needs it.

    Rows that the encoder fails on have none, and their neighbours have theirs. Where that score decides there would be
    nothing to say of such a row: the call fails, so that whose row it is can be found.
    """
    if not by.normed:
        return None
    try:
        return encode(x)
    except EngineLost:
        raise
    except EngineFailed:
        if by.hinges:
            raise
    return stacked([_one(row, encode, manifest) for row in np.split(x, len(x))])


def _one(row: Array, encode: Ask, manifest: Manifest) -> Arrays:
    try:
        return encode(row)
    except EngineLost:
        raise
    except EngineFailed:
        return unknown(manifest)


def unknown(manifest: Manifest) -> Arrays:
    """The posterior of a row that the encoder fails on."""
    return {name: np.full((1, manifest.latent_size), np.nan) for name in POSTERIOR}


def stacked(parts: Sequence[Arrays]) -> Arrays:
    """Posteriors of some rows, one below the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in POSTERIOR}


def measure(
    outputs: Mapping[str, Array], posterior: Mapping[str, Array] | None, bank: noise.Bank
) -> tuple[scoring.Bound, Statistics]:
    """The bound of rows and what their scores are made of; the posterior's norms where it is given."""
    bound = scoring.bound(outputs["log_likelihood"], scoring.kl(outputs), bank)
    gap = anomaly.iwae_gap(outputs["log_weight"], bank.weights)
    lengths: tuple[Doubles, ...] = ()
    if posterior is not None:
        lengths = anomaly.norm(posterior["mean"]), anomaly.norm(np.exp(posterior["log_scale"].astype(np.float64)))
    return bound, Statistics(bound.elbo, bound.log_likelihood, bound.kl, gap, *lengths)


def unlike(x: Array, manifest: Manifest) -> Array:
    """Which rows have missing values; (rows,)."""
    return np.asarray(np.isnan(x).reshape(len(x), manifest.dimensions).any(1))
