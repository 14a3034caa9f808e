"""Calibration: what is stored is what a seed makes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from service import noise
from training import calibrate
from training.config import Unusable


def test_a_bank_that_its_seed_does_not_make_is_not_stored() -> None:
    """The manifest states a seed, so the noise beside it has to be that seed's."""
    bank = noise.bank(0, 16, 2)
    calibrate.hold_to_seed(bank)
    with pytest.raises(Unusable, match="not what seed 0 makes"):
        calibrate.hold_to_seed(dataclasses.replace(bank, noise=bank.noise + np.float32(1)))
