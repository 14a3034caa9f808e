"""Build: a run's family and its data → the likelihood, or one line that says why they don't go together."""

from __future__ import annotations

from service.artifact import Support
from training import config
from training.config import Unusable
from training.data import DataSet
from training.likelihoods.base import Likelihood
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.normal import Normal


def build(wanted: config.Family, data: DataSet) -> Likelihood:
    """The likelihood that a run names, for the data that it names; Unusable where the two don't go together."""
    match wanted:
        case config.Bernoulli():
            likelihood: Likelihood = Bernoulli()
        case config.DiscretisedLogistic():
            likelihood = DiscretisedLogistic(_levels(data.support), wanted.smallest_scale)
        case config.Normal():
            if data.support.kind != "real":
                raise Unusable("likelihood normal: a density over data of whole levels can grow without bound; use "
                               "discretised_logistic")  # fmt: skip
            likelihood = Normal(data.splits["fit"].reshape(len(data.splits["fit"]), -1), wanted.smallest_scale)
    for rows in data.splits.values():
        likelihood.check(rows)
    return likelihood


def _levels(support: Support) -> tuple[float, float, float]:
    """The lowest and highest level and the step between; Unusable where the data has none."""
    if support.lowest is None or support.highest is None or support.step is None:
        raise Unusable("likelihood discretised_logistic: needs data of whole levels; use normal for real values")
    return support.lowest, support.highest, support.step
