"""Calibration: what is stored is what a seed makes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from service import artifact, noise
from tests.kit import COMMITTED
from training import calibrate
from training.config import Unusable


def test_a_bank_that_its_seed_does_not_make_is_not_stored() -> None:
    """The manifest states a seed, so the noise beside it has to be that seed's."""
    bank = noise.bank(0, 16, 2)
    calibrate.hold_to_seed(bank)
    with pytest.raises(Unusable, match="not what seed 0 makes"):
        calibrate.hold_to_seed(dataclasses.replace(bank, noise=bank.noise + np.float32(1)))


def test_an_earlier_calibration_is_replaced_with_its_noise(tmp_path: Path) -> None:
    """Whatever bank it was made with, the new one is what its seed makes now, and so are its scores."""
    folder = Path(shutil.copytree(COMMITTED / "tiny" / "1", tmp_path / "1"))
    before = artifact.read(folder)
    assert before.manifest.calibration is not None
    assert before.calibration is not None
    other = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    facts = before.manifest.calibration.model_dump() | {"estimator": "sobol_scrambles_4"}
    packed = artifact.pack({**before.calibration, "noise": other})
    artifact.rewrite(before, {"calibration": facts}, {artifact.CALIBRATION: packed})
    facts_now = calibrate.calibrate(folder)
    after = artifact.read(folder).calibration
    assert after is not None
    assert facts_now.estimator == "frames_4"
    assert np.array_equal(after["noise"], noise.bank(0, 16, 2).noise)
