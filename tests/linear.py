"""A linear-Gaussian VAE in torch, in float64, whose posterior is a normal with covariances and is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import config
from training.likelihoods import Normal
from training.networks import Decoder, Encoder
from training.posteriors import FullNormal, Posterior
from training.vae import VAE

D, LATENTS = 3, 2


class Given(Encoder):
    """q(z|x) = N(Ax, L Lᵀ), the same L for every row."""

    def __init__(self, A: Tensor, root: Tensor) -> None:
        nn.Module.__init__(self)
        self.A, self.root = nn.Parameter(A), nn.Parameter(root)

    def forward(self, x: Tensor) -> Posterior:
        """The posterior."""
        root = torch.tril(self.root).expand(len(x), *self.root.shape)
        log_root = torch.log(torch.diagonal(root, dim1=1, dim2=2))
        return FullNormal(x @ self.A.T, 0.5 * torch.log((root * root).sum(-1)), root, log_root)


def linear(off: float) -> tuple[VAE, Tensor]:
    """A linear-Gaussian VAE whose encoder is exact but for a factor, and five rows; all in float64."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((200, D), generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]).double()
    likelihood = Normal(rows.numpy())
    decoder = Decoder(config.Mlp(kind="mlp", sizes=[1]), (D,), LATENTS, (1, D))
    W = torch.randn((D, LATENTS), generator=generator, dtype=torch.float64)
    decoder.body = nn.Sequential(nn.Linear(LATENTS, D).double())
    decoder.body[0].weight.data, decoder.body[0].bias.data = W, torch.zeros(D, dtype=torch.float64)
    parameters = likelihood.parameters_of(decoder(torch.zeros((1, LATENTS), dtype=torch.float64)))
    loc, scale = parameters["loc"][0], parameters["scale"].expand(D)
    slope = likelihood.parameters_of(decoder(torch.eye(LATENTS).double()))["loc"] - loc  # (d, D), in units of x
    precision = torch.eye(LATENTS).double() + (slope / scale**2) @ slope.T
    unit = likelihood.standardised(torch.stack((loc, loc + 1.0)), torch.float64)  # x ↦ what the encoder is given
    assert torch.allclose(unit[0], torch.zeros(D).double(), atol=1e-12)
    A = torch.linalg.solve(precision, slope / scale**2) / (unit[1] - unit[0])
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    vae = VAE(Given(off * A, off * root), decoder, likelihood, (D,)).double()
    return vae, rows[:5]
