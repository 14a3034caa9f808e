"""Subjects: the models that speed and memory are measured on, made by our trainer with random weights.

Measures nothing.

    mlp    784-512-256-32, Bernoulli, about 2 MFLOP a row
    large  784-4096-2560-32, Bernoulli, 111 MB of weights, in every graph that needs them or shared by all
    conv   3×64×64, convolutions down to 4×4 and up again, Normal, about 36 MFLOP a row

A row is one draw: one pass of the encoder and one of the decoder, which is what the score graph costs with K = 1.

    folder = mlp(models)             an artifact at models/mlp/1, through the whole export with all of its checks
    vae = fitted_mlp().vae           the same weights as a torch module
    flops(vae, (784,))               what the table calls a row's work
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.artifact import Support
from training import config, vae
from training import exporting as export
from training.config import Run
from training.data import DataSet
from training.fit import Fitted
from training.vae import VAE

ROWS = {"fit": 320, "validation": 8, "calibration": 8, "test": 64}
SOURCE = "random numbers: the weights are random too, and only the work is real"

MLP: dict[str, Any] = {
    "name": "mlp",
    "description": "An MLP of 784-512-256-32 with random weights, for measuring speed",
    "encoder": {"kind": "mlp", "sizes": [512, 256]},
    "decoder": {"kind": "mlp", "sizes": [256, 512]},
    "latent_size": 32,
    "likelihood": {"family": "bernoulli"},
}
LARGE: dict[str, Any] = {
    "name": "large",
    "description": "An MLP of 784-4096-2560-32 with random weights, for measuring memory",
    "encoder": {"kind": "mlp", "sizes": [4096, 2560]},
    "decoder": {"kind": "mlp", "sizes": [2560, 4096]},
    "latent_size": 32,
    "likelihood": {"family": "bernoulli"},
}
CONV: dict[str, Any] = {
    "name": "conv",
    "description": "Convolutions on 3×64×64 with random weights, for measuring speed",
    "encoder": {"kind": "conv", "sizes": [16, 32, 64, 64], "dense": 256},
    "decoder": {"kind": "conv", "sizes": [64, 64, 32, 16], "dense": 256},
    "latent_size": 32,
    "likelihood": {"family": "normal", "scale": "shared"},
}


def mlp(to: Path) -> Path:
    """The MLP's artifact, at to/mlp/1, and where it is."""
    return _exported(fitted_mlp(), to)


def conv(to: Path) -> Path:
    """The convolutional one's, at to/conv/1, and where it is."""
    return _exported(fitted_conv(), to)


def fitted_mlp() -> Fitted:
    """The MLP as if it had been fitted; rows are 0 and 1, in float32. The same weights every time."""
    return _fitted(MLP, Support(kind="levels", lowest=0.0, highest=1.0, step=1.0), _bits)


def large(inline: Path, shared: Path) -> tuple[Path, Path]:
    """The large MLP with weights in every graph, at inline/large/1, and with weights that all share."""
    made, folders = fitted_large(), (inline / "large" / "1", shared / "large" / "1")
    if not all(folder.exists() for folder in folders):
        graphs = export.build(made.vae, made, say=lambda _: None)
        for each, folder in zip((graphs, export.sharing(graphs)), folders, strict=True):
            export.write(each, made, folder, replace=True, say=lambda _: None)
    return folders


def fitted_large() -> Fitted:
    """The large MLP as if it had been fitted."""
    return _fitted(LARGE, Support(kind="levels", lowest=0.0, highest=1.0, step=1.0), _bits)


def fitted_conv() -> Fitted:
    """The convolutional one; rows are real, in float32."""
    return _fitted(CONV, Support(kind="real", lowest=None, highest=None, step=None), _reals)


def flops(module: VAE, event_shape: tuple[int, ...]) -> int:
    """Floating-point operations of one row and one draw: two for each product in dense layers and convolutions."""
    counted = 0

    def count(layer: nn.Module, taken: tuple[torch.Tensor, ...], given: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(layer, nn.Linear):
            counted += 2 * layer.weight.numel()
        elif isinstance(layer, nn.ConvTranspose2d):  # each input number meets every weight of its channel
            counted += 2 * layer.weight.numel() * taken[0].shape[-1] * taken[0].shape[-2]
        elif isinstance(layer, nn.Conv2d):
            counted += 2 * layer.weight.numel() * given.shape[-1] * given.shape[-2]

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    with torch.no_grad():
        q = module.posterior(torch.zeros(1, *event_shape))
        module.parameters_at(q.moments()[0])
    for hook in hooks:
        hook.remove()
    return counted


def _fitted(given: dict[str, Any], support: Support, rows: Callable[[int, int], NDArray[np.float32]]) -> Fitted:
    run = config.check({**given, "data": {"name": "file", "path": "random.npy", "source": SOURCE}}, given["name"])
    assert isinstance(run, Run)
    splits = {name: rows(count, seed) for seed, (name, count) in enumerate(ROWS.items())}
    data = DataSet(SOURCE, support, splits)  # type: ignore[arg-type]  # its four names
    return Fitted(run, data, vae.build(run, data).eval().requires_grad_(False), [])


def _bits(count: int, seed: int) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).random((count, 784)) < 0.3).astype(np.float32)


def _reals(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, 64, 64)).astype(np.float32)


def _exported(made: Fitted, to: Path) -> Path:
    """What is there already is taken as it is: the convolutions' checks take minutes on a small machine."""
    folder = to / made.run.name / "1"
    return folder if folder.exists() else export.export(made, to, version=1, say=lambda _: None)
