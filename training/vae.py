"""A VAE: encoder, decoder and likelihood, and the numbers that the five graphs give. Knows no objective and no file."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from service.artifact import Form
from training import likelihoods, missing, priors
from training.config import MlpEncoder, Run, Unusable
from training.data import DataSet
from training.embeddings import OneHot
from training.likelihoods import Likelihood, Parameters
from training.networks import Decoder, Encoder
from training.posteriors import Posterior
from training.priors import Prior, StandardNormal


class VAE(nn.Module):
    """q(z|x), p(x|z) and the prior p(z), N(0, I) unless another is given. x: (rows, *event); z: (rows, d).

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
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        self.prior = prior or StandardNormal()
        self.register_buffer("stand_in", stand_in)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.event_shape = event_shape

    @property
    def form(self) -> Form:
        """The forms of p(z) and q(z|x), as the manifest states them."""
        return Form(
            self.prior.family, getattr(self.encoder, "family", "diagonal_normal")
        )  # others' encoders say nothing

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return next(self.encoder.parameters()).dtype

    def train(self, mode: bool = True) -> Self:
        """Train, or be used: then what the encoder makes of the prior is made once."""
        super().train(mode)
        if not mode:
            with torch.no_grad():
                self.prior.renew(self.encoder)
        return self

    def posterior(self, x: Tensor) -> Posterior:
        """q(z|x)."""
        q: Posterior = self.encoder(self.encoded(x))
        return q

    def encoded(self, x: Tensor) -> Tensor:
        """Rows as the encoder is given them, (rows, D); with room for missing values, (rows, D + marks)."""
        filled, seen = self._without_holes(x)
        if self.stand_in is None or seen is None:
            return self.likelihood.standardised(filled, self.dtype)
        # From where the stand-in is: exactly 0 where a value is missing, however many numbers a family makes of it. It
        # is the last of the rows, for what a graph makes of constants alone is bounded from above before it is opened.
        every = self.likelihood.standardised(torch.cat((filled, self.stand_in.unsqueeze(0))), self.dtype)
        return torch.cat((every[:-1] - every[-1:], seen.to(self.dtype)), -1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), (rows, k, d) → (rows, k), float64."""
        if self.training:
            self.prior.renew(self.encoder)
        return self.prior.log_density(z.to(self.dtype))

    def kl(self, q: Posterior) -> Tensor | None:
        """KL(q(z|x) ‖ p(z)), split over the latents, (rows, d); None where it has no closed form."""
        return q.kl() if self.prior.family == "standard_normal" else None

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
    one_hot = _one_hot(run, likelihood, data.event_shape)
    size = math.prod(data.event_shape)
    stand_in = torch.from_numpy(missing.stand_in(data.splits["fit"]).reshape(-1)) if run.missing else None
    marks = 0 if stand_in is None else size
    seen = likelihood.input_shape(data.event_shape)
    encoder = Encoder(run.encoder, seen, run.latent_size, marks, run.posterior, one_hot)
    decoder = Decoder(run.decoder, data.event_shape, run.latent_size, likelihood.head_shape(size))
    made = VAE(encoder, decoder, likelihood, data.event_shape, stand_in)
    made.prior = priors.build(run.prior, run.latent_size, made.encoded(torch.from_numpy(data.splits["fit"])))
    return made


def _one_hot(run: Run, likelihood: Likelihood, event_shape: tuple[int, ...]) -> tuple[OneHot, ...]:
    """Where the encoder finds the levels that it is to have an embedding of; Unusable where there are none."""
    if not isinstance(run.encoder, MlpEncoder):
        if likelihood.input_shape(event_shape) != event_shape:
            several = f"likelihood {likelihood.family} gives it several numbers for one of x"
            raise Unusable(f"encoder {run.encoder.kind}: {several}; use an mlp")
        return ()
    if run.encoder.embedding is None:
        return ()
    likelihood.by_level()
    if not (found := likelihood.one_hot(event_shape)):
        raise Unusable("encoder.embedding: no column is categorical or ordinal; leave it out")
    return found
