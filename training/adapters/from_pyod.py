"""PyOD's VAE. Imports PyOD only when it is called, as whoever has such a detector has it too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.adapters.parts import Arguments, expect, settled
from training.config import Unusable

OF_SCALE = 1e-8  # what PyOD adds to a column's standard deviation


def pyod(detector: Any) -> Arguments:
    """A fitted `pyod.models.vae.VAE` as arguments of `training.export`, to be scored by its bound.

    PyOD's own score is the distance from one random reconstruction: it has no scale, no KL, and another value at each
    call. Here x given z is normal with a scale a feature that export estimates on held-out rows, and the KL counts in
    full, though PyOD's training may have clamped it (capacity = 0, its default, trains with none at all).
    """
    from pyod.models.vae import VAE

    expect(detector, VAE, "pyod: a pyod.models.vae.VAE")
    if not hasattr(detector, "decision_scores_"):
        raise Unusable("pyod: the detector isn't fitted; call .fit(rows) on it first")
    model = settled(getattr(detector.model, "_orig_mod", detector.model))  # torch.compile keeps the module there
    arguments = Arguments(
        encoder=Encoder(model, detector.logvar_clip).eval(),
        decoder=Decoder(model).eval(),
        encoder_gives="log_variance",
        decoder_gives="mean",
        likelihood="normal",
        description=_trained(detector),
    )
    if detector.preprocessing:
        arguments["preprocessing"] = {
            "shift": np.asarray(detector.X_mean, np.float64),
            "scale": np.asarray(detector.X_std, np.float64) + OF_SCALE,
        }
    return arguments


def _trained(detector: Any) -> str:
    """What it was trained for, in words."""
    kl = f"β = {detector.beta:g} times a KL clamped at {detector.capacity:g}" if detector.capacity > 0 else "no KL"
    return f"PyOD VAE, trained for the mean squared error with {kl}"


class Encoder(nn.Module):
    """Standardised x → mean and log variance, clipped as PyOD's draws are."""

    def __init__(self, model: nn.Module, clip: tuple[float, float] | None) -> None:
        super().__init__()
        self.model, self.clip = model, clip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each latent, (n, d)."""
        mean, log_variance = self.model.encode(x)  # type: ignore[operator]  # PyOD's method
        return mean, log_variance if self.clip is None else torch.clamp(log_variance, *self.clip)


class Decoder(nn.Module):
    """z → the mean of standardised x."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        """(n, features)."""
        mean: Tensor = self.model.decode(z)  # type: ignore[operator]  # PyOD's method
        return mean
