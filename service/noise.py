"""Noise: seeds become standard normal draws. Knows nothing of models; every graph takes its noise as an input.

A score uses one *bank* per (seed, draws), the same for every row. Encoding and sampling use one *generator* a
request, filled row by row, so that what a row gets does not depend on how the request is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service import frames

Floats = NDArray[np.float32] | NDArray[np.float64]

FRAMES = 4  # independent frames sharing the draws of a bank; their spread gives the error
FEWEST_FRAMED = 16  # below this many draws a frame has too few to balance, and they are plain
SEEDS = 2**53  # seeds are integers that every JSON reader holds exactly


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """The noise of one estimator: standard normal draws and the groups whose spread is its error.

    noise: (draws, latent_size) float32. groups: how many consecutive draws belong to each independent frame;
    one group for each draw when the draws are plain.
    """

    seed: int
    noise: NDArray[np.float32]
    groups: tuple[int, ...]

    @property
    def draws(self) -> int:
        """How many draws of the latent the bank holds."""
        return len(self.noise)

    @property
    def weights(self) -> NDArray[np.float64]:
        """What each draw weighs in the mean of the groups' means; (draws,), sums to 1."""
        return _weights(self.groups)


@lru_cache(maxsize=64)
def _weights(groups: tuple[int, ...]) -> NDArray[np.float64]:
    sizes = np.repeat(np.asarray(groups, np.float64), groups)
    weights = np.asarray(1.0 / (len(groups) * sizes), np.float64)
    weights.setflags(write=False)
    return weights


def groups(draws: int) -> tuple[int, ...]:
    """How a bank of so many draws is shared out among independent groups.

    >>> groups(16), groups(18), groups(3)
    ((4, 4, 4, 4), (5, 5, 4, 4), (1, 1, 1))
    """
    if draws < FEWEST_FRAMED:
        return (1,) * draws
    share, over = divmod(draws, FRAMES)
    return tuple(share + (frame < over) for frame in range(FRAMES))


@lru_cache(maxsize=32)
def bank(seed: int, draws: int, latent_size: int) -> Bank:
    """The bank for a seed: four independent frames from 16 draws on, plain draws below.

    >>> bank(0, 16, 2).noise.shape
    (16, 2)
    """
    sizes = groups(draws)
    if draws < FEWEST_FRAMED:
        noise = normals(seed, (draws, latent_size))
    else:
        made = [frames.frame(np.random.default_rng([seed, i]), size, latent_size) for i, size in enumerate(sizes)]
        noise = np.concatenate(made).astype(np.float32)
    noise.setflags(write=False)
    return Bank(seed, noise, sizes)


def generator(seed: int, purpose: int = 0) -> np.random.Generator:
    """A request's generator; different purposes of one seed are independent streams."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


def normals(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normals for a request, filled row by row.

    >>> (normals(7, (5, 2))[:3] == normals(7, (3, 2))).all()
    np.True_
    """
    return generator(seed).standard_normal(shape).astype(np.float32)


def fresh_seed() -> int:
    """A seed from the system's entropy, below 2^53."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] % SEEDS)


@lru_cache(maxsize=10)  # those of two plans; one of 16,384 draws in 128 latents holds 10 MB
def sheet(
    seed: int, purpose: tuple[int, ...], groups: int, size: int, latent_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Uniforms (groups·size,) and standard normals (latent_size, groups·size) of independent Sobol scrambles.

    Each group is one scramble of latent_size + 1 dimensions, the first of which is the uniform: whatever it chooses
    is chosen as often as it should be. Different purposes of a seed are independent streams.

    >>> [array.shape for array in sheet(0, (1,), 4, 10, 2)]
    [(40,), (2, 40)]
    """
    from scipy.special import ndtri

    scrambled = [_points(seed, (*purpose, group), size, latent_size + 1) for group in range(groups)]
    points = np.ascontiguousarray(np.concatenate(scrambled).T)
    uniform, normal = points[0], np.asarray(ndtri(points[1:]), np.float64)
    uniform.setflags(write=False)
    normal.setflags(write=False)
    return uniform, normal


def _points(seed: int, purpose: tuple[int, ...], size: int, width: int) -> NDArray[np.float64]:
    """The first `size` points of an Owen-scrambled Sobol sequence, inside the unit cube.

    Points are taken from a whole power of two, since SciPy warns about any other count, and shifted by half of
    the 2^-30 grid, so that none is 0 and the inverse normal stays finite.
    """
    from scipy.stats import qmc

    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))
    sequence = qmc.Sobol(width, scramble=True, bits=30, rng=rng)
    return np.asarray(sequence.random_base2(max(0, (size - 1).bit_length()))[:size] + 2.0**-31)
