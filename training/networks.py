"""Networks: encoders x → q(z|x) and decoders z → the likelihood's heads. Know no likelihood; events are flat.

ReLU only: it is exact, cheap, and gives a row the same bits whatever batch it is in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training import config, posteriors
from training.config import Unusable
from training.embeddings import Embedded, OneHot
from training.posteriors import Posterior

SMALLER: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
LARGER: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


class Encoder(nn.Module):
    """Standardised x, (rows, D) → q(z|x); with marks, (rows, D + marks), which say of each value whether it is seen.

    one_hot: where among the D are levels, for a network that has an embedding of them.
    """

    def __init__(
        self,
        wanted: config.Network,
        event_shape: tuple[int, ...],
        latent_size: int,
        marks: int = 0,
        posterior: config.Posterior = config.DIAGONAL,
        one_hot: Sequence[OneHot] = (),
    ) -> None:
        super().__init__()
        form = posteriors.build(posterior, latent_size)
        self.body = _encoder_body(wanted, event_shape, form.numbers, marks, one_hot)
        self.form, self.family = form, form.family

    def forward(self, x: Tensor) -> Posterior:
        """The posterior."""
        q: Posterior = self.form(self.body(x).to(x.dtype))  # within mixed precision too
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
        heads: Tensor = self.body(z).to(z.dtype).reshape(z.shape[0], *self.heads)
        return heads


class Block(nn.Module):
    """x + gain · conv(ReLU(conv(ReLU(x)))), the gain one number that is learned from 0 (De & Smith 2020, SkipInit).

    There is no normaliser: batch norm's rows depend on their batch, and others sum over an event, maybe to other bits
    at another place of it.
    """

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        conv = SMALLER[axes]
        self.first = conv(channels, channels, 3, padding=1)
        self.second = conv(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape, (rows, channels, *sides)."""
        within: Tensor = self.second(torch.relu(self.first(torch.relu(x))))
        return x + self.gain * within


def _encoder_body(
    wanted: config.Network, event_shape: tuple[int, ...], out: int, marks: int, one_hot: Sequence[OneHot]
) -> nn.Sequential:
    size = math.prod(event_shape)
    if isinstance(wanted, config.Mlp):
        embedding = wanted.embedding if isinstance(wanted, config.MlpEncoder) else None
        if embedding is None:
            return _dense([size + marks, *wanted.sizes, out])
        embedded = Embedded(size + marks, one_hot, embedding)
        return nn.Sequential(embedded, *_dense([embedded.width, *wanted.sizes, out]))
    colours, sides = _grid(wanted, event_shape)
    channels = colours * (1 + marks // size)  # marks are a second picture
    conv = SMALLER[len(sides)]
    halving: list[nn.Module] = [nn.Unflatten(1, (channels, *sides))]
    for before, after in itertools.pairwise((channels, *wanted.sizes)):
        halving += [conv(before, after, 4, stride=2, padding=1), *_blocks(wanted, after, len(sides)), nn.ReLU()]
    smallest = math.prod(_smallest(wanted, event_shape))
    return nn.Sequential(*halving, nn.Flatten(), *_dense([wanted.sizes[-1] * smallest, wanted.dense, out]))


def _decoder_body(
    wanted: config.Network, event_shape: tuple[int, ...], latent_size: int, heads: tuple[int, int]
) -> nn.Sequential:
    if isinstance(wanted, config.Mlp):
        return _dense([latent_size, *wanted.sizes, heads[0] * heads[1]])
    if heads[1] != math.prod(event_shape):
        raise Unusable(
            f"decoder {wanted.kind}: the columns of a mixed table have parameters of their own; say kind: mlp"
        )
    colours, sides = _grid(wanted, event_shape)
    smallest = _smallest(wanted, event_shape)
    first = wanted.sizes[0]
    doubling: list[nn.Module] = [nn.ReLU(), nn.Unflatten(1, (first, *smallest))]
    for before, after in itertools.pairwise((*wanted.sizes, wanted.sizes[-1])):
        if blocks := _blocks(wanted, before, len(sides)):
            doubling += [*blocks, nn.ReLU()]
        doubling += [LARGER[len(sides)](before, after, 4, stride=2, padding=1), nn.ReLU()]
    doubling += [SMALLER[len(sides)](wanted.sizes[-1], heads[0] * colours, 3, padding=1), nn.Flatten()]
    return nn.Sequential(*_dense([latent_size, wanted.dense, first * math.prod(smallest)]), *doubling)


def _dense(sizes: list[int]) -> nn.Sequential:
    """Dense layers with ReLU between."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _blocks(wanted: config.Conv | config.Residual, channels: int, axes: int) -> list[nn.Module]:
    """The residual blocks at a size, if the network has any."""
    count = wanted.blocks if isinstance(wanted, config.Residual) else 0
    return [Block(channels, axes) for _ in range(count)]


def _grid(wanted: config.Conv | config.Residual, event_shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """An event's channels, 1 where it has no axis for them, and its sides: two of a picture, one of a window."""
    axes = 1 if wanted.kind.endswith("1d") else 2
    if len(event_shape) not in (axes, axes + 1):
        raise Unusable(_unfit(wanted, event_shape))
    return (event_shape[0], event_shape[1:]) if len(event_shape) > axes else (1, event_shape)


def _smallest(wanted: config.Conv | config.Residual, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sides after every halving; Unusable where they can't be halved so often."""
    factor = 2 ** len(wanted.sizes)
    _, sides = _grid(wanted, event_shape)
    if any(side % factor for side in sides):
        raise Unusable(_unfit(wanted, event_shape))
    return tuple(side // factor for side in sides)


def _unfit(wanted: config.Conv | config.Residual, event_shape: tuple[int, ...]) -> str:
    """Why a network and an event don't go together."""
    count, shape = len(wanted.sizes), "×".join(map(str, event_shape))
    needed = "a window whose length divides" if wanted.kind.endswith("1d") else "a picture whose sides divide"
    return f"network {wanted.kind}: {count} sizes need {needed} by {2**count}, not {shape}"
