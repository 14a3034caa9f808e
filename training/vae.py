"""A VAE: encoder, decoder and likelihood, and the numbers that the five graphs give. Knows no objective and no file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import likelihoods
from training.config import Run
from training.data import DataSet
from training.likelihoods import Likelihood, Parameters
from training.networks import Decoder, DiagonalNormal, Encoder


class VAE(nn.Module):
    """q(z|x), p(x|z) and the prior p(z) = N(0, I). x: (rows, *event); z: (rows, d)."""

    def __init__(
        self, encoder: Encoder, decoder: Decoder, likelihood: Likelihood, event_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.event_shape = event_shape

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return next(self.encoder.parameters()).dtype

    def posterior(self, x: Tensor) -> DiagonalNormal:
        """q(z|x)."""
        q: DiagonalNormal = self.encoder(self.likelihood.standardised(x.flatten(1), self.dtype))
        return q

    def parameters_at(self, z: Tensor) -> Parameters:
        """The parameters of p(x|z) with flat events; z (rows, d) → (rows, D) each, or (D,) where no row differs."""
        return self.likelihood.parameters_of(self.decoder(z.to(self.dtype)))

    def feature_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_j|z) of each number of x at each of its draws, z (rows, k, d) → (rows, k, D), float64."""
        rows, draws, latent_size = z.shape
        parameters = self.parameters_at(z.reshape(rows * draws, latent_size))
        each = {name: self._per_draw(name, value, rows, draws) for name, value in parameters.items()}
        return self.likelihood.log_prob(x.flatten(1).unsqueeze(1), each)

    def _per_draw(self, name: str, value: Tensor, rows: int, draws: int) -> Tensor:
        """(rows·draws, D, …) → (rows, draws, D, …); what no row differs in stays (D, …)."""
        shared = value.dim() == len(self.likelihood.parameter_shape(name, (1,)))
        return value if shared else value.reshape(rows, draws, *value.shape[1:])

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), z (rows, k, d) → (rows, k), float64."""
        return likelihoods.total(self.feature_log_likelihood(x, z))


def build(run: Run, data: DataSet) -> VAE:
    """A VAE with fresh weights, the same for the same seed; Unusable where the run's parts don't go together."""
    torch.manual_seed(run.seed)
    likelihood = likelihoods.build(run.likelihood, data)
    encoder = Encoder(run.encoder, likelihood.input_shape(data.event_shape), run.latent_size)
    heads = likelihood.head_shape(int(torch.Size(data.event_shape).numel()))
    decoder = Decoder(run.decoder, data.event_shape, run.latent_size, heads)
    return VAE(encoder, decoder, likelihood, data.event_shape)
