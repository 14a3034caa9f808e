"""Noise: standard normal whatever the seed, deterministic, and row by row."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from service import frames, noise


@pytest.mark.parametrize(("draws", "d"), [(4, 5), (16, 1), (18, 5), (100, 33)])
def test_a_bank_is_standard_normal_over_seeds(draws: int, d: int) -> None:
    """One draw taken from each of many banks is a standard normal sample, in every coordinate alike."""
    picked = np.array([noise.bank(seed, draws, d).noise[seed % draws, seed % d] for seed in range(200)])
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


def test_the_frames_of_a_bank_are_independent() -> None:
    """The groups whose spread gives the error share no randomness: their means are uncorrelated over seeds."""
    means = np.array(
        [[part.mean() for part in np.split(noise.bank(seed, 16, 1).noise[:, 0], 4)] for seed in range(300)]
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


@pytest.mark.parametrize(("size", "d"), [(1, 2), (4, 1), (5, 3), (16, 8), (70, 9)])
def test_each_draw_of_a_frame_is_standard_normal(size: int, d: int) -> None:
    """At each place, over many frames: its squared length is χ²_d and a coordinate N(0, 1)."""
    made = np.array([frames.frame(np.random.default_rng([size, seed]), size, d) for seed in range(200)])
    for place in {0, size // 2, size - 1}:
        assert stats.kstest((made[:, place] ** 2).sum(-1), stats.chi2(d).cdf).pvalue > 1e-4
        assert stats.kstest(made[:, place, -1], "norm").pvalue > 1e-4


@pytest.mark.parametrize("d", [2, 8])
def test_functions_of_every_degree_are_unbiased(d: int) -> None:
    """Means over frames of functions that are neither linear nor quadratic are what they are under N(0, I)."""
    made = np.array([frames.frame(np.random.default_rng([7, seed]), 16, d) for seed in range(300)])
    first, second = made[..., 0], made[..., 1]
    exact = {"cos": (np.cos(2 * first), np.exp(-2.0)), "product": (first**2 * second**2, 1.0)}
    exact["cusp"] = (np.abs(first - second), 2 / np.sqrt(np.pi))
    for values, truth in exact.values():
        assert stats.ttest_1samp(values.mean(-1), truth).pvalue > 1e-4


@pytest.mark.parametrize(("size", "d"), [(4, 2), (16, 2), (4, 8), (16, 8), (4, 100), (16, 100)])
def test_a_frame_balances(size: int, d: int) -> None:
    """Linear terms all but cancel: the mean of a frame is far shorter than that of plain draws, which is √(d/size)."""
    made = np.array([frames.frame(np.random.default_rng([9, seed]), size, d) for seed in range(50)])
    assert np.median((made.mean(1) ** 2).sum(-1)) < 0.1 * d / size


def test_a_bank_does_not_depend_on_the_threads_that_make_it() -> None:
    """Sums that are taken in another order end at the same noise: draws are rounded to a coarser grid."""
    made = noise.bank(5, 256, 16).noise
    assert np.array_equal(made, np.rint(made * frames.GRID) / np.float32(frames.GRID))
    code = "import hashlib; from service import noise; print(hashlib.sha256(noise.bank(5, 256, 16).noise).hexdigest())"
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert said.stdout.strip() == hashlib.sha256(made.tobytes()).hexdigest()
