"""Noise: standard normal whatever the seed, deterministic, and row by row."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from service import noise


@pytest.mark.parametrize("draws", [4, 16, 18, 100])
@pytest.mark.parametrize("d", [1, 5, 33])
def test_a_bank_is_standard_normal_over_seeds(draws: int, d: int) -> None:
    """One draw taken from each of many banks is a standard normal sample, in every coordinate alike."""
    picked = np.array([noise.bank(seed, draws, d).noise[seed % draws, seed % d] for seed in range(500)])
    assert stats.kstest(picked, "norm").pvalue > 1e-4
    assert np.isfinite(picked).all()


@pytest.mark.parametrize("draws", [1, 15, 16, 21, 64])
def test_a_bank_is_a_function_of_its_seed_and_draws(draws: int) -> None:
    """Made again it is the same to the last bit; with another seed it is another."""
    noise.bank.cache_clear()
    first = noise.bank(3, draws, 4).noise.copy()
    noise.bank.cache_clear()
    assert np.array_equal(first, noise.bank(3, draws, 4).noise)
    assert not np.array_equal(first, noise.bank(4, draws, 4).noise)


def test_the_scrambles_of_a_bank_are_independent() -> None:
    """The groups whose spread gives the error share no randomness: their means are uncorrelated over seeds."""
    means = np.array(
        [[part.mean() for part in np.split(noise.bank(seed, 16, 1).noise[:, 0], 4)] for seed in range(500)]
    )
    for a in range(4):
        for b in range(a):
            assert stats.pearsonr(means[:, a], means[:, b]).pvalue > 1e-4


def test_a_request_is_filled_row_by_row() -> None:
    """A row's draws don't depend on how many rows come after it."""
    assert np.array_equal(noise.normals(9, (3, 4, 2)), noise.normals(9, (8, 4, 2))[:3])


def test_the_largest_seed_is_taken() -> None:
    """Seeds reach up to 2^53 − 1, and those drawn stay below."""
    assert np.isfinite(noise.bank(2**53 - 1, 16, 2).noise).all()
    assert all(0 <= noise.fresh_seed() < 2**53 for _ in range(50))
