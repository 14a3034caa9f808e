"""Calibration: what is stored is what a seed makes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service import artifact, noise
from tests.kit import COMMITTED
from training import calibrate

FOLDERS = sorted(path.parent for path in COMMITTED.glob("*/*/manifest.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_the_stored_bank_is_the_one_that_its_seed_makes(folder: Path) -> None:
    """The manifest states a seed, so the noise beside it is that seed's, up to another machine's last digits."""
    found = artifact.read(folder)
    assert found.calibration is not None
    facts = found.manifest.calibration
    assert facts is not None
    made = noise.bank(facts.seed, facts.draws, found.manifest.latent_size)
    np.testing.assert_allclose(found.calibration["noise"], made.noise, atol=1e-5)


def test_calibrating_again_takes_no_noise_from_an_earlier_calibration(tiny: Path) -> None:
    """An artifact whose stored bank was made in another way is calibrated with the bank that the seed makes now."""
    folder = tiny / "tiny" / "1"
    found = artifact.read(folder)
    assert found.calibration is not None
    other = found.calibration | {"noise": found.calibration["noise"] * np.float32(-1)}
    artifact.rewrite(found, {}, {artifact.CALIBRATION: artifact.pack(other)})
    rows = calibrate.held_out_rows(found.manifest)
    references, _, bank = asyncio.run(calibrate.refer(folder, rows[:40], rows[:40], None))
    np.testing.assert_array_equal(bank.noise, noise.bank(0, 16, 2).noise)
    assert references.n == 40
