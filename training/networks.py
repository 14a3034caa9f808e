"""Networks: encoders x → q(z|x) and decoders z → the likelihood's heads. Know no likelihood; events are flat.

ReLU only: it is exact, cheap, and gives a row the same bits whatever batch it is in.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from training import config, posteriors
from training.config import Unusable
from training.posteriors import Posterior


class Encoder(nn.Module):
    """Standardised x, (rows, D) → q(z|x); with marks, (rows, D + marks), which say of each value whether it is seen."""

    def __init__(
        self,
        wanted: config.Network,
        event_shape: tuple[int, ...],
        latent_size: int,
        marks: int = 0,
        posterior: config.Posterior = config.DIAGONAL,
    ) -> None:
        super().__init__()
        form = posteriors.build(posterior, latent_size)
        self.body = _encoder_body(wanted, event_shape, form.numbers, marks)
        self.form, self.family = form, form.family

    def forward(self, x: Tensor) -> Posterior:
        """The posterior."""
        q: Posterior = self.form(self.body(x))
        return q


class Decoder(nn.Module):
    """z, (rows, d) → the likelihood's heads, (rows, heads, D); a mixed table has them all in one row."""

    def __init__(
        self, wanted: config.Network, event_shape: tuple[int, ...], latent_size: int, heads: tuple[int, int]
    ) -> None:
        super().__init__()
        self.heads = heads
        self.body = _decoder_body(wanted, event_shape, latent_size, heads)

    def forward(self, z: Tensor) -> Tensor:
        """The heads."""
        heads: Tensor = self.body(z).reshape(z.shape[0], *self.heads)
        return heads


def _encoder_body(wanted: config.Network, event_shape: tuple[int, ...], out: int, marks: int) -> nn.Sequential:
    size = int(torch.Size(event_shape).numel())
    if isinstance(wanted, config.Mlp):
        return _dense([size + marks, *wanted.sizes, out])
    colours, sides = _picture(event_shape)
    channels = colours * (1 + marks // size)  # marks are a second picture
    height, width = _smallest(event_shape, len(wanted.sizes))
    halving: list[nn.Module] = [nn.Unflatten(1, (channels, *sides))]
    for before, after in itertools.pairwise((channels, *wanted.sizes)):
        halving += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*halving, nn.Flatten(), *_dense([wanted.sizes[-1] * height * width, wanted.dense, out]))


def _decoder_body(
    wanted: config.Network, event_shape: tuple[int, ...], latent_size: int, heads: tuple[int, int]
) -> nn.Sequential:
    if isinstance(wanted, config.Mlp):
        return _dense([latent_size, *wanted.sizes, heads[0] * heads[1]])
    height, width = _smallest(event_shape, len(wanted.sizes))
    first = wanted.sizes[0]
    doubling: list[nn.Module] = [nn.ReLU(), nn.Unflatten(1, (first, height, width))]
    for before, after in itertools.pairwise((*wanted.sizes, wanted.sizes[-1])):
        doubling += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    colours, _ = _picture(event_shape)
    doubling += [nn.Conv2d(wanted.sizes[-1], heads[0] * colours, 3, padding=1), nn.Flatten()]
    return nn.Sequential(*_dense([latent_size, wanted.dense, first * height * width]), *doubling)


def _dense(sizes: list[int]) -> nn.Sequential:
    """Dense layers with ReLU between."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _picture(event_shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """A picture's channels and its sides: (height, width) has one channel, (channels, height, width) its own."""
    return (event_shape[0], event_shape[1:]) if len(event_shape) == 3 else (1, event_shape)


def _smallest(event_shape: tuple[int, ...], halvings: int) -> tuple[int, int]:
    """The picture's size after so many halvings; Unusable where it can't be halved so often."""
    factor = 2**halvings
    _, sides = _picture(event_shape)
    if len(sides) != 2 or any(side % factor for side in sides):
        shape = "×".join(map(str, event_shape))
        raise Unusable(f"network conv: {halvings} sizes need a picture whose sides divide by {factor}, not {shape}")
    return sides[0] // factor, sides[1] // factor
