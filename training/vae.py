"""A VAE: encoder, decoder and likelihood, and the numbers that the five graphs give. Knows no objective and no file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import likelihoods, missing
from training.config import Run
from training.data import DataSet
from training.likelihoods import Likelihood, Parameters
from training.networks import Decoder, DiagonalNormal, Encoder


class VAE(nn.Module):
    """q(z|x), p(x|z) and the prior p(z) = N(0, I). x: (rows, *event); z: (rows, d).

    With a stand-in, one value a feature on the support, (D,), values of x may be missing: NaN. The encoder then sees
    0 there and beside it which values it sees, and the likelihood's terms of missing values are exactly 0, so

        E_q[Σ_observed log p(x_j|z)] − KL(q(z|x_observed) ‖ p(z)) ≤ log p(x_observed)

    (MIWAE: Mattei & Frellsen 2019), for p(x_observed) is p(x) with the factors of the others integrated to 1.
    """

    stand_in: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        likelihood: Likelihood,
        event_shape: tuple[int, ...],
        stand_in: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("stand_in", stand_in)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.event_shape = event_shape

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return next(self.encoder.parameters()).dtype

    def posterior(self, x: Tensor) -> DiagonalNormal:
        """q(z|x)."""
        filled, seen = self._without_holes(x)
        standard = self.likelihood.standardised(filled, self.dtype)
        if self.stand_in is not None and seen is not None:
            # From where the stand-in is: exactly 0 where a value is missing, however many numbers a family makes of it.
            standard = standard - self.likelihood.standardised(self.stand_in.unsqueeze(0), self.dtype)
            standard = torch.cat((standard, seen.to(self.dtype)), -1)
        q: DiagonalNormal = self.encoder(standard)
        return q

    def parameters_at(self, z: Tensor) -> Parameters:
        """The parameters of p(x|z) with flat events; z (rows, d) → (rows, D) each, or (D,) where no row differs."""
        return self.likelihood.parameters_of(self.decoder(z.to(self.dtype)))

    def feature_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_j|z) of each number of x at each of its draws, z (rows, k, d) → (rows, k, D), float64.

        Exactly 0 where x_j is missing.
        """
        rows, draws, latent_size = z.shape
        parameters = self.parameters_at(z.reshape(rows * draws, latent_size))
        each = {name: self._per_draw(name, value, rows, draws) for name, value in parameters.items()}
        filled, seen = self._without_holes(x)
        terms = self.likelihood.log_prob(filled.unsqueeze(1), each)
        return terms if seen is None else torch.where(seen.unsqueeze(1), terms, 0.0)

    def _per_draw(self, name: str, value: Tensor, rows: int, draws: int) -> Tensor:
        """(rows·draws, D, …) → (rows, draws, D, …); what no row differs in stays (D, …)."""
        shared = value.dim() == len(self.likelihood.parameter_shape(name, (1,)))
        return value if shared else value.reshape(rows, draws, *value.shape[1:])

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), z (rows, k, d) → (rows, k), float64."""
        return likelihoods.total(self.feature_log_likelihood(x, z))

    def _without_holes(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Flat rows with the stand-in where a value is missing, and which are seen; None where all must be."""
        flat = x.flatten(1)
        if self.stand_in is None:
            return flat, None
        seen = ~torch.isnan(flat)
        return torch.where(seen, flat, self.stand_in), seen


def build(run: Run, data: DataSet) -> VAE:
    """A VAE with fresh weights, the same for the same seed; Unusable where the run's parts don't go together."""
    torch.manual_seed(run.seed)
    likelihood = likelihoods.build(run.likelihood, data.without_holes())
    size = int(torch.Size(data.event_shape).numel())
    stand_in = torch.from_numpy(missing.stand_in(data.splits["fit"]).reshape(-1)) if run.missing else None
    marks = 0 if stand_in is None else size
    encoder = Encoder(run.encoder, likelihood.input_shape(data.event_shape), run.latent_size, marks)
    decoder = Decoder(run.decoder, data.event_shape, run.latent_size, likelihood.head_shape(size))
    return VAE(encoder, decoder, likelihood, data.event_shape, stand_in)
