"""Adapters: other libraries' models → the arguments of `training.export`. Know no graph, no file and no score.

    training.export(**training.adapters.pythae(model), sample=rows, name="mine")

Each takes a copy, settled in eval mode and float32, so that nothing happens to the model that is handed in. Unusable,
with the reason, where an honest score can't be had.
"""  # fmt: skip

from training.adapters.from_diffusers import diffusers
from training.adapters.from_lightning import lightning
from training.adapters.from_pyod import pyod
from training.adapters.from_pythae import pythae
from training.adapters.parts import Arguments

__all__ = ["Arguments", "diffusers", "lightning", "pyod", "pythae"]
