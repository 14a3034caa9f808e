"""Bernoulli: p(x|z) of binary x. Knows no data set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.artifact import Support
from training.config import Unusable
from training.likelihoods.base import Likelihood, Parameters, aligned, softplus


class Bernoulli(Likelihood):
    """Binary x, a mass: P(x) = σ(l)ˣ σ(−l)¹⁻ˣ, so log P(x) = −softplus((1 − 2x) l).

    Parameters: logits l = log P(1)/P(0), dimensionless. Support {0, 1}, counting measure. Grey pixels are refused:
    over [0, 1] the formula integrates to less than 1, so it is no density (Loaiza-Ganem & Cunningham 2019, The
    continuous Bernoulli).
    """

    family, parameter_names, heads = "bernoulli", ("logits",), 1
    base_measure = "counting"
    support = Support(kind="levels", lowest=0.0, highest=1.0, step=1.0)
    units = "nats; log of a probability mass over the values 0 and 1"

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """0 and 1 as −1 and 1."""
        return 2.0 * x.to(dtype) - 1.0

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The one head is the logits."""
        return {"logits": heads[..., 0, :]}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−softplus((1 − 2x) l)."""
        logits = parameters["logits"]
        return -aligned(softplus, (1.0 - 2.0 * x.to(logits.dtype)) * logits).double()

    def mean(self, parameters: Parameters) -> Tensor:
        """P(1) = ½ + ½ tanh(l/2)."""
        return 0.5 + 0.5 * torch.tanh(0.5 * parameters["logits"])

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """1 with probability P(1)."""
        return torch.bernoulli(self.mean(parameters), generator=generator)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse anything but 0 and 1."""
        if not np.isin(rows, (0, 1)).all():
            raise Unusable("likelihood bernoulli: the data holds values other than 0 and 1, to which it gives no mass; "
                           "binarise the data, or use discretised_logistic")  # fmt: skip
