"""Likelihoods: p(x|z) given the decoder's heads, one family a class. Knows no network."""

from training.likelihoods.base import BLOCK, Likelihood, Parameters, aligned, softclip, softplus, total
from training.likelihoods.bernoulli import Bernoulli
from training.likelihoods.build import build
from training.likelihoods.discretised_logistic import DiscretisedLogistic
from training.likelihoods.normal import Normal

__all__ = [
    "BLOCK",
    "Bernoulli",
    "DiscretisedLogistic",
    "Likelihood",
    "Normal",
    "Parameters",
    "aligned",
    "build",
    "softclip",
    "softplus",
    "total",
]
