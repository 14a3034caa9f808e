"""Likelihoods: p(x|z) given the decoder's heads, one family a class. Knows no network."""

from training.likelihoods.base import BLOCK, Likelihood, Parameters, aligned, softclip, softplus, total
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.build import build
from training.likelihoods.categories import Categorical, Ordinal
from training.likelihoods.continuous_bernoulli import ContinuousBernoulli
from training.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.located import LogNormal, Normal, StudentT
from training.likelihoods.mixed import Mixed
from training.likelihoods.quantile import QuantileNormal

__all__ = [
    "BLOCK",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Likelihood",
    "LogNormal",
    "Mixed",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Parameters",
    "Poisson",
    "QuantileNormal",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "aligned",
    "build",
    "softclip",
    "softplus",
    "total",
]
